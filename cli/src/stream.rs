//! A window on a process: what is typed goes in, what it writes comes out.
//!
//! ```text
//! standard input ─ thread ─→ requests ─→ gateway        (one thread, since a
//! signals, SIGWINCH ─→ calls of their own ─→ gateway      read(2) on a terminal
//! standard output ←─ thread ←─ output ←── gateway         cannot be cancelled)
//! ```
//! Both queues are bounded, so that a slow reader slows the stream and nothing
//! piles up here. Output is written by a thread of its own: a full pipe holds up
//! neither signals nor input, nor the answers to the gateway's pings, by which it
//! knows that this command is alive. Signals and sizes never wait behind input
//! that the process does not read.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use gantry_kit::client::Client;
use gantry_kit::fault::Fault;
use gantry_proto::gateway::v1::container_service_client::ContainerServiceClient;
use gantry_proto::gateway::v1::{
    AttachRequest, Detach, ExecRequest, KillRequest, ResizeRequest, RunRequest,
};
use gantry_proto::gateway::v1::{attach_request, exec_request, run_request};
use gantry_proto::shim::v1::{Missed, Output, StdinClose};
use gantry_proto::types::v1::{Stream, TerminalSize};
use gantry_sys::signals;
use nix::libc::{SIGCHLD, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGURG, SIGWINCH};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Status};

use crate::detach::Detector;
use crate::exit::Failure;
use crate::session::Session;
use crate::terminal::{self, Raw};

/// How much is read or written at once.
const CHUNK: usize = 32 << 10;
/// Chunks that wait on each side.
const QUEUE: usize = 16;

/// How long the engine may take to pass a signal on.
const CONTROL_LIMIT: Duration = Duration::from_secs(10);

/// What a window sends on its stream.
#[derive(Debug)]
pub(crate) enum Input {
    Stdin(Vec<u8>),
    StdinClose,
    /// In order with the opening of the window; later sizes go by calls.
    Resize(TerminalSize),
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

/// The process that a window is on, for the calls beside its stream.
#[derive(Debug)]
pub(crate) struct Control {
    client: ContainerServiceClient<Client>,
    container: String,
    /// Empty: the container's first process.
    exec_id: String,
}

impl Control {
    pub(crate) fn new(session: &Session, container: &str, exec_id: &str) -> Self {
        Self {
            client: session.engine.containers(),
            container: container.to_owned(),
            exec_id: exec_id.to_owned(),
        }
    }

    async fn signal(&mut self, number: u8) -> Result<(), Status> {
        let mut request = Request::new(KillRequest {
            container: self.container.clone(),
            signal: number.to_string(),
            exec_id: self.exec_id.clone(),
        });
        request.set_timeout(CONTROL_LIMIT);
        let answer = tokio::time::timeout(CONTROL_LIMIT, self.client.kill(request)).await;
        answer
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("")))
            .map(drop)
    }

    async fn resize(&mut self, size: TerminalSize) {
        let mut request = Request::new(ResizeRequest {
            container: self.container.clone(),
            exec_id: self.exec_id.clone(),
            size: Some(size),
        });
        request.set_timeout(CONTROL_LIMIT);
        // The process may have ended; the stream says so.
        let _ended = tokio::time::timeout(CONTROL_LIMIT, self.client.resize(request)).await;
    }
}

/// What happened on this side.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    /// The detach keys were typed.
    Detached,
    /// This command is to end by a signal, and the process is not.
    Ended(u8),
}

/// An open window: the person's side of it, and the output's.
#[derive(Debug)]
pub(crate) struct Window<R> {
    pub(crate) person: Person,
    pub(crate) screen: Screen,
    /// This side of the stream is open as long as the window.
    pub(crate) requests: mpsc::Sender<R>,
}

/// What the person at a window does.
#[derive(Debug)]
pub(crate) struct Person {
    control: Control,
    wishes: Wishes,
    /// Restored when the window closes.
    _raw: Option<Raw>,
    signals: Signals,
    detached: Option<oneshot::Receiver<()>>,
}

/// Where a process' output goes.
#[derive(Debug)]
pub(crate) struct Screen {
    writer: Writer,
    raw: bool,
    missed: Option<u64>,
}

impl<R: From<Input> + Send + 'static> Window<R> {
    /// Begins to read standard input and to take signals.
    pub(crate) fn open(
        requests: mpsc::Sender<R>,
        control: Control,
        wishes: Wishes,
    ) -> Result<Self, Failure> {
        let signals = Signals::catch(&wishes)?;
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
        let screen = Screen {
            writer: Writer::start()?,
            raw: raw.is_some(),
            missed: None,
        };
        let person = Person {
            control,
            wishes,
            _raw: raw,
            signals,
            detached,
        };
        Ok(Self {
            person,
            screen,
            requests,
        })
    }
}

impl Person {
    /// Waits for the next thing on this side that ends the window; passes
    /// resizes and signals on meanwhile.
    pub(crate) async fn happens(&mut self) -> Happened {
        loop {
            let signal = tokio::select! {
                signal = self.signals.next() => signal,
                () = detached(&mut self.detached) => return Happened::Detached,
            };
            if i32::from(signal) == SIGWINCH && self.wishes.tty {
                if let Some(size) = terminal::size() {
                    self.control.resize(size).await;
                }
                continue;
            }
            let ends = ENDING.contains(&i32::from(signal));
            if self.wishes.forward_signals && !self.wishes.tty {
                match self.control.signal(signal).await {
                    // The user must be able to end this command.
                    Err(status) if ends && Fault::from_status(&status).reason.is_empty() => {
                        return Happened::Ended(signal);
                    }
                    _ => continue,
                }
            }
            if ends {
                return Happened::Ended(signal);
            }
        }
    }
}

impl Person {
    /// Waits for a signal that is to end this command, when nothing is passed on any
    /// more.
    pub(crate) async fn ends(&mut self) -> u8 {
        loop {
            let signal = self.signals.next().await;
            if ENDING.contains(&i32::from(signal)) {
                return signal;
            }
        }
    }
}

impl Screen {
    /// Writes what the process wrote.
    pub(crate) async fn write(&mut self, output: Output) -> Result<(), Failure> {
        let stream = output.stream();
        self.writer.write(stream, output.data).await
    }

    /// Says what this window was too slow for.
    pub(crate) async fn missed(&mut self, missed: Missed) -> Result<(), Failure> {
        *self.missed.get_or_insert(0) += missed.bytes;
        let line = match missed.bytes {
            // The runtime was restarted: nobody knows how many.
            0 => "gantry: this window was cut off for a moment; `gantry logs` has all output"
                .to_owned(),
            bytes => format!("gantry: this window was too slow and missed {bytes} bytes"),
        };
        let line = match self.raw {
            true => format!("\r\n{line}\r\n"),
            false => format!("{line}\n"),
        };
        self.writer.write(Stream::Stderr, line.into()).await
    }

    /// Bytes that were missed; 0: nobody knows how many. `None`: none.
    pub(crate) fn has_missed(&self) -> Option<u64> {
        self.missed
    }

    /// Waits until all output is written.
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

/// The last signal's number; real-time signals are 34-64.
const LAST_SIGNAL: i32 = 64;

/// Signals that end this command where they are not passed on.
const ENDING: [i32; 4] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];

/// Signals that are never passed on, as with Docker: the end of a child of this
/// command, and its own broken pipe, say nothing to the process; SIGURG is not sent by users.
const KEPT: [i32; 3] = [SIGCHLD, SIGPIPE, SIGURG];

/// The signals a window takes.
#[derive(Debug)]
struct Signals {
    pipe: AsyncFd<OwnedFd>,
}

impl Signals {
    /// Catches what is to be passed on, or ends the window.
    #[expect(
        deprecated,
        reason = "unsound for an integer; an OwnedFd stays open as long as it is watched"
    )]
    fn catch(wishes: &Wishes) -> io::Result<Self> {
        let pipe = if wishes.forward_signals && !wishes.tty {
            signals::catch((1..=LAST_SIGNAL).filter(|number| !KEPT.contains(number)))?
        } else {
            signals::catch(ENDING.into_iter().chain([SIGWINCH]))?
        };
        Ok(Self {
            pipe: AsyncFd::new(pipe)?,
        })
    }

    async fn next(&mut self) -> u8 {
        let mut number = [0];
        loop {
            let read = self.pipe.async_io(Interest::READABLE, |pipe| {
                Ok(rustix::io::read(pipe, &mut number)?)
            });
            match read.await {
                Ok(1) => return number[0],
                // The other end is never closed.
                _ => std::future::pending::<()>().await,
            }
        }
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
