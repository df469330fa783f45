//! A process' standard streams: copied to the log and to every window.
//!
//! ```text
//! program ─► pipe or terminal ─► Output ─┬─► Log        (batched writes)
//!                                        ├─► Window 1   (a ring of 1 MiB)
//!                                        └─► Window n
//! windows ─► Input ─► pipe or terminal ─► program
//! ```
//!
//! # Who waits for whom
//! The program waits for its primary window, if it has one, as it would for a
//! pipe: for as long as the window's reader takes. What was sent to it is kept
//! until its reader acknowledges it, so that a reader whose connection broke goes
//! on where it was. A window that is given up (`ReleaseWindow`), or not opened
//! again in time, is waited for no more.
//!
//! The program never waits for the log: lines that cannot be written are counted
//! and dropped. It never waits for another window that has stopped reading: its
//! ring overflows from the front, and it is told how much it missed. It does wait,
//! in a bounded measure, for a window that keeps reading but is slower than the
//! program ([`window::PATIENCE`]).
//!
//! The end of a process waits for no window: what it left in its pipes is taken
//! into memory at once.
//!
//! # Locking
//! The shim has one thread. The locks here are for the type system; none is held
//! over an await.

mod input;
mod output;
pub mod window;

pub use input::{Input, Typist};
pub use output::{Opened, Opening, Output, Source};
pub use window::{Item, Window};

/// How long output is held for a window that was announced, and a primary window or
/// a typist's name is kept whose connection broke: the service in between may be
/// restarting.
pub(crate) const HOLD_LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

/// Which of a process' outputs some bytes came from. A terminal is all `Out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Out,
    Err,
}

/// Locks without minding a panic elsewhere: the shim aborts on one.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
