//! `rename`: another name.

use std::sync::Arc;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::roster::Entry;

/// Gives a container another name.
///
/// # Errors
/// The name is in use or is not one.
pub async fn rename(engine: &Arc<Engine>, entry: &Arc<Entry>, name: &str) -> Result<()> {
    let before = entry.record();
    if let Some(path) = &before.damaged {
        return Err(Error::DamagedRecord {
            name: before.name.clone(),
            verb: "rename",
            path: path.clone(),
        });
    }
    let old = before.name.clone();
    let record = engine.roster.rename(entry, name)?;
    if let Err(error) = engine.keep(&record).await {
        // Not kept, not renamed. Where its old name was taken meanwhile it has
        // the new one until the next start of this service.
        if let Err(taken) = engine.roster.rename(entry, &old) {
            tracing::error!(container = %entry.id, %taken, "a rename that is not kept cannot be taken back");
        }
        return Err(error);
    }
    engine.journal.note(&record, "rename", &[("oldName", old)]);
    Ok(())
}
