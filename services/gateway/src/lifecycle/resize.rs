//! `resize`: the size of a process' terminal. A call of its own, so that it never
//! waits behind input.

use crate::container::Record;
use crate::engine::Engine;
use crate::error::Result;
use crate::roster::Entry;
use crate::state::State;
use crate::window::TerminalSize;

/// Sets the size of the terminal of a process; empty `exec_id`: the container's first.
///
/// # Errors
/// It has no terminal or has ended, or the service fails.
pub async fn resize(
    engine: &Engine,
    entry: &Entry,
    exec_id: &str,
    size: TerminalSize,
) -> Result<()> {
    // A start under way sets the size that it began with.
    let record = entry
        .wait_until(|record| !matches!(record.state, State::Creating | State::Starting))
        .await;
    engine
        .peers
        .runtime
        .resize(&entry.id, exec_id, size)
        .await?;
    if exec_id.is_empty() {
        note(engine, &record, size);
    }
    Ok(())
}

/// Notes that a container's terminal has another size.
pub(super) fn note(engine: &Engine, record: &Record, size: TerminalSize) {
    if record.wanted.tty {
        let more = [
            ("height", size.rows.to_string()),
            ("width", size.columns.to_string()),
        ];
        engine.journal.note(record, "resize", &more);
    }
}
