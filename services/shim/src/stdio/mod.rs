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
//! The program never waits for the log: lines that cannot be written are counted
//! and dropped. It never waits for a window that has stopped reading: its ring
//! overflows from the front, and it is told how much it missed. It does wait,
//! in a bounded measure, for a window that keeps reading but is slower than the
//! program ([`window::PATIENCE`]): otherwise no large output could ever arrive
//! whole through a pipeline that is slower than `memcpy`.
//!
//! # Locking
//! The shim has one thread. The locks here are for the type system; none is held
//! over an await.

mod input;
mod output;
pub mod window;

pub use input::{Input, Typist};
pub use output::{Output, Source};
pub use window::{Item, Window};

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
