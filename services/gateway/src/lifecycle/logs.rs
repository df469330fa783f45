//! `logs`: a container's output as it was logged. The runtime reads it.

use crate::engine::Engine;
use crate::error::Result;
use crate::peers::{LogStream, LogsWanted};
use crate::roster::Entry;
use crate::state::State;

/// The logged output that is wanted.
///
/// # Errors
/// The service fails.
pub async fn logs(engine: &Engine, entry: &Entry, mut wanted: LogsWanted) -> Result<LogStream> {
    let record = entry.record();
    // There is nothing to follow where nothing runs.
    if !record.state.is_busy() || record.state == State::Created {
        wanted.follow = false;
    }
    if !wanted.stdout && !wanted.stderr {
        (wanted.stdout, wanted.stderr) = (true, true);
    }
    engine.peers.runtime.logs(&entry.id, &wanted).await
}
