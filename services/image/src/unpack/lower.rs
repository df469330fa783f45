//! Looking into the layers below, for the two things a layer can need from them.
//!
//! A hard link may name a file that only a lower layer has, and an entry may
//! stand in a directory that the archive does not describe. A sequential
//! unpack would find both in place. Here the layer waits for the ones below at
//! that moment, and not before, so that layers which need nothing from each
//! other (nearly all) never wait.

use std::path::PathBuf;

use rustix::fs::{FileType, Timespec};

use super::error::{UnpackError, shown};
use super::path::LayerPath;
use super::sparse::copy_content;
use super::tree::{Ownership, Tree};
use crate::union::{Node, Union};

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
    opened: Option<Union>,
    /// Whether anything below had a say in what this layer became.
    pub(super) used: bool,
}

impl<'a> LowerLayers<'a> {
    pub(super) fn new(source: &'a mut dyn Lower) -> Self {
        Self {
            source,
            opened: None,
            used: false,
        }
    }

    fn union(&mut self) -> Result<&Union, UnpackError> {
        match &mut self.opened {
            Some(union) => Ok(union),
            none => {
                let layers = self.source.wait()?;
                let union = Union::open(layers.iter().map(PathBuf::as_path))?;
                Ok(none.insert(union))
            }
        }
    }

    /// Bytes of the file at `path` below. `None`: there is none.
    pub(super) fn size_of(&mut self, path: &LayerPath) -> Result<Option<u64>, UnpackError> {
        let found = self.union()?.find(path.components())?;
        Ok(found.map(|node| match node.kind() {
            FileType::RegularFile => u64::try_from(node.stat.st_size).unwrap_or(0),
            _ => 0,
        }))
    }

    /// Copies the file at `path` from below into the layer, as an overlay does
    /// before it gives a file a second name. False: there is none.
    pub(super) fn copy_up(
        &mut self,
        tree: &mut Tree,
        path: &LayerPath,
    ) -> Result<bool, UnpackError> {
        let Some(node) = self.union()?.find(path.components())? else {
            return Ok(false);
        };
        self.used = true;
        let union = self.union()?;
        match node.kind() {
            FileType::Directory => {
                return Err(UnpackError::LinkToDirectory {
                    path: shown(path.as_bytes()),
                    target: shown(path.as_bytes()),
                });
            }
            FileType::RegularFile => {
                let source = union.content(&node, path.as_bytes())?;
                let source = source.ok_or_else(|| missing(path))?;
                let target = tree.make_file(path)?;
                copy_content(&source, &target).map_err(|source| UnpackError::Write {
                    path: shown(path.as_bytes()),
                    step: "copying it from the layer below",
                    source,
                })?;
            }
            FileType::Symlink => {
                let target = union.link_target(&node, path.as_bytes())?;
                tree.make_symlink(path, &target.ok_or_else(|| missing(path))?)?;
            }
            other => tree.make_node(path, other, node.stat.st_rdev)?,
        }
        copy_attributes(tree, path, union, &node)?;
        Ok(true)
    }

    /// Gives directories that the archive does not describe the attributes they
    /// have below, so that `tmp/x` alone does not turn `/tmp` into mode 0755.
    pub(super) fn inherit_directories(&mut self, tree: &mut Tree) -> Result<(), UnpackError> {
        let implied: Vec<LayerPath> = tree.implied().iter().cloned().collect();
        for path in implied {
            let union = self.union()?;
            match union.find(path.components())? {
                Some(node) if node.is_directory() => {
                    let changed = copy_attributes(tree, &path, union, &node)?;
                    self.used |= changed;
                }
                _ => tree.set_times(&path, EPOCH)?,
            }
        }
        Ok(())
    }
}

/// Nobody takes anything out of a layer that is whole.
fn missing(path: &LayerPath) -> UnpackError {
    UnpackError::LowerMissing {
        reason: format!("{:?} has vanished from it", shown(path.as_bytes())),
    }
}

/// The time of directories nobody gave a time: the same whenever the layer is unpacked.
pub(super) const EPOCH: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Copies owner, mode, xattrs and times. False: they are those of a directory made on the way.
fn copy_attributes(
    tree: &mut Tree,
    path: &LayerPath,
    union: &Union,
    node: &Node,
) -> Result<bool, UnpackError> {
    let stat = &node.stat;
    let owner = Ownership {
        uid: stat.st_uid,
        gid: stat.st_gid,
        mode: stat.st_mode & 0o7777,
    };
    tree.set_ownership(path, owner, node.kind() != FileType::Symlink)?;
    let xattrs = union.xattrs(node, path.as_bytes())?;
    let xattrs = xattrs.ok_or_else(|| missing(path))?;
    for (key, value) in &xattrs {
        tree.set_xattr(path, key, value)?;
    }
    let mtime = Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: stat.st_mtime_nsec as _,
    };
    tree.set_times(path, mtime)?;
    let plain = owner == Ownership::IMPLIED_DIRECTORY && xattrs.is_empty() && mtime == EPOCH;
    Ok(!plain)
}
