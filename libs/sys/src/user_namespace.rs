//! A user namespace that nobody is in, and what it owns: for id-mapped mounts, and for a container's network that is
//! made before the container.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::check;
use crate::clone::{CLONE_CLEAR_SIGHAND, CloneArgs};

/// A user namespace, held by its descriptors alone.
#[derive(Debug)]
pub struct UserNamespace {
    pub user: OwnedFd,
    /// A network namespace that it owns, where one was asked for.
    pub network: Option<OwnedFd>,
}

/// Makes a user namespace with these mappings, each line `INSIDE OUTSIDE COUNT` as user_namespaces(7) has it; with a
/// network namespace of its own if `network` says so. May be called from any thread.
pub fn make(uids: &str, gids: &str, network: bool) -> io::Result<UserNamespace> {
    let holder = Holder::start(network)?;
    let of = |file: &str| format!("/proc/{}/{file}", holder.pid);
    fs::write(of("uid_map"), uids)?;
    fs::write(of("gid_map"), gids)?;
    Ok(UserNamespace {
        user: File::open(of("ns/user"))?.into(),
        network: if network {
            Some(File::open(of("ns/net"))?.into())
        } else {
            None
        },
    })
}

/// A child that only exists. It ends when this is dropped, and with this process.
struct Holder {
    pid: libc::c_long,
    pidfd: OwnedFd,
}

impl Holder {
    fn start(network: bool) -> io::Result<Self> {
        let mut pidfd: libc::c_int = -1;
        let network = if network { libc::CLONE_NEWNET } else { 0 };
        let mut args = CloneArgs {
            flags: (libc::CLONE_NEWUSER | network | libc::CLONE_PIDFD) as u64 | CLONE_CLEAR_SIGHAND,
            pidfd: std::ptr::from_mut(&mut pidfd) as u64,
            // No signal at its end: whoever reaps all children of this process is not to find it.
            exit_signal: 0,
            ..CloneArgs::default()
        };
        let parent = std::process::id();
        // SAFETY: `args` is a valid clone_args of the given size, and `pidfd` outlives the call. Without CLONE_VM the
        // child has a copy of this memory; other threads' locks may be held in it for ever, so the child only makes
        // system calls, with no allocation, and never returns.
        let pid = check(unsafe {
            let pid = libc::syscall(
                libc::SYS_clone3,
                std::ptr::from_mut(&mut args),
                size_of::<CloneArgs>(),
            );
            if pid == 0 {
                libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // Had the parent ended before that, its children would be another's.
                while libc::syscall(libc::SYS_getppid) == libc::c_long::from(parent) {
                    libc::syscall(libc::SYS_ppoll, 0, 0, 0, 0, 0);
                }
                libc::_exit(0);
            }
            pid
        })?;
        // SAFETY: clone3 succeeded with CLONE_PIDFD, so `pidfd` is a new descriptor that nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Self { pid, pidfd })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // SAFETY: both take integers, and a null siginfo_t, which they allow; no memory is written.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                0,
                0,
            );
            // A child without an exit signal is a "clone" child.
            while libc::syscall(
                libc::SYS_waitid,
                libc::P_PIDFD,
                self.pidfd.as_raw_fd(),
                0,
                libc::WEXITED | libc::__WALL,
                0,
            ) < 0
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_namespace_outlives_its_maker_and_owns_its_network() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let map = "0 100000 65536\n";
        let made = make(map, map, true).unwrap();
        let inode = |fd: &OwnedFd| {
            File::from(fd.try_clone().unwrap())
                .metadata()
                .unwrap()
                .ino()
        };
        let own = fs::metadata("/proc/self/ns/user").unwrap().ino();
        assert_ne!(inode(&made.user), own);
        let network = made.network.unwrap();
        // NS_GET_USERNS (linux/nsfs.h)
        // SAFETY: the request takes no argument and gives a new descriptor.
        let owner = unsafe { libc::ioctl(network.as_raw_fd(), 0xb701) };
        assert!(owner >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor was just given to this process.
        let owner = unsafe { OwnedFd::from_raw_fd(owner) };
        assert_eq!(inode(&owner), inode(&made.user));
    }

    #[test]
    fn mappings_that_the_kernel_refuses_are_an_error() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        make("0 100000 0\n", "0 100000 1\n", false).unwrap_err();
    }
}
