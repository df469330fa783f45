//! `stop`: the stop signal, time to obey it, then SIGKILL.

use std::sync::Arc;
use std::time::Duration;

use crate::container::Record;
use crate::engine::{Engine, wrong_state};
use crate::error::{Error, Result};
use crate::roster::Entry;
use crate::signal::{self, SIGKILL};
use crate::state::{Event, State};

/// How long a process may take to die of SIGKILL. One in the kernel's hands (a
/// dead disk, say) can take for ever.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How a container is to be stopped; what is absent is its own.
#[derive(Clone, Debug, Default)]
pub struct StopWanted {
    /// Seconds; negative: it is never killed.
    pub timeout_seconds: Option<i32>,
    /// Empty: its own.
    pub signal: String,
}

/// Stops a container, and answers when it has ended and is settled. Stopping
/// what does not run succeeds.
///
/// # Errors
/// The signal is unknown, a service fails, or the container outlives SIGKILL.
pub async fn stop(engine: &Arc<Engine>, entry: &Arc<Entry>, wanted: &StopWanted) -> Result<()> {
    let text = if wanted.signal.is_empty() {
        entry.record().stop_signal()
    } else {
        wanted.signal.clone()
    };
    let number = signal::parse(&text)?;
    let record = loop {
        entry
            .wait_for("stop", |record| {
                !matches!(record.state, State::Creating | State::Starting)
            })
            .await?;
        let (before, record) = begin(entry)?;
        match before {
            State::Running | State::Paused => break record,
            // What ends, or waits for its next start, stays as it is.
            State::Ending | State::Restarting => {
                settled(entry).await?;
                return kept(engine, entry).await;
            }
            State::Created | State::Exited | State::Gone => return Ok(()),
            State::Removing | State::Dead => {
                return Err(Error::WrongState {
                    name: record.name.clone(),
                    verb: "stop",
                    state: before,
                });
            }
            // Its policy was faster.
            State::Creating | State::Starting => {}
        }
    };
    let exits = record.exits;
    // A disk on which this cannot be written keeps nobody from stopping it.
    let recorded = engine.keep_happened(entry).await;
    if record.state == State::Paused {
        super::pause::unpause(engine, entry).await?;
    }
    engine
        .journal
        .note(&record, "kill", &[("signal", number.to_string())]);
    send(engine, entry, number, exits).await?;
    let timeout = match wanted.timeout_seconds {
        Some(seconds) => u64::try_from(seconds).ok().map(Duration::from_secs),
        None => record.stop_timeout(),
    };
    let over = entry.wait_until(|record| over(record.state, record.exits, exits));
    let in_time = match timeout {
        None => {
            over.await;
            true
        }
        Some(timeout) => tokio::time::timeout(timeout, over).await.is_ok(),
    };
    if !in_time {
        let more = [("signal", SIGKILL.to_string())];
        engine.journal.note(&record, "kill", &more);
        send(engine, entry, SIGKILL, exits).await?;
        let over = entry.wait_until(|record| self::over(record.state, record.exits, exits));
        if tokio::time::timeout(KILL_LIMIT, over).await.is_err() {
            return Err(Error::Unkillable {
                name: record.name.clone(),
                seconds: KILL_LIMIT.as_secs(),
            });
        }
    }
    settled(entry).await?;
    engine.journal.note(&entry.record(), "stop", &[]);
    match recorded {
        Ok(()) => Ok(()),
        // Its end was recorded since, or is now.
        Err(_) => kept(engine, entry).await,
    }
}

/// Notes that a person stops the container, decided on the record as it is: its
/// policy, which decides under the same lock, does not start it after that. The
/// state before, and the record.
pub(super) fn begin(entry: &Entry) -> Result<(State, Arc<Record>)> {
    let mut before = State::Gone;
    let record = entry.decide(|record| {
        before = record.state;
        match before {
            State::Running | State::Paused | State::Ending => record.stopped_by_user = true,
            State::Restarting => {
                record.stopped_by_user = true;
                return Some(Event::Stopped);
            }
            _ => {}
        }
        None
    });
    let record = record.map_err(|refused| wrong_state(entry, "stop", refused))?;
    Ok((before, record))
}

/// Keeps what was done, or says that it was done and is not recorded.
pub(super) async fn kept(engine: &Arc<Engine>, entry: &Arc<Entry>) -> Result<()> {
    engine.keep_happened(entry).await.map_err(|source| {
        let record = entry.record();
        Error::NotRecorded {
            name: record.name.clone(),
            state: record.state,
            source: Box::new(source),
        }
    })
}

fn over(state: State, exits: u64, before: u64) -> bool {
    exits > before || !(state.is_running() || state == State::Starting)
}

async fn settled(entry: &Entry) -> Result<()> {
    let settled = |record: &Arc<Record>| !matches!(record.state, State::Ending | State::Removing);
    entry.wait_for("stop", settled).await.map(drop)
}

/// Sends a signal. That the process has ended meanwhile is no failure.
async fn send(engine: &Engine, entry: &Entry, number: u32, exits: u64) -> Result<()> {
    match engine.peers.runtime.kill(&entry.id, "", number).await {
        Err(_) if over(entry.record().state, entry.record().exits, exits) => Ok(()),
        Err(Error::Peer { fault, .. }) if is_ended(&fault) => Ok(()),
        outcome => outcome,
    }
}

/// Whether a service says that the process is over; its exit event follows.
fn is_ended(fault: &gantry_kit::fault::Fault) -> bool {
    [
        "NOT_RUNNING",
        "CONTAINER_NOT_RUNNING",
        "PROCESS_NOT_FOUND",
        "PROCESS_ENDED",
    ]
    .iter()
    .any(|reason| fault.is(reason))
}

/// Sends a signal to a running container's first process.
///
/// # Errors
/// It does not run, the signal is unknown, or the service fails.
pub(super) async fn signal_running(engine: &Engine, entry: &Entry, number: u32) -> Result<()> {
    let state = entry.record().state;
    if !state.is_running() {
        let event = Event::Exit;
        return Err(wrong_state(
            entry,
            "kill",
            crate::state::InvalidTransition { state, event },
        ));
    }
    engine.peers.runtime.kill(&entry.id, "", number).await
}
