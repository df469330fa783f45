//! `events`: what happens to containers, images, networks and volumes, filtered.
//!
//! Events come from this service and from the image service. Before any is handed
//! on, the image service's are waited for ([`crate::watch_images`]), so that they
//! come in the order of their times.

use std::sync::Arc;
use std::time::Duration;

use gantry_kit::journal::{Follower, Told};
use jiff::Timestamp;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::event_filter::EventFilters;
use crate::filter::Filter;

/// Events that are put in order at once.
const BATCH_MAX: usize = 1024;

/// Events that somebody listens to.
#[derive(Debug)]
pub struct Listening {
    engine: Arc<Engine>,
    ready: std::vec::IntoIter<Arc<Told>>,
    follower: Follower,
    filters: EventFilters,
    until: Option<Timestamp>,
}

/// Begins to listen.
///
/// # Errors
/// A filter is wrong, or the time ends before it begins.
pub async fn events(
    engine: &Arc<Engine>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    filters: &[Filter],
) -> Result<Listening> {
    let filters = EventFilters::read(filters)?;
    if let (Some(since), Some(until)) = (since, until)
        && since > until
    {
        return Err(Error::invalid(
            "since",
            format!("{since} is after {until}, which `until` says"),
        ));
    }
    engine.followed.caught_up(&engine.peers.image).await;
    let (past, follower) = engine.journal.look_back(since);
    Ok(Listening {
        engine: Arc::clone(engine),
        ready: past.into_iter(),
        follower,
        filters,
        until,
    })
}

impl Listening {
    /// The next event; None when the time is over.
    pub async fn next(&mut self) -> Option<Arc<Told>> {
        loop {
            let told = match self.ready.next() {
                Some(told) => told,
                None => {
                    self.ready = self.batch().await?.into_iter();
                    continue;
                }
            };
            let in_time = self.until.is_none_or(|until| told.at < until);
            if in_time && self.filters.fit(&told.event) {
                return Some(told);
            }
        }
    }

    /// What comes next, by the times. None: the time is over.
    async fn batch(&mut self) -> Option<Vec<Arc<Told>>> {
        let now = Timestamp::now();
        let left = self
            .until
            .map(|until| Duration::try_from(until - now).unwrap_or(Duration::ZERO));
        let next = self.follower.next();
        let came = match left {
            None => Some(next.await),
            Some(left) => tokio::time::timeout(left, next).await.ok(),
        };
        let over = came.is_none();
        let mut batch = came.unwrap_or_default();
        // What happened before it elsewhere is here then.
        self.engine
            .followed
            .caught_up(&self.engine.peers.image)
            .await;
        let mut missed = batch.missed;
        while batch.events.len() < BATCH_MAX {
            let more = self.follower.ready();
            if more.events.is_empty() {
                break;
            }
            missed += more.missed;
            batch.events.extend(more.events);
        }
        if missed > 0 {
            tracing::warn!(missed, "a slow listener missed events");
        }
        if over && batch.events.is_empty() {
            return None;
        }
        batch.events.sort_by_key(|told| told.at);
        Some(batch.events)
    }
}
