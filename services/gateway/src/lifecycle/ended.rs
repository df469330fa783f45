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

use super::remove::Holds;
use crate::container::{Exit, Record};
use crate::engine::Engine;
use crate::error::Result;
use crate::restart::{self, Verdict};
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
    let changed = entry.change(Event::Exit, |record| {
        record.exit = Some(exit.clone());
        record.exits += 1;
        record.pid = 0;
        record.sick = String::new();
    });
    let Ok(record) = changed else {
        return;
    };
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
        if let Err(error) = super::remove::finish(engine, entry, Holds::Resources).await {
            tracing::error!(container = %entry.id, %error, "cannot remove a container that ended");
            engine.untidy.notify_one();
        }
        return;
    }
    let (kept, released) = join(engine.keep(record), release(engine, entry, false)).await;
    if let Err(error) = kept {
        tracing::error!(container = %entry.id, %error, "an exit status is not kept");
    }
    if let Err(error) = released {
        tracing::warn!(container = %entry.id, %error, "what a run held is released later");
        engine.untidy.notify_one();
    }
    engine.journal.note_released(record);
    let verdict = restart::verdict(record, &engine.settings);
    let event = match verdict {
        Verdict::Stay => Event::Released,
        Verdict::Again { .. } => Event::Await,
    };
    let Ok(record) = entry.change(event, |record| record.endpoint = None) else {
        // Somebody removes it.
        return;
    };
    if let Err(error) = engine.keep(&record).await {
        tracing::error!(container = %entry.id, %error, "the end of a container is not kept");
    }
    if let Verdict::Again { after } = verdict {
        restart::schedule(Arc::clone(engine), Arc::clone(entry), after);
    }
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
        engine.peers.runtime.delete(id, true, remove_log).await
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
