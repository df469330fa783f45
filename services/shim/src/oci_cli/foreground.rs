//! A process in the foreground: its terminal shown on ours, our signals passed on, its end waited for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use gantry_sys::unix_socket::Address;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use super::CliError;
use crate::container::TerminalSize;

/// The signals, held back until the process is there to get them.
pub(super) struct Foreground {
    signals: SignalFd,
}

fn failed(what: &'static str) -> impl Fn(std::io::Error) -> CliError {
    move |error| CliError::file(what, "standard streams".as_ref(), error)
}

/// The size of the terminal on standard input, if it is one.
pub(super) fn terminal_size() -> Option<TerminalSize> {
    let size = tcgetwinsize(rustix::stdio::stdin()).ok()?;
    Some(TerminalSize {
        width: size.ws_col,
        height: size.ws_row,
    })
}

/// Sends a terminal's master to whoever listens at `path`.
pub(super) fn send_terminal(path: &Path, master: &OwnedFd) -> Result<(), CliError> {
    let sent = (|| -> std::io::Result<()> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let address = Address::of(path)?;
        rustix::net::connect(&socket, &address.socket_address()?)?;
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [master.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        rustix::net::sendmsg(
            &socket,
            &[std::io::IoSlice::new(b"/dev/ptmx")],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    })();
    sent.map_err(|error| CliError::file("send the terminal to", path, error))
}

impl Foreground {
    /// Holds signals back. Before the container is made, so that none is lost. The container's own are reset at its birth.
    pub(super) fn prepare() -> Result<Self, CliError> {
        let mut set = SigSet::all();
        for kept in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGILL,
            Signal::SIGFPE,
            Signal::SIGABRT,
            Signal::SIGTRAP,
        ] {
            set.remove(kept);
        }
        let signals = set.thread_block().and_then(|()| {
            SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        });
        Ok(Self {
            signals: signals.map_err(|error| failed("wait for signals on")(error.into()))?,
        })
    }

    /// Until the process ends: its exit code, or 128 and the signal.
    pub(super) fn attend(
        &self,
        pidfd: BorrowedFd<'_>,
        terminal: Option<OwnedFd>,
    ) -> Result<u8, CliError> {
        let raw = terminal.as_ref().and_then(|_| Raw::enter());
        let mut input = terminal.is_some();
        loop {
            let mut fds = vec![
                PollFd::new(&pidfd, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
            ];
            if let Some(master) = &terminal {
                fds.push(PollFd::new(master, PollFlags::IN));
                if input {
                    fds.push(PollFd::from_borrowed_fd(
                        rustix::stdio::stdin(),
                        PollFlags::IN,
                    ));
                }
            }
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.map_err(|error| failed("wait on")(error.into()))?,
            };
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if ready[1] {
                self.pass_signals(pidfd, terminal.as_ref());
            }
            if let Some(master) = &terminal {
                if ready.get(2) == Some(&true) {
                    copy(master.as_fd(), rustix::stdio::stdout());
                }
                if input && ready.get(3) == Some(&true) {
                    input = copy(rustix::stdio::stdin(), master.as_fd());
                }
            }
            if ready[0] {
                // What it wrote last is still in the terminal.
                if let Some(master) = &terminal {
                    let _ = rustix::io::ioctl_fionbio(master, true);
                    while copy(master.as_fd(), rustix::stdio::stdout()) {}
                }
                drop(raw);
                return reap(pidfd);
            }
        }
    }

    fn pass_signals(&self, pidfd: BorrowedFd<'_>, terminal: Option<&OwnedFd>) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match signal.ssi_signo as i32 {
                libc::SIGCHLD => {}
                libc::SIGWINCH => {
                    if let Some(master) = terminal
                        && let Ok(size) = tcgetwinsize(rustix::stdio::stdin())
                    {
                        let _ = tcsetwinsize(master, size);
                    }
                }
                other => {
                    let _ = gantry_sys::process::send_signal_to(pidfd, other);
                }
            }
        }
    }
}

fn reap(pidfd: BorrowedFd<'_>) -> Result<u8, CliError> {
    let ended = waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED)
        .map_err(|error| failed("wait for the program on")(error.into()))?;
    Ok(ended.map_or(0, |status| {
        status.exit_status().map_or_else(
            || 128 + status.terminating_signal().unwrap_or(0) as u8,
            |code| code as u8,
        )
    }))
}

/// Copies what there is; `false` at the end.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0_u8; 16 * 1024];
    let length = match rustix::io::read(from, &mut buffer[..]) {
        Ok(0) | Err(_) => return false,
        Ok(length) => length,
    };
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

/// Our own terminal in raw mode, until dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Option<Self> {
        let before = tcgetattr(rustix::stdio::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, &self.before);
    }
}
