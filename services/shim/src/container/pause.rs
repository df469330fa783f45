//! `pause` and `resume`: the freezer.

use std::time::{Duration, Instant};

use super::error::Result;
use super::handle::Container;
use super::record::Status;

const LONGEST: Duration = Duration::from_secs(10);

impl Container {
    /// Freezes every process and returns when all are frozen (an event, not a sleep, where the kernel has
    /// one); gives up, thawing them, after 10 seconds.
    pub fn pause(&self) -> Result<()> {
        self.require("pause", &[Status::Created, Status::Running])?;
        self.cgroup()?.freeze(Instant::now() + LONGEST)
    }

    /// Thaws every process.
    pub fn resume(&self) -> Result<()> {
        self.require("resume", &[Status::Paused])?;
        self.thaw()
    }

    /// Thaws what is left of the processes: of those that were killed while they were frozen some may have ended.
    pub fn thaw(&self) -> Result<()> {
        self.cgroup()?.thaw()
    }
}
