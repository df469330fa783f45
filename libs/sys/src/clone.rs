//! clone3(2): a child in new namespaces, known by a pidfd.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use std::sync::atomic::{AtomicBool, Ordering};

use crate::check;

/// What the child shall have of its own.
#[derive(Debug, Default, Clone, Copy)]
pub struct CloneOptions<'a> {
    /// `CLONE_NEW…` bits: only these are let through.
    pub namespaces: u64,
    /// A cgroup v2 directory to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Make the child a child of the caller's parent.
    pub sibling: bool,
}

/// `CLONE_NEWTIME` does not fit libc's `c_int` flags of clone(2), but clone3's.
pub const CLONE_NEWTIME: u64 = 0x80;

const NAMESPACES: u64 = libc::CLONE_NEWNS as u64
    | libc::CLONE_NEWCGROUP as u64
    | libc::CLONE_NEWUTS as u64
    | libc::CLONE_NEWIPC as u64
    | libc::CLONE_NEWUSER as u64
    | libc::CLONE_NEWPID as u64
    | libc::CLONE_NEWNET as u64
    | CLONE_NEWTIME;
pub(crate) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of linux/sched.h (its version 2, 88 bytes).
#[repr(C)]
#[derive(Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

/// How many threads this process has.
pub fn thread_count() -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    // The kernel counts one link for each thread beside "." and "..".
    Ok(std::fs::metadata("/proc/self/task")?
        .nlink()
        .saturating_sub(2))
}

static IN_CHILD: AtomicBool = AtomicBool::new(false);

/// Whether this process is the child of [`clone`].
pub(crate) fn in_child() -> bool {
    IN_CHILD.load(Ordering::Relaxed)
}

/// Clones this process. The child runs `child` in a copy of the address space, then exits with what it
/// returns (99 after a panic); it never comes back into the caller's frames. Its signal handlers are
/// at their defaults.
///
/// The calling process must have one thread: another one might hold a lock (malloc's, for instance) that nobody
/// in the child would ever release. With more the call fails with `EDEADLK`.
pub fn clone<F>(options: CloneOptions<'_>, child: F) -> io::Result<(i32, OwnedFd)>
where
    F: FnOnce() -> i32,
{
    if thread_count()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: (options.namespaces & NAMESPACES)
            | libc::CLONE_PIDFD as u64
            | CLONE_CLEAR_SIGHAND
            | if options.sibling {
                libc::CLONE_PARENT as u64
            } else {
                0
            },
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        exit_signal: if options.sibling {
            0
        } else {
            libc::SIGCHLD as u64
        },
        ..CloneArgs::default()
    };
    if let Some(cgroup) = options.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` is a valid clone_args of the given size, and `pidfd` outlives the call. Neither CLONE_VM nor a
    // stack is given, so the child continues on a private copy of this stack, as after fork(2). There is one thread
    // (checked above), so no lock is held by somebody who does not exist in the child.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_mut(&mut args),
            size_of::<CloneArgs>(),
        )
    })?;
    if pid == 0 {
        IN_CHILD.store(true, Ordering::Relaxed);
        let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(99);
        crate::process::exit_now(code);
    }
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so `pidfd` is a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((pid as i32, pidfd))
}

/// unshare(2) of namespaces (only `CLONE_NEW…` bits are let through).
pub fn unshare(namespaces: u64) -> io::Result<()> {
    // SAFETY: unshare takes an integer; without CLONE_FILES and CLONE_VM, which are masked out, no descriptor
    // and no memory changes its meaning.
    check(unsafe { libc::syscall(libc::SYS_unshare, namespaces & NAMESPACES) }).map(drop)
}

/// The bit of mount namespaces.
pub const MOUNT_NAMESPACE: u64 = libc::CLONE_NEWNS as u64;

/// Gives the calling thread a root and a working directory of its own, which it no longer shares with the other
/// threads: what it needs before it enters another mount namespace.
pub fn unshare_root() -> io::Result<()> {
    // SAFETY: unshare takes an integer; CLONE_FS gives this thread copies of its root, directory and umask, and
    // changes no descriptor and no memory.
    check(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_FS) }).map(drop)
}

/// setns(2): enters a namespace by its file, or several of a process at once by its pidfd.
pub fn enter_namespaces(fd: BorrowedFd<'_>, namespaces: u64) -> io::Result<()> {
    // SAFETY: setns takes integers and changes no memory.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), namespaces & NAMESPACES) })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The test harness has threads, so that only the refusal can be seen here; the runtime's own tests clone.
    #[test]
    fn a_process_with_threads_may_not_clone() {
        let refused = clone(CloneOptions::default(), || 0).map(|_| ());
        assert_eq!(
            refused.unwrap_err().raw_os_error(),
            Some(libc::EDEADLK),
            "the harness runs tests in a second thread"
        );
    }
}
