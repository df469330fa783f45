//! `kill`: one signal to the container's first process, or to one that `exec` started.

use std::sync::Arc;

use super::stop::{self, signal_running};
use crate::engine::Engine;
use crate::error::Result;
use crate::roster::Entry;
use crate::signal::{self, SIGKILL};
use crate::state::State;
use crate::wanted::RestartName;

/// Sends `text`, a signal's name or number; empty: SIGKILL. A signal that is to
/// end the container keeps its restart policy from starting it again.
///
/// # Errors
/// The signal is unknown, the container does not run, or the service fails.
pub async fn kill(engine: &Arc<Engine>, entry: &Arc<Entry>, text: &str) -> Result<()> {
    let number = if text.is_empty() {
        SIGKILL
    } else {
        signal::parse(text)?
    };
    // A signal that comes while the program is being started is for the program.
    let record = entry
        .wait_until(|record| !matches!(record.state, State::Creating | State::Starting))
        .await;
    let ends =
        number == SIGKILL || signal::parse(&record.stop_signal()).is_ok_and(|own| own == number);
    if ends {
        let restarts = record.wanted.restart_policy.name != RestartName::No;
        match stop::begin(entry)?.0 {
            // As Docker's: there is no process, and there will be none.
            State::Restarting => return stop::kept(engine, entry).await,
            State::Ending if restarts => return stop::kept(engine, entry).await,
            // A disk on which this cannot be written keeps nobody from killing it.
            State::Running | State::Paused => _ = engine.keep_happened(entry).await,
            _ => {}
        }
    }
    signal_running(engine, entry, number).await?;
    let more = [("signal", number.to_string())];
    engine.journal.note(&record, "kill", &more);
    Ok(())
}

/// Sends `text`, a signal's name or number, to a process that `exec` started; empty:
/// SIGKILL.
///
/// # Errors
/// The signal is unknown, there is no such process, or the service fails.
pub async fn kill_exec(engine: &Engine, entry: &Entry, exec_id: &str, text: &str) -> Result<()> {
    let number = if text.is_empty() {
        SIGKILL
    } else {
        signal::parse(text)?
    };
    engine.peers.runtime.kill(&entry.id, exec_id, number).await
}
