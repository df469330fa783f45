//! What a child process gets from its parent beside arguments and environment:
//! descriptors at fixed numbers, and an end when its parent ends.
//!
//! The numbers are those of systemd's socket activation (sd_listen_fds(3)): the
//! first descriptor is [`FIRST_FD`], the next the one after it.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::check;

/// Number of the first descriptor that [`pass_fds`] gives to a child
/// (SD_LISTEN_FDS_START).
pub const FIRST_FD: i32 = 3;

/// Gives the child that `command` spawns copies of `fds` as [`FIRST_FD`] and
/// the numbers after it. The caller may close its own at once: the command
/// keeps copies, so that it can be spawned more than once.
///
/// The numbers are kept occupied in this process as long as the command lives:
/// otherwise the pipe through which the standard library reports a failed exec
/// could land on one of them and be overwritten in the child.
///
/// # Errors
/// A descriptor cannot be copied.
pub fn pass_fds(command: &mut Command, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let end = FIRST_FD + i32::try_from(fds.len()).map_err(io::Error::other)?;
    let copies = fds
        .iter()
        .map(|fd| copy_from(*fd, end))
        .collect::<io::Result<Vec<_>>>()?;
    let mut placeholders = Vec::new();
    if let Some(any) = fds.first() {
        loop {
            let placeholder = copy_from(*any, FIRST_FD)?;
            if placeholder.as_raw_fd() >= end {
                break;
            }
            placeholders.push(placeholder);
        }
    }
    let install = move || {
        // Named so that the closure owns them.
        let _occupied = &placeholders;
        for (number, copy) in (FIRST_FD..).zip(&copies) {
            // SAFETY: both numbers are descriptors of this process alone (it is
            // the child, after fork), and nothing in the child owns `number`: it
            // is a placeholder's, whose destructor never runs here.
            check(unsafe { libc::dup2(copy.as_raw_fd(), number) }.into())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure only calls dup2, which is
    // async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(install) };
    Ok(())
}

/// Has the kernel send `signal` to the child when the thread that spawned it
/// ends (PR_SET_PDEATHSIG). Spawn from a thread that lives as long as the
/// process.
pub fn die_with_parent(command: &mut Command, signal: i32) {
    // SAFETY: getpid has no preconditions.
    let parent = unsafe { libc::getpid() };
    let install = move || {
        // SAFETY: prctl with these arguments reads no memory.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) }.into())?;
        // The parent may have ended before the call: then nobody would ever
        // send the signal.
        // SAFETY: getppid has no preconditions.
        if unsafe { libc::getppid() } != parent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    // SAFETY: prctl and getppid are single system calls, and an io::Error made
    // of an ErrorKind allocates nothing.
    unsafe { command.pre_exec(install) };
}

/// A copy of `fd`, closed on exec, with the lowest free number from `least` on.
fn copy_from(fd: BorrowedFd<'_>, least: i32) -> io::Result<OwnedFd> {
    // SAFETY: `fd` is open for as long as it is borrowed; no memory is passed.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) };
    check(copy.into())?;
    // SAFETY: the call has just made `copy`; nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_child_gets_its_descriptors_in_order_each_time_it_is_spawned() {
        let (mut first_read, first) = io::pipe().unwrap();
        let (mut second_read, second) = io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo three >&3; echo four >&4"]);
        pass_fds(&mut command, &[first.as_fd(), second.as_fd()]).unwrap();
        assert!(command.status().unwrap().success());
        assert!(command.status().unwrap().success());
        drop((first, second, command));
        let mut text = String::new();
        first_read.read_to_string(&mut text).unwrap();
        second_read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "three\nthree\nfour\nfour\n");
    }

    #[test]
    fn a_program_that_does_not_exist_is_still_reported() {
        let (_read, write) = io::pipe().unwrap();
        let mut command = Command::new("/nonexistent/program");
        pass_fds(&mut command, &[write.as_fd()]).unwrap();
        let error = command.spawn().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_child_ends_with_the_thread_that_spawned_it() {
        let mut child = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("600");
            die_with_parent(&mut command, libc::SIGTERM);
            command.spawn().unwrap()
        })
        .join()
        .unwrap();
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
    }
}
