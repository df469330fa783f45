//! A layer's archive becomes a directory that overlayfs can use as it is.
//!
//! The archive is a tar, plain or packed with gzip or zstd (seen in its first
//! bytes; media types lie). One thread inflates, the caller's thread hashes the
//! tar (the diff ID) and writes the files. Memory is a few chunks and the times
//! of the directories, which have to be set last.
//!
//! Whiteouts become what overlayfs knows: `.wh.NAME` a character device 0/0,
//! `.wh..wh..opq` the xattr `trusted.overlay.opaque=y`. They speak of the layers
//! below only, wherever they stand in the archive (image specification, "Layer").
//!
//! Nothing is ever made outside of the directory: see [`tree`]. A layer that
//! needs something of the layers below gets it through [`Lower`]; it is then
//! marked as [`Unpacked::depends_on_lower`], because its directory may not serve
//! under other layers.
//!
//! Nothing here is made durable: that is done once for many layers, by who
//! names them.

mod entry;
mod error;
mod gzip;
mod header;
mod inflate;
mod limits;
mod lower;
mod path;
pub(crate) mod removal;
pub(crate) mod sparse;
pub(crate) mod tree;
mod unpacker;

use std::io::Read;
use std::os::fd::OwnedFd;

use gantry_oci::{Algorithm, Digest, Hasher};
use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

pub use error::UnpackError;
pub(crate) use error::shown;
pub(crate) use gzip::Checksum;
pub(crate) use header::{Header, Headers};
pub use inflate::SourceFailed;
pub(crate) use inflate::{Passing, TarStream, inflated};
pub use limits::Limits;
pub use lower::{Lower, Nothing};

use unpacker::Unpacker;

use crate::tree_record::KnownContent;

/// What a layer turned out to be.
#[derive(Clone, Debug)]
pub struct Unpacked<D = Digest> {
    /// Digest of the archive, inflated.
    pub diff_id: D,
    /// Bytes of the archive, inflated.
    pub tar_bytes: u64,
    /// Bytes of the files' content, with their holes.
    pub content_bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Owner and mode of the layer's root, where the archive has an entry for it.
    pub root: Option<RootAttributes>,
    /// Whether the layers below had a say in what is in the directory.
    pub depends_on_lower: bool,
    /// Extended attributes that this file system does not take.
    pub dropped_xattrs: u64,
    /// Hashes of the contents that passed, for the layer's record.
    pub(crate) known: KnownContent,
}

/// Owner and mode of a layer's root directory.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RootAttributes {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

impl Default for RootAttributes {
    /// What a root directory is where no layer says anything.
    fn default() -> Self {
        Self {
            uid: 0,
            gid: 0,
            mode: 0o755,
        }
    }
}

impl RootAttributes {
    pub(crate) const fn of(stat: &Stat) -> Self {
        Self {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
        }
    }
}

/// Unpacks an archive into an empty directory. Blocks; on an error the
/// directory holds a part of the layer and is the caller's to remove.
pub fn unpack<R: Read + Send + 'static>(
    source: R,
    directory: OwnedFd,
    algorithm: Algorithm,
    limits: &Limits,
    lower: &mut dyn Lower,
) -> Result<Unpacked, UnpackError> {
    let stream = TarStream::start(source, limits, Hasher::new(algorithm), Checksum::Compared)?;
    let unpacked = unpack_stream(stream, directory, limits, lower)?;
    Ok(unpacked.map_diff_id(Hasher::finish))
}

/// The same for an archive whose diff ID is known: anything else is refused.
pub fn unpack_as<R: Read + Send + 'static>(
    source: R,
    directory: OwnedFd,
    expected: &Digest,
    limits: &Limits,
    lower: &mut dyn Lower,
) -> Result<Unpacked, UnpackError> {
    let hasher = Hasher::new(expected.algorithm());
    let stream = TarStream::start(source, limits, hasher, Checksum::Left)?;
    let unpacked = unpack_stream(stream, directory, limits, lower)?;
    let unpacked = unpacked.map_diff_id(Hasher::finish);
    if unpacked.diff_id != *expected {
        return Err(UnpackError::DiffId {
            expected: expected.clone(),
            found: unpacked.diff_id,
        });
    }
    Ok(unpacked)
}

/// The same for an archive that the caller hashes: see [`Unpacked::with_diff_id`].
pub(crate) fn unpack_unhashed<R: Read + Send + 'static>(
    source: R,
    directory: OwnedFd,
    limits: &Limits,
    lower: &mut dyn Lower,
) -> Result<Unpacked<()>, UnpackError> {
    let stream = TarStream::start(source, limits, (), Checksum::Compared)?;
    unpack_stream(stream, directory, limits, lower)
}

/// The diff ID of a layer, without unpacking it. Blocks.
pub(crate) fn diff_id_of<R: Read + Send + 'static>(
    source: R,
    algorithm: Algorithm,
    limits: &Limits,
) -> Result<Digest, UnpackError> {
    let mut stream = TarStream::start(source, limits, Hasher::new(algorithm), Checksum::Compared)?;
    stream.drain()?;
    Ok(stream.finish().0.finish())
}

impl Unpacked<()> {
    pub(crate) fn with_diff_id(self, diff_id: Digest) -> Unpacked {
        self.map_diff_id(|()| diff_id)
    }
}

impl<D> Unpacked<D> {
    fn map_diff_id<E>(self, map: impl FnOnce(D) -> E) -> Unpacked<E> {
        Unpacked {
            diff_id: map(self.diff_id),
            tar_bytes: self.tar_bytes,
            content_bytes: self.content_bytes,
            entries: self.entries,
            root: self.root,
            depends_on_lower: self.depends_on_lower,
            dropped_xattrs: self.dropped_xattrs,
            known: self.known,
        }
    }
}

fn unpack_stream<H: Passing>(
    stream: TarStream<H>,
    directory: OwnedFd,
    limits: &Limits,
    lower: &mut dyn Lower,
) -> Result<Unpacked<H>, UnpackError> {
    let mut unpacker = Unpacker::new(stream, directory, limits, lower);
    unpacker.run()?;
    unpacker.finish()
}
