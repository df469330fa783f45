//! The table `[registry]` of the configuration file.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// How the registry listens and what it allows.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address of the HTTP side: `127.0.0.1:5000`, `[::]:443`. Port 0: any that
    /// is free (the admin service's Status tells which). Empty: no HTTP side.
    pub listen: String,
    /// Certificate chain in PEM, the server's own first. With it and `tls_key`
    /// the registry speaks HTTPS only. Empty: HTTP.
    pub tls_cert: PathBuf,
    /// Private key in PEM.
    pub tls_key: PathBuf,
    /// Whether clients may delete tags, manifests and blobs over HTTP.
    pub delete_enabled: bool,
    /// Seconds after which an upload that nothing comes for is thrown away.
    pub upload_expiry_seconds: u64,
    /// Seconds for which a blob that no manifest names is spared by the garbage
    /// collection after it was pushed or asked for: a push may be under way.
    pub garbage_grace_seconds: u64,
    /// Most connections at a time; further ones wait to be taken.
    pub max_connections: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:5000".to_owned(),
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
            delete_enabled: true,
            upload_expiry_seconds: 24 * 3600,
            garbage_grace_seconds: 3600,
            max_connections: 1024,
        }
    }
}

impl Config {
    pub(crate) const fn upload_expiry(&self) -> Duration {
        Duration::from_secs(self.upload_expiry_seconds)
    }

    pub(crate) const fn garbage_grace(&self) -> Duration {
        Duration::from_secs(self.garbage_grace_seconds)
    }
}
