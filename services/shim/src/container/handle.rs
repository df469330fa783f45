//! The handle on a live container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::error::{Error, Result};
use super::record::{Record, Status};
use super::timing::Timing;

/// A container whose first process exists. Dropping it changes nothing for the container
/// (but with [`Gate::Held`](super::Gate::Held), a container not yet started ends).
#[derive(Debug)]
pub struct Container {
    pub(super) record: Record,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) gate: Option<OwnedFd>,
    pub(super) started: bool,
}

/// What `create` returns.
#[derive(Debug)]
pub struct Created {
    /// The container; init waits for [`Container::start`].
    pub container: Container,
    /// The terminal's master side, with [`Stdio::Terminal`](super::Stdio::Terminal).
    pub terminal: Option<OwnedFd>,
    /// How long each step took, in the order of their beginnings.
    pub timings: Vec<Timing>,
}

impl Container {
    /// Takes up a container that another process (or an earlier life of this one) made.
    /// Works also when init has ended: then only `delete`, `stats` and `oom_kills` make sense.
    pub fn reopen(record: Record) -> Result<Self> {
        let _ = record;
        Err(Error::Unsupported {
            what: "reopen".into(),
            why: "not built yet".into(),
        })
    }

    /// The container's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// Init's PID, in this process' PID namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.record.pid
    }

    /// Init's pidfd: readable once init has ended. `None` after `reopen` of one that has ended.
    #[must_use]
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// What to keep on disk.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The present state, asked of the kernel (about 20 µs).
    pub fn status(&self) -> Result<Status> {
        Err(Error::Unsupported {
            what: "status".into(),
            why: "not built yet".into(),
        })
    }
}
