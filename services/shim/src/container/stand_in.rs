//! `--init`: the container's first process stays, and the program is its child.
//!
//! A program that was not written to be process 1 does not reap orphans, and has no default signal handlers there. With
//! the annotation [`ANNOTATION`] this process does both for it: it reaps whatever ends, passes each signal on to the
//! program, and ends with the program's code. No file of the host comes into the container for it: it is the process that
//! made the container, which is undumpable, so that nobody inside can reach the host's file behind /proc/1/exe.
//!
//! The program has a process group of its own, in the foreground of the terminal if there is one: what a key sends reaches
//! it once, and not again through here.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use gantry_sys::command_line::CommandLine;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

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
    // They wait until they are asked for. The program starts with none blocked: that is how the library spawns.
    SigSet::all().thread_block()?;
    let words = |strings: &[CString]| -> Vec<_> {
        strings
            .iter()
            .map(|string| OsStr::from_bytes(string.as_bytes()).to_owned())
            .collect()
    };
    let arguments = words(arguments);
    let mut command = Command::new(OsStr::from_bytes(path.as_bytes()));
    if let Some((zeroth, rest)) = arguments.split_first() {
        command.arg0(zeroth).args(rest);
    }
    command.env_clear().process_group(0);
    for variable in environment {
        let bytes = variable.as_bytes();
        if let Some(at) = bytes.iter().position(|&byte| byte == b'=') {
            command.env(
                OsStr::from_bytes(&bytes[..at]),
                OsStr::from_bytes(&bytes[at + 1..]),
            );
        }
    }
    let child = Pid::from_raw(command.spawn()?.id().cast_signed());
    let _ = rustix::thread::set_name(NAME);
    // What the parent and `start` wait for is that nobody holds their sockets any more.
    let _ = gantry_sys::fd::close_all_but(3, &[]);
    if nix::unistd::tcsetpgrp(std::io::stdin(), child).is_ok() {
        // It may have tried to read before, and been stopped for it.
        let _ = killpg(child, Signal::SIGCONT);
    }
    Ok(child)
}

/// Reaps and passes signals on until the program has ended.
fn attend(child: Pid) -> ! {
    loop {
        match reap(child) {
            Ok(None) => {}
            Ok(Some(code)) => gantry_sys::process::exit_now(code),
            // The program cannot vanish unseen; if it has, nothing is left to wait for.
            Err(_) => gantry_sys::process::exit_now(255),
        }
        match SigSet::all().wait() {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            // These are for whoever holds a terminal, which is the program's group.
            Ok(Signal::SIGTTIN | Signal::SIGTTOU) => {}
            Ok(signal) => {
                let _ = nix::sys::signal::kill(child, signal);
            }
        }
    }
}

/// Reaps all that has ended; the code, if the program is among them.
fn reap(child: Pid) -> nix::Result<Option<i32>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return Ok(Some(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return Ok(Some(128 + signal as i32));
            }
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether a specification asks for it.
pub(super) fn wanted(spec: &oci_spec::runtime::Spec) -> bool {
    spec.annotations()
        .as_ref()
        .and_then(|annotations| annotations.get(ANNOTATION))
        .is_some_and(|value| value == "true")
}
