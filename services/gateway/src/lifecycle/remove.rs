//! `remove`: a container with its writable layer, log and address, and with its
//! anonymous volumes where that is asked for, or it was to end so (`--rm`).

use std::sync::Arc;

use super::ended;
use crate::engine::{Engine, change};
use crate::error::{Error, Result};
use crate::roster::Entry;
use crate::signal::SIGKILL;
use crate::state::{Event, State};
use crate::wanted::NetworkMode;

/// Removes a container; one that runs only by `force`, which kills it.
///
/// # Errors
/// It runs, or a step failed: then it is dead, and removing it again goes on.
pub async fn remove(engine: &Arc<Engine>, entry: &Arc<Entry>, force: bool) -> Result<()> {
    removal(engine, entry, force, false).await
}

/// The same, with its anonymous volumes.
///
/// # Errors
/// As [`remove`].
pub async fn remove_with_volumes(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    force: bool,
) -> Result<()> {
    removal(engine, entry, force, true).await
}

async fn removal(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    force: bool,
    volumes: bool,
) -> Result<()> {
    // What is under way comes to its end first; a removal under way is ours.
    let record = entry
        .wait_until(|record| {
            !matches!(
                record.state,
                State::Creating | State::Starting | State::Ending | State::Removing
            )
        })
        .await;
    let runs = record.state.is_running();
    if record.state == State::Gone {
        return Ok(());
    }
    if (runs || record.state == State::Restarting) && !force {
        return Err(Error::StillRunning {
            name: record.name.clone(),
            state: record.state,
        });
    }
    if volumes {
        entry.update(|record| record.remove_volumes = true);
    }
    let holds = if runs {
        Holds::Processes
    } else {
        Holds::Nothing
    };
    finish(engine, entry, holds).await
}

/// What a container that is to be removed holds of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Nothing,
    /// Its program has just ended; its network and volumes are to be released.
    Resources,
    /// All: its processes may live.
    Processes,
}

/// Removes a container whatever it does.
pub(super) async fn finish(engine: &Arc<Engine>, entry: &Arc<Entry>, holds: Holds) -> Result<()> {
    let record = change(entry, "remove", Event::Remove, |record| {
        record.error = String::new();
    })?;
    if !record.wanted.auto_remove {
        engine.note(&record)?;
    }
    // One that ended by itself meanwhile was told of by others.
    let killed = holds == Holds::Processes && record.pid > 0;
    if killed {
        let more = [("signal", SIGKILL.to_string())];
        engine.journal.note(&record, "kill", &more);
    }
    let ended = || {
        if killed {
            let more = [
                ("exitCode", (128 + SIGKILL).to_string()),
                ("oomKilled", false.to_string()),
            ];
            engine.journal.note(&record, "die", &more);
        }
        if killed || holds == Holds::Resources {
            engine.journal.note_released(&record);
        }
    };
    delete_or_fail(engine, entry, holds == Holds::Processes, ended).await?;
    gone(engine, entry).await
}

/// Goes on from `Removing` where an earlier life of this service stopped.
pub(crate) async fn go_on(engine: &Arc<Engine>, entry: &Arc<Entry>) -> Result<()> {
    delete_or_fail(engine, entry, true, || {}).await?;
    gone(engine, entry).await
}

/// Deletes what the services hold for a container, or says in its record why not.
/// `ended` is called when its processes are gone, and its volumes not yet.
async fn delete_or_fail(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    runs: bool,
    ended: impl FnOnce() + Send,
) -> Result<()> {
    if let Err(error) = delete(engine, entry, runs, ended).await {
        let changed = entry.change(Event::RemoveFailed, |record| {
            record.error = error.to_string();
        });
        if let Ok(record) = changed {
            engine.keep(&record).await?;
        }
        return Err(error);
    }
    Ok(())
}

/// Forgets a container of which nothing is left.
async fn gone(engine: &Arc<Engine>, entry: &Arc<Entry>) -> Result<()> {
    let record = entry.record();
    engine.discard(&record).await?;
    // The name is free before anybody hears that the container is gone.
    engine.roster.remove(entry);
    let record = change(entry, "remove", Event::Removed, |record| {
        record.endpoint = None;
        record.pid = 0;
    })?;
    engine.journal.note(&record, "destroy", &[]);
    Ok(())
}

/// Deletes what the services hold for a container.
async fn delete(
    engine: &Engine,
    entry: &Arc<Entry>,
    runs: bool,
    ended: impl FnOnce() + Send,
) -> Result<()> {
    let id = entry.id.as_str();
    let peers = &engine.peers;
    entry.end_views().await?;
    let record = entry.record();
    let volumes = record.remove_volumes || record.wanted.auto_remove;
    if runs {
        // Its processes must be gone before the files they write to are.
        peers.runtime.delete(id, true, true).await?;
    }
    ended();
    let mut work: Vec<futures::future::BoxFuture<'_, Result<()>>> =
        vec![Box::pin(peers.image.delete(id, volumes))];
    if runs {
        if let NetworkMode::Network(_) = record.wanted.network() {
            work.push(Box::pin(peers.network.delete(id)));
        }
    } else {
        work.push(Box::pin(ended::release(engine, entry, true)));
    }
    ended::all(work).await
}
