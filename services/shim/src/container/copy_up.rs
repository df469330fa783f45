//! `tmpcopyup`: a tmpfs that begins with what the image has at its mount point.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use std::os::unix::fs::MetadataExt;

/// Copies the tree that `lower` is into the directory that `upper` is. `itself`: its owner and mode too.
pub(super) fn copy(lower: BorrowedFd<'_>, upper: BorrowedFd<'_>, itself: bool) -> io::Result<()> {
    let path = |fd: BorrowedFd<'_>| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let (from, to) = (path(lower.as_fd()), path(upper.as_fd()));
    if itself {
        own(&from.join("."), &to.join("."))?;
    }
    tree(&from, &to)
}

fn tree(from: &Path, to: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            std::fs::create_dir(&target)?;
            own(&source, &target)?;
            tree(&source, &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            std::fs::copy(&source, &target)?;
            own(&source, &target)?;
        }
    }
    Ok(())
}

fn own(source: &Path, target: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(source)?;
    std::os::unix::fs::chown(target, Some(metadata.uid()), Some(metadata.gid()))?;
    std::fs::set_permissions(target, metadata.permissions())
}
