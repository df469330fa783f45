//! `remove`: a container with its writable layer, log and address, and with its
//! anonymous volumes where that is asked for, or it was to end so (`--rm`).

use std::sync::Arc;

use super::ended;
use crate::engine::{Engine, change};
use crate::error::{Error, Result};
use crate::roster::Entry;
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
    finish(engine, entry, runs).await
}

/// Removes a container whatever it does. `runs`: its processes may live.
pub(super) async fn finish(engine: &Arc<Engine>, entry: &Arc<Entry>, runs: bool) -> Result<()> {
    let record = change(entry, "remove", Event::Remove, |record| {
        record.error = String::new();
    })?;
    if !record.wanted.auto_remove {
        engine.note(&record)?;
    }
    go_on(engine, entry, runs).await
}

/// Goes on from `Removing`: also where an earlier life of this service stopped.
pub(crate) async fn go_on(engine: &Arc<Engine>, entry: &Arc<Entry>, runs: bool) -> Result<()> {
    if let Err(error) = delete(engine, entry, runs).await {
        let changed = entry.change(Event::RemoveFailed, |record| {
            record.error = error.to_string();
        });
        if let Ok(record) = changed {
            engine.keep(&record).await?;
        }
        return Err(error);
    }
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
async fn delete(engine: &Engine, entry: &Arc<Entry>, runs: bool) -> Result<()> {
    let id = entry.id.as_str();
    let peers = &engine.peers;
    entry.end_views().await?;
    let record = entry.record();
    let volumes = record.remove_volumes || record.wanted.auto_remove;
    if runs {
        // Its processes must be gone before the files they write to are.
        peers.runtime.delete(id, true, true).await?;
    }
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
