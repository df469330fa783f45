//! `diff` and `export`: what a container changed in its files, and all of them.
//! The image service reads them, whether the container runs or not.

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::peers::{ChangeStream, ChunkStream};
use crate::roster::Entry;
use crate::state::State;

/// Refuses a container whose files are not there yet, or not for long.
pub(super) fn must_have_files(entry: &Entry, verb: &'static str) -> Result<()> {
    let record = entry.record();
    match record.state {
        // A damaged record says nothing of its files, which may all be there.
        State::Dead if record.damaged.is_some() => Ok(()),
        State::Creating | State::Removing | State::Dead | State::Gone => Err(Error::WrongState {
            name: record.name.clone(),
            verb,
            state: record.state,
        }),
        _ => Ok(()),
    }
}

/// What a container changed.
///
/// # Errors
/// It is being removed, or the service fails.
pub async fn diff(engine: &Engine, entry: &Entry) -> Result<ChangeStream> {
    must_have_files(entry, "compare")?;
    engine.peers.image.diff(entry.id.as_str()).await
}

/// A container's whole file system.
///
/// # Errors
/// It is being removed, or the service fails.
pub async fn export(engine: &Engine, entry: &Entry) -> Result<ChunkStream> {
    must_have_files(entry, "export")?;
    engine.peers.image.export(entry.id.as_str()).await
}
