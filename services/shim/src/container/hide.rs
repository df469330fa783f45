//! Masked and read-only paths.
//!
//! Each path is opened beneath the root first, and the mount made on that descriptor: nothing can put another
//! object there between look and mount. The mask of a file is the host's /dev/null, opened and checked here, not the
//! container's, which could be replaced (CVE-2025-31133). Paths under /proc must be on a procfs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use gantry_sys::mount::{Attributes, RDONLY, set_attributes};
use rustix::fs::{FileType, Mode, OFlags, makedev};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::beneath;
use super::context::During;
use super::error::{Error, Result};
use super::mounts;

/// Covers each path: a file by an empty device, a directory by an empty directory. What is not there needs no mask.
pub(super) fn mask(root: BorrowedFd<'_>, paths: &[String]) -> Result<()> {
    let mut null: Option<OwnedFd> = None;
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let Some(target) = open(root, path)? else {
            continue;
        };
        if beneath::is_directory(&target).during("mask", path)? {
            let tree = match &empty {
                // One empty directory serves all: the first mount is that of the file system, the others are its clones.
                Some(first) => mounts::clone_of(first, false).during("mask", path)?,
                None => empty_directory().during("mask", path)?,
            };
            mounts::attach(&tree, &target).during("mask", path)?;
            empty.get_or_insert(tree);
        } else {
            if null.is_none() {
                null = Some(host_null()?);
            }
            if let Some(null) = &null {
                let tree = mounts::clone_of(null, false).during("mask", path)?;
                mounts::attach(&tree, &target).during("mask", path)?;
            }
        }
    }
    Ok(())
}

/// Makes each path, with all that is mounted in it, read-only.
pub(super) fn make_read_only(root: BorrowedFd<'_>, paths: &[String]) -> Result<()> {
    for path in paths {
        let Some(target) = open(root, path)? else {
            continue;
        };
        let tree = mounts::clone_of(&target, true).during("make read-only", path)?;
        set_attributes(
            tree.as_fd(),
            c"",
            true,
            Attributes {
                set: RDONLY,
                ..Attributes::default()
            },
        )
        .during("make read-only", path)?;
        mounts::attach(&tree, &target).during("make read-only", path)?;
    }
    Ok(())
}

fn open(root: BorrowedFd<'_>, path: &str) -> Result<Option<OwnedFd>> {
    let path = Path::new(path);
    let target = match beneath::open(root, path) {
        Ok(target) => target,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            return Ok(None);
        }
        Err(error) => return Err(error).during("open", path.display()),
    };
    if path.starts_with("/proc") && !beneath::is_on_proc(&target).during("open", path.display())? {
        // /proc may rightly be something else, where the container has no procfs at all.
        let proc = beneath::open(root, Path::new("/proc")).during("open", "/proc")?;
        if beneath::is_on_proc(&proc).during("open", "/proc")? {
            return Err(Error::step(
                "verify",
                format!("{} is not on a procfs", path.display()),
                io::Error::from_raw_os_error(libc::EXDEV),
            ));
        }
    }
    Ok(Some(target))
}

fn host_null() -> Result<OwnedFd> {
    let null = rustix::fs::open(
        "/dev/null",
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .during("open", "/dev/null")?;
    let stat = rustix::fs::fstat(&null).during("open", "/dev/null")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice
        || stat.st_rdev != makedev(1, 3)
    {
        return Err(Error::step(
            "verify",
            "/dev/null of the host is not the null device",
            io::Error::from_raw_os_error(libc::ENODEV),
        ));
    }
    Ok(null)
}

fn empty_directory() -> std::result::Result<OwnedFd, rustix::io::Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "tmpfs")?;
    fsconfig_set_string(&context, "mode", "0755")?;
    fsconfig_set_string(&context, "nr_inodes", "1")?;
    fsconfig_create(&context)?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
}
