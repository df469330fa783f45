//! Follows what happens to images and volumes, for as long as the service lives,
//! and puts it into the gateway's journal.
//!
//! The stream says with each event where it is. Whenever it breaks off it is
//! opened again from there: nothing is told twice, and what the image service
//! told meanwhile follows. One that was started again begins anew, under another
//! name, and is followed from its first event.
//!
//! Whoever asks for events is to see what was done before, though it comes from
//! another process: [`Followed::caught_up`] waits until the follower is where the
//! image service is. An image service that does not answer holds nobody up for
//! long: the others' events come without its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::{Notify, watch};

use crate::engine::Engine;
use crate::error::Error;
use crate::peers::{ImagePosition, Images};

/// First and longest wait before the stream is opened again.
const REOPEN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How long somebody waits for an image service that is there and does not
/// answer; and while it is known not to.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(20));

/// How far the image service's events have come into the journal.
#[derive(Debug, Default)]
pub struct Followed {
    place: watch::Sender<Place>,
    /// Somebody waits: the stream is to be opened at once.
    wanted: Notify,
    /// The image service did not answer the last time.
    late: AtomicBool,
}

#[derive(Clone, Debug, Default)]
struct Place {
    /// None: nothing came yet.
    position: Option<ImagePosition>,
    /// How often a stream has ended.
    breaks: u64,
}

impl Followed {
    /// Waits until all is in the journal that the image service has told.
    pub async fn caught_up(&self, images: &Images) {
        let late = self.late.load(Ordering::Relaxed);
        let patience = if late { PATIENCE.1 } else { PATIENCE.0 };
        let in_time = tokio::time::timeout(patience, self.reach_last(images)).await;
        let is_late = in_time.is_err();
        self.late.store(is_late, Ordering::Relaxed);
        if is_late && !late {
            tracing::warn!("the image service does not answer: its events come later");
        }
    }

    async fn reach_last(&self, images: &Images) {
        let mut place = self.place.subscribe();
        loop {
            let breaks = place.borrow_and_update().breaks;
            // One that does not run tells nothing either.
            let Ok(last) = images.last_event().await else {
                return;
            };
            self.wanted.notify_one();
            let is_there = |place: &Place| {
                let position = place.position.as_ref();
                position.is_some_and(|position| {
                    position.life == last.life && position.sequence >= last.sequence
                })
            };
            let moved = place.wait_for(|place| is_there(place) || place.breaks != breaks);
            // Without a sender there is no engine either.
            let reached = moved.await.map_or(true, |place| is_there(&place));
            if reached {
                return;
            }
        }
    }
}

/// Follows until the service stops.
pub async fn watch(engine: Arc<Engine>) {
    let mut wait = REOPEN.0;
    let mut silent = true;
    loop {
        let followed = tokio::select! {
            followed = follow(&engine) => followed,
            () = engine.stopping.cancelled() => return,
        };
        let came = match followed {
            Ok(()) => true,
            Err((came, error)) => {
                if came || !silent {
                    tracing::warn!(%error, "the image service's events cannot be followed");
                }
                came
            }
        };
        // At the start of an engine, services come up in any order.
        silent = !came;
        if came {
            wait = REOPEN.0;
        }
        engine.followed.place.send_modify(|place| place.breaks += 1);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = engine.followed.wanted.notified() => {}
            () = engine.stopping.cancelled() => return,
        }
        wait = (wait * 2).min(REOPEN.1);
    }
}

/// Follows one stream to its end. Whether anything came before it failed.
async fn follow(engine: &Engine) -> Result<(), (bool, Error)> {
    let place = &engine.followed.place;
    let after = place.borrow().position.clone();
    let stream = engine.peers.image.events(after).await;
    let mut stream = stream.map_err(|error| (false, error))?;
    let mut came = false;
    while let Some(told) = stream.next().await {
        let told = told.map_err(|error| (came, error))?;
        came = true;
        if let Some((at, event)) = told.event {
            engine.journal.pass_on(at, event);
        }
        // After the event is in the journal: who waits for it finds it there.
        place.send_modify(|place| place.position = Some(told.position));
    }
    Ok(())
}
