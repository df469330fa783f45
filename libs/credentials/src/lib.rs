//! A person's credentials for registries, where Docker keeps them.
//!
//! ```text
//! config.json      { "auths":       { SERVER: { "auth": base64 of NAME:PASSWORD,
//!                                               "identitytoken": TOKEN } },
//!                    "credsStore":  HELPER,
//!                    "credHelpers": { SERVER: HELPER } }
//! docker-credential-HELPER get|store|erase|list      standard input → standard output
//! ```
//!
//! The file is shared with Docker, Podman and others: what is not understood in
//! it is kept as it is, and it is replaced by a rename, so that no reader ever
//! finds half of it. Who changes it holds a lock on its directory meanwhile.
//!
//! **Order.** The helper of the server, else the helper of all servers, else
//! the file itself. A helper that knows nothing of a server leaves it to the file.
//!
//! **Nothing hangs.** A helper is a foreign program: it has a time limit, and
//! what is read of its output is bounded.
#![forbid(unsafe_code)]

mod file;
mod helper;
mod server;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use file::{DockerConfig, Kept};
pub use helper::Helper;
pub use server::{HUB_KEY, Server};

/// Who asks.
#[derive(Clone, Eq, PartialEq)]
pub enum Credentials {
    Password {
        username: String,
        password: String,
    },
    /// What a token service gave in place of a password (OAuth 2 refresh token).
    Identity {
        /// Empty: it is not known whose it is.
        username: String,
        token: String,
    },
}

impl Credentials {
    /// Whose they are. Empty: it is not known.
    #[must_use]
    pub fn username(&self) -> &str {
        match self {
            Self::Password { username, .. } | Self::Identity { username, .. } => username,
        }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "Password({username})"),
            Self::Identity { username, .. } => write!(f, "Identity({username})"),
        }
    }
}

/// Why credentials cannot be read, kept or forgotten.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read or replaced.
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file is not what Docker writes.
    #[error("{} is not usable: {reason}; correct it or move it away", path.display())]
    Malformed { path: PathBuf, reason: String },
    /// There is nobody whose home directory could have the file.
    #[error("there is no home directory for credentials: set HOME or DOCKER_CONFIG")]
    Homeless,
    /// A name that would run something else.
    #[error("{name:?} cannot be the name of a credential helper")]
    HelperName { name: String },
    /// The program is not installed.
    #[error(
        "the credential helper {program} cannot be started; install it, or take it out of config.json"
    )]
    HelperMissing {
        program: String,
        #[source]
        source: io::Error,
    },
    /// It does not come to an end.
    #[error("the credential helper {program} did not answer within {} seconds", .limit.as_secs())]
    HelperTimeout { program: String, limit: Duration },
    /// It says that it cannot.
    #[error("the credential helper {program} failed: {reason}")]
    Helper { program: String, reason: String },
}
