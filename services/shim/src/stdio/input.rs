//! What windows type, on its way to a process.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::{HOLD_LIMIT, lock};

/// Chunks on their way. A window whose input the program does not read waits,
/// and with it whoever types there, by flow control.
const QUEUE: usize = 4;

/// End of file for a terminal in its default mode (termios(3), VEOF).
const END_OF_TRANSMISSION: &[u8] = b"\x04";

#[derive(Debug)]
enum Feed {
    Data(Bytes),
    End,
}

/// A process' standard input.
#[derive(Debug)]
pub struct Input {
    feed: mpsc::Sender<Feed>,
    typing: Mutex<usize>,
    /// Ends with the first window that typed.
    once: bool,
    writer: AbortHandle,
    /// Rights to type that outlive their connections.
    named: Mutex<HashMap<String, Named>>,
}

#[derive(Debug)]
struct Named {
    seat: Seat,
    /// Which opening of the window types.
    opening: u64,
}

/// Where a typist with a name types: one connection at a time.
pub(crate) type Seat = Arc<tokio::sync::Mutex<Typist>>;

impl Input {
    /// Input over a pipe; its end is the closing of the pipe.
    #[must_use]
    pub fn pipe(fd: AsyncFd<OwnedFd>, once: bool) -> Arc<Self> {
        Self::start(Arc::new(fd), once, false)
    }

    /// Input over a terminal's master side.
    #[must_use]
    pub fn terminal(fd: Arc<AsyncFd<OwnedFd>>, once: bool) -> Arc<Self> {
        Self::start(fd, once, true)
    }

    fn start(fd: Arc<AsyncFd<OwnedFd>>, once: bool, terminal: bool) -> Arc<Self> {
        let (feed, fed) = mpsc::channel(QUEUE);
        let writer = tokio::spawn(write(fd, fed, terminal)).abort_handle();
        Arc::new(Self {
            feed,
            typing: Mutex::new(0),
            once,
            writer,
            named: Mutex::default(),
        })
    }

    /// A window that types.
    #[must_use]
    pub fn typist(self: &Arc<Self>) -> Typist {
        *lock(&self.typing) += 1;
        Typist {
            input: self.clone(),
            closed: false,
            taken: 0,
        }
    }

    /// The window that types under `name`, a new one or one that is opened again;
    /// and the number of this opening.
    #[must_use]
    pub(crate) fn named(self: &Arc<Self>, name: &str) -> (Seat, u64) {
        let mut all = lock(&self.named);
        let named = all.entry(name.to_owned()).or_insert_with(|| Named {
            seat: Arc::new(tokio::sync::Mutex::new(self.typist())),
            opening: 0,
        });
        named.opening += 1;
        (named.seat.clone(), named.opening)
    }

    /// The connection of the window that types under `name` broke: it can be opened
    /// again for a while.
    pub(crate) fn keep_for_a_while(self: &Arc<Self>, name: String, opening: u64) {
        let same = move |named: &Named| named.opening == opening;
        if !lock(&self.named).get(&name).is_some_and(same) {
            return;
        }
        let input = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(HOLD_LIMIT).await;
            if let Some(input) = input.upgrade() {
                let mut all = lock(&input.named);
                let over = all.get(&name).is_some_and(same);
                let left = if over { all.remove(&name) } else { None };
                drop(all);
                drop(left);
            }
        });
    }

    /// Ends the right to type under `name`.
    pub fn release(&self, name: &str) {
        let left = lock(&self.named).remove(name);
        drop(left);
    }

    /// The process has ended.
    pub fn stop(&self) {
        self.writer.abort();
    }
}

/// One window's right to type.
#[derive(Debug)]
pub struct Typist {
    input: Arc<Input>,
    closed: bool,
    /// Bytes that were typed here and taken.
    taken: u64,
}

impl Typist {
    /// Types `data`; waits while the program does not read. Given up, nothing of it
    /// was typed.
    pub async fn enter(&mut self, data: Bytes) {
        let length = data.len() as u64;
        if !self.closed {
            // A writer that is gone means a program that takes no more input.
            let _gone = self.input.feed.send(Feed::Data(data)).await;
        }
        self.taken += length;
    }

    /// Bytes that were taken.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// No more input from here: end of file, unless another window types too.
    pub async fn close(&mut self) {
        if !std::mem::replace(&mut self.closed, true) && self.leave() {
            let _gone = self.input.feed.send(Feed::End).await;
        }
    }

    /// Counts this window out; true if it was the last one.
    fn leave(&self) -> bool {
        let mut typing = lock(&self.input.typing);
        *typing = typing.saturating_sub(1);
        *typing == 0
    }
}

impl Drop for Typist {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        self.leave();
        if self.input.once {
            let feed = self.input.feed.clone();
            // The queue may be full, and a destructor can not wait.
            tokio::spawn(async move { feed.send(Feed::End).await });
        }
    }
}

async fn write(fd: Arc<AsyncFd<OwnedFd>>, mut fed: mpsc::Receiver<Feed>, terminal: bool) {
    let mut at_line_start = true;
    while let Some(feed) = fed.recv().await {
        let written = match feed {
            Feed::Data(data) => {
                if let Some(last) = data.last() {
                    at_line_start = *last == b'\n' || *last == b'\r';
                }
                write_all(&fd, &data).await
            }
            Feed::End if terminal => {
                // In the middle of a line the first one only hands the line over.
                if !at_line_start {
                    let _ended = write_all(&fd, END_OF_TRANSMISSION).await;
                }
                write_all(&fd, END_OF_TRANSMISSION).await
            }
            Feed::End => return,
        };
        if written.is_err() {
            return;
        }
    }
}

async fn write_all(fd: &AsyncFd<OwnedFd>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let count = fd
            .async_io(Interest::WRITABLE, |fd| {
                Ok(rustix::io::write(fd.as_fd(), data)?)
            })
            .await?;
        data = &data[count..];
    }
    Ok(())
}
