//! A window on a process: what is typed goes in, what it writes comes out.
//!
//! ```text
//! standard input ─ thread ─→ requests ─→ gateway        (one thread, since a
//! signals, SIGWINCH ───────→    ″                         read(2) on a terminal
//! standard output ←─ thread ←─ output ←─ gateway          cannot be cancelled)
//! ```
//! Both queues are bounded, so that a slow reader slows the stream and nothing
//! piles up here. Output is written by a thread of its own: a full pipe must not
//! hold up signals and input.

use std::io;
use std::os::fd::AsFd;
use std::thread;

use bytes::Bytes;
use gantry_proto::gateway::v1::{AttachRequest, Detach, ExecRequest, RunRequest};
use gantry_proto::gateway::v1::{attach_request, exec_request, run_request};
use gantry_proto::shim::v1::{Missed, Output, StdinClose};
use gantry_proto::types::v1::{Stream, TerminalSize};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::detach::Detector;
use crate::exit::Failure;
use crate::terminal::{self, Raw};

/// How much is read or written at once.
const CHUNK: usize = 32 << 10;
/// Chunks that wait on each side.
const QUEUE: usize = 16;

/// What a window sends.
#[derive(Debug)]
pub(crate) enum Input {
    Stdin(Vec<u8>),
    StdinClose,
    Resize(TerminalSize),
    Signal(u32),
    /// The person leaves, the process goes on.
    Detach,
}

macro_rules! input_for {
    ($request:ty, $message:path) => {
        impl From<Input> for $request {
            fn from(input: Input) -> Self {
                use $message as Message;
                let message = match input {
                    Input::Stdin(bytes) => Message::Stdin(bytes.into()),
                    Input::StdinClose => Message::StdinClose(StdinClose {}),
                    Input::Resize(size) => Message::Resize(size),
                    Input::Signal(number) => Message::Signal(number),
                    Input::Detach => Message::Detach(Detach {}),
                };
                Self {
                    message: Some(message),
                }
            }
        }
    };
}

input_for!(RunRequest, run_request::Message);
input_for!(AttachRequest, attach_request::Message);
input_for!(ExecRequest, exec_request::Message);

/// What a window is to do.
#[derive(Clone, Debug)]
pub(crate) struct Wishes {
    /// The process has a terminal.
    pub(crate) tty: bool,
    /// This window types.
    pub(crate) stdin: bool,
    /// The end of its input is that of the process' (Docker's StdinOnce): one that was
    /// started in the background listens to the next window.
    pub(crate) ends_input: bool,
    /// Pass signals on to the process.
    pub(crate) forward_signals: bool,
    pub(crate) detach_keys: Vec<u8>,
}

impl Wishes {
    /// The terminal's size, where the process is to have one.
    pub(crate) fn terminal_size(&self) -> Option<TerminalSize> {
        if self.tty { terminal::size() } else { None }
    }

    /// A terminal needs a terminal to type at.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.tty && self.stdin && !terminal::stdin_is_terminal() {
            return Err(Failure::new(
                "the input device is not a terminal; leave out -t to feed a pipe or a file",
            ));
        }
        Ok(())
    }
}

/// What happened on this side.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    /// The detach keys were typed.
    Detached,
    /// This command is to end, and the process is not.
    Ended(Signal),
}

/// An open window.
#[derive(Debug)]
pub(crate) struct Window<R> {
    requests: mpsc::Sender<R>,
    wishes: Wishes,
    /// Restored when the window closes.
    _raw: Option<Raw>,
    signals: Signals,
    detached: Option<oneshot::Receiver<()>>,
    writer: Writer,
}

impl<R: From<Input> + Send + 'static> Window<R> {
    /// Begins to read standard input and to take signals.
    pub(crate) fn open(requests: mpsc::Sender<R>, wishes: Wishes) -> Result<Self, Failure> {
        let signals = Signals::new()?;
        let raw = if wishes.tty && wishes.stdin {
            Raw::enter()?
        } else {
            None
        };
        let detached = if wishes.stdin {
            let detector = raw
                .is_some()
                .then(|| Detector::new(wishes.detach_keys.clone()));
            Some(read_input(requests.clone(), detector, wishes.ends_input)?)
        } else {
            None
        };
        Ok(Self {
            requests,
            wishes,
            _raw: raw,
            signals,
            detached,
            writer: Writer::start()?,
        })
    }

    /// Waits for the next thing on this side that ends the window; passes
    /// resizes and signals on meanwhile. Safe to cancel.
    pub(crate) async fn happens(&mut self) -> Happened {
        loop {
            let signal = tokio::select! {
                signal = self.signals.next() => signal,
                () = detached(&mut self.detached) => return Happened::Detached,
            };
            let input = match signal {
                Signal::SIGWINCH if self.wishes.tty => match terminal::size() {
                    Some(size) => Input::Resize(size),
                    None => continue,
                },
                Signal::SIGWINCH => continue,
                signal if self.wishes.forward_signals && !self.wishes.tty => {
                    Input::Signal(signal as u32)
                }
                signal @ (Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT) => {
                    return Happened::Ended(signal);
                }
                _ => continue,
            };
            // Full or closed: the stream is stuck or over, and says so itself.
            let _late = self.requests.try_send(input.into());
        }
    }

    /// Writes what the process wrote.
    pub(crate) async fn write(&mut self, output: Output) -> Result<(), Failure> {
        let stream = output.stream();
        self.writer.write(stream, output.data).await
    }

    /// Says what this window was too slow for.
    pub(crate) async fn missed(&mut self, missed: Missed) -> Result<(), Failure> {
        let line = match missed.bytes {
            // The runtime was restarted: nobody knows how many.
            0 => {
                "\r\ngantry: this window was cut off for a moment; `gantry logs` has all output\r\n"
                    .to_owned()
            }
            bytes => {
                format!("\r\ngantry: this window was too slow and missed {bytes} bytes\r\n")
            }
        };
        self.writer.write(Stream::Stderr, line.into()).await
    }

    /// Waits until all output is written, then restores the terminal.
    pub(crate) async fn close(self) -> Result<(), Failure> {
        self.writer.finish().await
    }
}

async fn detached(receiver: &mut Option<oneshot::Receiver<()>>) {
    match receiver {
        Some(keys) => match keys.await {
            Ok(()) => {}
            Err(_) => {
                // End of input is no detaching.
                *receiver = None;
                std::future::pending().await
            }
        },
        None => std::future::pending().await,
    }
}

/// Reads standard input on a thread of its own.
fn read_input<R: From<Input> + Send + 'static>(
    requests: mpsc::Sender<R>,
    mut detector: Option<Detector>,
    ends_input: bool,
) -> io::Result<oneshot::Receiver<()>> {
    let (detach, detached) = oneshot::channel();
    let read = move || {
        let stdin = io::stdin();
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = match rustix::io::read(stdin.as_fd(), &mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => {
                    wait_for(stdin.as_fd(), PollFlags::IN);
                    continue;
                }
                // A terminal that is gone (EIO) has nothing more to say.
                Err(_) => break,
            };
            let bytes = &buffer[..length];
            let (bytes, leave) = match &mut detector {
                Some(detector) => {
                    let typed = detector.feed(bytes);
                    (typed.through, typed.detach)
                }
                None => (bytes.to_vec(), false),
            };
            if !bytes.is_empty() && requests.blocking_send(Input::Stdin(bytes).into()).is_err() {
                return;
            }
            if leave {
                // Full or closed: the process does not read, or has ended. Whoever
                // leaves waits for neither.
                let _untold = requests.try_send(Input::Detach.into());
                let _closed = detach.send(());
                return;
            }
        }
        if ends_input {
            let _closed = requests.blocking_send(Input::StdinClose.into());
        }
    };
    thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(read)?;
    Ok(detached)
}

/// The signals a window takes.
#[derive(Debug)]
struct Signals {
    streams: Vec<(Signal, SignalStream)>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let streams = [
            Signal::SIGWINCH,
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGALRM,
        ]
        .into_iter()
        .map(|number| Ok((number, signal(SignalKind::from_raw(number as i32))?)))
        .collect::<io::Result<_>>()?;
        Ok(Self { streams })
    }

    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (number, stream) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// Writes output on a thread of its own.
#[derive(Debug)]
struct Writer {
    queue: mpsc::Sender<(Stream, Bytes)>,
    /// How the writing ended; taken by whoever asks first.
    outcome: Option<oneshot::Receiver<io::Result<()>>>,
}

impl Writer {
    fn start() -> io::Result<Self> {
        let (queue, mut waiting) = mpsc::channel::<(Stream, Bytes)>(QUEUE);
        let (report, outcome) = oneshot::channel();
        let write = move || {
            let mut result = Ok(());
            while let Some((stream, bytes)) = waiting.blocking_recv() {
                result = match stream {
                    Stream::Stderr => write_all(io::stderr().as_fd(), &bytes),
                    Stream::Stdout | Stream::Unspecified => write_all(io::stdout().as_fd(), &bytes),
                };
                if result.is_err() {
                    break;
                }
            }
            drop(waiting);
            let _nobody_asks = report.send(result);
        };
        thread::Builder::new()
            .name("stdout".to_owned())
            .spawn(write)?;
        Ok(Self {
            queue,
            outcome: Some(outcome),
        })
    }

    async fn write(&mut self, stream: Stream, bytes: Bytes) -> Result<(), Failure> {
        if self.queue.send((stream, bytes)).await.is_ok() {
            return Ok(());
        }
        let error = match self.outcome.take() {
            Some(outcome) => outcome.await.unwrap_or(Ok(())).err(),
            None => None,
        };
        Err(error
            .unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
            .into())
    }

    /// Waits until all is written. What [`Writer::write`] said is not said again.
    async fn finish(self) -> Result<(), Failure> {
        drop(self.queue);
        match self.outcome {
            Some(outcome) => Ok(outcome.await.unwrap_or(Ok(()))?),
            None => Ok(()),
        }
    }
}

/// Writes all of `bytes`, also to what somebody made non-blocking.
fn write_all(to: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&to, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => wait_for(to.as_fd(), PollFlags::OUT),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn wait_for(fd: std::os::fd::BorrowedFd<'_>, event: PollFlags) {
    // Whatever goes wrong shows at the next read or write.
    let _tried_again = poll(&mut [PollFd::new(&fd, event)], None);
}
