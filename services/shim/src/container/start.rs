//! `start`: lets init execute the container's program.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Duration;

use gantry_sys::unix_socket::Address;
use rustix::fs::StatVfsMountFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::context::During;
use super::error::{Error, Result};
use super::handle::Container;
use super::hooks;
use super::kill::Target;
use super::record::Status;
use super::wire::{self, Message};

/// How long an init that has said its last word may take to go.
const FAREWELL: Duration = Duration::from_secs(10);

impl Container {
    /// Lets init go on and returns when the program has been executed, or with the error that prevented it
    /// ([`Error::Exec`], a `startContainer` hook): then init has ended and is to be reaped by the caller.
    /// `poststart` hooks have run when this returns; if one fails the container is killed, as the specification asks,
    /// and is to be deleted.
    pub fn start(&mut self) -> Result<()> {
        self.require("start", &[Status::Created])?;
        let socket = match self.gate.take() {
            Some(held) => held,
            None => self.connect()?,
        };
        wire::signal(&socket, wire::START).during("start", self.id())?;
        self.started = true;
        if let Some(gate) = &self.record.gate {
            match std::fs::remove_file(gate) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).during("remove", gate.display());
                }
                _ => {}
            }
        }
        match wire::receive(socket.as_fd()).during("hear from", "init")? {
            None => {}
            Some((Message::Failed(failure), _)) => {
                // It is about to end: who deletes it next shall not find it running.
                let _ = self.wait(FAREWELL);
                return Err(failure.into());
            }
            Some(_) => {
                return Err(Error::step(
                    "start",
                    self.id(),
                    std::io::Error::from_raw_os_error(libc::EPROTO),
                ));
            }
        }
        if let Some(hooks) = self
            .record
            .hooks
            .as_ref()
            .and_then(|hooks| hooks.poststart().as_deref())
        {
            let state = hooks::state(&self.record, Status::Running, self.record.pid);
            let ran = hooks::run("poststart", hooks, &state, Some(&self.record.bundle));
            if ran.is_err() {
                self.kill(libc::SIGKILL, Target::All)?;
            }
            return ran;
        }
        Ok(())
    }

    fn connect(&self) -> Result<OwnedFd> {
        let Some(path) = &self.record.gate else {
            return Err(Error::Unsupported {
                what: "starting this container from here".to_owned(),
                why: "only the process that created it can".to_owned(),
            });
        };
        let connected = (|| -> std::io::Result<OwnedFd> {
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )?;
            let address = Address::of(path)?;
            rustix::net::connect(&socket, &address.socket_address()?)?;
            Ok(socket)
        })();
        connected.during("connect to", path.display())
    }
}

/// Makes sure that no container can write to this program's own file through `/proc/PID/exe`
/// (CVE-2019-5736): if the program was not started from a read-only mount, it is executed anew, at once,
/// with the same arguments, from a private read-only view of its file. Call it first in `main`.
///
/// The view is a detached mount that is in no mount namespace, so that no right of a container can make it writable. This
/// costs one execve (about 1 ms for a program of this kind), and no copy of the file.
///
/// A caller that starts such programs often can save the second execution by starting them from such a view itself:
/// `gantry_sys::mount::read_only_view`.
pub fn protect_own_binary() -> Result<()> {
    const SELF: &str = "/proc/self/exe";
    let own = rustix::fs::statvfs(SELF).during("look at", SELF)?;
    if own.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let view = gantry_sys::mount::read_only_view(Path::new(SELF)).during("protect", SELF)?;
    let arguments: Vec<CString> = std::env::args_os()
        .filter_map(|argument| CString::new(argument.into_vec()).ok())
        .collect();
    let environment: Vec<CString> = std::env::vars_os()
        .filter_map(|(name, value)| {
            let mut line = name.into_vec();
            line.push(b'=');
            line.extend(value.into_vec());
            CString::new(line).ok()
        })
        .collect();
    let error = gantry_sys::process::execute_descriptor(view.as_fd(), &arguments, &environment);
    Err(Error::step(
        "execute",
        "the read-only view of this program",
        error,
    ))
}
