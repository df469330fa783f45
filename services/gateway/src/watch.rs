//! Follows what happens to running containers, for as long as the service lives.
//!
//! The runtime's event stream begins with a snapshot of all its containers.
//! Whenever it breaks off it is opened again, and the snapshot says what was
//! missed; so nothing is lost however often the runtime restarts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;

use crate::engine::Engine;
use crate::error::Error;
use crate::lifecycle::ended;
use crate::peers::{EventKind, EventStream, Live, RuntimeEvent};
use crate::reconcile;
use crate::state::Event;

/// First and longest wait before the stream is opened again.
const REOPEN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Follows until the service stops.
pub async fn watch(engine: Arc<Engine>) {
    let mut wait = REOPEN.0;
    let mut silent = true;
    loop {
        let opened = tokio::select! {
            opened = open(&engine) => opened,
            () = engine.stopping.cancelled() => return,
        };
        match opened {
            Ok((events, snapshot, at)) => {
                wait = REOPEN.0;
                silent = false;
                reconcile::with_runtime(&engine, snapshot, at).await;
                engine.untidy.notify_one();
                tokio::select! {
                    error = follow(&engine, events) => {
                        tracing::warn!(?error, "the runtime's events broke off");
                    }
                    () = engine.stopping.cancelled() => return,
                }
            }
            Err(error) => {
                if !silent {
                    tracing::warn!(%error, "the runtime's events cannot be followed");
                }
                silent = true;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = engine.stopping.cancelled() => return,
        }
        wait = (wait * 2).min(REOPEN.1);
    }
}

type Opened = (EventStream, HashMap<String, Live>, Timestamp);

/// Opens the stream and reads its snapshot.
async fn open(engine: &Engine) -> Result<Opened, Error> {
    let at = Timestamp::now();
    let mut events = engine.peers.runtime.events().await?;
    let mut snapshot = HashMap::new();
    while let Some(event) = events.next().await {
        let RuntimeEvent { kind, live } = event?;
        match (kind, live) {
            (EventKind::SnapshotEnd, _) => return Ok((events, snapshot, at)),
            (EventKind::Snapshot, Some(live)) => {
                snapshot.insert(live.id.clone(), live);
            }
            _ => {}
        }
    }
    Err(Error::Unanswered {
        peer: crate::error::Peer::Runtime,
        problem: "its events ended before they began".to_owned(),
    })
}

async fn follow(engine: &Arc<Engine>, mut events: EventStream) -> Option<Error> {
    loop {
        match events.next().await {
            None => return None,
            Some(Err(error)) => return Some(error),
            Some(Ok(RuntimeEvent { kind, live })) => {
                if let Some(live) = live {
                    happened(engine, kind, live);
                }
            }
        }
    }
}

/// Acts on one event, in a task of its own where that takes time.
fn happened(engine: &Arc<Engine>, kind: EventKind, live: Live) {
    let Some(entry) = engine.roster.get(&live.id) else {
        return;
    };
    let changed = |event: Event, action: &'static str| {
        // The verb that asked for it may have noted it already.
        if let Ok(record) = entry.change(event, |_| {}) {
            engine.journal.note(&record, action, &[]);
        }
    };
    match kind {
        EventKind::Exited => {
            if let Some(exit) = live.exit {
                tokio::spawn(ended::ended(Arc::clone(engine), entry, exit));
            }
        }
        EventKind::Paused => changed(Event::Pause, "pause"),
        EventKind::Resumed => changed(Event::Resume, "unpause"),
        EventKind::Oom => engine.journal.note(&entry.record(), "oom", &[]),
        EventKind::Health => {
            entry.update(|record| record.sick = live.sick);
        }
        EventKind::Snapshot | EventKind::SnapshotEnd | EventKind::Other => {}
    }
}
