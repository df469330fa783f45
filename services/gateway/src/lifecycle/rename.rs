//! `rename`: another name.

use std::sync::Arc;

use crate::engine::Engine;
use crate::error::Result;
use crate::roster::Entry;

/// Gives a container another name.
///
/// # Errors
/// The name is in use or is not one.
pub async fn rename(engine: &Arc<Engine>, entry: &Arc<Entry>, name: &str) -> Result<()> {
    let old = entry.record().name.clone();
    let record = engine.roster.rename(entry, name)?;
    if let Err(error) = engine.keep(&record).await {
        // Not kept, not renamed.
        engine.roster.rename(entry, &old)?;
        return Err(error);
    }
    engine.journal.note(&record, "rename", &[("oldName", old)]);
    Ok(())
}
