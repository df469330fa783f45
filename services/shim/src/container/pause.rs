//! `pause` and `resume`: the freezer.

use super::error::{Error, Result};
use super::handle::Container;

impl Container {
    /// Freezes every process and returns when all are frozen (an event, not a sleep); gives up, thawing
    /// them, after 10 seconds.
    pub fn pause(&self) -> Result<()> {
        Err(Error::Unsupported {
            what: "pause".into(),
            why: "not built yet".into(),
        })
    }

    /// Thaws every process. Without effect on one that is not paused.
    pub fn resume(&self) -> Result<()> {
        Err(Error::Unsupported {
            what: "resume".into(),
            why: "not built yet".into(),
        })
    }
}
