//! What a child process gets from its parent beside arguments and environment:
//! signals, descriptors at fixed numbers, and an end when its parent ends.
//!
//! The standard library passes on the signal mask of the spawning thread, every
//! signal that the parent ignores (but SIGPIPE), and every descriptor that was
//! inherited without close-on-exec. Each `Command` of the product therefore goes
//! through [`with_defaults`] or [`pass_fds`].
//!
//! The numbers are those of systemd's socket activation (sd_listen_fds(3)): the
//! first descriptor is [`FIRST_FD`], the next the one after it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::check;

/// Number of the first descriptor that [`pass_fds`] gives to a child
/// (SD_LISTEN_FDS_START).
pub const FIRST_FD: i32 = 3;

/// Starts the child of `command` with every signal at its default action, an
/// empty signal mask, and no descriptor but its three standard streams.
///
/// Add it after other hooks of the command that run before exec. The library
/// then forks instead of sharing the parent's memory until exec, which costs
/// more the larger the parent is.
pub fn with_defaults(command: &mut Command) {
    only_below(command, FIRST_FD.cast_unsigned());
}

fn only_below(command: &mut Command, first_closed: u32) {
    let install = move || {
        crate::fd::close_on_exec_from(first_closed)?;
        crate::process::reset_signals()
    };
    // SAFETY: between fork and exec the closure only makes the system calls
    // close_range, rt_sigaction and rt_sigprocmask; it allocates nothing.
    unsafe { command.pre_exec(install) };
}

/// Starts `path` as the leader of a process group of its own with exactly these
/// arguments and variables, signals and descriptors as [`with_defaults`] has
/// them. If standard input is the session's controlling terminal, the group is
/// in its foreground before the program runs, so that its first read does not
/// stop it. Its PID, and the caller reaps it.
///
/// # Errors
/// The process cannot be made, or the program not be executed.
pub fn foreground_group(
    path: &CStr,
    arguments: &[CString],
    environment: &[CString],
) -> io::Result<i32> {
    let terminated = |strings: &[CString]| -> Pointers {
        let strings = strings.iter().map(|string| string.as_ptr());
        Pointers(strings.chain([std::ptr::null()]).collect())
    };
    let program = path.to_owned();
    // The arrays point to these, which the closure owns as well.
    let owned = (arguments.to_vec(), environment.to_vec());
    let (arguments, environment) = (terminated(&owned.0), terminated(&owned.1));
    let execute = move || {
        let _strings = &owned;
        // SAFETY: setpgid, getpid and signal-mask calls take integers only, and
        // tcsetpgrp is one ioctl on a number. SIGTTOU is blocked for the
        // latter, so that a group in the background may call it.
        unsafe {
            check(libc::setpgid(0, 0).into())?;
            crate::process::block_signals()?;
            // Fails where standard input is no terminal, or another session's.
            libc::tcsetpgrp(0, libc::getpid());
        }
        crate::fd::close_on_exec_from(FIRST_FD.cast_unsigned())?;
        crate::process::reset_signals()?;
        // SAFETY: both arrays end in a null pointer and point to C strings that
        // the closure owns.
        unsafe {
            libc::execve(program.as_ptr(), arguments.start(), environment.start());
        }
        Err(io::Error::last_os_error())
    };
    // The library reports the closure's failure, as it does that of exec. Its
    // own exec, which knows a variable by its name only, is never reached.
    let mut command = Command::new("/");
    // SAFETY: between fork and exec the closure makes system calls only, and an
    // error of the system's is a number: nothing is allocated.
    unsafe { command.pre_exec(execute) };
    Ok(command.spawn()?.id().cast_signed())
}

/// A null-terminated array for execve(2).
struct Pointers(Vec<*const libc::c_char>);

impl Pointers {
    const fn start(&self) -> *const *const libc::c_char {
        self.0.as_ptr()
    }
}

// SAFETY: the pointers lead to the bytes of strings that are not changed while
// the array is used; which thread reads them makes no difference.
unsafe impl Send for Pointers {}
// SAFETY: as above.
unsafe impl Sync for Pointers {}

/// Gives the child that `command` spawns copies of `fds` as [`FIRST_FD`] and
/// the numbers after it, and otherwise what [`with_defaults`] gives. The caller
/// may close its own at once: the command keeps copies, so that it can be
/// spawned more than once.
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
    only_below(command, end.cast_unsigned());
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

    /// Leaves a thread with signals blocked and ignored, and a descriptor open
    /// that execs keep.
    fn in_a_spoiled_thread<T: Send>(run: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let spoiled = scope.spawn(|| {
                crate::process::block_signals().unwrap();
                let null = std::fs::File::open("/dev/null").unwrap();
                rustix::io::fcntl_setfd(&null, rustix::io::FdFlags::empty()).unwrap();
                run()
            });
            spoiled.join().unwrap()
        })
    }

    /// What a child that runs this says of itself when all is at its default. A shell
    /// changes its own mask around each child, so that it ends as the program that looks.
    const LOOK: &str = "for fd in 3 4 5 6 7 8 9; do test -e /proc/$$/fd/$fd && echo $fd; done; \
        exec grep -E '^Sig(Blk|Ign)' /proc/self/status";
    const DEFAULTS: &str = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n";

    #[test]
    fn a_child_gets_no_mask_no_ignored_signal_and_no_descriptor_of_its_parent() {
        let output = in_a_spoiled_thread(|| {
            let mut command = Command::new("sh");
            command.args(["-c", LOOK]);
            with_defaults(&mut command);
            command.output().unwrap()
        });
        assert_eq!(String::from_utf8_lossy(&output.stdout), DEFAULTS);
    }

    #[test]
    fn a_child_that_is_passed_descriptors_gets_these_alone() {
        let output = in_a_spoiled_thread(|| {
            let (_read, write) = io::pipe().unwrap();
            let mut command = Command::new("sh");
            command.args(["-c", LOOK]);
            pass_fds(&mut command, &[write.as_fd()]).unwrap();
            command.output().unwrap()
        });
        let expected = format!("3\n{DEFAULTS}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }

    #[test]
    fn a_group_of_its_own_gets_arguments_and_variables_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("said");
        let script = format!(
            "exec > {}; echo $0 $1; tr '\\0' '\\n' < /proc/$$/environ; \
             test $(ps -o pgid= -p $$) -eq $$ && echo leads; {LOOK}",
            path.display()
        );
        let words = |words: &[&str]| -> Vec<CString> {
            words.iter().map(|w| CString::new(*w).unwrap()).collect()
        };
        let pid = in_a_spoiled_thread(|| {
            let arguments = words(&["zeroth", "-c", &script, "name", "one"]);
            foreground_group(c"/bin/sh", &arguments, &words(&["B=1", "A=2", "B=3"])).unwrap()
        });
        let pid = rustix::process::Pid::from_raw(pid);
        rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap();
        let said = std::fs::read_to_string(path).unwrap();
        assert_eq!(said, format!("name one\nB=1\nA=2\nB=3\nleads\n{DEFAULTS}"));
        let absent = foreground_group(c"/nonexistent", &[], &[]).unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_blocked_signal_is_taken_by_its_number_real_time_ones_too() {
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| {
                crate::process::block_signals().unwrap();
                let thread = rustix::thread::gettid().as_raw_nonzero().get();
                for signal in [libc::SIGTERM, 34, 37, 64] {
                    // SAFETY: tgkill takes integers only; the signal is blocked.
                    let sent =
                        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
                    assert_eq!(sent, 0);
                    assert_eq!(crate::process::wait_for_signal().unwrap(), signal);
                }
            });
            taken.join().unwrap();
        });
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
