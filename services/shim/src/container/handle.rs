//! The handle on a live container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use super::cgroup::Cgroup;
use super::context::During;
use super::error::{Error, Result};
use super::net_devices::Given;
use super::record::{Record, Status, start_time};
use super::seccomp::Filter;
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
    /// The compiled filter, for further processes.
    pub filter: Option<Arc<Filter>>,
    /// How long each step took, in the order of their beginnings.
    pub timings: Vec<Timing>,
    /// The way back of the host's network devices, as long as somebody may still find that all was for nothing.
    pub(super) given: Option<Given>,
}

impl Created {
    /// Undoes the creation, as if it had failed: nothing is left of the container, and the host has its network devices
    /// back. A failure says what could not be undone.
    pub fn abandon(self) -> Result<()> {
        let deleted = self.container.delete().map(drop);
        // The caller is the parent, and the only one who can.
        let _not_ended = self.container.reap();
        let failures = self
            .given
            .map(|given| given.take_back())
            .unwrap_or_default();
        failures
            .into_iter()
            .fold(deleted, |first, failure| first.and(Err(failure)))
    }
}

impl Container {
    /// Takes up a container that another process (or an earlier life of this one) made.
    /// Works also when init has ended: then only `delete`, `stats` and `oom_kills` make sense.
    pub fn reopen(record: Record) -> Result<Self> {
        let pidfd = Pid::from_raw(record.pid)
            .filter(|_| record.pid > 0)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            // After it is open the PID can not become another's unseen.
            .filter(|_| start_time(record.pid).is_ok_and(|time| time == record.start_time));
        // `start` removes the gate.
        let started = record.gate.as_ref().is_none_or(|gate| !gate.exists());
        Ok(Self {
            record,
            pidfd,
            gate: None,
            started,
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
        if self.has_ended() {
            return Ok(Status::Stopped);
        }
        if self.cgroup()?.is_frozen() {
            return Ok(Status::Paused);
        }
        Ok(if self.started {
            Status::Running
        } else {
            Status::Created
        })
    }

    /// Whether init has ended (it may still have to be reaped).
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let Some(pidfd) = &self.pidfd else {
            return true;
        };
        matches!(
            poll(
                &mut [PollFd::new(pidfd, PollFlags::IN)],
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: 0
                })
            ),
            Ok(1..)
        )
    }

    /// Waits until init has ended, or for as long; `false`: it still lives.
    #[must_use]
    pub fn wait(&self, longest: Duration) -> bool {
        if let Some(pidfd) = &self.pidfd {
            super::cgroup::wait_readable(pidfd, longest);
        }
        self.has_ended()
    }

    /// Reaps init if it has ended: `Some((code, signal))`, where `signal` is 0 for an exit and
    /// `code` is then the exit code. Only for the process that is init's parent.
    pub fn reap(&self) -> Result<Option<(i32, i32)>> {
        let Some(pidfd) = &self.pidfd else {
            return Ok(None);
        };
        let ended = waitid(
            WaitId::PidFd(pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        )
        .during("reap", self.id())?;
        Ok(ended.map(|status| {
            (
                status.exit_status().unwrap_or(0),
                status.terminating_signal().unwrap_or(0),
            )
        }))
    }

    pub(super) fn cgroup(&self) -> Result<Cgroup> {
        Cgroup::existing(&self.record.cgroup)
    }

    /// An error unless the state is one of these.
    pub(super) fn require(&self, verb: &'static str, allowed: &[Status]) -> Result<()> {
        let status = self.status()?;
        if allowed.contains(&status) {
            return Ok(());
        }
        Err(Error::State {
            id: self.record.id.clone(),
            verb,
            status,
        })
    }
}

/// Reaps a child of this process, in words.
pub(super) fn wait_ended(pidfd: BorrowedFd<'_>) -> String {
    loop {
        return match waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exited with status {code}"),
                (None, Some(signal)) => format!("killed by signal {signal}"),
                (None, None) => "ended".to_owned(),
            },
            Ok(None) | Err(_) => "ended".to_owned(),
        };
    }
}
