//! The root of a container that shares the mount namespace of whoever makes it.
//!
//! The specification wants the container's mounts all the same. They are made in the root bound on itself, from where they are
//! told to nobody, and where taking off the one takes off all: by the deletion, or when the creation fails.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use super::context::During;
use super::error::Result;
use super::outside::unescaped;
use super::rootfs;

const TABLE: &str = "/proc/self/mountinfo";

/// The mount, as another process finds it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HostRoot {
    path: PathBuf,
    /// Its number in the mount table: another may be mounted there by then, that is not ours to unmount.
    id: u64,
}

impl HostRoot {
    /// Binds the directory on itself.
    pub(super) fn attach(path: &Path) -> Result<Self> {
        let path = std::fs::canonicalize(path).during("open root", path.display())?;
        let tree = rootfs::clone_path(&path)?;
        let id = statx(&tree, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
            .during("look at root", path.display())?
            .stx_mnt_id;
        rootfs::attach(&tree, &path)?;
        let root = Self { path, id };
        // On a shared mount it has just become one.
        if let Err(error) = rootfs::propagate_tree(tree.as_fd(), libc::MS_PRIVATE) {
            let _ = root.detach();
            return Err(error);
        }
        Ok(root)
    }

    /// Takes it off, with all that is mounted in it. Somebody else may have done so.
    pub(super) fn detach(&self) -> io::Result<()> {
        match statx(
            CWD,
            &self.path,
            AtFlags::SYMLINK_NOFOLLOW,
            StatxFlags::MNT_ID,
        ) {
            Ok(on_top) if on_top.stx_mnt_id == self.id => {
                unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
                Ok(())
            }
            _ if is_listed(&std::fs::read_to_string(TABLE)?, self.id, &self.path) => {
                Err(io::Error::other(
                    "something else has been mounted over it since: unmount that first",
                ))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn is_listed(table: &str, id: u64, path: &Path) -> bool {
    let id = id.to_string();
    table.lines().any(|line| {
        let mut fields = line.split(' ');
        fields.next() == Some(id.as_str())
            && fields.nth(3).is_some_and(|point| unescaped(point) == path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_known_by_its_number_and_its_place() {
        let table = "40 1 0:4 / /a\\040b rw - ext4 /dev/a rw\n41 1 0:4 / /c rw - ext4 /dev/a rw\n";
        assert!(is_listed(table, 40, Path::new("/a b")));
        assert!(!is_listed(table, 41, Path::new("/a b")));
        assert!(!is_listed(table, 4, Path::new("/c")));
    }
}
