//! What can go wrong, and how a client is told.
//!
//! [`Code`] is the catalogue: every code a client can see, with its HTTP status,
//! in one table. The codes are those of the distribution specification ("Error
//! Codes") and, for what it has no code for, those that Docker's registry made
//! customary. [`RegistryError`] is what the domain returns; one exhaustive match
//! gives each of its variants a code.

use std::io;
use std::path::{Path, PathBuf};

use gantry_kit::durable::FileError;
use gantry_oci::content::ContentError;
use gantry_oci::{Digest, DigestError, ManifestError, NameError, RepositoryName, Tag, TagError};
use http::StatusCode;

macro_rules! catalogue {
    ($($name:ident $text:literal $status:ident,)*) => {
        /// A code in an error response.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum Code {
            $(#[doc = $text] $name,)*
        }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The text on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The HTTP status that goes with it.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }
        }
    };
}

catalogue! {
    BlobUnknown         "BLOB_UNKNOWN"          NOT_FOUND,
    BlobUploadInvalid   "BLOB_UPLOAD_INVALID"   BAD_REQUEST,
    BlobUploadRange     "BLOB_UPLOAD_INVALID"   RANGE_NOT_SATISFIABLE,
    BlobUploadUnknown   "BLOB_UPLOAD_UNKNOWN"   NOT_FOUND,
    DigestInvalid       "DIGEST_INVALID"        BAD_REQUEST,
    ManifestBlobUnknown "MANIFEST_BLOB_UNKNOWN" NOT_FOUND,
    ManifestInvalid     "MANIFEST_INVALID"      BAD_REQUEST,
    ManifestTooLarge    "MANIFEST_INVALID"      PAYLOAD_TOO_LARGE,
    ManifestUnknown     "MANIFEST_UNKNOWN"      NOT_FOUND,
    NameInvalid         "NAME_INVALID"          BAD_REQUEST,
    NameUnknown         "NAME_UNKNOWN"          NOT_FOUND,
    SizeInvalid         "SIZE_INVALID"          BAD_REQUEST,
    PaginationInvalid   "PAGINATION_NUMBER_INVALID" BAD_REQUEST,
    RangeInvalid        "RANGE_INVALID"         RANGE_NOT_SATISFIABLE,
    Unsupported         "UNSUPPORTED"           METHOD_NOT_ALLOWED,
    NotFound            "UNSUPPORTED"           NOT_FOUND,
    TooManyRequests     "TOOMANYREQUESTS"       TOO_MANY_REQUESTS,
    RequestTimeout      "BLOB_UPLOAD_INVALID"   REQUEST_TIMEOUT,
    Denied              "DENIED"                FORBIDDEN,
    OutOfSpace          "UNKNOWN"               INSUFFICIENT_STORAGE,
    Unknown             "UNKNOWN"               INTERNAL_SERVER_ERROR,
}

/// Everything that can go wrong in the registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The repository's name breaks the grammar.
    #[error("the repository name is not valid")]
    NameInvalid {
        #[source]
        source: NameError,
    },
    /// The tag breaks the grammar.
    #[error("the tag is not valid")]
    TagInvalid {
        #[source]
        source: TagError,
    },
    /// A digest breaks the grammar, or its algorithm is unknown.
    #[error("the digest is not valid")]
    DigestInvalid {
        #[source]
        source: DigestError,
    },
    /// A digest is needed and was not given.
    #[error("the request lacks the digest parameter")]
    DigestMissing,
    /// There is no such repository.
    #[error("there is no repository {name}")]
    NameUnknown { name: RepositoryName },
    /// The repository has no such blob.
    #[error("repository {name} has no blob {digest}")]
    BlobUnknown {
        name: RepositoryName,
        digest: Digest,
    },
    /// The repository has no such manifest.
    #[error("repository {name} has no manifest {reference}")]
    ManifestUnknown {
        name: RepositoryName,
        reference: String,
    },
    /// The manifest is not acceptable.
    #[error("the manifest is not valid")]
    ManifestInvalid {
        #[source]
        source: ManifestError,
    },
    /// The manifest refers to what the repository does not have.
    #[error("the manifest refers to {}, which repository {name} does not have", list(.missing))]
    References {
        name: RepositoryName,
        missing: Vec<Digest>,
    },
    /// The manifest gives a blob another size than it has.
    #[error("the manifest gives {digest} the size {declared}, but it has {found} bytes")]
    ReferenceSize {
        digest: Digest,
        declared: u64,
        found: u64,
    },
    /// The content is not what the digest says.
    #[error("the content has the digest {found}, not {expected}")]
    DigestMismatch { expected: Digest, found: Digest },
    /// There is no such upload.
    #[error("there is no upload {id} in repository {name}; it may have expired: begin again")]
    UploadUnknown { name: RepositoryName, id: String },
    /// Another request is writing the upload.
    #[error("upload {id} is being written by another request")]
    UploadBusy { id: String },
    /// A chunk is not the next one.
    #[error("upload {id} goes on at byte {offset}, and the chunk begins at {start}")]
    UploadRange { id: String, offset: u64, start: u64 },
    /// A header of an upload can not be understood.
    #[error("the header {header} of the upload is malformed: {value:?}")]
    UploadHeader { header: &'static str, value: String },
    /// The body has another length than was announced.
    #[error("the request announced {expected} bytes and had {found}")]
    SizeMismatch { expected: u64, found: u64 },
    /// The client stopped sending, or broke the connection.
    #[error("the request's body ended early")]
    Body {
        #[source]
        source: axum::Error,
    },
    /// The client sent nothing for too long.
    #[error("the request's body stalled for {seconds} seconds")]
    Stalled { seconds: u64 },
    /// The part asked for is not there.
    #[error("the range asked for is outside of the {size} bytes of the content")]
    Range { size: u64 },
    /// `n` or `page` is not a number.
    #[error("parameter {name} is not a number: {value:?}")]
    Pagination { name: &'static str, value: String },
    /// Deletion is switched off.
    #[error("deletion is disabled in this registry (registry.delete_enabled)")]
    DeleteDisabled,
    /// A tag that was pushed over the Unix socket.
    #[error(
        "tag {tag} of repository {name} was pushed by the engine itself, and clients on the network may not replace it (registry.delete_enabled); choose another tag"
    )]
    TagKept { name: RepositoryName, tag: Tag },
    /// The end-point does not know the method.
    #[error("{method} is not supported here")]
    Method {
        method: http::Method,
        allow: &'static str,
    },
    /// There is no such end-point.
    #[error("there is nothing at {path:?}")]
    Endpoint { path: String },
    /// The content store failed.
    #[error("the content store failed")]
    Content {
        #[source]
        source: ContentError,
    },
    /// The operating system failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file of the registry is not what it should be.
    #[error("the registry's file {} is damaged: it should hold {wanted}", path.display())]
    Damaged { path: PathBuf, wanted: &'static str },
    /// A record of ours can not be written as JSON.
    #[error("cannot write JSON")]
    Serialise {
        #[source]
        source: serde_json::Error,
    },
    /// One collection at a time.
    #[error("a garbage collection is under way already; wait for its end")]
    CollectionUnderWay,
    /// A task was torn down under the request.
    #[error("the registry is stopping")]
    Stopping,
}

fn list(digests: &[Digest]) -> String {
    let names: Vec<&str> = digests.iter().map(Digest::as_str).collect();
    names.join(", ")
}

impl RegistryError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// The error's name for programs that speak gRPC. HTTP's catalogue gives
    /// several errors one code; here each has its own where callers may care.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::CollectionUnderWay => "COLLECTION_UNDER_WAY",
            Self::TagInvalid { .. } => "TAG_INVALID",
            other => other.code().as_str(),
        }
    }

    /// The code that a client is given.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NameInvalid { .. } => Code::NameInvalid,
            Self::TagInvalid { .. } | Self::ReferenceSize { .. } => Code::ManifestInvalid,
            Self::DigestInvalid { .. } | Self::DigestMissing | Self::DigestMismatch { .. } => {
                Code::DigestInvalid
            }
            Self::NameUnknown { .. } => Code::NameUnknown,
            Self::BlobUnknown { .. } => Code::BlobUnknown,
            Self::ManifestUnknown { .. } => Code::ManifestUnknown,
            Self::ManifestInvalid {
                source: ManifestError::TooLarge { .. },
            } => Code::ManifestTooLarge,
            Self::ManifestInvalid { .. } => Code::ManifestInvalid,
            Self::References { .. } => Code::ManifestBlobUnknown,
            Self::UploadUnknown { .. } => Code::BlobUploadUnknown,
            Self::UploadBusy { .. } | Self::CollectionUnderWay => Code::TooManyRequests,
            Self::UploadRange { .. } => Code::BlobUploadRange,
            Self::UploadHeader { .. } | Self::Body { .. } => Code::BlobUploadInvalid,
            Self::SizeMismatch { .. } => Code::SizeInvalid,
            Self::Stalled { .. } => Code::RequestTimeout,
            Self::Range { .. } => Code::RangeInvalid,
            Self::Pagination { .. } => Code::PaginationInvalid,
            Self::DeleteDisabled | Self::Method { .. } => Code::Unsupported,
            Self::TagKept { .. } => Code::Denied,
            Self::Endpoint { .. } => Code::NotFound,
            Self::Content { source } if source.is_out_of_space() => Code::OutOfSpace,
            Self::Io { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
            {
                Code::OutOfSpace
            }
            Self::Content { .. }
            | Self::Io { .. }
            | Self::Damaged { .. }
            | Self::Serialise { .. }
            | Self::Stopping => Code::Unknown,
        }
    }
}

impl From<FileError> for RegistryError {
    fn from(error: FileError) -> Self {
        let FileError {
            action,
            path,
            source,
        } = error;
        Self::Io {
            action,
            path,
            source,
        }
    }
}

impl From<NameError> for RegistryError {
    fn from(source: NameError) -> Self {
        Self::NameInvalid { source }
    }
}

impl From<TagError> for RegistryError {
    fn from(source: TagError) -> Self {
        Self::TagInvalid { source }
    }
}

impl From<DigestError> for RegistryError {
    fn from(source: DigestError) -> Self {
        Self::DigestInvalid { source }
    }
}

impl From<ManifestError> for RegistryError {
    fn from(source: ManifestError) -> Self {
        match source {
            ManifestError::Digest { expected, found } => Self::DigestMismatch { expected, found },
            source => Self::ManifestInvalid { source },
        }
    }
}

impl From<ContentError> for RegistryError {
    fn from(source: ContentError) -> Self {
        match source {
            ContentError::DigestMismatch { expected, found } => {
                Self::DigestMismatch { expected, found }
            }
            source => Self::Content { source },
        }
    }
}

impl From<tokio::task::JoinError> for RegistryError {
    fn from(_: tokio::task::JoinError) -> Self {
        Self::Stopping
    }
}
