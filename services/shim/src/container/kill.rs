//! `kill`: signals.

use super::error::{Error, Result};
use super::handle::Container;

/// Who gets the signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Init alone.
    Init,
    /// Every process of the container's cgroup (also those that exec made). With SIGKILL in
    /// one step where the kernel can (`cgroup.kill`).
    All,
}

impl Container {
    /// Sends a signal by number. A container that has ended already is `Error::State` for `Init`,
    /// and no error for `All`.
    pub fn kill(&self, signal: i32, target: Target) -> Result<()> {
        let _ = (signal, target);
        Err(Error::Unsupported {
            what: "kill".into(),
            why: "not built yet".into(),
        })
    }

    /// The PIDs of all processes in the container, in this process' PID namespace.
    pub fn processes(&self) -> Result<Vec<i32>> {
        Ok(Vec::new())
    }

    /// Reaps init if it has ended: `Some((code, signal))`, where `signal` is 0 for an exit and
    /// `code` is then the exit code. Only for the process that is init's parent.
    pub fn reap(&self) -> Result<Option<(i32, i32)>> {
        Ok(None)
    }
}
