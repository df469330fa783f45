//! Why a layer could not be unpacked.

use std::io;

use gantry_oci::{Compression, Digest};

use crate::union::UnionError;

/// Why a layer could not be unpacked. Nothing of such a layer is kept.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The bytes of the layer could not be had.
    #[error("reading its bytes failed")]
    Read(#[source] io::Error),
    /// The bytes are not what their first bytes claim to be.
    #[error("its {} data is damaged", name_of(*.format))]
    Inflate {
        /// What the first bytes say.
        format: Compression,
        source: io::Error,
    },
    /// The stream ended in the middle of an entry.
    #[error("the archive ends in the middle of {during}")]
    Truncated { during: String },
    /// A header makes no sense.
    #[error("the archive is damaged after {position} bytes")]
    Archive {
        position: u64,
        #[source]
        source: tar_core::parse::ParseError,
    },
    /// A name that leads out of the layer.
    #[error("entry {path:?}: its path leads out of the layer")]
    PathEscapes { path: String },
    /// A hard link to something outside of the layer.
    #[error("entry {path:?}: its link target {target:?} leads out of the layer")]
    LinkEscapes { path: String, target: String },
    /// A name that no file system takes.
    #[error("entry {path:?}: {reason}")]
    BadPath { path: String, reason: &'static str },
    /// Something on the way to the entry is not a directory of this layer.
    #[error("entry {path:?}: {parent:?} is not a directory of this layer")]
    ParentNotDirectory { path: String, parent: String },
    /// A hard link to what neither this layer nor one below it has.
    #[error("entry {path:?}: its link target {target:?} does not exist")]
    LinkTargetMissing { path: String, target: String },
    /// A hard link to a directory.
    #[error("entry {path:?}: its link target {target:?} is a directory")]
    LinkToDirectory { path: String, target: String },
    /// A value that means nothing here.
    #[error("entry {path:?}: its {field} {value:?} is not usable")]
    BadValue {
        path: String,
        field: &'static str,
        value: String,
    },
    /// A kind of entry that does not belong in a layer.
    #[error("entry {path:?}: entries of type {kind:?} are not supported")]
    UnsupportedType { path: String, kind: char },
    /// The file system refused.
    #[error("entry {path:?}: {step} failed")]
    Write {
        path: String,
        step: &'static str,
        #[source]
        source: io::Error,
    },
    /// More of something than the configuration allows.
    #[error("there are more than {limit} {what} (see [image.limits])")]
    Limit { what: &'static str, limit: u64 },
    /// A layer below, which a hard link or a directory needs, did not arrive.
    #[error("a layer below this one, which it needs, is not there: {reason}")]
    LowerMissing { reason: String },
    /// A layer below, which a hard link or a directory needs, cannot be read.
    #[error("a layer below this one, which it needs, cannot be read")]
    Lower(#[from] UnionError),
    /// The content is not what the image's configuration promises.
    #[error("the layer unpacks to {found}, its image's configuration promises {expected}")]
    DiffId { expected: Digest, found: Digest },
    /// The helper thread ended without a word.
    #[error("the inflating thread ended unexpectedly")]
    ThreadLost,
}

impl UnpackError {
    pub(super) const fn holes(limits: &super::Limits) -> Self {
        Self::Limit {
            what: "bytes of files, their holes included",
            limit: limits.unpacked_bytes,
        }
    }
}

const fn name_of(format: Compression) -> &'static str {
    match format {
        Compression::None => "tar",
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
    }
}

pub(crate) use gantry_archive::shown;
