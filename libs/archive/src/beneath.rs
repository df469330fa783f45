//! Opening what is beneath a directory, or in a root, and nothing else.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Opens what is at `path` beneath a directory; no link leads out of it.
pub(crate) fn open(
    directory: impl AsFd,
    path: &[u8],
    flags: OFlags,
    more: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    resolved(directory, path, flags, ResolveFlags::BENEATH | more)
}

/// Opens what is at `path` for a process whose root `root` is.
pub(crate) fn open_in_root(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    resolved(root, path, flags, ResolveFlags::IN_ROOT)
}

fn resolved(
    directory: impl AsFd,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(&directory, path, flags, Mode::empty(), resolve) {
            // openat2 says EAGAIN when something was renamed while it looked.
            Err(Errno::INTR | Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// The path of an open object itself.
pub(crate) fn itself(object: impl AsFd) -> String {
    format!("/proc/self/fd/{}", object.as_fd().as_raw_fd())
}

/// Opens the content of an object that is open as a place (O_PATH).
pub(crate) fn content(object: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, itself(object), flags, Mode::empty())
}

/// Whether an open directory is of a file system that is no files but a window
/// on the kernel (linux/magic.h). What is read there may never end.
pub(crate) fn is_kernels(directory: impl AsFd) -> Result<bool, Errno> {
    const KERNELS: [u64; 11] = [
        0x9fa0,      // proc
        0x6265_6572, // sysfs
        0x0027_e0eb, // cgroup
        0x6367_7270, // cgroup2
        0x1cd1,      // devpts
        0x1980_0202, // mqueue
        0x6462_6720, // debugfs
        0x7472_6163, // tracefs
        0x7363_6673, // securityfs
        0xcafe_4a11, // bpf
        0x4249_4e4d, // binfmt_misc
    ];
    // The type of the field differs between targets.
    let kind = rustix::fs::fstatfs(directory)?.f_type as u64 & 0xffff_ffff;
    Ok(KERNELS.contains(&kind))
}

/// Whether somebody has taken it away, or put something else there.
pub(crate) fn is_gone(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE | Errno::SRCH
    )
}
