//! Which registry credentials are for, whatever its spelling.

use std::fmt;

/// The name under which Docker keeps the credentials for its own registry.
pub const HUB_KEY: &str = "https://index.docker.io/v1/";

/// What Docker's own registry is called in various places.
const HUB_HOSTS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// A registry as the one who has credentials for it: "host", "host:port", or Docker Hub.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Server {
    host: String,
}

impl Server {
    /// Reads a server as a person or a file names it: with a scheme, a path, or neither. Empty: Docker Hub.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let host = bare_host(text.trim());
        let host = if host.is_empty() || HUB_HOSTS.contains(&host) {
            HUB_HOSTS[0]
        } else {
            host
        };
        Self {
            host: host.to_owned(),
        }
    }

    /// "host" or "host:port"; "docker.io" for Docker Hub.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    #[must_use]
    pub fn is_hub(&self) -> bool {
        self.host == HUB_HOSTS[0]
    }

    /// The name under which credentials for it are kept.
    #[must_use]
    pub fn key(&self) -> &str {
        if self.is_hub() { HUB_KEY } else { &self.host }
    }

    /// Whether a key of a file or of a helper means this server.
    #[must_use]
    pub fn is_named_by(&self, key: &str) -> bool {
        !key.is_empty() && Self::new(key) == *self
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

fn bare_host(key: &str) -> &str {
    let key = key.strip_prefix("https://").unwrap_or(key);
    let key = key.strip_prefix("http://").unwrap_or(key);
    key.split('/').next().unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_the_same_under_every_spelling() {
        for hub in [
            "",
            "docker.io",
            "https://index.docker.io/v1/",
            "registry-1.docker.io",
        ] {
            assert_eq!(Server::new(hub).key(), HUB_KEY, "{hub}");
        }
        for other in [
            "r.example:5000",
            "http://r.example:5000/v2/",
            "https://r.example:5000",
        ] {
            assert_eq!(Server::new(other).key(), "r.example:5000", "{other}");
            assert!(Server::new("r.example:5000").is_named_by(other));
        }
        assert!(!Server::new("r.example").is_named_by("r.example:5000"));
        assert!(!Server::new("").is_named_by(""));
    }
}
