//! Files of a union become a tar: a layer of what changed, or all of it.
//!
//! The entries come in the order of the walk; how they are written is
//! [`gantry_archive::write`]'s. Sockets are left out, as every archiver does:
//! they mean nothing without the process that made them.
//!
//! A running container may change a file while it is read: [`Writer::file`] says
//! what is stored then.

use std::collections::HashMap;

use bytes::Bytes;
use gantry_archive::EntryType;
use gantry_archive::write::{Head, WriteError, Writer};
use rustix::fs::FileType;

use crate::union::compare::{Difference, Visitor};
use crate::union::{Node, Union, UnionError, Xattrs};
use crate::unpack::shown;

/// Why no archive could be made.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The files could not be read.
    #[error(transparent)]
    Union(#[from] UnionError),
    /// The archive could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Writes an archive, which goes in pieces to `take`. False: it is not wanted
/// any more.
pub(crate) struct Packer<'a, T> {
    union: &'a Union,
    writer: Writer<T>,
    /// It is for a layer, where some names have a meaning.
    layer: bool,
    /// Files with several names, by device and inode: the first of their names.
    first_names: HashMap<(u64, u64), Vec<u8>>,
}

impl<T: FnMut(Bytes) -> bool> Visitor for Packer<'_, T> {
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

fn refused(path: &[u8], reason: &str) -> PackError {
    let (path, reason) = (shown(path), reason.to_owned());
    WriteError::Header { path, reason }.into()
}

impl<'a, T: FnMut(Bytes) -> bool> Packer<'a, T> {
    /// An archive of files.
    pub(crate) fn new(union: &'a Union, take: T) -> Self {
        Self {
            union,
            writer: Writer::new(take),
            layer: false,
            first_names: HashMap::new(),
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
            name: b"./",
            size: 0,
            link: b"",
            xattrs,
        };
        Ok(self.writer.header(&node.stat, &head)?)
    }

    /// Ends the archive. How many entries it has.
    pub(crate) fn finish(self) -> Result<u64, PackError> {
        Ok(self.writer.finish()?)
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
            name: &name,
            size: 0,
            link: &link,
            xattrs,
        };
        self.writer.header(&node.stat, &head)?;
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
        let found = rustix::fs::fstat(&content).map_err(|error| WriteError::Read {
            path: shown(path),
            source: error.into(),
        })?;
        // As it is now, where it is the file itself that was opened.
        let size = if node.is_split() {
            node.stat.st_size
        } else {
            found.st_size
        };
        let size = u64::try_from(size).unwrap_or(0);
        let head = Head {
            kind: EntryType::Regular,
            name: path,
            size,
            link: b"",
            xattrs,
        };
        // Readers of layers know holes; those of exported archives need not.
        let xattrs = head.xattrs.clone();
        let as_regions = self.layer
            && !node.is_split()
            && self
                .writer
                .sparse(&node.stat, Head { xattrs, ..head }, &content)?;
        if !as_regions {
            self.writer.file(&node.stat, head, &content)?;
        }
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
            name: path,
            size: 0,
            link: &first,
            xattrs: Xattrs::new(),
        };
        self.writer.header(&node.stat, &head)?;
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
        Ok(self.writer.bare(&path)?)
    }
}
