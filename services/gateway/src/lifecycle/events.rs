//! `events`: what happens to containers, images, networks and volumes, filtered.
//!
//! Events come from this service and from the image service. Before any is handed
//! on, the image service's are waited for ([`crate::watch_images`]), so that they
//! come in the order of their times.

use std::mem;
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
    /// What came already, and that something else may yet come before.
    later: Vec<Arc<Told>>,
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
    let complete_until = Timestamp::now();
    engine.followed.caught_up(&engine.peers.image).await;
    let (past, follower) = engine.journal.look_back(since);
    let (past, later): (Vec<_>, Vec<_>) = past.into_iter().partition(|t| t.at <= complete_until);
    Ok(Listening {
        engine: Arc::clone(engine),
        ready: past.into_iter(),
        later,
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
            if self.until.is_some_and(|until| told.at >= until) {
                return None;
            }
            if self.filters.fit(&told.event) {
                return Some(told);
            }
        }
    }

    /// What comes next, by the times. None: the time is over.
    async fn batch(&mut self) -> Option<Vec<Arc<Told>>> {
        let mut events = mem::take(&mut self.later);
        let over = events.is_empty() && !self.wait(&mut events).await;
        // What happened elsewhere until now is here after this. Of what happens from
        // now on a part may be missing: it waits for the next round, and no longer,
        // should the clock have been set back.
        let complete_until = Timestamp::now();
        let waited = events.len();
        self.engine
            .followed
            .caught_up(&self.engine.peers.image)
            .await;
        let mut missed = 0;
        while events.len() < BATCH_MAX {
            let more = self.follower.ready();
            if more.events.is_empty() {
                break;
            }
            missed += more.missed;
            events.extend(more.events);
        }
        if missed > 0 {
            tracing::warn!(missed, "a slow listener missed events");
        }
        if over && events.is_empty() {
            return None;
        }
        let fresh = events.split_off(waited);
        let (complete, later) = fresh.into_iter().partition(|t| t.at <= complete_until);
        self.later = later;
        let complete: Vec<_> = complete;
        events.extend(complete);
        events.sort_by_key(|told| told.at);
        Some(events)
    }

    /// Waits for something to come. False: the time was over first.
    async fn wait(&mut self, events: &mut Vec<Arc<Told>>) -> bool {
        let now = Timestamp::now();
        let left = self
            .until
            .map(|until| Duration::try_from(until - now).unwrap_or(Duration::ZERO));
        let next = self.follower.next();
        let came = match left {
            None => Some(next.await),
            Some(left) => tokio::time::timeout(left, next).await.ok(),
        };
        let Some(batch) = came else {
            return false;
        };
        if batch.missed > 0 {
            tracing::warn!(missed = batch.missed, "a slow listener missed events");
        }
        events.extend(batch.events);
        true
    }
}
