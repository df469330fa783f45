//! What is configured about registries: `[image.registry."host:port"]`, and Docker's credentials file.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use super::error::RegistryError;

/// One registry's table in the configuration.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct HostConfig {
    /// True: HTTP, or HTTPS without looking at the certificate, will do.
    /// Absent: only for a registry on this machine (127.0.0.0/8, ::1, localhost).
    pub insecure: Option<bool>,
    /// Registries that are asked first, in this order ("mirror.example:5000").
    pub mirrors: Vec<String>,
    /// A PEM file of authorities that are trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// Name and password, for an engine that runs on its own.
    pub username: Option<String>,
    pub password: Option<String>,
}

/// What is known about registries.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// Tables by "host" or "host:port".
    pub tables: HashMap<String, HostConfig>,
    /// Docker's `config.json`, which may not exist.
    pub docker_config: Option<PathBuf>,
}

/// Who asks.
#[derive(Clone, Eq, PartialEq)]
pub enum Credentials {
    Password {
        username: String,
        password: String,
    },
    /// What a token service gave in place of a password (OAuth 2 refresh token).
    Identity {
        token: String,
    },
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "Password({username})"),
            Self::Identity { .. } => write!(f, "Identity"),
        }
    }
}

/// Docker's configuration, as far as it is read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerConfig {
    auths: HashMap<String, DockerAuth>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// The name under which Docker keeps the credentials for its own registry.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
pub(super) const DOCKER_HUB_API: &str = "registry-1.docker.io";

impl Hosts {
    pub(super) fn table(&self, host: &str) -> HostConfig {
        let hub = (host == DOCKER_HUB_API).then_some("docker.io");
        let table = self.tables.get(host).or_else(|| self.tables.get(hub?));
        table.cloned().unwrap_or_default()
    }

    /// Whether HTTP, or HTTPS with any certificate, will do.
    pub(super) fn is_insecure(&self, host: &str) -> bool {
        self.table(host).insecure.unwrap_or_else(|| is_local(host))
    }

    /// Credentials of the configuration for a registry, if there are any.
    /// Docker's file is read each time: a `docker login` counts at once.
    pub(super) fn credentials(&self, host: &str) -> Result<Option<Credentials>, RegistryError> {
        let table = self.table(host);
        if let (Some(username), Some(password)) = (table.username, table.password) {
            return Ok(Some(Credentials::Password { username, password }));
        }
        let Some(path) = &self.docker_config else {
            return Ok(None);
        };
        let failed = |source| RegistryError::Credentials {
            path: path.display().to_string(),
            source,
        };
        let config = read_docker_config(path).map_err(failed)?;
        let keys: &[&str] = if host == DOCKER_HUB_API {
            &[
                DOCKER_HUB_KEY,
                "docker.io",
                "index.docker.io",
                DOCKER_HUB_API,
            ]
        } else {
            &[host]
        };
        let found = config
            .auths
            .into_iter()
            .find(|(key, _)| keys.iter().any(|k| key == k || bare_host(key) == *k));
        found.map_or(Ok(None), |(_, auth)| auth.credentials().map_err(failed))
    }
}

fn bare_host(key: &str) -> &str {
    let key = key.strip_prefix("https://").unwrap_or(key);
    let key = key.strip_prefix("http://").unwrap_or(key);
    key.split('/').next().unwrap_or(key)
}

fn read_docker_config(path: &Path) -> io::Result<DockerConfig> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(DockerConfig::default()),
        Err(error) => Err(error),
    }
}

impl DockerAuth {
    fn credentials(self) -> io::Result<Option<Credentials>> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::Identity {
                token: self.identitytoken,
            }));
        }
        if !self.auth.is_empty() {
            let decoded = base64::engine::general_purpose::STANDARD
                .decode(self.auth.trim())
                .map_err(io::Error::other)?;
            let text = String::from_utf8(decoded).map_err(io::Error::other)?;
            let pair = text.trim_end_matches('\0').split_once(':');
            let (username, password) = pair
                .ok_or_else(|| io::Error::other("an \"auth\" is not of the form name:password"))?;
            return Ok(Some(Credentials::Password {
                username: username.to_owned(),
                password: password.to_owned(),
            }));
        }
        if self.username.is_empty() {
            // A credential helper has it, and helpers are not run.
            return Ok(None);
        }
        Ok(Some(Credentials::Password {
            username: self.username,
            password: self.password,
        }))
    }
}

/// Whether a registry is on this machine.
fn is_local(host: &str) -> bool {
    let bare = host_without_port(host);
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn host_without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_insecure_by_itself() {
        let mut hosts = Hosts::default();
        for local in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:80",
            "127.8.9.1",
            "[::1]:5000",
        ] {
            assert!(hosts.is_insecure(local), "{local}");
        }
        for remote in [
            "registry.example",
            "10.0.0.1:5000",
            "localhost.example",
            "1270.0.0.1",
        ] {
            assert!(!hosts.is_insecure(remote), "{remote}");
        }
        let table = HostConfig {
            insecure: Some(true),
            ..HostConfig::default()
        };
        hosts.tables.insert("10.0.0.1:5000".into(), table);
        assert!(hosts.is_insecure("10.0.0.1:5000"));
    }

    #[test]
    fn docker_s_credentials_are_found_under_every_spelling() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        // "bob:se:cret" and an identity token.
        let json = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"Ym9iOnNlOmNyZXQ="},
            "http://r.example:5000/v2/":{"identitytoken":"t"},
            "helper.example":{}}, "credsStore":"x"}"#;
        std::fs::write(&path, json).unwrap();
        let hosts = Hosts {
            docker_config: Some(path),
            ..Hosts::default()
        };
        assert_eq!(
            hosts.credentials(DOCKER_HUB_API).unwrap(),
            Some(Credentials::Password {
                username: "bob".into(),
                password: "se:cret".into()
            })
        );
        assert_eq!(
            hosts.credentials("r.example:5000").unwrap(),
            Some(Credentials::Identity { token: "t".into() })
        );
        assert_eq!(hosts.credentials("helper.example").unwrap(), None);
        assert_eq!(hosts.credentials("other.example").unwrap(), None);
    }
}
