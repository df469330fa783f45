//! `delete`: nothing is left.

use std::time::{Duration, Instant};

use super::context::During;
use super::error::{Error, Result};
use super::handle::Container;
use super::hooks;
use super::record::Status;

/// How long killed processes may take to go.
const LONGEST: Duration = Duration::from_secs(10);

impl Container {
    /// Kills what still runs in the container's cgroup, waits until it is empty, removes it and runs
    /// the `poststop` hooks. A hook that fails is no error, as the specification asks: it comes back as a warning.
    /// Init itself is to be reaped by its parent. Can be repeated.
    pub fn delete(&self) -> Result<Option<Error>> {
        let deadline = Instant::now() + LONGEST;
        let cgroup = self.cgroup()?;
        if self.record.owns_cgroup {
            // Most often init was the last: then there is nobody to kill.
            if !self.has_ended() || !cgroup.processes()?.is_empty() {
                if cgroup.is_frozen() {
                    // A frozen process of v1 does not die.
                    let _ = cgroup.thaw();
                }
                cgroup.kill_all()?;
                if let Some(pidfd) = self.pidfd() {
                    let _ = gantry_sys::process::send_signal_to(pidfd, libc::SIGKILL);
                }
            }
            if !cgroup.wait_empty(deadline)? {
                let left = cgroup.processes()?;
                return Err(Error::step(
                    "wait for the end of",
                    format!("processes {left:?}, which were killed"),
                    std::io::Error::from_raw_os_error(libc::ETIMEDOUT),
                ));
            }
            cgroup.remove(deadline)?;
        }
        if let Some(root) = &self.record.host_root {
            root.detach()
                .during("unmount root", root.path().display())?;
        }
        if let Some(gate) = &self.record.gate {
            let _ = std::fs::remove_file(gate);
        }
        if let Some(hooks) = self
            .record
            .hooks
            .as_ref()
            .and_then(|hooks| hooks.poststop().as_deref())
        {
            let state = hooks::state(&self.record, Status::Stopped, 0);
            let ran = hooks::run_each("poststop", hooks, &state, Some(&self.record.bundle));
            return Ok(ran.err());
        }
        Ok(None)
    }
}
