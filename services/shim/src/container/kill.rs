//! `kill`: signals.

use super::context::During;
use super::error::Result;
use super::handle::Container;
use super::record::Status;

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
        match target {
            Target::All => {
                let cgroup = self.cgroup()?;
                if signal == libc::SIGKILL {
                    cgroup.kill_all()
                } else {
                    cgroup.signal_all(signal)
                }
            }
            Target::Init => {
                self.require("kill", &[Status::Created, Status::Running, Status::Paused])?;
                if let Some(pidfd) = self.pidfd() {
                    gantry_sys::process::send_signal_to(pidfd, signal)
                        .during("signal", format_args!("{} with {signal}", self.id()))?;
                }
                if signal == libc::SIGKILL {
                    // v1: a frozen process dies only when it is thawed.
                    let cgroup = self.cgroup()?;
                    if cgroup.is_frozen() {
                        cgroup.thaw()?;
                    }
                }
                Ok(())
            }
        }
    }

    /// The PIDs of all processes in the container, in this process' PID namespace.
    pub fn processes(&self) -> Result<Vec<i32>> {
        self.cgroup()?.processes()
    }
}
