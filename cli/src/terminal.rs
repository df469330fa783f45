//! The caller's terminal: raw while a container's terminal is attached to it,
//! and as it was before on every way out.
//!
//! [`Raw`] restores on drop, so also when a panic unwinds; signals that end the
//! command are awaited and not left to the kernel while one exists.

use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::OwnedFd;

use gantry_proto::types::v1::{Stream, TerminalSize};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

pub(crate) fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// The size of the terminal that output goes to, or else input comes from.
pub(crate) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdout())
        .or_else(|_| tcgetwinsize(io::stdin()))
        .ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| TerminalSize {
        columns: size.ws_col.into(),
        rows: size.ws_row.into(),
    })
}

/// A terminal in raw mode.
#[derive(Debug)]
pub(crate) struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Puts the terminal on standard input into raw mode; none where there is
    /// no terminal.
    ///
    /// # Errors
    /// The terminal refuses.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !stdin_is_terminal() {
            return Ok(None);
        }
        // A descriptor of its own: what closes standard input must not keep the
        // terminal from being restored.
        let terminal = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _gone = tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}

/// Writes on a thread of its own. A reader that has stopped holds up only the
/// caller: the connection to the engine is served meanwhile, which gives up a
/// client that it takes for frozen.
pub(crate) async fn write(
    stream: Stream,
    bytes: impl AsRef<[u8]> + Send + 'static,
) -> io::Result<()> {
    let write = move || match stream {
        Stream::Stderr => io::stderr().lock().write_all(bytes.as_ref()),
        Stream::Stdout | Stream::Unspecified => {
            let mut out = io::stdout().lock();
            out.write_all(bytes.as_ref())?;
            out.flush()
        }
    };
    tokio::task::spawn_blocking(write)
        .await
        .map_err(io::Error::other)?
}

/// Writes to standard output; a reader that went away is an error, not a panic.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a line to standard output.
pub(crate) fn println(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}
