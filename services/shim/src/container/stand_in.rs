//! `--init`: the container's first process stays, and the program is its child.
//!
//! A program that was not written to be process 1 does not reap orphans, and has no default signal handlers there. With
//! the annotation [`ANNOTATION`] this process does both for it: it reaps whatever ends, passes each signal on to the
//! program, and ends with the program's code. No file of the host comes into the container for it: it is the process that
//! made the container, which is undumpable, so that nobody inside can reach the host's file behind /proc/1/exe.
//!
//! Every signal but SIGKILL and SIGSTOP is blocked here, real-time signals included, taken one at a time, and sent to the
//! program. The program has a process group of its own, in the foreground of the terminal if there is one: what a key sends
//! reaches it once, and not again through here.

use std::ffi::{CStr, CString};

use gantry_sys::command_line::CommandLine;
use gantry_sys::{process, spawn};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus};

use super::error::Error;
use super::program;

/// The annotation that asks for it, with the value "true".
pub(super) const ANNOTATION: &str = "dev.gantry.init";

/// What such a process is called.
const NAME: &CStr = c"gantry-init";

/// Shows the command line of an init, `gantry-init -- PROGRAM ARGUMENTS`, for that of the process that made the
/// container, which tells of the host's files.
pub(super) fn show_as_init(
    command_line: CommandLine,
    arguments: &[CString],
) -> std::io::Result<()> {
    let words = [NAME, c"--"].map(CStr::to_bytes).into_iter();
    command_line.replace(words.chain(arguments.iter().map(|argument| argument.as_bytes())))
}

/// Starts the program and stays. Returns only with the failure.
pub(super) fn stay(
    name: &str,
    path: &CString,
    arguments: &[CString],
    environment: &[CString],
) -> Error {
    match start(path, arguments, environment) {
        Ok(child) => attend(child),
        Err(source) => program::refused(name, source),
    }
}

fn start(path: &CString, arguments: &[CString], environment: &[CString]) -> std::io::Result<Pid> {
    // Signals that arrive from now on wait until the program runs. The program itself starts with none blocked.
    process::block_signals()?;
    if !rustix::process::getpid().is_init() {
        // In a PID namespace of others their process 1 would get the orphans.
        let _unsupported = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    }
    let child = spawn::foreground_group(path, arguments, environment)?;
    let child = Pid::from_raw(child).ok_or(Errno::SRCH)?;
    let _ = rustix::thread::set_name(NAME);
    // What the parent and `start` wait for is that nobody holds their sockets any more.
    let _ = gantry_sys::fd::close_all_but(3, &[]);
    Ok(child)
}

/// Reaps and passes signals on until the program has ended.
fn attend(child: Pid) -> ! {
    loop {
        match reap(child) {
            Ok(None) => {}
            Ok(Some(code)) => process::exit_now(code),
            // The program cannot vanish unseen; if it has, nothing is left to wait for.
            Err(_) => process::exit_now(255),
        }
        match process::wait_for_signal() {
            Err(_) | Ok(libc::SIGCHLD) => {}
            Ok(signal) => {
                let _ended = process::send_signal(child.as_raw_nonzero().get(), signal);
            }
        }
    }
}

/// Reaps every child that has ended; the exit code, if the program is among them.
fn reap(child: Pid) -> rustix::io::Result<Option<i32>> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == child => {
                if let Some(code) = exit_code(status) {
                    return Ok(Some(code));
                }
            }
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// As a shell has it: the code, or 128 and the signal. `None`: it has not ended.
fn exit_code(status: WaitStatus) -> Option<i32> {
    status
        .exit_status()
        .or_else(|| Some(128 + status.terminating_signal()?))
}

/// Whether a specification asks for it.
pub(super) fn wanted(spec: &oci_spec::runtime::Spec) -> bool {
    spec.annotations()
        .as_ref()
        .and_then(|annotations| annotations.get(ANNOTATION))
        .is_some_and(|value| value == "true")
}
