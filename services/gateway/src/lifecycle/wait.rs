//! `wait`: until a container reaches a condition.

use crate::container::{Exit, Record};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::roster::Entry;
use crate::state::State;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    #[default]
    NotRunning,
    NextExit,
    Removed,
}

/// Whether a removal has still to end its processes: how it ends is not known yet.
fn is_being_killed(record: &Record) -> bool {
    matches!(record.state, State::Removing | State::Dead) && record.pid > 0
}

/// Waits, and answers how the container last ended.
///
/// # Errors
/// It was removed before it came to the condition.
pub async fn wait(engine: &Engine, entry: &Entry, condition: Condition) -> Result<Exit> {
    let before = entry.record().exits;
    let reached = entry.wait_until(|record| {
        record.state == State::Gone
            || match condition {
                Condition::NotRunning => !record.state.is_busy() && !is_being_killed(record),
                Condition::NextExit => record.exits > before,
                Condition::Removed => false,
            }
    });
    let record = tokio::select! {
        record = reached => record,
        () = engine.stopping.cancelled() => {
            return Err(Error::Stopping);
        }
    };
    let ended = record.exits > before || condition != Condition::NextExit;
    match &record.exit {
        Some(exit) if ended => Ok(exit.clone()),
        // Removed without ever having ended by itself.
        _ if record.state == State::Gone && condition == Condition::NextExit => {
            Err(Error::RemovedMeanwhile {
                name: record.name.clone(),
            })
        }
        _ => Ok(Exit::default()),
    }
}
