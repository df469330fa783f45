//! `prune`: removes all containers that do not run.

use std::sync::Arc;

use gantry_kit::times;
use jiff::Timestamp;

use super::remove;
use crate::container::Record;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::state::State;

/// What was removed.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    pub ids: Vec<String>,
    /// Bytes of their writable layers.
    pub reclaimed: u64,
}

enum Test {
    Until(Timestamp),
    /// Has it, with this value where one is named; or has it not.
    Label {
        key: String,
        value: Option<String>,
        wanted: bool,
    },
}

impl Test {
    fn read(filter: &Filter) -> Result<Self> {
        let wrong = |problem: String| Error::invalid("filter", problem);
        Ok(match filter.key.as_str() {
            "until" => {
                let until = times::point(&filter.value, Timestamp::now());
                Self::Until(until.map_err(|error| wrong(error.to_string()))?)
            }
            key @ ("label" | "label!") => {
                let (label, value) = match filter.value.split_once('=') {
                    Some((label, value)) => (label, Some(value.to_owned())),
                    None => (filter.value.as_str(), None),
                };
                Self::Label {
                    key: label.to_owned(),
                    value,
                    wanted: key == "label",
                }
            }
            other => {
                return Err(wrong(format!(
                    "{other:?} is not known; there are until, label and label!"
                )));
            }
        })
    }

    fn holds(&self, record: &Record) -> bool {
        match self {
            Self::Until(time) => record.created < *time,
            Self::Label { key, value, wanted } => {
                let image = record.image.as_ref();
                let own = record.wanted.labels.get(key);
                let found = own.or_else(|| image.and_then(|image| image.config.labels.get(key)));
                let has =
                    found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found));
                has == *wanted
            }
        }
    }
}

/// Removes all containers that do not run and that all filters fit.
///
/// # Errors
/// A filter is unknown. A container that cannot be removed stays, and stops
/// nothing.
pub async fn prune(engine: &Arc<Engine>, filters: &[Filter]) -> Result<Pruned> {
    let tests = filters.iter().map(Test::read).collect::<Result<Vec<_>>>()?;
    let sizes = engine.peers.image.sizes().await.unwrap_or_default();
    let mut pruned = Pruned::default();
    for entry in engine.roster.entries() {
        let record = entry.record();
        let rests = matches!(record.state, State::Created | State::Exited | State::Dead);
        // What a damaged record owns goes only when a person names it.
        if !rests || record.damaged.is_some() || !tests.iter().all(|test| test.holds(&record)) {
            continue;
        }
        match remove::remove(engine, &entry, false).await {
            Ok(()) => {
                let size = sizes.get(entry.id.as_str()).map_or(0, |size| size.writable);
                pruned.reclaimed += size;
                pruned.ids.push(entry.id.to_string());
            }
            // It was started meanwhile.
            Err(Error::StillRunning { .. }) => {}
            Err(error) => {
                tracing::warn!(container = %entry.id, %error, "it is not pruned");
            }
        }
    }
    engine.journal.note_pruned(pruned.reclaimed);
    Ok(pruned)
}
