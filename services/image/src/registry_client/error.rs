//! Why a registry did not give or take something.

use std::io;
use std::time::Duration;

use gantry_credentials::CredentialsError;
use gantry_oci::{ManifestError, MediaType};
use http::StatusCode;

/// Why a registry did not give or take something. `what` is the object in
/// words: "manifest debian:12", "blob sha256:…".
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// There is no such image, repository or blob.
    #[error("registry {host} has no {what}{}", told(.message))]
    NotFound {
        host: String,
        what: String,
        message: String,
    },
    /// Credentials are missing, wrong or not enough.
    #[error(
        "registry {host} does not allow access to {what}{}; log in, or check the name",
        told(.message)
    )]
    Denied {
        host: String,
        what: String,
        message: String,
    },
    /// Nobody answers.
    #[error("registry {host} cannot be reached")]
    Unreachable {
        host: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It speaks plain HTTP where HTTPS is required.
    #[error(
        "registry {host} does not speak HTTPS; if it may be used without, set [image.registry.\"{host}\"] insecure = true"
    )]
    NotHttps {
        host: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine's own registry does not answer.
    #[error(
        "the engine's own registry ({host}) cannot be reached: the service gantry-registry does not answer on {socket}; start it, or look at what it logged"
    )]
    NotRunning {
        host: String,
        socket: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A login to the engine's own registry.
    #[error(
        "the engine's own registry ({host}) takes no credentials: whoever may use the engine's sockets may use it; push and pull without logging in"
    )]
    NoLogin { host: String },
    /// It wants credentials over a connection that anybody can read.
    #[error(
        "registry {host} wants credentials for {what} over plain HTTP, where none are sent; let it speak HTTPS, or set [image.registry.\"{to}\"] insecure = true"
    )]
    InClear {
        host: String,
        what: String,
        /// Who would get them: the registry, or its token service.
        to: String,
    },
    /// It leads out of HTTPS.
    #[error(
        "registry {host} leads from HTTPS to plain HTTP at {to} for {what}, which is not followed; let it name an https:// address, or set [image.registry.\"{to}\"] insecure = true"
    )]
    Downgrade {
        host: String,
        what: String,
        to: String,
    },
    /// The connection broke in the middle.
    #[error("the connection to registry {host} broke while {what} was transferred")]
    Broken {
        host: String,
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing came for a long time.
    #[error("registry {host} sent nothing for {} seconds while {what} was transferred", .after.as_secs())]
    Stalled {
        host: String,
        what: String,
        after: Duration,
    },
    /// It asks to come back later, and said so too often.
    #[error(
        "registry {host} is busy: it answered {status} to {what} {attempts} times{}{}",
        told(.message), later(.retry_after.as_ref())
    )]
    Busy {
        host: String,
        what: String,
        status: StatusCode,
        attempts: u32,
        message: String,
        /// When it asked to be called again.
        retry_after: Option<Duration>,
    },
    /// An answer that the protocol does not provide for.
    #[error("registry {host} answered {status} to {what}{}", told(.message))]
    Unexpected {
        host: String,
        what: String,
        status: StatusCode,
        message: String,
    },
    /// An answer that makes no sense.
    #[error("registry {host} gave an answer to {what} that is not usable: {reason}")]
    Malformed {
        host: String,
        what: String,
        reason: String,
    },
    /// A manifest that is none, or not the one that was asked for.
    #[error("{what} from registry {host} is not usable")]
    Manifest {
        host: String,
        what: String,
        #[source]
        source: ManifestError,
    },
    /// A blob longer or shorter than its descriptor says.
    #[error("{what} from registry {host} has {found} bytes, its descriptor says {expected}")]
    Size {
        host: String,
        what: String,
        expected: u64,
        found: u64,
    },
    /// Something that is not an image.
    #[error("{what} is not a container image but {kind}")]
    NotAnImage { what: String, kind: MediaType },
    /// A certificate or a key can not be used.
    #[error("the certificates in {path:?}, for registry {host}, cannot be used")]
    Certificate {
        host: String,
        path: String,
        #[source]
        source: io::Error,
    },
    /// TLS can not be set up at all.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    /// A table of the configuration that contradicts itself.
    #[error(
        "the configuration of registry {host} (image.registry.{host:?}) is not usable: {reason}"
    )]
    Configuration { host: String, reason: String },
    /// A file in a directory of another engine's layout.
    #[error("{path} is not usable: {reason}")]
    HostsFile { path: String, reason: String },
    /// The credentials of the configuration can not be read.
    #[error("the credentials for registry {host} cannot be read")]
    Credentials {
        host: String,
        #[source]
        source: CredentialsError,
    },
    /// A file of the store could not be read while it was uploaded.
    #[error("{what} cannot be read from the store")]
    Local {
        what: String,
        #[source]
        source: io::Error,
    },
}

/// The registry's own words, if it said any.
fn told(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(" ({message})")
    }
}

/// When it asked to be called again, if it did.
fn later(retry_after: Option<&Duration>) -> String {
    retry_after.map_or_else(String::new, |pause| {
        format!(
            "; it asks to be called again in {} seconds",
            pause.as_secs()
        )
    })
}

impl RegistryError {
    /// When the registry asked to be called again.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the same request may well succeed a moment later.
    pub(crate) const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::NotRunning { .. }
                | Self::Broken { .. }
                | Self::Stalled { .. }
                | Self::Busy { .. }
        )
    }
}
