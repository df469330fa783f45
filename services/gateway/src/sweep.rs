//! What the services hold for containers that do not exist: writable layers,
//! endpoints, logs, and containers of the runtime.
//!
//! A power cut leaves some: a record with `--rm` need not survive it. They carry
//! the id of a container of ours (64 hexadecimal digits), and no container has
//! that id. That is proof enough as long as every record can be read, since a
//! record is written before the first thing that carries its id. **While one
//! cannot, nothing is removed for want of a record** ([`Engine::kept_aside`]):
//! what a damaged record owns may be all that is left of somebody's data.
//!
//! What is there is listed before the containers are looked at, so that whatever
//! is made meanwhile has its container.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::join3;

use crate::container::ContainerId;
use crate::engine::Engine;
use crate::error::Result;
use crate::state::State;

/// What is held for a container that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// A container in the runtime, with its processes and its bundle.
    Container,
    Endpoint,
    Layer,
    Log,
}

impl Held {
    /// "writable layer"
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Container => "runtime container",
            Self::Endpoint => "endpoint",
            Self::Layer => "writable layer",
            Self::Log => "log",
        }
    }
}

/// Whether what has no record may be removed for that.
pub async fn is_allowed(engine: &Arc<Engine>) -> bool {
    match engine.kept_aside().await {
        Ok(kept) => kept.is_empty(),
        Err(error) => {
            tracing::error!(%error, "nothing is removed for want of a record");
            false
        }
    }
}

/// What is held for containers that do not exist.
///
/// # Errors
/// A service does not say what it holds.
pub async fn orphans(engine: &Engine) -> Result<BTreeSet<(Held, String)>> {
    let peers = &engine.peers;
    let (layers, endpoints, runtime) = join3(
        peers.image.snapshots(),
        peers.network.owners(),
        peers.runtime.held(),
    )
    .await;
    let runtime = runtime?;
    let all = [
        (Held::Layer, layers?),
        (Held::Endpoint, endpoints?),
        (Held::Container, runtime.containers),
        (Held::Log, runtime.logs),
    ];
    let is_orphan = |id: &String| {
        ContainerId::is_id(id) && engine.roster.get(id).is_none() && !engine.roster.has_view(id)
    };
    Ok(all
        .into_iter()
        .flat_map(|(held, ids)| ids.into_iter().map(move |id| (held, id)))
        .filter(|(_, id)| is_orphan(id))
        .collect())
}

/// Removes one of them.
///
/// # Errors
/// The service fails.
pub async fn remove(engine: &Engine, held: Held, id: &str) -> Result<()> {
    let peers = &engine.peers;
    match held {
        // Volumes may be all that is left of somebody's data.
        Held::Layer => peers.image.delete(id, false).await,
        Held::Endpoint => peers.network.delete(id).await,
        Held::Log | Held::Container => {
            let deleted = peers.runtime.delete(id, true, true).await?;
            match deleted.log_left.is_empty() {
                true => Ok(()),
                false => Err(crate::error::Error::LogLeft {
                    id: id.to_owned(),
                    problem: deleted.log_left,
                }),
            }
        }
    }
}

/// Removes all of them, and endpoints of containers that do not run.
///
/// # Errors
/// The first failure; all were tried.
pub async fn sweep(engine: &Arc<Engine>) -> Result<()> {
    let mut outcome = unused_endpoints(engine).await;
    let orphans = orphans(engine).await?;
    warn_of_lost_records(engine, &orphans).await?;
    if orphans.is_empty() {
        return outcome;
    }
    if !is_allowed(engine).await {
        tracing::warn!(
            count = orphans.len(),
            "a record cannot be read: what has no record is kept"
        );
        return outcome;
    }
    for (held, id) in orphans {
        tracing::info!(container = id, "removing a {} of no container", held.name());
        outcome = outcome.and(remove(engine, held, &id).await);
    }
    outcome
}

/// Releases endpoints of containers that do not run.
async fn unused_endpoints(engine: &Engine) -> Result<()> {
    let mut outcome = Ok(());
    for id in engine.peers.network.owners().await? {
        let state = engine.roster.get(&id).map(|entry| entry.record().state);
        let unused = matches!(
            state,
            Some(State::Created | State::Exited | State::Restarting)
        );
        if unused {
            tracing::info!(container = id, "releasing an endpoint that no run holds");
            outcome = outcome.and(engine.peers.network.delete(&id).await);
        }
    }
    outcome
}

/// Where the directory of the records did not exist when the service started, and
/// there are layers of containers all the same, the records were lost: they are
/// not removed until a person has said so.
///
/// Only the first look can tell: what it finds is from before this life of the
/// service.
///
/// # Errors
/// The note on it cannot be written.
pub async fn warn_of_lost_records(
    engine: &Arc<Engine>,
    orphans: &BTreeSet<(Held, String)>,
) -> Result<()> {
    if engine.has_swept() {
        return Ok(());
    }
    let layers = orphans.iter().filter(|(held, _)| *held == Held::Layer);
    let ids: Vec<&str> = layers.map(|(_, id)| id.as_str()).collect();
    if engine.store.is_new && !ids.is_empty() {
        engine.warn_of_lost_records(&ids).await?;
    }
    engine.set_swept();
    Ok(())
}
