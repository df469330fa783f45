//! One process of the container that the shim is the parent of: its streams,
//! its terminal and its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};

use crate::container::{Stdio, TerminalSize};
use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::log::Log;
use crate::stdio::{Input, Opened, Opening, Output, Source, Stream, Window, lock};

/// How a process' standard streams are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub terminal: bool,
    /// First size of the terminal.
    pub size: Option<TerminalSize>,
    /// Standard input stays open for windows that type.
    pub stdin: bool,
    /// Standard input ends with the first window that typed.
    pub stdin_once: bool,
    /// Output is held back until a window is open.
    pub hold: bool,
}

/// The shim's ends of the streams of a process that is being made.
#[derive(Debug)]
pub struct Ends {
    stdin: Option<OwnedFd>,
    pipes: Option<(OwnedFd, OwnedFd)>,
}

impl Ends {
    /// What was printed on standard error, of a process that was not made after all: so much of it at the most as is there.
    #[must_use]
    pub fn errors(&self, most: usize) -> String {
        let Some((_, err)) = &self.pipes else {
            return String::new();
        };
        let mut bytes = vec![0; most];
        let read = rustix::io::ioctl_fionbio(err, true)
            .and_then(|()| rustix::io::read(err, &mut bytes[..]))
            .unwrap_or(0);
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }
}

/// Makes the streams: the process' ends and the shim's.
///
/// # Errors
/// No descriptors are left.
pub fn streams(wanted: &Wanted) -> Result<(Stdio, Ends)> {
    if wanted.terminal {
        let ends = Ends {
            stdin: None,
            pipes: None,
        };
        return Ok((Stdio::Terminal { size: wanted.size }, ends));
    }
    let make = || -> io::Result<(Stdio, Ends)> {
        let (stdin, feed) = if wanted.stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            (read, Some(write))
        } else {
            let null =
                rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            (null, None)
        };
        let (out, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (err, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let stdio = Stdio::Pipes {
            stdin,
            stdout,
            stderr,
        };
        let ends = Ends {
            stdin: feed,
            pipes: Some((out, err)),
        };
        Ok((stdio, ends))
    };
    make().map_err(|source| Error::Io {
        step: "cannot make the pipes of a process",
        source,
    })
}

/// A terminal as the shim holds it.
#[derive(Debug)]
struct Terminal {
    master: Arc<AsyncFd<OwnedFd>>,
    /// The other side, held open so that a program that closes its own copies
    /// for a moment does not end the terminal.
    _peer: Option<OwnedFd>,
}

/// A process of the container.
#[derive(Debug)]
pub struct Process {
    /// Empty for the container's first process.
    pub exec_id: String,
    pub pid: i32,
    pidfd: Option<OwnedFd>,
    output: Arc<Output>,
    input: Option<Arc<Input>>,
    terminal: Mutex<Option<Terminal>>,
    is_terminal: bool,
    exit: watch::Sender<Option<ExitStatus>>,
}

impl Process {
    /// Takes up a process that was just made with `ends`, and begins to copy
    /// its output.
    ///
    /// # Errors
    /// The streams cannot be watched.
    pub fn adopt(
        exec_id: &str,
        pid: i32,
        pidfd: Option<OwnedFd>,
        ends: Ends,
        terminal: Option<OwnedFd>,
        wanted: &Wanted,
        log: Option<Arc<Mutex<Log>>>,
    ) -> Result<Arc<Self>> {
        let once = wanted.stdin_once;
        let mut sources = Vec::new();
        let mut input = None;
        let mut held = None;
        if let Some(master) = terminal {
            let peer = ioctl_tiocgptpeer(
                &master,
                OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
            )
            .ok();
            let master = Arc::new(watched(master)?);
            sources.push(Source {
                stream: Stream::Out,
                fd: master.clone(),
            });
            if wanted.stdin {
                input = Some(Input::terminal(master.clone(), once));
            }
            held = Some(Terminal {
                master,
                _peer: peer,
            });
        }
        if let Some((out, err)) = ends.pipes {
            for (stream, fd) in [(Stream::Out, out), (Stream::Err, err)] {
                let fd = Arc::new(watched(fd)?);
                sources.push(Source { stream, fd });
            }
        }
        if let Some(stdin) = ends.stdin {
            input = Some(Input::pipe(watched(stdin)?, once));
        }
        Ok(Arc::new(Self {
            exec_id: exec_id.to_owned(),
            pid,
            pidfd,
            output: Output::start(sources, log, wanted.hold),
            input,
            is_terminal: held.is_some(),
            terminal: Mutex::new(held),
            exit: watch::Sender::new(None),
        }))
    }

    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    #[must_use]
    pub fn exit(&self) -> Option<ExitStatus> {
        self.exit.borrow().clone()
    }

    /// Returns once the process was reaped and its output passed on.
    pub async fn exited(&self) -> Option<ExitStatus> {
        let mut exit = self.exit.subscribe();
        // The sender lives as long as `self`.
        exit.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Opens a window; see [`Output::window`].
    #[must_use]
    pub fn window(&self, wanted: &Opening, closed: Arc<Notify>) -> (Window, Opened) {
        self.output.window(wanted, closed)
    }

    /// The process' standard input, if it has one.
    #[must_use]
    pub fn input(&self) -> Option<&Arc<Input>> {
        self.input.as_ref()
    }

    /// The process' output, for what concerns its primary window.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Sets the terminal's size; the program gets SIGWINCH if it changed.
    ///
    /// # Errors
    /// There is no terminal (any more).
    pub fn resize(&self, size: TerminalSize) -> Result<()> {
        let terminal = lock(&self.terminal);
        let Some(terminal) = &*terminal else {
            return Err(Error::NoTerminal {
                process: self.exec_id.clone(),
            });
        };
        let size = Winsize {
            ws_col: size.width,
            ws_row: size.height,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(terminal.master.get_ref(), size).map_err(|errno| Error::Io {
            step: "cannot set the terminal's size",
            source: errno.into(),
        })
    }

    /// Sends a signal to this process alone; it can not reach a later process
    /// with the same id.
    ///
    /// # Errors
    /// The process has ended, or there is no such signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let Some(pidfd) = &self.pidfd else {
            return Err(Error::NotRunning);
        };
        match gantry_sys::process::send_signal_to(pidfd.as_fd(), signal) {
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(Error::NotRunning),
            Err(source) => Err(Error::Io {
                step: "cannot send the signal",
                source,
            }),
        }
    }

    /// The process was reaped: passes on all it wrote.
    pub async fn drain(&self) {
        if let Some(input) = &self.input {
            input.stop();
        }
        self.output.drain().await;
        // Ends the reading of a terminal, and frees the descriptors.
        lock(&self.terminal).take();
    }

    /// Tells everybody how it ended.
    pub fn finish(&self, status: &ExitStatus) {
        self.exit.send_replace(Some(status.clone()));
        self.output.finish(status);
    }
}

/// Makes the shim's end of a stream non-blocking and watches it. The process'
/// end is another open file: it stays as it is.
#[expect(
    deprecated,
    reason = "unsound for an integer; an OwnedFd stays open as long as it is watched"
)]
fn watched(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&fd, true)
        .map_err(io::Error::from)
        .and_then(|()| AsyncFd::new(fd))
        .map_err(|source| Error::Io {
            step: "cannot watch a stream of a process",
            source,
        })
}
