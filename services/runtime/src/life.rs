//! A container's life, as this service knows it.
//!
//! ```text
//!            created            started           paused
//! Empty ───────────► Created ───────────► Running ──────► Paused
//!                       │                  │   ▲  resumed   │
//!                       │ exited    exited │   └────────────┤
//!                       └────────► Stopped ◄────────────────┘ exited
//! ```

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Where a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its shim is up; there is no container yet.
    Empty,
    Created,
    Running,
    Paused,
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Empty => "being created",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// What moves a container on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Created,
    Started,
    Paused,
    Resumed,
    Exited,
}

/// A step that does not fit the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a container that is {status} cannot become {step:?}")]
pub struct InvalidTransition {
    pub status: Status,
    pub step: Step,
}

/// The status after `step`.
///
/// # Errors
/// The step does not fit the status.
pub fn next(status: Status, step: Step) -> Result<Status, InvalidTransition> {
    use Status as S;
    match (status, step) {
        (S::Empty, Step::Created) => Ok(S::Created),
        (S::Created, Step::Started) => Ok(S::Running),
        (S::Running | S::Paused, Step::Paused) => Ok(S::Paused),
        (S::Paused | S::Running, Step::Resumed) => Ok(S::Running),
        (S::Created | S::Running | S::Paused, Step::Exited) => Ok(S::Stopped),
        (S::Empty, Step::Started | Step::Paused | Step::Resumed | Step::Exited)
        | (S::Created, Step::Created | Step::Paused | Step::Resumed)
        | (S::Running | S::Paused, Step::Created | Step::Started)
        | (S::Stopped, _) => Err(InvalidTransition { status, step }),
    }
}

/// How a process ended; the same file format as the shim's `exit.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// 0-255, or 128 + the signal that ended the process.
    pub code: i32,
    /// 0: it exited by itself.
    pub signal: i32,
    pub oom_killed: bool,
    pub exited_unix_nanos: u64,
    /// Why the end is not the program's own doing. Empty: it is.
    #[serde(default)]
    pub error: String,
}

impl ExitStatus {
    /// The end of a container whose shim died: as if killed.
    #[must_use]
    pub fn lost(error: String) -> Self {
        Self {
            code: 137,
            signal: 9,
            oom_killed: false,
            exited_unix_nanos: unix_nanos(SystemTime::now()),
            error,
        }
    }
}

/// Nanoseconds since the Unix epoch.
#[must_use]
pub fn unix_nanos(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        })
}

/// The live state of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    pub status: Status,
    /// The first process; 0: none.
    pub pid: i32,
    /// The shim; 0: it is gone.
    pub shim_pid: i32,
    pub created_at: SystemTime,
    pub started_at: Option<SystemTime>,
    pub exit: Option<ExitStatus>,
    /// Why the container cannot be relied on. Empty: it is well.
    pub sick: String,
}

impl Container {
    /// Takes a step: the one place where a status changes.
    ///
    /// # Errors
    /// The step does not fit the status.
    pub fn take(&mut self, step: Step) -> Result<(), InvalidTransition> {
        self.status = next(self.status, step)?;
        Ok(())
    }

    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.status, Status::Running | Status::Paused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_follows_the_end() {
        for step in [
            Step::Created,
            Step::Started,
            Step::Paused,
            Step::Resumed,
            Step::Exited,
        ] {
            assert!(next(Status::Stopped, step).is_err());
        }
    }

    #[test]
    fn a_whole_life_goes_through() {
        let mut status = Status::Empty;
        for step in [
            Step::Created,
            Step::Started,
            Step::Paused,
            Step::Resumed,
            Step::Exited,
        ] {
            status = next(status, step).unwrap();
        }
        assert_eq!(status, Status::Stopped);
    }
}
