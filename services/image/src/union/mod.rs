//! A stack of layers as one file system, read without being mounted.
//!
//! What a container sees is a union that overlayfs mounts in the container's own
//! mount namespace. The image service makes no mount: it reads the layers'
//! directories and puts them together by overlayfs' rules (Linux,
//! `Documentation/filesystems/overlayfs.rst`; the marks are in [`marks`]). Gantry
//! mounts with the kernel's defaults, and on some machines these turn on
//! `redirect_dir` and `metacopy`: both are followed.
//!
//! [`compare`] walks two unions at once. It serves `diff` and
//! `commit` (a container's union against its image's) and `export` (a union
//! against nothing). [`Union::find`] serves the unpacking of a layer that needs
//! something of those below, [`Union::resolve`] and [`Union::each_entry`] what a
//! fresh volume begins with.
//!
//! **Beneath.** A part of a layer is a path in it, opened with
//! `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)` from the layer's descriptor. A
//! running container may rename and replace what is being read; it cannot lead
//! anywhere else. What vanishes under the reader's hand was not there.
//!
//! **Descriptors.** Only the directory that is being looked at is open, in each
//! of its layers: deep trees in many layers would take more than a process has.
//!
//! Limits: a path is at most 4,095 bytes long, a directory has at most a million
//! entries. Data-only layers and `userxattr` are not known.

pub(crate) mod compare;
mod descend;
mod error;
mod lookup;
pub(crate) mod marks;
mod mount_points;

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::unpack::tree;

pub use error::UnionError;
use marks::Opacity;

/// The most entries of one directory that are looked at.
const ENTRIES_MAX: usize = 1_000_000;

/// A stack of layers, the top-most first.
#[derive(Debug)]
pub(crate) struct Union {
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    root: OwnedFd,
    id: LayerId,
}

/// Tells a layer's directory from all others, so that parts of two unions can be compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct LayerId {
    device: u64,
    inode: u64,
}

/// What one layer has of something.
#[derive(Clone, Debug)]
struct Part {
    id: LayerId,
    /// The layer's place in its union.
    layer: usize,
    /// The path in the layer, which need not be the one that is seen.
    path: Vec<u8>,
}

/// The place in the union does not matter: another one may have more on top.
impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.path == other.path
    }
}

/// Something in a union.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Its attributes.
    pub(crate) stat: Stat,
    /// Of a directory all that it is merged of, of a file where its attributes
    /// are and, if that is elsewhere, its content. The top-most first.
    parts: Vec<Part>,
}

/// A directory of which every part is open.
struct OpenDirectory {
    parts: Vec<OpenPart>,
}

struct OpenPart {
    part: Part,
    fd: OwnedFd,
    opacity: Opacity,
}

/// The extended attributes that belong to a file.
pub(crate) use gantry_archive::write::Xattrs;

impl Node {
    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind() == FileType::Directory
    }

    /// Whether attributes and content of a file are in two places.
    pub(crate) fn is_split(&self) -> bool {
        !self.is_directory() && self.parts.len() > 1
    }
}

impl Union {
    /// Opens the layers at these paths, the top-most first.
    pub(crate) fn open<'a>(layers: impl Iterator<Item = &'a Path>) -> Result<Self, UnionError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let layers = layers.map(|path| {
            let root = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
            let stat = rustix::fs::fstat(&root)?;
            let id = LayerId {
                device: stat.st_dev,
                inode: stat.st_ino,
            };
            Ok(Layer { root, id })
        });
        let layers = layers.collect::<Result<Vec<_>, Errno>>();
        Ok(Self {
            layers: layers.map_err(UnionError::read(b"", "opening a layer"))?,
        })
    }

    /// The root directory; `None` of no layers at all.
    pub(crate) fn root(&self) -> Result<Option<Node>, UnionError> {
        let failed = || UnionError::read(b"", "looking at a layer");
        let Some(top) = self.layers.first() else {
            return Ok(None);
        };
        let stat = rustix::fs::fstat(&top.root).map_err(failed())?;
        let mut parts = Vec::with_capacity(self.layers.len());
        for (layer, Layer { root, id }) in self.layers.iter().enumerate() {
            parts.push(Part {
                id: *id,
                layer,
                path: Vec::new(),
            });
            let opacity = marks::opacity(root.as_fd(), b".").map_err(failed())?;
            if opacity == Opacity::Opaque {
                break;
            }
        }
        Ok(Some(Node { stat, parts }))
    }

    /// What is at a path, by its components. Symlinks on the way are not followed.
    pub(crate) fn find<'a>(
        &self,
        path: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Option<Node>, UnionError> {
        let Some(mut node) = self.root()? else {
            return Ok(None);
        };
        let mut seen = Vec::new();
        for name in path {
            if !node.is_directory() {
                return Ok(None);
            }
            let directory = self.open_directory(&node, &seen)?;
            seen = lookup::beneath(&seen, name);
            match self.lookup(&directory, name, 0, &seen)? {
                Some(found) => node = found,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    fn open_part(&self, part: &Part, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path: &[u8] = if part.path.is_empty() {
            b"."
        } else {
            &part.path
        };
        let beneath = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let root = &self.layers[part.layer].root;
            match rustix::fs::openat2(root, path, flags, Mode::empty(), beneath) {
                // openat2 says EAGAIN when something was renamed while it looked.
                Err(Errno::INTR | Errno::AGAIN) => {}
                other => return other,
            }
        }
    }

    /// Opens all parts of a directory. One that has vanished has no parts.
    fn open_directory(&self, node: &Node, path: &[u8]) -> Result<OpenDirectory, UnionError> {
        let open = |part: &Part| {
            let fd = self.open_part(part, OFlags::RDONLY | OFlags::DIRECTORY)?;
            let opacity = marks::opacity(fd.as_fd(), b".")?;
            Ok(OpenPart {
                part: part.clone(),
                fd,
                opacity,
            })
        };
        let parts = node.parts.iter().map(open).collect::<Result<Vec<_>, _>>();
        match parts {
            Ok(parts) => Ok(OpenDirectory { parts }),
            Err(error) if is_gone(error) => Ok(OpenDirectory { parts: Vec::new() }),
            Err(error) => Err(UnionError::read(path, "opening the directory")(error)),
        }
    }

    /// A file's content. `None`: it has vanished.
    pub(crate) fn content(&self, node: &Node, path: &[u8]) -> Result<Option<File>, UnionError> {
        let Some(part) = node.parts.last() else {
            return Ok(None);
        };
        // Something else may stand there by now, and must not be waited for.
        let opened = self.open_part(part, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY);
        let failed = || UnionError::read(path, "opening it");
        let file = match opened {
            Ok(file) => file,
            Err(error) if is_gone(error) || error == Errno::NXIO => return Ok(None),
            Err(error) => return Err(failed()(error)),
        };
        let stat = rustix::fs::fstat(&file).map_err(failed())?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(regular.then(|| File::from(file)))
    }

    /// Where a symlink leads. `None`: it has vanished.
    pub(crate) fn link_target(
        &self,
        node: &Node,
        path: &[u8],
    ) -> Result<Option<Vec<u8>>, UnionError> {
        let Some(link) = self.open_itself(node, path)? else {
            return Ok(None);
        };
        match rustix::fs::readlinkat(&link, "", Vec::new()) {
            Ok(target) => Ok(Some(target.into_bytes())),
            Err(error) if is_gone(error) => Ok(None),
            Err(error) => Err(UnionError::read(path, "reading the symlink")(error)),
        }
    }

    /// The extended attributes that belong to it. `None`: it has vanished.
    pub(crate) fn xattrs(&self, node: &Node, path: &[u8]) -> Result<Option<Xattrs>, UnionError> {
        let Some(file) = self.open_itself(node, path)? else {
            return Ok(None);
        };
        let failed = || UnionError::read(path, "reading its extended attributes");
        // The calls that take a descriptor refuse one that is only a place.
        let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut xattrs = Xattrs::new();
        let keys = tree::read_xattr_names(|buffer| rustix::fs::listxattr(&itself, buffer));
        for key in keys.map_err(failed())? {
            if !marks::is_of_the_file(&key) {
                continue;
            }
            let read = |buffer: &mut [u8]| rustix::fs::getxattr(&itself, &*key, buffer);
            if let Some(value) = tree::read_xattr(read).map_err(failed())? {
                xattrs.insert(key, value);
            }
        }
        Ok(Some(xattrs))
    }

    fn open_itself(&self, node: &Node, path: &[u8]) -> Result<Option<OwnedFd>, UnionError> {
        let Some(part) = node.parts.first() else {
            return Ok(None);
        };
        match self.open_part(part, OFlags::PATH) {
            Ok(file) => Ok(Some(file)),
            Err(error) if is_gone(error) => Ok(None),
            Err(error) => Err(UnionError::read(path, "opening it")(error)),
        }
    }
}

impl OpenDirectory {
    /// The names in the first `parts` parts, sorted, each with the first part that has it.
    fn names(&self, parts: usize, path: &[u8]) -> Result<Vec<(Vec<u8>, usize)>, UnionError> {
        let mut names = Vec::new();
        for (position, part) in self.parts.iter().take(parts).enumerate() {
            let failed = || UnionError::read(path, "listing the directory");
            let mut entries = Dir::read_from(&part.fd).map_err(failed())?;
            while let Some(entry) = entries.read() {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(error) if is_gone(error) => break,
                    Err(error) => return Err(failed()(error)),
                };
                let name = entry.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                if names.len() >= ENTRIES_MAX {
                    return Err(UnionError::TooManyEntries {
                        path: error::seen(path),
                        limit: ENTRIES_MAX,
                    });
                }
                names.push((name.to_vec(), position));
            }
        }
        names.sort_unstable();
        names.dedup_by(|next, first| next.0 == first.0);
        Ok(names)
    }
}

/// Whether a running container has taken it away, or put something else there.
fn is_gone(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE
    )
}

fn stat_at(directory: &OwnedFd, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(error) if is_gone(error) => Ok(None),
        Err(error) => Err(error),
    }
}
