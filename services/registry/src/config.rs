//! The table `[registry]` of the configuration file.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// How the registry listens and what it allows.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address on the network: `127.0.0.1:5000`, `[::]:443`. Port 0: any that is
    /// free (the admin service's Status tells which). Empty: none; then only the
    /// service's Unix socket serves the distribution API.
    pub listen: String,
    /// Certificate chain in PEM, the server's own first. With it and `tls_key`
    /// the registry speaks HTTPS only. Empty: HTTP.
    pub tls_cert: PathBuf,
    /// Private key in PEM.
    pub tls_key: PathBuf,
    /// Whether clients on the network may delete tags, manifests and blobs, and
    /// replace tags that were pushed over the Unix socket. There are no accounts:
    /// whoever can connect may.
    pub delete_enabled: bool,
    /// Seconds after which an upload that nothing comes for is thrown away.
    pub upload_expiry_seconds: u64,
    /// Seconds for which a blob that no manifest names is spared by the garbage
    /// collection after it was pushed or asked for: a push may be under way.
    pub garbage_grace_seconds: u64,
    /// Most connections from the network at a time. A further one takes the place
    /// of one that is idle or stalled; while there is none, it waits.
    pub max_connections: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: String::new(),
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
            delete_enabled: false,
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
