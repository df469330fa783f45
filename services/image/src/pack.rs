//! Files of a union become a tar: a layer of what changed, or all of it.
//!
//! The format is the one that every reader of layers has: ustar headers, with PAX
//! records for what they cannot say (long names, large numbers, fractions of a
//! second, extended attributes). The entries come in the order of the walk and
//! hold nothing but what the files are: the same files give the same bytes.
//!
//! Sockets are left out, as every archiver does: they mean nothing without the
//! process that made them. Files with holes are stored whole; their holes are
//! not read.
//!
//! A running container may change a file while it is read. Its entry has the
//! size that its header says, whatever happens: what is missing is zeros.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};

use bytes::Bytes;
use rustix::fs::{FileType, SeekFrom, Stat};
use rustix::io::Errno;
use tar_core::builder::{HeaderBuilder, PaxBuilder};
use tar_core::{EntryType, HEADER_SIZE};

use crate::union::compare::{Difference, Visitor};
use crate::union::{Node, Union, UnionError, Xattrs};
use crate::unpack::shown;

/// Bytes that are handed on at once.
const CHUNK: usize = 256 << 10;
/// The longest name and link target of a ustar header.
const NAME_FIELD: usize = 100;
/// The largest number in a ustar header's field for an owner, and for a size or time.
const OWNER_FIELD: u64 = 0o777_7777;
const SIZE_FIELD: u64 = 0o777_7777_7777;

/// Why no archive could be made.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The files could not be read.
    #[error(transparent)]
    Union(#[from] UnionError),
    /// A file's content could not be read.
    #[error("{path:?}: reading its content failed")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
    /// Something that a tar cannot say.
    #[error("{path:?}: an archive cannot hold it ({reason})")]
    Header { path: String, reason: String },
    /// Nobody takes the archive any more.
    #[error("the archive is not wanted any more")]
    Unwanted,
}

/// Writes an archive, which goes in pieces to `take`.
pub(crate) struct Packer<'a, T> {
    union: &'a Union,
    take: T,
    /// It is for a layer, where some names have a meaning.
    layer: bool,
    chunk: Vec<u8>,
    filled: usize,
    /// Files with several names, by device and inode: the first of their names.
    first_names: HashMap<(u64, u64), Vec<u8>>,
    entries: u64,
}

/// What an entry's header says besides the file's own attributes.
struct Head<'a> {
    kind: EntryType,
    name: Vec<u8>,
    size: u64,
    link: &'a [u8],
    xattrs: Xattrs,
}

impl<T: FnMut(Bytes) -> Result<(), PackError>> Visitor for Packer<'_, T> {
    type Error = PackError;

    fn visit(&mut self, path: &[u8], difference: Difference<'_>) -> Result<(), PackError> {
        match difference {
            Difference::Added(node) | Difference::Modified(node) => {
                if self.layer && split(path).1.starts_with(b".wh.") {
                    return Err(refused(
                        path,
                        "in a layer, a name that begins with \".wh.\" means that something is gone; rename it",
                    ));
                }
                self.entry(path, node)
            }
            Difference::Deleted => {
                let (directory, name) = split(path);
                self.whiteout(directory, &[b".wh.", name].concat())
            }
            Difference::Emptied => self.whiteout(path, b".wh..wh..opq"),
        }
    }
}

/// The directory of a path, and its last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn refused(path: &[u8], reason: impl ToString) -> PackError {
    PackError::Header {
        path: shown(path),
        reason: reason.to_string(),
    }
}

impl<'a, T: FnMut(Bytes) -> Result<(), PackError>> Packer<'a, T> {
    /// An archive of files.
    pub(crate) fn new(union: &'a Union, take: T) -> Self {
        Self {
            union,
            take,
            layer: false,
            chunk: Vec::new(),
            filled: 0,
            first_names: HashMap::new(),
            entries: 0,
        }
    }

    /// A layer.
    pub(crate) fn of_layer(union: &'a Union, take: T) -> Self {
        Self {
            layer: true,
            ..Self::new(union, take)
        }
    }

    /// Writes the entry of the root directory.
    pub(crate) fn root(&mut self, node: &Node) -> Result<(), PackError> {
        let xattrs = self.union.xattrs(node, b"")?.unwrap_or_default();
        let head = Head {
            kind: EntryType::Directory,
            name: b"./".to_vec(),
            size: 0,
            link: b"",
            xattrs,
        };
        self.header(&node.stat, head)
    }

    /// Ends the archive. How many entries it has.
    pub(crate) fn finish(mut self) -> Result<u64, PackError> {
        self.zeros(2 * HEADER_SIZE as u64)?;
        self.hand_on()?;
        Ok(self.entries)
    }

    fn entry(&mut self, path: &[u8], node: &Node) -> Result<(), PackError> {
        let kind = match node.kind() {
            FileType::RegularFile => return self.file(path, node),
            FileType::Directory => EntryType::Directory,
            FileType::Symlink => EntryType::Symlink,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Fifo => EntryType::Fifo,
            _ => return Ok(()),
        };
        let mut name = path.to_vec();
        if kind == EntryType::Directory {
            name.push(b'/');
        } else if self.another_name(path, node)? {
            return Ok(());
        }
        let link = match kind {
            EntryType::Symlink => self.union.link_target(node, path)?,
            _ => Some(Vec::new()),
        };
        let xattrs = self.union.xattrs(node, path)?;
        let (Some(link), Some(xattrs)) = (link, xattrs) else {
            return Ok(());
        };
        let head = Head {
            kind,
            name,
            size: 0,
            link: &link,
            xattrs,
        };
        self.header(&node.stat, head)?;
        self.remember(path, node);
        Ok(())
    }

    fn file(&mut self, path: &[u8], node: &Node) -> Result<(), PackError> {
        if self.another_name(path, node)? {
            return Ok(());
        }
        let (Some(content), Some(xattrs)) = (
            self.union.content(node, path)?,
            self.union.xattrs(node, path)?,
        ) else {
            return Ok(());
        };
        let failed = |source: io::Error| PackError::Read {
            path: shown(path),
            source,
        };
        let found = rustix::fs::fstat(&content).map_err(|error| failed(error.into()))?;
        // As it is now, where it is the file itself that was opened.
        let size = if node.is_split() {
            node.stat.st_size
        } else {
            found.st_size
        };
        let size = u64::try_from(size).unwrap_or(0);
        let head = Head {
            kind: EntryType::Regular,
            name: path.to_vec(),
            size,
            link: b"",
            xattrs,
        };
        self.header(&node.stat, head)?;
        let allocated = u64::try_from(found.st_blocks).unwrap_or(0) * 512;
        if allocated < size {
            self.copy_with_holes(&content, size, failed)?;
        } else {
            self.copy(&content, size, failed)?;
        }
        self.zeros(size.next_multiple_of(HEADER_SIZE as u64) - size)?;
        self.remember(path, node);
        Ok(())
    }

    /// Writes a link to the name that the file has in the archive already. False: it has none.
    fn another_name(&mut self, path: &[u8], node: &Node) -> Result<bool, PackError> {
        if node.stat.st_nlink < 2 {
            return Ok(false);
        }
        let key = (node.stat.st_dev, node.stat.st_ino);
        let Some(first) = self.first_names.get(&key).cloned() else {
            return Ok(false);
        };
        let head = Head {
            kind: EntryType::Link,
            name: path.to_vec(),
            size: 0,
            link: &first,
            xattrs: Xattrs::new(),
        };
        self.header(&node.stat, head)?;
        Ok(true)
    }

    fn remember(&mut self, path: &[u8], node: &Node) {
        if node.stat.st_nlink > 1 && !node.is_directory() {
            let key = (node.stat.st_dev, node.stat.st_ino);
            self.first_names.insert(key, path.to_vec());
        }
    }

    /// Writes an empty file whose name means that something is gone. It has no
    /// attributes: they would mean nothing.
    fn whiteout(&mut self, directory: &[u8], name: &[u8]) -> Result<(), PackError> {
        let mut path = directory.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let mut header = HeaderBuilder::new_ustar();
        let mut pax = PaxBuilder::new();
        let long = put_name(&mut header, &mut pax, &path);
        long.and_then(|()| {
            header.mode(0o600)?.uid(0)?.gid(0)?.size(0)?.mtime(0)?;
            header.entry_type(EntryType::Regular);
            Ok(())
        })
        .map_err(|reason| refused(&path, reason))?;
        self.put_headers(&path, header, pax)
    }

    fn header(&mut self, stat: &Stat, head: Head<'_>) -> Result<(), PackError> {
        let mut header = HeaderBuilder::new_ustar();
        let mut pax = PaxBuilder::new();
        put_attributes(&mut header, &mut pax, stat, &head)
            .map_err(|reason| refused(&head.name, reason))?;
        for (key, value) in &head.xattrs {
            match std::str::from_utf8(key) {
                Ok(key) if !key.contains('=') => {
                    pax.add(&format!("SCHILY.xattr.{key}"), value);
                }
                _ => tracing::warn!(
                    path = shown(&head.name),
                    xattr = shown(key),
                    "an extended attribute with such a name cannot be in an archive and is left out"
                ),
            }
        }
        self.put_headers(&head.name, header, pax)
    }

    fn put_headers(
        &mut self,
        name: &[u8],
        mut header: HeaderBuilder,
        pax: PaxBuilder,
    ) -> Result<(), PackError> {
        self.entries += 1;
        let records = pax.finish();
        if !records.is_empty() {
            let mut extended = HeaderBuilder::new_ustar();
            extended.entry_type(EntryType::XHeader);
            extended
                .path(b"PaxHeaders/entry")
                .and_then(|header| header.mode(0o644)?.uid(0)?.gid(0)?.mtime(0))
                .and_then(|header| header.size(records.len() as u64))
                .map_err(|reason| refused(name, reason))?;
            self.put(extended.finish().as_bytes())?;
            self.put(&records)?;
            let size = records.len();
            self.zeros((size.next_multiple_of(HEADER_SIZE) - size) as u64)?;
        }
        self.put(header.finish().as_bytes())
    }

    /// Copies exactly `size` bytes, or zeros in the place of those that are not there any more.
    fn copy(
        &mut self,
        mut content: &File,
        size: u64,
        failed: impl Fn(io::Error) -> PackError,
    ) -> Result<(), PackError> {
        let mut left = size;
        while left > 0 {
            let room = self.room()?;
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
            match content.read(&mut room[..wanted]) {
                Ok(0) => return self.zeros(left),
                Ok(count) => {
                    self.filled += count;
                    left -= count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    /// The same, without reading the holes.
    fn copy_with_holes(
        &mut self,
        content: &File,
        size: u64,
        failed: impl Fn(io::Error) -> PackError,
    ) -> Result<(), PackError> {
        let mut position = 0;
        while position < size {
            let data = match rustix::fs::seek(content, SeekFrom::Data(position)) {
                Ok(data) => data.min(size),
                Err(Errno::NXIO) => size,
                // A file system that knows no holes.
                Err(Errno::INVAL) => position,
                Err(error) => return Err(failed(error.into())),
            };
            self.zeros(data - position)?;
            if data == size {
                return Ok(());
            }
            let hole = match rustix::fs::seek(content, SeekFrom::Hole(data)) {
                Ok(hole) => hole.min(size),
                Err(Errno::NXIO | Errno::INVAL) => size,
                Err(error) => return Err(failed(error.into())),
            };
            rustix::fs::seek(content, SeekFrom::Start(data))
                .map_err(|error| failed(error.into()))?;
            self.copy(content, hole - data, &failed)?;
            position = hole;
        }
        Ok(())
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), PackError> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let count = bytes.len().min(room.len());
            let (now, rest) = bytes.split_at(count);
            room[..count].copy_from_slice(now);
            self.filled += count;
            bytes = rest;
        }
        Ok(())
    }

    fn zeros(&mut self, count: u64) -> Result<(), PackError> {
        let mut left = count;
        while left > 0 {
            let room = self.room()?;
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
            room[..count].fill(0);
            self.filled += count;
            left -= count as u64;
        }
        Ok(())
    }

    /// What is free of the chunk, at least one byte.
    fn room(&mut self) -> Result<&mut [u8], PackError> {
        if self.filled == self.chunk.len() {
            self.hand_on()?;
            self.chunk = vec![0; CHUNK];
        }
        Ok(&mut self.chunk[self.filled..])
    }

    fn hand_on(&mut self) -> Result<(), PackError> {
        let mut chunk = std::mem::take(&mut self.chunk);
        chunk.truncate(std::mem::take(&mut self.filled));
        if chunk.is_empty() {
            return Ok(());
        }
        (self.take)(Bytes::from(chunk))
    }
}

fn put_name(header: &mut HeaderBuilder, pax: &mut PaxBuilder, name: &[u8]) -> tar_core::Result<()> {
    if name.len() > NAME_FIELD {
        pax.path(name);
    }
    header.path(&name[..name.len().min(NAME_FIELD)])?;
    Ok(())
}

fn put_attributes(
    header: &mut HeaderBuilder,
    pax: &mut PaxBuilder,
    stat: &Stat,
    head: &Head<'_>,
) -> tar_core::Result<()> {
    put_name(header, pax, &head.name)?;
    if head.link.len() > NAME_FIELD {
        pax.linkpath(head.link);
    }
    header.link_name(&head.link[..head.link.len().min(NAME_FIELD)])?;
    header.entry_type(head.kind);
    header.mode(stat.st_mode & 0o7777)?;
    let (uid, gid) = (u64::from(stat.st_uid), u64::from(stat.st_gid));
    if uid > OWNER_FIELD {
        pax.uid(uid);
    }
    header.uid(if uid > OWNER_FIELD { 0 } else { uid })?;
    if gid > OWNER_FIELD {
        pax.gid(gid);
    }
    header.gid(if gid > OWNER_FIELD { 0 } else { gid })?;
    if head.size > SIZE_FIELD {
        pax.size(head.size);
    }
    header.size(if head.size > SIZE_FIELD { 0 } else { head.size })?;
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let seconds = u64::try_from(stat.st_mtime)
        .ok()
        .filter(|s| *s <= SIZE_FIELD);
    if nanoseconds != 0 || seconds.is_none() {
        pax.add("mtime", decimal_time(stat.st_mtime, nanoseconds));
    }
    header.mtime(seconds.unwrap_or(0))?;
    if matches!(head.kind, EntryType::Char | EntryType::Block) {
        header.device(
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        )?;
    }
    Ok(())
}

/// A time as PAX writes it: "12.5", "-0.25".
fn decimal_time(seconds: i64, nanoseconds: u32) -> String {
    let (sign, seconds, nanoseconds) = match (seconds, nanoseconds) {
        (0.., _) => ("", seconds.unsigned_abs(), nanoseconds),
        (_, 0) => ("-", seconds.unsigned_abs(), 0),
        (_, fraction) => ("-", seconds.unsigned_abs() - 1, 1_000_000_000 - fraction),
    };
    let text = format!("{sign}{seconds}.{nanoseconds:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_decimal_numbers_with_sign_and_fraction() {
        assert_eq!(decimal_time(1_700_000_000, 0), "1700000000");
        assert_eq!(decimal_time(12, 500_000_000), "12.5");
        assert_eq!(decimal_time(10, 7), "10.000000007");
        assert_eq!(decimal_time(-2, 750_000_000), "-1.25");
        assert_eq!(decimal_time(-1, 0), "-1");
        assert_eq!(decimal_time(-1, 500_000_000), "-0.5");
        assert_eq!(decimal_time(0, 0), "0");
    }
}
