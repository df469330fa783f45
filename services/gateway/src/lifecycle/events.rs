//! `events`: what happens to containers, filtered.

use jiff::Timestamp;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::journal::Happening;

const KEYS: [&str; 5] = ["container", "event", "image", "label", "type"];

/// Events that somebody listens to.
#[derive(Debug)]
pub struct Listening {
    past: std::vec::IntoIter<Happening>,
    live: Receiver<Happening>,
    filters: Vec<Filter>,
    until: Option<Timestamp>,
}

/// Begins to listen.
///
/// # Errors
/// A filter is unknown.
pub fn events(
    engine: &Engine,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    filters: Vec<Filter>,
) -> Result<Listening> {
    if let Some(unknown) = filters
        .iter()
        .find(|filter| !KEYS.contains(&filter.key.as_str()))
    {
        return Err(Error::invalid(
            "filter",
            format!(
                "{:?} is not known; there are {}",
                unknown.key,
                KEYS.join(", ")
            ),
        ));
    }
    let (past, live) = engine.journal.listen(since);
    Ok(Listening {
        past: past.into_iter(),
        live,
        filters,
        until,
    })
}

impl Listening {
    /// The next event; None when the time is over or the service stops.
    pub async fn next(&mut self) -> Option<Happening> {
        loop {
            let happening = match self.past.next() {
                Some(happening) => happening,
                None => self.live().await?,
            };
            if self.until.is_some_and(|until| happening.at >= until) {
                return None;
            }
            if fits(&happening, &self.filters) {
                return Some(happening);
            }
        }
    }

    async fn live(&mut self) -> Option<Happening> {
        loop {
            let received = match self.until {
                None => self.live.recv().await,
                Some(until) => {
                    let left = std::time::Duration::try_from(until - Timestamp::now()).ok()?;
                    tokio::time::timeout(left, self.live.recv()).await.ok()?
                }
            };
            match received {
                Ok(happening) => return Some(happening),
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "a slow listener missed events");
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

/// Of several values for one key any may hold; all keys must.
fn fits(happening: &Happening, filters: &[Filter]) -> bool {
    let attribute = |key: &str| happening.attributes.get(key).map_or("", String::as_str);
    KEYS.iter().all(|key| {
        let mut values = filters
            .iter()
            .filter(|filter| filter.key == *key)
            .peekable();
        values.peek().is_none()
            || values.any(|filter| {
                let value = filter.value.as_str();
                match *key {
                    "container" => happening.id.starts_with(value) || attribute("name") == value,
                    // "exec_start" is any of them, whatever is executed.
                    "event" => {
                        let action = &*happening.action;
                        let kind = action.split_once(": ").map_or(action, |(kind, _)| kind);
                        action == value || kind == value
                    }
                    "image" => attribute("image") == value,
                    "type" => value == "container",
                    _ => match value.split_once('=') {
                        Some((label, wanted)) => attribute(label) == wanted,
                        None => happening.attributes.contains_key(value),
                    },
                }
            })
    })
}
