//! `restart`: stop where it runs, then start.

use std::sync::Arc;

use super::start::{self, Starter};
use super::stop::{self, StopWanted};
use crate::engine::Engine;
use crate::error::Result;
use crate::roster::Entry;

/// Restarts a container; one that does not run is started.
///
/// # Errors
/// It cannot be stopped or started.
pub async fn restart(engine: &Arc<Engine>, entry: &Arc<Entry>, wanted: &StopWanted) -> Result<()> {
    stop::stop(engine, entry, wanted).await?;
    let _no_window = start::start(engine, entry, Starter::Person, None).await?;
    engine.journal.note(&entry.record(), "restart", &[]);
    Ok(())
}
