//! File descriptors in bulk, and those that came by inheritance.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::check;

fn close_range(first: u32, last: u32, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: close_range(2) takes integers only. That no owner of a descriptor is left behind is the
    // business of the callers below.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// Marks every descriptor from `first` on close-on-exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor from `first` on, but for `keep`.
///
/// Only for the child of [`clone`](fn@crate::clone::clone), whose copy of the parent's owners is never dropped: it leaves by
/// exec or `exit_now`. Anywhere else it refuses (`EPERM`).
pub fn close_all_but(first: u32, keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    if !crate::clone::in_child() {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    let mut keep: Vec<u32> = keep
        .iter()
        .map(|fd| fd.as_raw_fd() as u32)
        .filter(|fd| *fd >= first)
        .collect();
    keep.sort_unstable();
    keep.dedup();
    let mut first = first;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX, 0)
}

static ADOPTED: AtomicU64 = AtomicU64::new(0);

/// Takes ownership of a descriptor that was inherited from whoever executed this program, by its number (3 … 63).
/// To be called early in `main`, before anything else is opened; each number once, the second time is `EBUSY`.
/// The descriptor is made close-on-exec.
pub fn adopt_inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if !(3..64).contains(&fd) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: fcntl(F_SETFD) on a number does nothing but fail if it is not open.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    let bit = 1_u64 << fd;
    if ADOPTED.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: the descriptor is open (checked above), is one that this program was started with by the contract above, and
    // was not adopted before (checked above), so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A duplicate of an open descriptor given by number, at `at_least` or above, close-on-exec. Harmless to its owner.
pub fn duplicate_number(fd: RawFd, at_least: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: duplicating a number takes nothing from an owner; it fails if the number is not open.
    let new = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, at_least) }.into())?;
    // SAFETY: the new descriptor was made by this call and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new as RawFd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inherited_descriptor_is_adopted_once() {
        let file = std::fs::File::open("/proc/self/status").unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(file);
        let owned = adopt_inherited(number).unwrap();
        assert_eq!(owned.as_raw_fd(), number);
        assert_eq!(
            adopt_inherited(number).unwrap_err().raw_os_error(),
            Some(libc::EBUSY)
        );
        assert_eq!(
            adopt_inherited(1).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
    }

    #[test]
    fn only_a_clone_may_close_what_its_owners_hold() {
        assert_eq!(
            close_all_but(3, &[]).unwrap_err().raw_os_error(),
            Some(libc::EPERM)
        );
    }
}
