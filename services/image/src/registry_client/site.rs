//! One host in one of its roles: a registry itself, or the mirror of one.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use http::header::{HeaderName, HeaderValue};

/// Where the API begins on most hosts.
pub(super) const API: &str = "/v2";

/// One host in one of its roles.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Site {
    /// "host" or "host:port".
    pub(super) host: String,
    /// Absent: HTTPS, and where `tls.anybody` is set HTTP if that fails.
    pub(super) scheme: Option<&'static str>,
    /// Whether credentials, tokens and configured headers may be sent over plain
    /// HTTP: only to a host that is declared insecure as itself, never because it
    /// is somebody's `http://` mirror.
    pub(super) secrets_in_clear: bool,
    /// The engine's own registry: the Unix socket that it is reached on.
    pub(super) socket: Option<PathBuf>,
    /// The path below which the API is, without a slash at its end.
    pub(super) base: String,
    /// For a mirror of many registries: the one that is meant.
    pub(super) namespace: Option<String>,
    pub(super) tls: Tls,
    /// Sent with every request to the host.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) abilities: Abilities,
}

/// What a host is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Abilities {
    /// Content by its digest.
    pub(super) pull: bool,
    /// What a tag stands for.
    pub(super) resolve: bool,
    pub(super) push: bool,
}

/// Whom a host is believed to be, and who it is told that we are.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub(super) struct Tls {
    /// Every certificate will do.
    pub(super) anybody: bool,
    /// Trusted besides the system's authorities.
    pub(super) authorities: Vec<PemFile>,
    /// Certificate and key; what fits is shown to who asks for one.
    pub(super) identities: Vec<(PemFile, PemFile)>,
}

/// A file as it was when the connection was thought of: one that changes since makes another.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct PemFile {
    pub(super) path: PathBuf,
    version: Option<FileVersion>,
}

/// Differs for every change of a file. The change time alone would not do where
/// clocks are coarse, and the modification time can be set back.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct FileVersion {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl PemFile {
    pub(super) fn at(path: &Path) -> Self {
        let metadata = std::fs::metadata(path);
        Self {
            path: path.to_owned(),
            // A file that cannot be read is reported when it is needed.
            version: metadata.ok().map(|metadata| FileVersion {
                inode: metadata.ino(),
                size: metadata.size(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            }),
        }
    }
}

impl Site {
    /// The schemes that the host may be reached by, in the order of preference.
    /// They follow from the configuration alone: what worked for the same host
    /// before, in another role or under another configuration, does not count.
    pub(super) fn schemes(&self) -> &'static [&'static str] {
        match self.scheme {
            Some("http") => &["http"],
            None if self.tls.anybody => &["https", "http"],
            _ => &["https"],
        }
    }

    /// Whether others can read what goes to the host, and nothing secret may.
    pub(super) fn is_public(&self) -> bool {
        self.may_be_plain() && !self.secrets_in_clear
    }

    /// Whether the host may be reached over plain HTTP.
    pub(super) fn may_be_plain(&self) -> bool {
        self.schemes().contains(&"http")
    }
}

impl Tls {
    /// Whether these are the same files, as they were before.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        let files = |tls: &Self| {
            let pairs = tls.identities.iter().flat_map(|(a, b)| [a, b]);
            let all = tls.authorities.iter().chain(pairs);
            all.map(|file| file.path.clone()).collect::<Vec<_>>()
        };
        self != other && self.anybody == other.anybody && files(self) == files(other)
    }
}

impl Abilities {
    pub(super) const ALL: Self = Self {
        pull: true,
        resolve: true,
        push: true,
    };
}

/// The parts of a host as configurations write it: "host:port", "http://host/path".
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Address {
    pub(super) scheme: Option<&'static str>,
    pub(super) host: String,
    /// With a slash at its beginning and none at its end; may be empty.
    pub(super) path: String,
}

impl Address {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = match text.split_once("://") {
            Some(("https", rest)) => (Some("https"), rest),
            Some(("http", rest)) => (Some("http"), rest),
            Some((other, _)) => return Err(format!("{other:?} is neither http nor https")),
            None => (None, text),
        };
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let valid = !host.is_empty()
            && !host.contains('@')
            && host.parse::<http::uri::Authority>().is_ok()
            && !path.contains(['?', '#'])
            && format!("/{path}")
                .parse::<http::uri::PathAndQuery>()
                .is_ok();
        if !valid {
            return Err(format!(
                "{text:?} is not of the form [http://|https://]HOST[:PORT][/PATH]"
            ));
        }
        Ok(Self {
            scheme,
            host: host.to_owned(),
            path: path.trim_end_matches('/').to_owned(),
        })
    }

    /// Where the API is: at `/v2` below the path, or at the path itself.
    pub(super) fn base(&self, override_path: bool) -> String {
        if override_path || self.path.ends_with(API) {
            self.path.clone()
        } else {
            format!("{}{API}", self.path)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_s_address_is_read() {
        let parse = |text: &str| {
            let address = Address::parse(text).unwrap();
            let base = address.base(false);
            (address.scheme, address.host, base)
        };
        assert_eq!(parse("m:5000"), (None, "m:5000".into(), "/v2".into()));
        assert_eq!(parse("http://m/"), (Some("http"), "m".into(), "/v2".into()));
        assert_eq!(
            parse("https://m/proxy/v2/"),
            (Some("https"), "m".into(), "/proxy/v2".into())
        );
        assert_eq!(parse("m/proxy").2, "/proxy/v2");
        let address = Address::parse("https://m/own").unwrap();
        assert_eq!(address.base(true), "/own");
        for bad in [
            "",
            "ftp://m",
            "https://",
            "a b",
            "u@h",
            "m/x?y",
            "https:///x",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}
