//! Health checks: for each running container that has one, a task that runs it
//! again and again.
//!
//! A check is an `exec` with a deadline. The next one begins when the one before
//! has ended, so that they never pile up: one that does not end in time is
//! killed, and one that survives even that holds up the checks of its own
//! container only. A paused container is not checked. The task belongs to one
//! run of the container, and ends with it; after a restart of this service it is
//! begun anew where the record says that the container runs.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::exec::{self, ExecEvent, ExecWanted};
use super::start::{self, Starter};
use super::stop::{self, StopWanted};
use crate::container::Record;
use crate::engine::Engine;
use crate::error::Result;
use crate::health::{Check, OUTPUT_MAX, Probe, Status};
use crate::roster::Entry;
use crate::signal::SIGKILL;
use crate::state::State;
use crate::wanted::OnUnhealthy;
use crate::window::{WindowOpen, WindowOutput};

/// Events of a check that wait to be taken.
const BACKLOG: usize = 16;

/// Begins the checks of a container that runs, if it has any and they are not
/// under way.
pub(crate) fn watch(engine: &Arc<Engine>, entry: &Arc<Entry>) {
    let record = entry.record();
    let (Some(check), Some(run)) = (Check::of(&record), record.started) else {
        return;
    };
    if record.state.is_running() && entry.begin_checks(run) {
        tokio::spawn(checks(Arc::clone(engine), Arc::clone(entry), check, run));
    }
}

/// Whether a container is still in the run that began then.
fn in_run(record: &Record, run: Timestamp) -> bool {
    record.state.is_running() && record.started == Some(run)
}

async fn checks(engine: Arc<Engine>, entry: Arc<Entry>, check: Check, run: Timestamp) {
    loop {
        let wait = if in_grace(&entry.record(), &check, run) {
            check.start_interval
        } else {
            check.interval
        };
        let next = async {
            tokio::time::sleep(wait).await;
            entry
                .wait_until(|record| record.state != State::Paused)
                .await
        };
        let record = tokio::select! {
            record = next => record,
            record = entry.wait_until(|record| !in_run(record, run)) => record,
            () = engine.stopping.cancelled() => return,
        };
        if !in_run(&record, run) {
            return;
        }
        let probe = tokio::select! {
            probe = probe(&engine, &entry, &check, run) => probe,
            () = engine.stopping.cancelled() => return,
        };
        if let Some(probe) = probe {
            took(&engine, &entry, &check, run, probe);
        }
    }
}

/// Whether the start period is not over, and the container was not well yet.
fn in_grace(record: &Record, check: &Check, run: Timestamp) -> bool {
    let starting = record
        .health
        .as_ref()
        .is_none_or(|health| health.status == Status::Starting);
    let age = Duration::try_from(Timestamp::now() - run).unwrap_or_default();
    starting && age < check.start_period
}

/// Runs a check. None: it was cut off by a pause or by the container's end, and
/// says nothing.
async fn probe(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    check: &Check,
    run: Timestamp,
) -> Option<Probe> {
    let start = Timestamp::now();
    let wanted = ExecWanted {
        command: check.command(),
        // Three for each check would push all others out of the journal.
        silent: true,
        window: Some(WindowOpen {
            stdout: true,
            stderr: true,
            ..WindowOpen::default()
        }),
        ..ExecWanted::default()
    };
    let (sender, events) = mpsc::channel(BACKLOG);
    // Held: it would look as if the window's person had gone.
    let (_nothing_is_typed, inputs) = mpsc::channel(1);
    let executed = tokio::spawn(exec::exec(
        Arc::clone(engine),
        Arc::clone(entry),
        wanted,
        inputs,
        sender,
    ));
    let mut listener = Listener {
        events,
        exec_id: None,
        output: Vec::new(),
    };
    let over = |record: &Arc<Record>| record.state != State::Running || !in_run(record, run);
    let outcome = tokio::select! {
        code = listener.end() => Outcome::Ended(code),
        () = tokio::time::sleep(check.timeout) => Outcome::Late,
        _ = entry.wait_until(over) => Outcome::CutOff,
    };
    let code = match outcome {
        Outcome::Ended(Some(code)) => code,
        Outcome::Ended(None) => {
            let why = match executed.await {
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(())) => "its end was not told".to_owned(),
                Err(error) => error.to_string(),
            };
            if !in_run(&entry.record(), run) {
                return None;
            }
            listener.output.extend_from_slice(why.as_bytes());
            -1
        }
        Outcome::Late | Outcome::CutOff => {
            let late = matches!(outcome, Outcome::Late);
            if let Some(id) = &listener.exec_id {
                // And what a script has started: it would go on, one more with each check.
                let runtime = &engine.peers.runtime;
                let killed = runtime.kill_group(&entry.id, id, SIGKILL).await;
                if let Err(error) = killed {
                    tracing::debug!(container = %entry.id, %error, "a check ended before it was killed");
                }
            }
            // The next one waits for its end.
            tokio::select! {
                _ = listener.end() => {}
                _ = entry.wait_until(|record| !in_run(record, run)) => return None,
            }
            if !late {
                return None;
            }
            let written = std::mem::take(&mut listener.output);
            listener.output =
                format!("Health check exceeded timeout ({:?})", check.timeout).into_bytes();
            if !written.is_empty() {
                listener.output.extend_from_slice(b": ");
                listener.output.extend_from_slice(&written);
            }
            -1
        }
    };
    listener.output.truncate(OUTPUT_MAX);
    Some(Probe {
        start,
        end: Timestamp::now(),
        code,
        output: String::from_utf8_lossy(&listener.output).into_owned(),
    })
}

enum Outcome {
    /// None: without an exit status.
    Ended(Option<i32>),
    Late,
    CutOff,
}

/// What a check does.
struct Listener {
    events: mpsc::Receiver<ExecEvent>,
    exec_id: Option<String>,
    output: Vec<u8>,
}

impl Listener {
    /// Listens to its end; its exit code.
    async fn end(&mut self) -> Option<i32> {
        loop {
            match self.events.recv().await? {
                ExecEvent::Started { exec_id, .. } => self.exec_id = Some(exec_id),
                ExecEvent::Output(WindowOutput::Output { data, .. }) => {
                    let room = OUTPUT_MAX.saturating_sub(self.output.len());
                    self.output.extend_from_slice(&data[..room.min(data.len())]);
                }
                ExecEvent::Output(WindowOutput::Exited(exit)) | ExecEvent::Exited(exit) => {
                    return Some(exit.code);
                }
                ExecEvent::Output(_) => {}
                ExecEvent::Failed(error) => {
                    self.output.extend_from_slice(error.to_string().as_bytes());
                    return None;
                }
            }
        }
    }
}

/// Notes a result, and acts on it.
fn took(engine: &Arc<Engine>, entry: &Arc<Entry>, check: &Check, run: Timestamp, probe: Probe) {
    let grace = in_grace(&entry.record(), check, run);
    let mut changed = None;
    let record = entry.update(|record| {
        if in_run(record, run) {
            let health = record.health.get_or_insert_default();
            changed = health.take(probe, check, grace);
        }
    });
    // Written, not synced: after a power cut nothing of it holds any more.
    if let Err(error) = engine.note(&record) {
        tracing::warn!(container = %entry.id, %error, "the result of a health check is not kept");
    }
    let Some(status) = changed else {
        return;
    };
    let action = match status {
        Status::Starting => "health_status: starting",
        Status::Healthy => "health_status: healthy",
        Status::Unhealthy => "health_status: unhealthy",
    };
    engine.journal.note(&record, action, &[]);
    if status == Status::Unhealthy {
        // On a task of its own: this one ends with the run.
        let (engine, entry) = (Arc::clone(engine), Arc::clone(entry));
        tokio::spawn(async move {
            if let Err(error) = act(&engine, &entry).await {
                tracing::warn!(container = %entry.id, %error, "the action on an unhealthy container failed");
            }
        });
    }
}

/// Does what is wanted of an unhealthy container.
async fn act(engine: &Arc<Engine>, entry: &Arc<Entry>) -> Result<()> {
    match entry.record().wanted.on_unhealthy {
        OnUnhealthy::None => Ok(()),
        // Its restart policy sees a program that was killed.
        OnUnhealthy::Kill => engine.peers.runtime.kill(&entry.id, "", SIGKILL).await,
        OnUnhealthy::Stop => stop::stop(engine, entry, &StopWanted::default()).await,
        OnUnhealthy::Restart => {
            stop::stop(engine, entry, &StopWanted::default()).await?;
            let started = start::start(engine, entry, Starter::Check, None).await;
            started.map(|_no_window| ())
        }
    }
}
