//! The part of the mount API that rustix lacks.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::mount::OpenTreeFlags;

use crate::check;

/// `MOUNT_ATTR_…` and propagation for [`set_attributes`].
#[derive(Debug, Default, Clone, Copy)]
pub struct Attributes<'a> {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear.
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0 for no change.
    pub propagation: u64,
    /// A user namespace whose mappings the mount shall have (sets `MOUNT_ATTR_IDMAP`).
    pub id_map: Option<BorrowedFd<'a>>,
}

/// Read-only.
pub const RDONLY: u64 = 0x1;
/// Set-user-ID bits are ignored.
pub const NOSUID: u64 = 0x2;
/// Device files can not be opened.
pub const NODEV: u64 = 0x4;
/// Nothing can be executed.
pub const NOEXEC: u64 = 0x8;
/// The three bits of how access times are kept.
pub const ATIME_MASK: u64 = 0x70;
/// Access times are never written.
pub const NOATIME: u64 = 0x10;
/// Access times are always written.
pub const STRICTATIME: u64 = 0x20;
/// Access times of directories are not written.
pub const NODIRATIME: u64 = 0x80;
/// Symbolic links are not followed.
pub const NOSYMFOLLOW: u64 = 0x0020_0000;
const IDMAP: u64 = 0x0010_0000;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// mount_setattr(2) on what `path` names beneath `dir` (the mount of `dir` itself if `path` is empty).
pub fn set_attributes(
    dir: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    attributes: Attributes<'_>,
) -> io::Result<()> {
    let mut attr = MountAttr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    if let Some(user_namespace) = attributes.id_map {
        attr.attr_set |= IDMAP;
        attr.userns_fd = user_namespace.as_raw_fd() as u64;
    }
    let mut flags = libc::AT_SYMLINK_NOFOLLOW;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a C string and `attr` a valid mount_attr of the given size; both outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_mut(&mut attr),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// A private read-only view of a file or directory: a detached mount that nobody else can reach or change, and through
/// which nobody can write, whatever rights they have. A program executed from it can not be overwritten through
/// `/proc/PID/exe`.
pub fn read_only_view(path: &Path) -> io::Result<OwnedFd> {
    let view = rustix::mount::open_tree(
        rustix::fs::CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?;
    set_attributes(
        std::os::fd::AsFd::as_fd(&view),
        c"",
        false,
        Attributes {
            set: RDONLY,
            ..Attributes::default()
        },
    )?;
    Ok(view)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_be_written_through_a_read_only_view() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let view = read_only_view(file.path()).unwrap();
        let through = format!("/proc/self/fd/{}", view.as_raw_fd());
        let refused = std::fs::OpenOptions::new().write(true).open(through);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EROFS));
        std::fs::write(file.path(), b"the file itself stays writable").unwrap();
    }
}
