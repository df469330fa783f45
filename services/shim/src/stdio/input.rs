//! What windows type, on its way to a process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::lock;

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
}

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
        })
    }

    /// A window that types.
    #[must_use]
    pub fn typist(self: &Arc<Self>) -> Typist {
        *lock(&self.typing) += 1;
        Typist {
            input: self.clone(),
            closed: false,
        }
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
}

impl Typist {
    /// Types `data`; waits while the program does not read.
    pub async fn enter(&self, data: Bytes) {
        if !self.closed {
            // A writer that is gone means a program that takes no more input.
            let _gone = self.input.feed.send(Feed::Data(data)).await;
        }
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
