//! Making a directory what another is, in place.
//!
//! Containers may have the directory mounted below theirs. So directories stay
//! what they are, and get the new files by renames: who has an old file open
//! keeps it, who looks a name up finds the new one. Nothing is compared; a layer
//! that is mended was found damaged.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::fs::{XattrFlags, fremovexattr, fsetxattr};
use rustix::io::Errno;

use crate::unpack::removal::remove_tree;
use crate::unpack::tree::{get_xattr, list_xattrs};

/// Moves all that is in `new` into `old`, which then is what `new` was.
pub(crate) fn make_the_same(new: BorrowedFd<'_>, old: BorrowedFd<'_>) -> Result<(), Errno> {
    let wanted = rustix::fs::fstat(new)?;
    let names = names_in(new)?;
    for name in names_in(old)?.difference(&names) {
        remove_tree(old, name)?;
    }
    for name in &names {
        let name = name.as_slice();
        let below = rustix::fs::statat(new, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let there = match rustix::fs::statat(old, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        match there {
            Some(there) if is_directory(&there) && is_directory(&below) => {
                let (new, old) = (open(new, name)?, open(old, name)?);
                make_the_same(new.as_fd(), old.as_fd())?;
                continue;
            }
            // Only a file can be replaced by a rename, and only by a file.
            Some(there) if is_directory(&there) || is_directory(&below) => remove_tree(old, name)?,
            _ => {}
        }
        rustix::fs::renameat(new, name, old, name)?;
    }
    set_xattrs(new, old)?;
    rustix::fs::fchown(
        old,
        Some(Uid::from_raw(wanted.st_uid)),
        Some(Gid::from_raw(wanted.st_gid)),
    )?;
    rustix::fs::fchmod(old, Mode::from_raw_mode(wanted.st_mode & 0o7777))?;
    rustix::fs::futimens(old, &times(&wanted))
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn open(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn names_in(directory: BorrowedFd<'_>) -> Result<BTreeSet<Vec<u8>>, Errno> {
    let mut names = BTreeSet::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.insert(name.to_vec());
        }
    }
    Ok(names)
}

fn set_xattrs(new: BorrowedFd<'_>, old: BorrowedFd<'_>) -> Result<(), Errno> {
    let wanted = list_xattrs(new, b".")?;
    for key in list_xattrs(old, b".")? {
        // Those of the host's security modules come by themselves.
        if !wanted.contains(&key) && !key.starts_with(b"security.") {
            fremovexattr(old, key.as_slice())?;
        }
    }
    for key in wanted {
        if let Some(value) = get_xattr(new, b".", &key)? {
            match fsetxattr(old, key.as_slice(), &value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanos| Timespec {
        tv_sec: seconds,
        tv_nsec: nanos,
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec.cast_signed()),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
    }
}
