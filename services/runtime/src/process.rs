//! Processes by pidfd, and what /proc says of them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;

/// A process that cannot be mistaken for a later one with its id.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// The process `pid`, as it is now.
    ///
    /// # Errors
    /// There is none.
    pub fn open(pid: i32) -> io::Result<Self> {
        let raw = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        Ok(Self {
            pid,
            pidfd: watched(pidfd)?,
        })
    }

    /// The process `pid` if it began at `start`, in clock ticks since boot.
    #[must_use]
    pub fn find(pid: i32, start: u64) -> Option<Self> {
        let process = Self::open(pid).ok()?;
        // Looked at after the pidfd was taken: so it is of this very process.
        (stat(pid)?.start == start).then_some(process)
    }

    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Returns once it has ended; it is reaped if it is this process' child.
    pub async fn ended(&self) {
        self.exited().await;
        let _not_ours = rustix::process::waitid(
            WaitId::PidFd(self.pidfd.get_ref().as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
    }

    /// Returns once it has ended; leaves it for its parent to reap.
    pub async fn exited(&self) {
        // Fails only when the event loop has ended.
        let _ready = self.pidfd.readable().await;
    }

    /// Ends it, also if it is stopped. Without effect on one that has ended.
    pub fn kill(&self) {
        let _ended = rustix::process::pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }

    /// Whether it was stopped by a signal and so does nothing.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        stat(self.pid).is_some_and(|stat| matches!(stat.state, 'T' | 't'))
    }
}

/// Watches a descriptor.
///
/// # Errors
/// It is of a kind that cannot be watched.
#[expect(
    deprecated,
    reason = "unsound for an integer; an OwnedFd stays open as long as it is watched"
)]
pub fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, tokio::io::Interest::READABLE)
}

/// What proc_pid_stat(5) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub state: char,
    /// Start in clock ticks since boot.
    pub start: u64,
}

/// The state of process `pid`; `None` where there is none.
#[must_use]
pub fn stat(pid: i32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(text: &str) -> Option<Stat> {
    // The name, in parentheses, may hold anything, parentheses included.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let text = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        assert_eq!(
            parse(text),
            Some(Stat {
                state: 'S',
                start: 777
            })
        );
    }

    #[tokio::test]
    async fn a_process_is_found_by_its_start_and_no_other() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let start = stat(pid).unwrap().start;
        assert!(Process::find(pid, start).is_some());
        assert!(Process::find(pid, start + 1).is_none());
    }
}
