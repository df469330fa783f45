//! Children that the shim does not know, or does not know yet.
//!
//! The reaper takes every child that ends. One that is not among the shim's processes is a call of the program, whose
//! caller waits for its end; or a process that such a call has just made, whose number is not read yet; or an orphan of
//! the container, which is nobody's. The second cannot be told from the third, so while a process is expected all are kept.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::sync::oneshot;

use crate::exit::ExitStatus;
use crate::stdio::lock;

/// See the module.
#[derive(Debug, Default)]
pub struct Births {
    /// One verb at a time that changes the container as a whole.
    pub(super) verbs: tokio::sync::Mutex<()>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    calls: HashMap<i32, oneshot::Sender<ExitStatus>>,
    expected: usize,
    early: HashMap<i32, ExitStatus>,
}

/// As long as it lives, the ends of unknown children are kept.
#[derive(Debug)]
pub(super) struct Expecting<'a>(&'a Births);

impl Drop for Expecting<'_> {
    fn drop(&mut self) {
        let mut inner = lock(&self.0.inner);
        inner.expected -= 1;
        if inner.expected == 0 {
            inner.early = HashMap::new();
        }
    }
}

impl Births {
    /// A child has ended that is none of the shim's processes.
    pub fn reaped(&self, pid: i32, status: ExitStatus) {
        let mut inner = lock(&self.inner);
        if let Some(call) = inner.calls.remove(&pid) {
            // Nobody waits any more for one that was given up.
            let _given_up = call.send(status);
        } else if inner.expected > 0 {
            inner.early.insert(pid, status);
        }
    }

    /// Whether no call is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        lock(&self.inner).calls.is_empty()
    }

    /// The end of a call that was just started: no await may lie between.
    pub(super) fn end_of(&self, pid: i32) -> oneshot::Receiver<ExitStatus> {
        let (told, end) = oneshot::channel();
        lock(&self.inner).calls.insert(pid, told);
        end
    }

    /// A process will be made.
    pub(super) fn expect(&self) -> Expecting<'_> {
        lock(&self.inner).expected += 1;
        Expecting(self)
    }

    /// How a process that was made ended, if it did before its number was read.
    pub fn early(&self, pid: i32) -> Option<ExitStatus> {
        let status = lock(&self.inner).early.remove(&pid)?;
        // The number may be that of an orphan which ended before, and be in use again.
        (parent_of(pid) != Some(std::process::id())).then_some(status)
    }
}

/// The parent of a process; `None`: there is no such process.
pub(super) fn parent_of(pid: i32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, is in parentheses and may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No process has this number: it is beyond the kernel's largest.
    const NOBODY: i32 = i32::MAX;

    fn ended(code: i32) -> ExitStatus {
        ExitStatus::reaped(Some(code), None)
    }

    #[test]
    fn a_process_that_ends_before_its_number_is_read_is_not_lost() {
        let births = Births::default();
        let expecting = births.expect();
        births.reaped(NOBODY, ended(7));
        assert_eq!(births.early(NOBODY).map(|status| status.code), Some(7));
        assert_eq!(births.early(NOBODY), None, "it ends once");
        births.reaped(NOBODY, ended(8));
        drop(expecting);
        let _again = births.expect();
        assert_eq!(births.early(NOBODY), None, "an orphan of before");
    }

    #[test]
    fn a_number_that_is_in_use_again_has_not_ended() {
        let births = Births::default();
        let _expecting = births.expect();
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        births.reaped(pid, ended(1));
        assert_eq!(births.early(pid), None);
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn the_end_of_a_call_is_told_to_its_caller() {
        let births = Births::default();
        let mut end = births.end_of(NOBODY);
        assert!(!births.is_idle());
        births.reaped(NOBODY, ended(3));
        assert_eq!(end.try_recv().unwrap().code, 3);
        assert!(births.is_idle());
    }
}
