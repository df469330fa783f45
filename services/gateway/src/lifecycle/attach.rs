//! `attach`: a window on a container's first process; and what every window
//! needs, `run`'s and `exec`'s too: input that never holds up a signal, and
//! output that goes on when the runtime was restarted in between.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::ended;
use super::resize;
use super::start::{self, FirstWindow, Starter};
use super::stop::signal_running;
use super::typing::Typing;
use crate::container::{ContainerId, Exit};
use crate::engine::Engine;
use crate::error::{Error, Peer, Result};
use crate::peers::OutputWanted;
use crate::roster::{Entry, OpenWindow};
use crate::state::State;
use crate::window::{
    Attached, Carried, Outputs, Receipts, WindowInput, WindowOpen, WindowOutput, carry,
};

/// Messages from a window that may be under way.
pub const LINE: usize = 32;

/// First and longest wait before a lost window is opened again.
const REOPEN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How long a runtime may not answer before a window is given up.
const REOPEN_LIMIT: Duration = Duration::from_secs(60);

/// How often a process that should run may be denied before it is given up.
const DENIALS: u32 = 10;

/// Digits of a window's name, which is unique within one process.
const NAME_DIGITS: usize = 16;

/// A person's window: takes input, and knows where it goes.
#[derive(Debug)]
pub(super) struct Line {
    engine: Arc<Engine>,
    entry: Arc<Entry>,
    open: WindowOpen,
    /// The name under which the shim keeps it.
    name: String,
    receipts: Receipts,
    /// True once the output is open.
    opened: watch::Sender<bool>,
    /// Cancelled when the person has said that nobody reads any more.
    left: CancellationToken,
    /// Cancelled when input was lost.
    input_lost: CancellationToken,
    exits: u64,
    /// Holds the container's shim until the last output was taken.
    held: Option<OpenWindow>,
    /// Ends the taking of input with this window.
    _over: DropGuard,
}

impl Line {
    /// Begins to take a person's input. What the output's window is opened with is
    /// answered beside it.
    ///
    /// # Errors
    /// The kernel gives no random numbers.
    pub(super) fn begin(
        engine: &Arc<Engine>,
        entry: &Arc<Entry>,
        open: WindowOpen,
        inputs: mpsc::Receiver<WindowInput>,
    ) -> Result<(Self, FirstWindow)> {
        let name = ContainerId::random()?.as_str()[..NAME_DIGITS].to_owned();
        let (receipts, told) = Receipts::from(0);
        let (opened, is_open) = watch::channel(false);
        let left = CancellationToken::new();
        let input_lost = CancellationToken::new();
        let over = CancellationToken::new();
        let typing = Typing {
            engine: Arc::clone(engine),
            entry: Arc::clone(entry),
            exec_id: open.exec_id.clone(),
            typist: name.clone(),
            stdin: open.stdin,
            opened: is_open,
            left: left.clone(),
            lost: input_lost.clone(),
            over: over.clone(),
        };
        tokio::spawn(typing.take(inputs));
        let line = Self {
            engine: Arc::clone(engine),
            entry: Arc::clone(entry),
            exits: entry.record().exits,
            held: Some(entry.open_window()),
            open,
            name,
            receipts,
            opened,
            left,
            input_lost,
            _over: over.drop_guard(),
        };
        let first = FirstWindow {
            wanted: line.wanted(None),
            receipts: told,
            stdin: line.open.stdin,
            size: line.open.terminal_size,
        };
        Ok((line, first))
    }

    fn wanted(&self, resume_at: Option<u64>) -> OutputWanted {
        OutputWanted {
            exec_id: self.open.exec_id.clone(),
            stdout: self.open.stdout,
            stderr: self.open.stderr,
            terminal_size: None,
            primary: match self.open.primary {
                true => self.name.clone(),
                false => String::new(),
            },
            resume_at,
        }
    }

    /// Opens the output of a process that runs already, or has run.
    ///
    /// # Errors
    /// There is no such process, or the runtime does not answer in time.
    pub(super) async fn connect<T: From<WindowOutput>>(
        &mut self,
        first: FirstWindow,
        reader: &mpsc::Sender<T>,
    ) -> Result<Connected> {
        let runtime = &self.engine.peers.runtime;
        let attached = runtime.attach(&self.entry.id, first.wanted, first.receipts);
        let outcome = match attached.await {
            Ok(mut outputs) => match outputs.next().await {
                Some(Ok(WindowOutput::Attached(attached))) => {
                    return Ok(Connected::Open(outputs, attached));
                }
                Some(Ok(WindowOutput::Exited(exit))) => return Ok(Connected::Exited(exit)),
                Some(Err(error)) => Err(error),
                Some(Ok(_)) | None => Ok(()),
            },
            Err(error) => Err(error),
        };
        match outcome {
            Err(error) if !is_passing(&error) => Err(error),
            _ => self.reopen(None, reader).await,
        }
    }

    /// Hands output on to `reader` until the process has ended, and answers how.
    /// None: nobody reads any more.
    ///
    /// # Errors
    /// The runtime knows nothing of the process any more, or does not answer in
    /// time; or input was lost.
    pub(super) async fn follow<T: From<WindowOutput>>(
        mut self,
        mut outputs: Outputs,
        reader: &mpsc::Sender<T>,
    ) -> Result<Option<Exit>> {
        self.opened.send_replace(true);
        loop {
            let exits = self.exits;
            let entry = Arc::clone(&self.entry);
            let over = move || entry.record().exits > exits;
            let changes = self.entry.watch();
            let carried = tokio::select! {
                carried = carry(&mut outputs, reader, &mut self.receipts, over, changes) => carried,
                () = self.left.cancelled() => return Ok(None),
                () = self.input_lost.cancelled() => return Err(Error::InputLost),
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
                    let position = self.open.primary.then(|| self.receipts.position());
                    match self.reopen(position, reader).await? {
                        Connected::Open(again, attached) => {
                            outputs = again;
                            if !(attached.resumed || self.missed(reader).await) {
                                return Ok(None);
                            }
                        }
                        Connected::Exited(exit) => return Ok(Some(exit)),
                        Connected::Unread => return Ok(None),
                    }
                }
            }
        }
    }

    /// Tells that nobody knows what was written meanwhile. False: nobody reads.
    async fn missed<T: From<WindowOutput>>(&self, reader: &mpsc::Sender<T>) -> bool {
        let missed = T::from(WindowOutput::Missed { bytes: 0 });
        reader.send(missed).await.is_ok()
    }

    /// Opens the window again once the runtime answers; a primary one where it was.
    async fn reopen<T: From<WindowOutput>>(
        &mut self,
        position: Option<u64>,
        reader: &mpsc::Sender<T>,
    ) -> Result<Connected> {
        let limit = tokio::time::Instant::now() + REOPEN_LIMIT;
        let mut changes = self.entry.watch();
        let mut wait = REOPEN.0;
        let mut denials = 0;
        loop {
            // One that cannot go on begins anew, and is counted from its beginning.
            let (receipts, told) = Receipts::from(position.unwrap_or(0));
            let runtime = &self.engine.peers.runtime;
            let attached = runtime.attach(&self.entry.id, self.wanted(position), told);
            let outcome = match attached.await {
                Ok(mut outputs) => match outputs.next().await {
                    Some(Ok(WindowOutput::Attached(attached))) => {
                        self.receipts = match attached.resumed {
                            true => receipts,
                            false => receipts.anew(),
                        };
                        return Ok(Connected::Open(outputs, attached));
                    }
                    Some(Ok(WindowOutput::Exited(exit))) => return Ok(Connected::Exited(exit)),
                    Some(Ok(_)) | None => Ok(()),
                    Some(Err(error)) => Err(error),
                },
                Err(error) => Err(error),
            };
            match outcome {
                Err(error) if is_passing(&error) => {
                    if tokio::time::Instant::now() >= limit {
                        return Err(error);
                    }
                }
                Err(error) => {
                    if let Some(exit) = self.ended_meanwhile() {
                        // It ended, and what it wrote last went with its shim.
                        let gone = exit.code == 0 && !self.missed(reader).await;
                        return Ok(match gone {
                            true => Connected::Unread,
                            false => Connected::Exited(exit),
                        });
                    }
                    denials += 1;
                    if denials > DENIALS {
                        return Err(error);
                    }
                }
                Ok(()) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = changes.changed() => {}
                () = reader.closed() => return Ok(Connected::Unread),
                () = self.left.cancelled() => return Ok(Connected::Unread),
                () = self.input_lost.cancelled() => return Err(Error::InputLost),
                () = self.engine.stopping.cancelled() => return Err(Error::Stopping),
            }
            wait = (wait * 2).min(REOPEN.1);
        }
    }

    /// How the process ended, where it did with its container.
    fn ended_meanwhile(&self) -> Option<Exit> {
        let record = self.entry.record();
        let removed = matches!(record.state, State::Gone | State::Dead | State::Removing);
        if record.exits <= self.exits && !removed {
            return None;
        }
        Some(match &record.exit {
            Some(exit) if self.open.exec_id.is_empty() && record.exits > self.exits => exit.clone(),
            // Removed by force; or a process beside the first, which ends with it.
            _ => killed(),
        })
    }
}

/// Whether a call failed since the runtime is being restarted: it is worth another
/// try.
pub(super) fn is_passing(error: &Error) -> bool {
    matches!(error, Error::Unanswered { .. }) || error.is_reason("STOPPING")
}

/// The exit of a process that was killed by the end of its container.
pub(super) fn killed() -> Exit {
    Exit {
        code: 137,
        signal: 9,
        at: jiff::Timestamp::now(),
        ..Exit::default()
    }
}

/// How the opening of a window ended.
pub(super) enum Connected {
    Open(Outputs, Attached),
    /// The process has ended, and this is all that is known.
    Exited(Exit),
    /// Nobody reads any more.
    Unread,
}

pub(super) async fn send_signal(engine: &Engine, entry: &Entry, exec_id: &str, number: u32) {
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
        resize::note(&engine, &record, size);
    }
    let open = WindowOpen {
        // Who attaches to what runs looks on.
        primary: open.primary && !runs,
        ..open
    };
    let (mut line, mut first) = Line::begin(&engine, &entry, open, inputs)?;
    let outputs = if runs {
        first.wanted.terminal_size = size;
        match line.connect(first, &events).await? {
            Connected::Open(outputs, attached) => {
                let attached = AttachEvent::Output(WindowOutput::Attached(attached));
                if events.send(attached).await.is_err() {
                    return Ok(());
                }
                outputs
            }
            Connected::Exited(exit) => {
                let last = AttachEvent::Output(WindowOutput::Exited(exit));
                let _nobody_reads = events.send(last).await;
                return Ok(());
            }
            Connected::Unread => return Ok(()),
        }
    } else {
        let started = start::start(&engine, &entry, Starter::Person, Some(first)).await;
        let opened = started?.ok_or(Error::Unanswered {
            peer: Peer::Runtime,
            problem: "a window was not opened".to_owned(),
        })?;
        if let Some(size) = size {
            resize::note(&engine, &record, size);
        }
        // The first message was taken by the start.
        let attached = AttachEvent::Output(WindowOutput::Attached(Attached {
            terminal: entry.record().wanted.tty,
            ..Attached::default()
        }));
        if events.send(attached).await.is_err() {
            return Ok(());
        }
        opened
    };
    if let Some(exit) = line.follow(outputs, &events).await? {
        super::run::settled(&entry, start).await;
        let last = AttachEvent::Output(WindowOutput::Exited(exit));
        let _nobody_reads = events.send(last).await;
    }
    Ok(())
}
