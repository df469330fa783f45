//! What is wrong with an archive.

use gantry_oci::{Digest, ManifestError};

use crate::unpack::UnpackError;

/// What is wrong with an archive, or in the way of writing one.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Not a byte came.
    #[error("the archive is empty")]
    Empty,
    /// The bytes are no tar.
    #[error("the archive is not usable")]
    Damaged(#[from] UnpackError),
    /// A tar of something else.
    #[error(
        "this is no archive of images: it has neither manifest.json nor index.json (for the archive of a file system there is `gantry import`)"
    )]
    NoList,
    /// A list without images.
    #[error("the archive has no image in it: {path} lists none")]
    NoImage { path: &'static str },
    /// Docker's first format.
    #[error(
        "the archive was saved by a Docker before 1.10 and has no manifest.json: save it again with a newer one"
    )]
    TooOld,
    /// An entry that does not belong there.
    #[error("entry {path:?} of the archive {reason}")]
    Entry { path: String, reason: String },
    /// An entry that ought to be there.
    #[error("the archive has no {path:?}, which {wanted_by} names")]
    Missing { path: String, wanted_by: String },
    /// An entry whose name promises another content.
    #[error("entry {path:?} of the archive is damaged: its digest is {found}")]
    Digest { path: String, found: Digest },
    /// A list, manifest or configuration that cannot be read.
    #[error("{path:?} of the archive cannot be read")]
    Document {
        path: String,
        #[source]
        source: ManifestError,
    },
    /// More of something than an archive may have.
    #[error("the archive has more than {limit} {what}")]
    Limit { what: &'static str, limit: u64 },
    /// A layer that is in the store as files only.
    #[error(
        "layer {digest} of image {reference} is not here as it was packed; pull the image again"
    )]
    NotPacked { reference: String, digest: Digest },
}

impl ArchiveError {
    pub(super) fn entry(path: &str, reason: impl Into<String>) -> Self {
        Self::Entry {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}
