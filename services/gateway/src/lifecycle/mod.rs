//! The verbs of a container's life, one to a file. Each is a function of the
//! domain: typed arguments, typed errors, no wire, no command line.
//!
//! A verb that changes something must be run to its end even when its caller has
//! gone: callers run it in a task of its own ([`to_its_end`]).

pub mod attach;
pub mod commit;
pub mod copy;
pub mod create;
pub mod ended;
pub mod events;
pub mod exec;
pub mod files;
pub mod health;
pub mod inspect;
pub mod kill;
pub mod list;
pub mod logs;
pub mod pause;
pub mod prune;
pub mod remove;
pub mod rename;
pub mod resize;
pub mod restart;
pub mod run;
pub mod start;
pub mod stats;
pub mod stop;
mod typing;
pub mod update;
mod volumes_from;
pub mod wait;

use tracing::Instrument as _;

use crate::error::{Error, Result};

/// Runs a verb to its end, whether or not its caller waits for it.
///
/// # Errors
/// The verb's own.
pub async fn to_its_end<T: Send + 'static>(
    verb: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(verb.in_current_span()).await {
        Ok(outcome) => outcome,
        Err(failure) => Err(Error::Task {
            problem: failure.to_string(),
        }),
    }
}
