//! Removing trees, following nothing and however deep they are.
//!
//! Nothing beyond a mount is removed: a mount point is refused with `EXDEV`.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Removes a file or a directory with all that is in it, following nothing.
/// What is gone already is fine.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    remove_tree_at(parent, name, 0, None)
}

/// Levels of directories that are held open at once.
const REMOVE_DEPTH: u32 = 64;

/// The same for trees of any depth: what is too deep is moved into `spill`,
/// where the caller finds it.
pub(crate) fn remove_deep_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    remove_tree_at(parent, name, 0, Some(parent))
}

fn remove_tree_at(
    parent: BorrowedFd<'_>,
    name: &[u8],
    depth: u32,
    spill: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let refused = match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(refused @ (Errno::ISDIR | Errno::PERM)) => refused,
        Err(error) => return Err(error),
    };
    if depth >= REMOVE_DEPTH
        && let Some(spill) = spill
    {
        let elsewhere = gantry_oci::content::IngestKey::random();
        return rustix::fs::renameat(parent, name, spill, elsewhere.as_str());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match open_here(parent, name, flags) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return Err(refused),
        Err(error) => return Err(error),
    };
    let mut entries = Dir::read_from(&directory)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            remove_tree_at(directory.as_fd(), name, depth + 1, spill)?;
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Opens a directory, if nothing is mounted on it.
fn open_here(parent: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    loop {
        let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve) {
            // openat2 says so when something was renamed while it looked.
            Err(Errno::INTR | Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// Removes a path of the store with all that is in it. What is gone already is fine.
pub(crate) fn remove_path(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::open(parent, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        parent => parent?,
    };
    remove_tree(parent.as_fd(), name.as_bytes()).map_err(io::Error::from)
}
