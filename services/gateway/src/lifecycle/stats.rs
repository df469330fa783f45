//! `stats` and `top`: what a running container uses, and its processes.

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::peers::Stats;
use crate::roster::Entry;

fn running(entry: &Entry, verb: &'static str) -> Result<()> {
    let record = entry.record();
    if record.state.is_running() {
        return Ok(());
    }
    Err(Error::WrongState {
        name: record.name.clone(),
        verb,
        state: record.state,
    })
}

/// What a container uses now.
///
/// # Errors
/// It does not run, or the service fails.
pub async fn stats(engine: &Engine, entry: &Entry) -> Result<Stats> {
    running(entry, "measure")?;
    engine.peers.runtime.stats(&entry.id).await
}

/// The processes of a container, as the host sees them.
///
/// # Errors
/// It does not run, or the service fails.
pub async fn top(engine: &Engine, entry: &Entry) -> Result<Vec<i32>> {
    running(entry, "list the processes of")?;
    engine.peers.runtime.pids(&entry.id).await
}
