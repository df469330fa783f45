//! `remove`: a container with its writable layer, log and address, and with its
//! anonymous volumes where that is asked for, or it was to end so (`--rm`).

use std::sync::Arc;

use futures::future::join;

use super::ended;
use crate::container::{Exit, Record};
use crate::engine::{Engine, change, wrong_state};
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
    loop {
        // What is under way comes to its end first; a removal under way is ours.
        entry
            .wait_for("remove", |record| !is_under_way(record.state))
            .await?;
        match begin(entry, force, volumes)? {
            Begun::Removing { record, holds } => {
                return carry_out(engine, entry, record, holds).await;
            }
            Begun::Gone => return Ok(()),
            // Something began between the wait and the look.
            Begun::UnderWay => {}
        }
    }
}

fn is_under_way(state: State) -> bool {
    matches!(
        state,
        State::Creating | State::Starting | State::Ending | State::Removing
    )
}

/// What [`begin`] came to.
enum Begun {
    Removing { record: Arc<Record>, holds: Holds },
    UnderWay,
    Gone,
}

/// Begins a removal, decided on the record as it is.
fn begin(entry: &Entry, force: bool, volumes: bool) -> Result<Begun> {
    let mut before = State::Gone;
    let mut refused = false;
    let record = entry.decide(|record| {
        before = record.state;
        let runs = before.is_running() || before == State::Restarting;
        refused = runs && !force;
        if refused || before == State::Gone || is_under_way(before) {
            return None;
        }
        record.remove_volumes |= volumes;
        record.error = String::new();
        Some(Event::Remove)
    });
    let record = record.map_err(|refused| wrong_state(entry, "remove", refused))?;
    if refused {
        return Err(Error::StillRunning {
            name: record.name.clone(),
            state: before,
        });
    }
    Ok(match before {
        State::Gone => Begun::Gone,
        state if is_under_way(state) => Begun::UnderWay,
        state => Begun::Removing {
            record,
            holds: if state.is_running() {
                Holds::Processes
            } else {
                Holds::Nothing
            },
        },
    })
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

/// Removes a container whose program has just ended.
pub(super) async fn finish(engine: &Arc<Engine>, entry: &Arc<Entry>) -> Result<()> {
    let record = change(entry, "remove", Event::Remove, |record| {
        record.error = String::new();
    })?;
    carry_out(engine, entry, record, Holds::Resources).await
}

/// Carries out a removal that was begun.
async fn carry_out(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    record: Arc<Record>,
    holds: Holds,
) -> Result<()> {
    // One that ended by itself meanwhile was told of by others.
    let killed = holds == Holds::Processes && record.pid > 0;
    if killed {
        let more = [("signal", SIGKILL.to_string())];
        engine.journal.note(&record, "kill", &more);
    }
    let ended = |exit: Option<Exit>| {
        if killed {
            let record = note_end(entry, exit);
            let exit = record.exit.clone().unwrap_or_default();
            let more = [
                ("exitCode", exit.code.to_string()),
                ("oomKilled", exit.oom_killed.to_string()),
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

/// Notes how a container ended that was killed to be removed, for those who wait
/// for its end. The runtime's event may have told of it before.
fn note_end(entry: &Entry, exit: Option<Exit>) -> Arc<Record> {
    let exit = exit.unwrap_or_else(|| Exit::killed(SIGKILL));
    entry.update(|record| {
        if record.pid > 0 {
            record.end(&exit);
        }
    })
}

/// Goes on from `Removing` where an earlier life of this service stopped.
pub(crate) async fn go_on(engine: &Arc<Engine>, entry: &Arc<Entry>) -> Result<()> {
    delete_or_fail(engine, entry, true, |exit| {
        note_end(entry, exit);
    })
    .await?;
    gone(engine, entry).await
}

/// Deletes what the services hold for a container, or says in its record why not.
/// `ended` is called when its processes are gone, and its volumes not yet.
async fn delete_or_fail(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    runs: bool,
    ended: impl FnOnce(Option<Exit>) + Send,
) -> Result<()> {
    let deleted = delete(engine, entry, runs, ended).await;
    if let Err(error) = &deleted {
        failed(engine, entry, error).await;
    }
    deleted
}

/// Says in the record why a container could not be removed. Another try goes on.
async fn failed(engine: &Arc<Engine>, entry: &Arc<Entry>, error: &Error) {
    let changed = entry.change(Event::RemoveFailed, |record| {
        record.error = error.to_string();
    });
    if changed.is_ok() {
        let _reported = engine.keep_happened(entry).await;
    }
}

/// Forgets a container of which nothing is left.
async fn gone(engine: &Arc<Engine>, entry: &Arc<Entry>) -> Result<()> {
    let record = entry.record();
    if let Err(error) = engine.discard(&record).await {
        failed(engine, entry, &error).await;
        return Err(error);
    }
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
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    runs: bool,
    ended: impl FnOnce(Option<Exit>) + Send,
) -> Result<()> {
    let id = entry.id.as_str();
    let peers = &engine.peers;
    entry.end_views().await?;
    let record = entry.record();
    let volumes = record.remove_volumes || record.wanted.auto_remove;
    // The files go when it is on the disk that they do: a power cut in between
    // leaves a removal to finish, and no container without files. Freeing space
    // must need none, so that a disk on which this cannot be written stops nothing.
    let intended = async {
        if record.wanted.auto_remove {
            return;
        }
        if let Err(error) = engine.keep(&record).await {
            tracing::warn!(container = id, %error, "a removal goes on without being recorded");
        }
    };
    if runs {
        // Its processes must be gone before the files they write to are.
        let (deleted, ()) = join(peers.runtime.delete(id, true, true), intended).await;
        let deleted = deleted?;
        engine.report_left(id, &deleted);
        ended(deleted.exit);
        let mut work: Vec<futures::future::BoxFuture<'_, Result<()>>> =
            vec![Box::pin(peers.image.delete(id, volumes))];
        if let NetworkMode::Network(_) = record.wanted.network() {
            work.push(Box::pin(peers.network.delete(id)));
        }
        return ended::all(work).await;
    }
    ended(None);
    ended::all(vec![
        Box::pin(async {
            intended.await;
            peers.image.delete(id, volumes).await
        }),
        Box::pin(ended::release(engine, entry, true)),
    ])
    .await
}
