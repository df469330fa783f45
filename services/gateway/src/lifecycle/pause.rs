//! `pause` and `unpause`: the freezer.

use std::sync::Arc;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::roster::Entry;
use crate::state::{Event, State};

fn must_be(entry: &Entry, state: State, verb: &'static str) -> Result<()> {
    let record = entry.record();
    if record.state == state {
        return Ok(());
    }
    Err(Error::WrongState {
        name: record.name.clone(),
        verb,
        state: record.state,
    })
}

/// Freezes a running container.
///
/// # Errors
/// It does not run, or the service fails.
pub async fn pause(engine: &Arc<Engine>, entry: &Arc<Entry>) -> Result<()> {
    must_be(entry, State::Running, "pause")?;
    // Of a commit that has let it go on, or is about to: this pause is a person's, and stays.
    if entry.record().frozen_for_commit {
        entry.update(|record| record.frozen_for_commit = false);
        note(engine, entry);
    }
    freeze(engine, entry).await
}

/// Freezes a running container, for a commit.
///
/// # Errors
/// It does not run, or the service fails.
pub(super) async fn freeze(engine: &Arc<Engine>, entry: &Arc<Entry>) -> Result<()> {
    must_be(entry, State::Running, "pause")?;
    engine.peers.runtime.pause(&entry.id).await?;
    paused(engine, entry, Event::Pause, "pause");
    Ok(())
}

/// Thaws a paused container.
///
/// # Errors
/// It is not paused, or the service fails.
pub async fn unpause(engine: &Arc<Engine>, entry: &Arc<Entry>) -> Result<()> {
    must_be(entry, State::Paused, "unpause")?;
    engine.peers.runtime.resume(&entry.id).await?;
    paused(engine, entry, Event::Resume, "unpause");
    Ok(())
}

/// Notes the freezer's new state. That the runtime's event told of it first is
/// no failure. A power cut thaws everything: a note is enough.
fn paused(engine: &Engine, entry: &Entry, event: Event, verb: &'static str) {
    if let Ok(record) = entry.change(event, |_| {}) {
        engine.journal.note(&record, verb, &[]);
        note(engine, entry);
    }
}

/// Notes the freezer's state. Where that fails the next life of this service asks
/// the runtime, which knows it.
pub(super) fn note(engine: &Engine, entry: &Entry) {
    if let Err(error) = engine.note(&entry.record()) {
        tracing::warn!(container = %entry.id, %error, "the freezer's state is not noted");
    }
}
