//! Windows: an attached person's view on a process, as the domain sees it.
//!
//! A window's bytes come from the shim through the runtime and go to whoever
//! opened it. It is never waited for by anything else: when its reader is slow,
//! the streams fill up to the shim's ring, which counts what it drops.
//!
//! One thing is different at the end of a process: its container may be removed
//! at once, and its shim with it, while a slow reader still has bytes to come.
//! So from the exit on, [`carry`] takes all that is left into memory (at most the
//! shim's ring of 1 MiB and what the streams hold) and only then lets go of the
//! container (see [`crate::roster::Entry::windows_closed`]).

use std::collections::VecDeque;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;

use crate::container::Exit;
use crate::error::Error;

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u32,
    pub rows: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// What a window is to carry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WindowOpen {
    /// Which process. Empty: the container's first.
    pub exec_id: String,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub terminal_size: Option<TerminalSize>,
}

/// What the person at a window does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WindowInput {
    Stdin(Bytes),
    StdinClose,
    Resize(TerminalSize),
    /// A signal for the process, by number.
    Signal(u32),
    /// Nobody reads any more, on purpose.
    Detach,
}

/// What comes out of a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WindowOutput {
    /// Every byte from here on is seen.
    Attached {
        terminal: bool,
    },
    Output {
        stream: Stream,
        data: Bytes,
    },
    /// So many bytes were not seen; 0: nobody knows how many.
    Missed {
        bytes: u64,
    },
    /// The last.
    Exited(Exit),
}

/// An open window's output.
pub type Outputs = BoxStream<'static, Result<WindowOutput, Error>>;

/// How much waits here for a slow reader while the process runs.
const BACKLOG_BYTES: usize = 256 << 10;

/// How a window's output came to its end.
#[derive(Debug)]
pub enum Carried {
    /// The process ended, and all its output was handed on or is in `rest`.
    Exited { exit: Exit, rest: Vec<WindowOutput> },
    /// The stream broke off: the runtime went away.
    Broken { error: Option<Error> },
    /// Nobody reads any more.
    Unread,
}

/// Hands a window's output on to `reader` until it ends. While the process runs
/// at most 256 KiB wait here; once `ended` is true, whatever comes is taken.
pub async fn carry<T: From<WindowOutput>>(
    outputs: &mut Outputs,
    reader: &mpsc::Sender<T>,
    mut ended: impl FnMut() -> bool,
    mut change: tokio::sync::watch::Receiver<std::sync::Arc<crate::container::Record>>,
) -> Carried {
    let mut backlog: VecDeque<WindowOutput> = VecDeque::new();
    let mut waiting = 0_usize;
    let mut watching = true;
    loop {
        let full = waiting >= BACKLOG_BYTES && !ended();
        tokio::select! {
            biased;
            permit = reader.reserve(), if !backlog.is_empty() => {
                let (Ok(permit), Some(output)) = (permit, backlog.pop_front()) else {
                    return Carried::Unread;
                };
                waiting -= weight(&output);
                permit.send(T::from(output));
            }
            output = outputs.next(), if !full => match output {
                Some(Ok(WindowOutput::Exited(exit))) => {
                    return Carried::Exited { exit, rest: backlog.into() };
                }
                Some(Ok(output)) => {
                    waiting += weight(&output);
                    backlog.push_back(output);
                }
                Some(Err(error)) => return broken(backlog, reader, Some(error)).await,
                None => return broken(backlog, reader, None).await,
            },
            // A full backlog is looked at again when the container ends.
            changed = change.changed(), if full && watching => {
                watching = changed.is_ok();
            }
            () = reader.closed() => return Carried::Unread,
        }
    }
}

async fn broken<T: From<WindowOutput>>(
    backlog: VecDeque<WindowOutput>,
    reader: &mpsc::Sender<T>,
    error: Option<Error>,
) -> Carried {
    for output in backlog {
        if reader.send(T::from(output)).await.is_err() {
            return Carried::Unread;
        }
    }
    Carried::Broken { error }
}

fn weight(output: &WindowOutput) -> usize {
    match output {
        WindowOutput::Output { data, .. } => data.len(),
        WindowOutput::Attached { .. } | WindowOutput::Missed { .. } | WindowOutput::Exited(_) => 0,
    }
}
