//! Windows: an attached person's view on a process, as the domain sees it.
//!
//! A window's bytes come from the shim through the runtime and go to whoever
//! opened it. When its reader is slow, the streams fill up to the shim's ring. For
//! a primary window the shim then holds the process back, and keeps what was not
//! acknowledged ([`Receipts`]), so that the window can be opened again without a
//! gap. For any other window it drops output and counts it.
//!
//! One thing is different at the end of a process: its container may be removed
//! at once, and its shim with it, while a slow reader still has bytes to come.
//! So from the exit on, [`carry`] takes all that is left into memory (at most the
//! shim's ring of 1 MiB, what its pipes held, and what the streams hold) and only
//! then lets go of the container (see
//! [`crate::roster::Entry::windows_closed`]).

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::{mpsc, watch};

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
    /// The process waits for this window's reader, and nothing is missed.
    pub primary: bool,
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
    Attached(Attached),
    Output {
        stream: Stream,
        data: Bytes,
    },
    /// So many bytes were not seen; 0: nobody knows how many.
    Missed {
        bytes: u64,
    },
    /// Input up to this position, in bytes, was taken.
    Typed {
        position: u64,
    },
    /// The last.
    Exited(Exit),
}

/// How a window was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    pub terminal: bool,
    /// It is the primary one, as it was wanted.
    pub primary: bool,
    /// It goes on where it was.
    pub resumed: bool,
    /// Bytes of input that were taken from it before.
    pub typed: u64,
}

/// An open window's output.
pub type Outputs = BoxStream<'static, Result<WindowOutput, Error>>;

/// How much waits here for a slow reader while the process runs.
const BACKLOG_BYTES: usize = 256 << 10;

/// A receipt is sent for so many bytes, in any case.
const RECEIPT_BYTES: u64 = 256 << 10;

/// A receipt for less is sent when nothing has come for [`IDLE`], if it is for so
/// much: it frees memory of the shim.
const RECEIPT_IDLE_BYTES: u64 = 16 << 10;

/// See [`RECEIPT_IDLE_BYTES`].
const IDLE: Duration = Duration::from_millis(100);

/// Tells the shim how much output of a primary window was received.
#[derive(Debug)]
pub struct Receipts {
    received: u64,
    told: watch::Sender<u64>,
}

impl Receipts {
    /// For a window that begins at `position`.
    #[must_use]
    pub fn from(position: u64) -> (Self, watch::Receiver<u64>) {
        let (told, receipts) = watch::channel(position);
        let begin = Self {
            received: position,
            told,
        };
        (begin, receipts)
    }

    /// The same, for a window that turned out to begin anew.
    #[must_use]
    pub fn anew(mut self) -> Self {
        self.received = 0;
        self.told.send_if_modified(|told| {
            *told = 0;
            false
        });
        self
    }

    /// Bytes that were received.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.received
    }

    fn owed(&self) -> u64 {
        self.received - *self.told.borrow()
    }

    fn add(&mut self, bytes: usize) {
        self.received += bytes as u64;
        if self.owed() >= RECEIPT_BYTES {
            self.tell();
        }
    }

    fn tell(&self) {
        self.told.send_replace(self.received);
    }
}

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
    receipts: &mut Receipts,
    mut ended: impl FnMut() -> bool,
    mut change: watch::Receiver<std::sync::Arc<crate::container::Record>>,
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
                    let weight = weight(&output);
                    receipts.add(weight);
                    waiting += weight;
                    backlog.push_back(output);
                }
                Some(Err(error)) => return broken(backlog, reader, Some(error)).await,
                None => return broken(backlog, reader, None).await,
            },
            () = tokio::time::sleep(IDLE), if receipts.owed() >= RECEIPT_IDLE_BYTES => {
                receipts.tell();
            }
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
        WindowOutput::Attached(_)
        | WindowOutput::Missed { .. }
        | WindowOutput::Typed { .. }
        | WindowOutput::Exited(_) => 0,
    }
}
