//! What follows the end of a container's program: its exit status is kept, what
//! the run held is released, and then it is removed (`--rm`), started again (its
//! restart policy), or left as it is.
//!
//! Whoever hears of the end first does this: the event stream of the runtime, a
//! window, or the reconciliation after a restart. The state table lets one of
//! them through.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join;
use futures::stream::{FuturesUnordered, StreamExt as _};

use crate::container::{Exit, Record};
use crate::engine::Engine;
use crate::error::Result;
use crate::restart;
use crate::roster::Entry;
use crate::state::{Event, State};
use crate::wanted::NetworkMode;

/// How long the windows may take to get a container's last output before its
/// shim is ended. They take it into memory: only a stuck runtime is slower.
const WINDOWS_LIMIT: Duration = Duration::from_secs(5);

/// How long a start may take to be answered once its program has ended already.
const START_LIMIT: Duration = Duration::from_secs(40);

/// Deals with the end of a container's program. Does nothing where the exit
/// belongs to an earlier run, or was dealt with.
pub async fn ended(engine: Arc<Engine>, entry: Arc<Entry>, exit: Exit) {
    let settled = entry.wait_until(|record| record.state != State::Starting);
    let Ok(record) = tokio::time::timeout(START_LIMIT, settled).await else {
        tracing::error!(container = %entry.id, "its program ended, and its start is not answered");
        return;
    };
    // Exits come with the time of the reaping: one from before this run began is
    // an earlier run's.
    if record.start_began.is_some_and(|began| exit.at < began) {
        return;
    }
    let mut ended = false;
    let changed = entry.decide(|record| {
        if record.state.is_running() {
            ended = true;
            record.end(&exit);
            return Some(Event::Exit);
        }
        // Killed for its removal: this is how it really ended.
        if record.state == State::Removing && record.pid > 0 {
            record.end(&exit);
        }
        None
    });
    let Ok(record) = changed else {
        return;
    };
    if !ended {
        return;
    }
    let more = [
        ("exitCode", exit.code.to_string()),
        ("oomKilled", exit.oom_killed.to_string()),
    ];
    engine.journal.note(&record, "die", &more);
    finish(&engine, &entry, &record).await;
}

/// Goes on from `Ending`: also where an earlier life of this service stopped.
pub async fn finish(engine: &Arc<Engine>, entry: &Arc<Entry>, record: &Arc<Record>) {
    if record.wanted.auto_remove {
        // What is removed now needs no note of its end first: should this
        // process end here, the next one finds it running, or gone.
        if let Err(error) = super::remove::finish(engine, entry).await {
            tracing::error!(container = %entry.id, %error, "cannot remove a container that ended");
            engine.untidy.notify_one();
        }
        return;
    }
    // An exit status that is not kept is noted, and tried again.
    let (_kept, released) = join(engine.keep_happened(entry), release(engine, entry, false)).await;
    if let Err(error) = released {
        tracing::warn!(container = %entry.id, %error, "what a run held is released later");
        engine.untidy.notify_one();
    }
    engine.journal.note_released(record);
    let settled = restart::settle(engine, entry, Event::Released, |record| {
        record.endpoint = None;
    });
    let Ok((_, verdict)) = settled else {
        // Somebody removes it.
        return;
    };
    let _reported = engine.keep_happened(entry).await;
    restart::go_on(engine, entry, verdict);
}

/// Releases what a run holds: its endpoint, and its container in the runtime.
/// The log stays unless `remove_log`.
///
/// # Errors
/// The last failure; both were tried.
pub(super) async fn release(engine: &Engine, entry: &Arc<Entry>, remove_log: bool) -> Result<()> {
    let id = entry.id.as_str();
    let network = async {
        match entry.record().wanted.network() {
            NetworkMode::Network(_) => engine.peers.network.delete(id).await,
            NetworkMode::Host | NetworkMode::None | NetworkMode::Container(_) => Ok(()),
        }
    };
    let runtime = async {
        if tokio::time::timeout(WINDOWS_LIMIT, entry.windows_closed())
            .await
            .is_err()
        {
            tracing::warn!(container = %entry.id, "a window did not take its last output in time");
        }
        let deleted = engine.peers.runtime.delete(id, true, remove_log).await?;
        engine.report_left(id, &deleted);
        Ok(())
    };
    let (network, runtime) = join(network, runtime).await;
    network.and(runtime)
}

/// Runs all of `work` at once; the first failure, when all are done.
pub(super) async fn all<'a>(work: Vec<futures::future::BoxFuture<'a, Result<()>>>) -> Result<()> {
    let mut outcome = Ok(());
    let mut work: FuturesUnordered<_> = work.into_iter().collect();
    while let Some(done) = work.next().await {
        outcome = outcome.and(done);
    }
    outcome
}
