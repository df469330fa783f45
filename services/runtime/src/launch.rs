//! Starting shims.
//!
//! A shim's listening socket is made here and handed over as its standard
//! input, so that a connection succeeds before the shim has even begun, and so
//! that nothing has to happen between fork and exec: the standard library then
//! uses `posix_spawn`, which costs the same however large this process is.
//!
//! The program is executed from a read-only view of its file, made once: no
//! container can overwrite it through `/proc/PID/exe`, and a service that runs
//! while its package is upgraded goes on with the program it knows.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gantry_sys::unix_socket;

use crate::bundle::Bundle;
use crate::error::{Error, Result};
use crate::process::Process;

/// Only this service, which is root, speaks to shims.
const SOCKET_MODE: u32 = 0o600;

/// Starts shims from one program.
#[derive(Debug)]
pub struct Launcher {
    program: PathBuf,
    /// Absent where this machine does not allow such a view; the shim then
    /// protects itself.
    view: Option<OwnedFd>,
}

impl Launcher {
    /// For the shim at `program`; `None`: beside this service's own program.
    ///
    /// # Errors
    /// There is no such program.
    pub fn new(program: Option<PathBuf>) -> io::Result<Self> {
        let program = match program {
            Some(program) => program,
            None => std::env::current_exe()?.with_file_name("gantry-shim"),
        };
        std::fs::metadata(&program)
            .map_err(|error| io::Error::new(error.kind(), format!("{program:?}: {error}")))?;
        let view = gantry_sys::mount::read_only_view(&program).ok();
        Ok(Self { program, view })
    }

    fn command(&self) -> Command {
        let program = self.view.as_ref().map_or_else(
            || self.program.clone(),
            |view| PathBuf::from(format!("/proc/self/fd/{}", view.as_raw_fd())),
        );
        let mut command = Command::new(program);
        command.arg0("gantry-shim").env_clear();
        command
    }

    /// Starts a shim that listens on the bundle's socket.
    ///
    /// # Errors
    /// The socket cannot be made, or the program not be executed.
    pub fn shim(&self, id: &str, bundle: &Bundle) -> Result<Process> {
        let socket = bundle.socket();
        let listener = unix_socket::listen(&socket, SOCKET_MODE)
            .map_err(|source| Error::file("cannot listen on", socket, source))?;
        let failed = |source| Error::Spawn {
            id: id.to_owned(),
            program: self.program.clone(),
            source,
        };
        let words = last_words(bundle.path()).map_err(failed)?;
        let child = self
            .command()
            .arg("serve")
            .arg(bundle.path())
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .stderr(words)
            .spawn()
            .map_err(failed)?;
        i32::try_from(child.id())
            .map_err(io::Error::other)
            .and_then(Process::open)
            .map_err(failed)
    }

    /// Starts a process that cleans up after the dead shim of `bundle`.
    ///
    /// # Errors
    /// The program cannot be executed.
    pub fn sweep(&self, id: &str, bundle: &Bundle) -> Result<std::process::Child> {
        let spawn = || {
            self.command()
                .arg("sweep")
                .arg(bundle.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(last_words(bundle.path())?)
                .spawn()
        };
        spawn().map_err(|source| Error::Spawn {
            id: id.to_owned(),
            program: self.program.clone(),
            source,
        })
    }
}

/// Where a shim's standard error goes.
fn last_words(bundle: &Path) -> io::Result<std::fs::File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(bundle.join("shim.stderr"))
}
