//! Makes records and reality agree: when the service starts, whenever the
//! runtime comes back, and whenever something could not be released.
//!
//! # What the states say after a crash of this service
//! | record | what is done |
//! | --- | --- |
//! | `Creating` | everything is undone: it never happened |
//! | of a `run` that has not started it | the same, also where it is `Created` or `Starting` |
//! | `Starting` | its program runs, or ran: it was started; else the start is undone |
//! | frozen for a commit | goes on; the commit happened or did not |
//! | `Running`, `Paused` | adopted; where it has ended or is gone: its end is dealt with |
//! | `Ending` | goes on |
//! | `Restarting` | its wait begins anew |
//! | `Removing` | goes on |
//! | `Created`, `Exited`, `Dead` | what a run left behind is released |
//!
//! What carries an id of ours (64 hexadecimal digits) and belongs to no record
//! is removed ([`crate::sweep`]). Ids of another form are another caller's.
//!
//! # Limits
//! An endpoint of a container that does not run is released by a look at its
//! record just before; a start in that very instant makes itself a new one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{join, join_all};
use jiff::Timestamp;

use crate::container::{ContainerId, Exit, Record};
use crate::engine::Engine;
use crate::error::Result;
use crate::lifecycle::{commit, ended, health, remove};
use crate::peers::{Live, LiveStatus};
use crate::restart::{self, Verdict};
use crate::roster::Entry;
use crate::state::{Event, State};
use crate::sweep;

/// First and longest wait before what could not be released is tried again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Finishes or undoes what an earlier life of the service left, once the
/// runtime has said what is alive.
async fn finish(engine: &Arc<Engine>, entry: &Arc<Entry>, live: Option<&Live>) {
    let record = entry.record();
    let outcome = match record.state {
        State::Creating => undo_creation(engine, entry, &record).await,
        // A run is whole or did not happen, so nothing of it stays.
        State::Created if record.run_unfinished => undo_run(engine, entry, live).await,
        State::Starting => settle_start(engine, entry, &record, live).await,
        State::Ending => {
            ended::finish(engine, entry, &record).await;
            Ok(())
        }
        State::Restarting => {
            match restart::verdict(&record, &engine.settings) {
                Verdict::Stay => {
                    let _changed_meanwhile = entry.change(Event::Stopped, |_| {});
                }
                again @ Verdict::Again { .. } => restart::go_on(engine, entry, again),
            }
            Ok(())
        }
        State::Removing => remove::go_on(engine, entry).await,
        State::Running | State::Paused if record.frozen_for_commit => {
            compare(engine, entry, live).await;
            commit::thaw(engine, entry).await
        }
        _ => Ok(()),
    };
    match outcome {
        Ok(()) => {
            tracing::info!(container = %record.id, was = %record.state, "finished what was unfinished")
        }
        Err(error) => {
            tracing::warn!(container = %record.id, was = %record.state, %error, "cannot be finished yet");
            engine.try_again(entry);
        }
    }
}

async fn undo_creation(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    record: &Arc<Record>,
) -> Result<()> {
    let id = record.id.as_str();
    let peers = &engine.peers;
    let deleted = peers.runtime.delete(id, true, true).await?;
    engine.report_left(id, &deleted);
    let (layer, endpoint) = join(peers.image.delete(id, true), peers.network.delete(id)).await;
    layer.and(endpoint)?;
    engine.discard(record).await?;
    let _creating = entry.change(Event::Removed, |_| {});
    engine.roster.remove(entry);
    Ok(())
}

/// Removes a container whose run was broken off before its program ran.
async fn undo_run(engine: &Arc<Engine>, entry: &Arc<Entry>, live: Option<&Live>) -> Result<()> {
    if live.is_some_and(|live| live.started.is_some()) {
        // It ran after all: the note of its start was lost.
        let _changed_meanwhile = entry.change(Event::Start, |_| {});
        return settle_start(engine, entry, &entry.record(), live).await;
    }
    remove::remove_with_volumes(engine, entry, true).await
}

async fn settle_start(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    record: &Arc<Record>,
    live: Option<&Live>,
) -> Result<()> {
    if let Some(live) = live.filter(|live| live.started.is_some()) {
        let changed = entry.change(Event::Started, |record| {
            record.started = live.started;
            record.pid = live.pid;
            record.run_unfinished = false;
        });
        if let Ok(record) = changed {
            engine.keep(&record).await?;
        }
        compare(engine, entry, Some(live)).await;
        return Ok(());
    }
    let id = record.id.as_str();
    let peers = &engine.peers;
    let (container, endpoint) = join(
        peers.runtime.delete(id, true, false),
        peers.network.delete(id),
    )
    .await;
    container.and(endpoint)?;
    let ran_before = record.started.is_some();
    let changed = entry.change(Event::StartFailed { ran_before }, |record| {
        record.error = "the engine was restarted while it was being started".to_owned();
        record.endpoint = None;
        record.pid = 0;
    });
    if record.run_unfinished || record.wanted.auto_remove {
        return remove::remove_with_volumes(engine, entry, true).await;
    }
    if let Ok(record) = changed {
        engine.keep(&record).await?;
    }
    Ok(())
}

/// Compares a container that should run with what the runtime says.
async fn compare(engine: &Arc<Engine>, entry: &Arc<Entry>, live: Option<&Live>) {
    let record = entry.record();
    let lost = |error: &str| Exit {
        code: 255,
        at: Timestamp::now(),
        error: error.to_owned(),
        ..Exit::default()
    };
    let exit = match live {
        None => Some(lost("it is gone: the machine or its shim ended")),
        Some(live) if live.status == LiveStatus::Stopped => Some(
            live.exit
                .clone()
                .unwrap_or_else(|| lost("it ended, and nobody knows how")),
        ),
        Some(live) => {
            let event = match (record.state, live.status) {
                (State::Running, LiveStatus::Paused) => Some(Event::Pause),
                (State::Paused, LiveStatus::Running) => Some(Event::Resume),
                _ => None,
            };
            if let Some(event) = event {
                let _changed_meanwhile = entry.change(event, |_| {});
            }
            if record.sick != live.sick || record.pid != live.pid {
                entry.update(|record| {
                    record.sick.clone_from(&live.sick);
                    if live.pid > 0 {
                        record.pid = live.pid;
                    }
                });
            }
            None
        }
    };
    match exit {
        Some(exit) => ended::ended(Arc::clone(engine), Arc::clone(entry), exit).await,
        None => health::watch(engine, entry),
    }
}

/// Makes the records agree with the runtime's snapshot, which was taken at `at`
/// or later.
pub async fn with_runtime(engine: &Arc<Engine>, snapshot: HashMap<String, Live>, at: Timestamp) {
    let unfinished = engine.take_unfinished();
    let entries = engine.roster.entries();
    let mut work: Vec<futures::future::BoxFuture<'_, ()>> = Vec::new();
    for entry in &unfinished {
        let live = snapshot.get(entry.id.as_str());
        work.push(Box::pin(finish(engine, entry, live)));
    }
    for entry in &entries {
        let record = entry.record();
        let settled = record.state.is_running()
            && record.start_began.is_none_or(|began| began < at)
            && !unfinished.iter().any(|other| other.id == entry.id);
        if settled {
            let live = snapshot.get(entry.id.as_str());
            work.push(Box::pin(compare(engine, entry, live)));
        }
    }
    let sweeps = sweep::is_allowed(engine).await;
    for id in snapshot.keys().filter(|id| ContainerId::is_id(id)) {
        let record = engine.roster.get(id).map(|entry| entry.record());
        let remove_log = match &record {
            // A copy under way: it ends what it began.
            None if engine.roster.has_view(id) => continue,
            // It may be the container of a record that cannot be read.
            None if !sweeps => continue,
            None => true,
            Some(record) if record.damaged.is_some() => continue,
            Some(record) => match record.state {
                State::Created | State::Exited | State::Dead => false,
                _ => continue,
            },
        };
        work.push(Box::pin(async move {
            tracing::info!(container = id, "removing what no run holds");
            if let Err(error) = engine.peers.runtime.delete(id, true, remove_log).await {
                tracing::warn!(container = id, %error, "cannot remove it yet");
                engine.untidy.notify_one();
            }
        }));
    }
    join_all(work).await;
    for entry in engine.take_boot_starts() {
        restart::at_boot(engine, &entry);
    }
}

/// Tidies up whenever something could not be released, until it is.
pub async fn tidy(engine: Arc<Engine>) {
    let mut wait = AGAIN.0;
    let mut again = false;
    loop {
        tokio::select! {
            () = engine.untidy.notified() => {}
            () = tokio::time::sleep(wait), if again => {}
            () = engine.stopping.cancelled() => return,
        }
        let kept = engine.keep_unkept().await;
        let unfinished = leftovers(&engine).await;
        let swept = sweep::sweep(&engine).await;
        match kept.and(unfinished).and(swept) {
            Ok(()) => {
                again = false;
                wait = AGAIN.0;
            }
            Err(error) => {
                tracing::debug!(%error, "something is released later");
                again = true;
                wait = (wait * 2).min(AGAIN.1);
            }
        }
    }
}

/// Intents that could not be carried out, and removals of `--rm` containers that
/// failed.
async fn leftovers(engine: &Arc<Engine>) -> Result<()> {
    for entry in engine.take_again() {
        finish(engine, &entry, None).await;
    }
    for entry in engine.roster.entries() {
        let record = entry.record();
        if record.wanted.auto_remove && record.state == State::Dead {
            remove::remove(engine, &entry, true).await?;
        }
    }
    Ok(())
}
