//! Looking into the layers below, for the two things a layer can need from them.
//!
//! A hard link may name a file that only a lower layer has, and an entry may
//! stand in a directory that the archive does not describe. A sequential
//! unpack would find both in place. Here the layer waits for the ones below at
//! that moment, and not before, so that layers which need nothing from each
//! other (nearly all) never wait.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec};
use rustix::io::Errno;

use super::error::{UnpackError, shown};
use super::path::LayerPath;
use super::tree::{self, OPAQUE, Ownership, Tree, write_error};

/// Gives access to the layers below the one being unpacked.
pub trait Lower: Send {
    /// Waits until all layers below are whole; their directories, the top-most first.
    fn wait(&mut self) -> Result<Vec<PathBuf>, UnpackError>;
}

/// The lowest layer: there is nothing below.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl Lower for Nothing {
    fn wait(&mut self) -> Result<Vec<PathBuf>, UnpackError> {
        Ok(Vec::new())
    }
}

impl Lower for Vec<PathBuf> {
    fn wait(&mut self) -> Result<Vec<PathBuf>, UnpackError> {
        Ok(self.clone())
    }
}

/// The layers below, opened when first needed.
pub(super) struct LowerLayers<'a> {
    source: &'a mut dyn Lower,
    opened: Option<Vec<OwnedFd>>,
    /// Whether anything below had a say in what this layer became.
    pub(super) used: bool,
}

/// A file of a lower layer: the directory it is in, and its attributes.
struct Found {
    parent: OwnedFd,
    stat: Stat,
}

impl<'a> LowerLayers<'a> {
    pub(super) fn new(source: &'a mut dyn Lower) -> Self {
        Self {
            source,
            opened: None,
            used: false,
        }
    }

    fn layers(&mut self) -> Result<&[OwnedFd], UnpackError> {
        if self.opened.is_none() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = self
                .source
                .wait()?
                .iter()
                .map(|path| {
                    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| {
                        UnpackError::LowerMissing {
                            reason: io::Error::from(e).to_string(),
                        }
                    })
                })
                .collect::<Result<Vec<_>, _>>()?;
            self.opened = Some(opened);
        }
        Ok(self.opened.as_deref().unwrap_or_default())
    }

    /// What the merged layers below show at `path`.
    fn find(&mut self, path: &LayerPath) -> Result<Option<Found>, UnpackError> {
        let looked = |e| write_error(path, "looking into the layers below", e);
        for layer in self.layers()? {
            match find_in_layer(layer.as_fd(), path).map_err(looked)? {
                Sight::Here(found) => return Ok(Some(found)),
                Sight::Hidden => return Ok(None),
                Sight::Nothing => {}
            }
        }
        Ok(None)
    }

    /// Copies the file at `path` from below into the layer, as an overlay does
    /// before it gives a file a second name. False: there is none.
    pub(super) fn copy_up(
        &mut self,
        tree: &mut Tree,
        path: &LayerPath,
    ) -> Result<bool, UnpackError> {
        let Some(found) = self.find(path)? else {
            return Ok(false);
        };
        self.used = true;
        let failed = |step| move |e: Errno| write_error(path, step, e);
        let kind = FileType::from_raw_mode(found.stat.st_mode);
        match kind {
            FileType::Directory => {
                return Err(UnpackError::LinkToDirectory {
                    path: shown(path.as_bytes()),
                    target: shown(path.as_bytes()),
                });
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = rustix::fs::openat(&found.parent, path.name(), flags, Mode::empty())
                    .map_err(failed("opening it in the layer below"))?;
                let mut target = tree.make_file(path)?;
                io::copy(&mut File::from(source), &mut target).map_err(|source| {
                    UnpackError::Write {
                        path: shown(path.as_bytes()),
                        step: "copying it from the layer below",
                        source,
                    }
                })?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&found.parent, path.name(), Vec::new())
                    .map_err(failed("reading the symlink in the layer below"))?;
                tree.make_symlink(path, target.as_bytes())?;
            }
            other => tree.make_node(path, other, found.stat.st_rdev)?,
        }
        copy_attributes(tree, path, &found)?;
        Ok(true)
    }

    /// Gives directories that the archive does not describe the attributes they
    /// have below, so that `tmp/x` alone does not turn `/tmp` into mode 0755.
    pub(super) fn inherit_directories(&mut self, tree: &mut Tree) -> Result<(), UnpackError> {
        let implied: Vec<LayerPath> = tree.implied().iter().cloned().collect();
        for path in implied {
            match self.find(&path)? {
                Some(found) if tree::is_directory(&found.stat) => {
                    let changed = copy_attributes(tree, &path, &found)?;
                    self.used |= changed;
                }
                _ => tree.set_times(&path, EPOCH)?,
            }
        }
        Ok(())
    }
}

/// The time of directories nobody gave a time: the same whenever the layer is unpacked.
pub(super) const EPOCH: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Copies owner, mode, xattrs and times. False: they are those of a directory made on the way.
fn copy_attributes(tree: &mut Tree, path: &LayerPath, found: &Found) -> Result<bool, UnpackError> {
    let owner = Ownership {
        uid: found.stat.st_uid,
        gid: found.stat.st_gid,
        mode: found.stat.st_mode & 0o7777,
    };
    let symlink = FileType::from_raw_mode(found.stat.st_mode) == FileType::Symlink;
    tree.set_ownership(path, owner, !symlink)?;
    let mut has_xattrs = false;
    for key in tree::list_xattrs(found.parent.as_fd(), path.name())
        .map_err(|e| write_error(path, "listing the extended attributes below", e))?
    {
        if key.starts_with(b"trusted.overlay.") {
            continue;
        }
        let value = tree::get_xattr(found.parent.as_fd(), path.name(), &key)
            .map_err(|e| write_error(path, "reading an extended attribute below", e))?;
        if let Some(value) = value {
            tree.set_xattr(path, &key, &value)?;
            has_xattrs = true;
        }
    }
    let mtime = Timespec {
        tv_sec: found.stat.st_mtime,
        tv_nsec: found.stat.st_mtime_nsec as _,
    };
    tree.set_times(path, mtime)?;
    let plain = owner == Ownership::IMPLIED_DIRECTORY && !has_xattrs && mtime == EPOCH;
    Ok(!plain)
}

enum Sight {
    Here(Found),
    /// This layer says that there is nothing, whatever lower ones have.
    Hidden,
    Nothing,
}

fn find_in_layer(layer: BorrowedFd<'_>, path: &LayerPath) -> Result<Sight, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut parent = rustix::fs::openat(layer, ".", flags, Mode::empty())?;
    let mut opaque = is_opaque(layer, b".")?;
    let mut components = path.components().peekable();
    while let Some(name) = components.next() {
        let missing = if opaque {
            Sight::Hidden
        } else {
            Sight::Nothing
        };
        let stat = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(missing),
            Err(error) => return Err(error),
        };
        if tree::is_whiteout(&stat) {
            return Ok(Sight::Hidden);
        }
        if components.peek().is_none() {
            return Ok(Sight::Here(Found { parent, stat }));
        }
        if !tree::is_directory(&stat) {
            return Ok(Sight::Hidden);
        }
        opaque |= is_opaque(parent.as_fd(), name)?;
        parent = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
    }
    Ok(Sight::Nothing)
}

fn is_opaque(parent: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    Ok(tree::get_xattr(parent, name, OPAQUE.as_bytes())?.as_deref() == Some(b"y"))
}
