//! `attach`: a window on a container's first process; and what every window
//! needs, `run`'s and `exec`'s too: input that never holds up a signal, and
//! output that goes on when the runtime was restarted in between.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ended;
use super::start::{self, FirstWindow, Starter};
use super::stop::signal_running;
use crate::container::{Exit, Record};
use crate::engine::Engine;
use crate::error::{Error, Peer, Result};
use crate::roster::{Entry, OpenWindow};
use crate::state::State;
use crate::window::{Carried, Outputs, TerminalSize, WindowInput, WindowOpen, WindowOutput, carry};

/// Messages to a window that may be under way.
pub const LINE: usize = 32;

/// How much input waits for a process that does not read.
const INPUT_BYTES: usize = 256 << 10;

/// First and longest wait before a lost window is opened again.
const REOPEN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How long a runtime may be silent before its windows are given up: longer than a
/// restart takes. A frozen one may never answer.
const SILENCE: Duration = Duration::from_secs(60);

/// How long a window that was left stays open for what was typed last.
const LINGER: Duration = Duration::from_secs(1);

/// How often a process that should run may be denied before it is given up.
const DENIALS: u32 = 10;

/// The window's side that gets input; a new one after each reopening.
type Target = mpsc::Sender<WindowInput>;

/// A person's window: takes input, and knows where it goes.
#[derive(Debug)]
pub(super) struct Line {
    engine: Arc<Engine>,
    entry: Arc<Entry>,
    open: WindowOpen,
    targets: mpsc::Sender<Target>,
    /// Cancelled when the person has said that nobody reads any more.
    left: CancellationToken,
    exits: u64,
    /// Holds the container's shim until its last output was taken. Only for the
    /// first process.
    held: Option<OpenWindow>,
}

impl Line {
    /// Begins to take a person's input. The input's first destination is what
    /// is answered beside it.
    pub(super) fn begin(
        engine: &Arc<Engine>,
        entry: &Arc<Entry>,
        open: WindowOpen,
        inputs: mpsc::Receiver<WindowInput>,
    ) -> (Self, mpsc::Receiver<WindowInput>) {
        let (target, first) = mpsc::channel(LINE);
        let (targets, changes) = mpsc::channel(1);
        let left = CancellationToken::new();
        let line = Self {
            engine: Arc::clone(engine),
            entry: Arc::clone(entry),
            exits: entry.record().exits,
            held: open.exec_id.is_empty().then(|| entry.open_window()),
            targets,
            left: left.clone(),
            open: open.clone(),
        };
        let typing = Typing {
            engine: Arc::clone(engine),
            entry: Arc::clone(entry),
            exec_id: open.exec_id,
            left,
        };
        tokio::spawn(typing.take_input(inputs, target, changes));
        (line, first)
    }

    /// Hands output on to `reader` until the process has ended, and answers how.
    /// None: nobody reads any more.
    ///
    /// # Errors
    /// The runtime knows nothing of the process any more.
    pub(super) async fn follow<T: From<WindowOutput>>(
        mut self,
        mut outputs: Outputs,
        reader: &mpsc::Sender<T>,
    ) -> Result<Option<Exit>> {
        loop {
            let exits = self.exits;
            let entry = Arc::clone(&self.entry);
            let over = move || entry.record().exits > exits;
            let changes = self.entry.watch();
            let carried = tokio::select! {
                carried = carry(&mut outputs, reader, over, changes) => carried,
                () = self.left.cancelled() => {
                    linger(outputs);
                    return Ok(None);
                }
                // The container goes on; whoever watches can attach again.
                () = self.engine.stopping.cancelled() => return Err(Error::Stopping),
            };
            match carried {
                Carried::Unread => return Ok(None),
                Carried::Exited { exit, rest } => {
                    self.held = None;
                    if self.open.exec_id.is_empty() {
                        let (engine, entry) = (Arc::clone(&self.engine), Arc::clone(&self.entry));
                        tokio::spawn(ended::ended(engine, entry, exit.clone()));
                    }
                    for output in rest {
                        if reader.send(T::from(output)).await.is_err() {
                            return Ok(None);
                        }
                    }
                    return Ok(Some(exit));
                }
                Carried::Broken { error } => {
                    tracing::info!(container = %self.entry.id, ?error, "a window broke off");
                    match self.reopen(reader).await? {
                        Reopened::Open(again) => outputs = again,
                        Reopened::Exited(exit) => return Ok(Some(exit)),
                        Reopened::Unread => return Ok(None),
                    }
                }
            }
        }
    }

    /// Opens the window again once the runtime answers.
    async fn reopen<T: From<WindowOutput>>(
        &mut self,
        reader: &mpsc::Sender<T>,
    ) -> Result<Reopened> {
        let first = self.open.exec_id.is_empty();
        let mut wait = REOPEN.0;
        let mut denials = 0;
        let begun = Instant::now();
        loop {
            if first && let Some(exit) = self.ended_meanwhile() {
                return Ok(Reopened::Exited(exit));
            }
            let (target, inputs) = mpsc::channel(LINE);
            let attached = self
                .engine
                .peers
                .runtime
                .attach(&self.entry.id, &self.open, inputs);
            match attached.await {
                Ok(mut outputs) => match outputs.next().await {
                    Some(Ok(WindowOutput::Attached { .. })) => {
                        // Nobody knows what was written meanwhile.
                        let missed = T::from(WindowOutput::Missed { bytes: 0 });
                        if reader.send(missed).await.is_err() {
                            return Ok(Reopened::Unread);
                        }
                        let _input_is_over = self.targets.send(target).await;
                        return Ok(Reopened::Open(outputs));
                    }
                    Some(Ok(WindowOutput::Exited(exit))) => return Ok(Reopened::Exited(exit)),
                    Some(Ok(_)) | None => {}
                    Some(Err(Error::Unanswered { .. })) if begun.elapsed() < SILENCE => {}
                    Some(Err(error)) => {
                        denials += 1;
                        if denials > DENIALS {
                            return Err(error);
                        }
                    }
                },
                Err(Error::Unanswered { .. }) if begun.elapsed() < SILENCE => {}
                Err(error @ Error::Unanswered { .. }) => return Err(error),
                Err(error) => {
                    denials += 1;
                    if denials > DENIALS {
                        return Err(error);
                    }
                }
            }
            let exits = self.exits;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = self.entry.wait_until(|record| record.exits > exits), if first => {}
                () = reader.closed() => return Ok(Reopened::Unread),
                () = self.left.cancelled() => return Ok(Reopened::Unread),
                () = self.engine.stopping.cancelled() => return Err(Error::Stopping),
            }
            wait = (wait * 2).min(REOPEN.1);
        }
    }

    fn ended_meanwhile(&mut self) -> Option<Exit> {
        let record = self.entry.record();
        let removed = matches!(record.state, State::Gone | State::Dead | State::Removing);
        if record.exits <= self.exits && !removed {
            return None;
        }
        self.held = None;
        Some(match &record.exit {
            Some(exit) if record.exits > self.exits => exit.clone(),
            // Removed by force.
            _ => killed(),
        })
    }
}

/// The exit of a process that was killed by a removal.
fn killed() -> Exit {
    Exit {
        code: 137,
        signal: 9,
        at: jiff::Timestamp::now(),
        ..Exit::default()
    }
}

enum Reopened {
    Open(Outputs),
    Exited(Exit),
    Unread,
}

/// Lets what was typed last come to its process: with its outputs a window's input
/// is gone too. Nobody waits for that.
fn linger(mut outputs: Outputs) {
    let over = async move { while let Some(Ok(_)) = outputs.next().await {} };
    tokio::spawn(tokio::time::timeout(LINGER, over));
}

/// What a person types at.
struct Typing {
    engine: Arc<Engine>,
    entry: Arc<Entry>,
    /// Empty: the container's first process.
    exec_id: String,
    left: CancellationToken,
}

impl Typing {
    /// Takes a person's input until the window is over. What the process does not
    /// read waits, up to a limit; a signal overtakes it.
    async fn take_input(
        self,
        mut inputs: mpsc::Receiver<WindowInput>,
        first: Target,
        mut targets: mpsc::Receiver<Target>,
    ) {
        let mut leaving = false;
        let mut target = Some(first);
        let mut waiting: VecDeque<WindowInput> = VecDeque::new();
        let mut bytes = 0_usize;
        let mut open = true;
        loop {
            if leaving && waiting.is_empty() {
                self.leave();
                return;
            }
            let taker = target.clone().filter(|_| !waiting.is_empty());
            let ready = async {
                match taker {
                    Some(taker) => taker.reserve_owned().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                permit = ready => match permit {
                    Ok(permit) => {
                        if let Some(input) = waiting.pop_front() {
                            match &input {
                                WindowInput::Stdin(data) => bytes -= data.len(),
                                WindowInput::Resize(size) => self.resized(*size),
                                _ => {}
                            }
                            permit.send(input);
                        }
                    }
                    // The window broke off: what comes waits for the next.
                    Err(_) => target = None,
                },
                input = inputs.recv(), if open && bytes < INPUT_BYTES => match input {
                    None => open = false,
                    // What was typed before it comes first.
                    Some(WindowInput::Detach) => (leaving, open) = (true, false),
                    Some(WindowInput::Signal(number)) => {
                        let (engine, entry) = (Arc::clone(&self.engine), Arc::clone(&self.entry));
                        let exec_id = self.exec_id.clone();
                        tokio::spawn(async move { send_signal(&engine, &entry, &exec_id, number).await });
                    }
                    Some(input) => {
                        if let WindowInput::Stdin(data) = &input {
                            bytes += data.len();
                        }
                        waiting.push_back(input);
                    }
                },
                next = targets.recv() => match next {
                    Some(next) => target = Some(next),
                    None => return,
                },
            }
        }
    }

    fn leave(&self) {
        let record = self.entry.record();
        let journal = &self.engine.journal;
        if self.exec_id.is_empty() {
            journal.note(&record, "detach", &[]);
        } else {
            let more = [("execID", self.exec_id.clone())];
            journal.note(&record, "exec_detach", &more);
        }
        self.left.cancel();
    }

    fn resized(&self, size: TerminalSize) {
        if self.exec_id.is_empty() {
            note_resize(&self.engine, &self.entry.record(), size);
        }
    }
}

/// Notes that a container's terminal has another size.
pub(super) fn note_resize(engine: &Engine, record: &Record, size: TerminalSize) {
    if record.wanted.tty {
        let more = [
            ("height", size.rows.to_string()),
            ("width", size.columns.to_string()),
        ];
        engine.journal.note(record, "resize", &more);
    }
}

async fn send_signal(engine: &Engine, entry: &Entry, exec_id: &str, number: u32) {
    let sent = if exec_id.is_empty() {
        signal_running(engine, entry, number).await
    } else {
        engine.peers.runtime.kill(&entry.id, exec_id, number).await
    };
    if let Err(error) = sent {
        tracing::debug!(container = %entry.id, number, %error, "a signal did not arrive");
    }
}

/// What comes out of an attached window.
#[derive(Debug)]
pub enum AttachEvent {
    Output(WindowOutput),
    /// The window cannot go on. The last.
    Failed(Error),
}

impl From<WindowOutput> for AttachEvent {
    fn from(output: WindowOutput) -> Self {
        Self::Output(output)
    }
}

/// Opens a window on a container that runs, or that is to be started once the
/// window is open (`start`); carries it until the container ends or nobody reads.
///
/// # Errors
/// The container does not run or cannot be started, or the service fails.
pub async fn attach(
    engine: Arc<Engine>,
    entry: Arc<Entry>,
    open: WindowOpen,
    start: bool,
    inputs: mpsc::Receiver<WindowInput>,
    events: mpsc::Sender<AttachEvent>,
) -> Result<()> {
    let record = entry
        .wait_for("attach to", |record| {
            !matches!(
                record.state,
                State::Creating | State::Starting | State::Ending
            )
        })
        .await?;
    let runs = record.state.is_running();
    let size = open.terminal_size;
    if !runs && !start {
        return Err(Error::WrongState {
            name: record.name.clone(),
            verb: "attach to",
            state: record.state,
        });
    }
    engine.journal.note(&record, "attach", &[]);
    if runs && let Some(size) = size {
        note_resize(&engine, &record, size);
    }
    let (line, first) = Line::begin(&engine, &entry, open.clone(), inputs);
    let mut outputs = if runs {
        engine.peers.runtime.attach(&entry.id, &open, first).await?
    } else {
        let window = FirstWindow {
            open,
            inputs: first,
        };
        let started = start::start(&engine, &entry, Starter::Person, Some(window)).await;
        let opened = started?.ok_or(Error::Unanswered {
            peer: Peer::Runtime,
            problem: "a window was not opened".to_owned(),
        })?;
        // The first message was taken by the start.
        let attached = AttachEvent::Output(WindowOutput::Attached {
            terminal: entry.record().wanted.tty,
        });
        if events.send(attached).await.is_err() {
            return Ok(());
        }
        opened
    };
    if runs {
        match outputs.next().await {
            // That nobody reads shows at the next output.
            Some(Ok(output)) => {
                let _nobody_reads = events.send(AttachEvent::Output(output)).await;
            }
            Some(Err(error)) => return Err(error),
            None => {}
        }
    }
    if !runs && let Some(size) = size {
        note_resize(&engine, &record, size);
    }
    if let Some(exit) = line.follow(outputs, &events).await? {
        super::run::settled(&entry, start).await;
        let last = AttachEvent::Output(WindowOutput::Exited(exit));
        let _nobody_reads = events.send(last).await;
    }
    Ok(())
}
