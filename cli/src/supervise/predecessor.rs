//! The services that an earlier `gantry up` left when it was killed.
//!
//! The kernel sends them SIGTERM, and they drain before they end. Until then they
//! hold their databases and sockets, so that the next `gantry up` of the same
//! engine must not start its own: it takes the engine's place first ([`claim`]),
//! and waits until they have ended ([`Left::end`]).
//!
//! Which engine a service belongs to is in its environment ([`MARK`]). No file
//! says so, which could be lost or old. Containers belong to their shims and go
//! on all the while.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, timeout, timeout_at};

use super::{SERVICES, SuperviseError, readable};

/// The variable that each service is started with: the engine's run directory,
/// without links.
pub(super) const MARK: &str = "GANTRY_UP";

/// How long a killed `gantry up` may take to be gone.
const CLAIM_LIMIT: Duration = Duration::from_secs(5);

/// How long a process may take to end after SIGKILL.
const KILLED_LIMIT: Duration = Duration::from_secs(5);

/// The place of the one `gantry up` of an engine: a lock on its run directory.
#[derive(Debug)]
pub(super) struct Claim {
    _locked: File,
    run: PathBuf,
}

/// Takes the place of the engine's `gantry up`. One that was just killed may
/// still be on its way out.
///
/// # Errors
/// Another one runs.
pub(super) async fn claim(run: &Path) -> Result<Claim, SuperviseError> {
    let failed = |source: io::Error| SuperviseError::Claim {
        path: run.to_owned(),
        source,
    };
    let run = run.canonicalize().map_err(failed)?;
    let directory = File::open(&run).map_err(failed)?;
    let lock = |operation| rustix::fs::flock(&directory, operation);
    match lock(FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let waiting = directory.try_clone().map_err(failed)?;
            let locked = tokio::task::spawn_blocking(move || {
                rustix::fs::flock(&waiting, FlockOperation::LockExclusive)
            });
            match timeout(CLAIM_LIMIT, locked).await {
                Ok(Ok(locked)) => locked.map_err(|errno| failed(errno.into()))?,
                Ok(Err(error)) => return Err(failed(io::Error::other(error))),
                Err(_) => return Err(SuperviseError::Running { run }),
            }
        }
        Err(errno) => return Err(failed(errno.into())),
    }
    Ok(Claim {
        _locked: directory,
        run,
    })
}

/// A service that still runs.
#[derive(Debug)]
struct Process {
    name: &'static str,
    process: OwnedFd,
    /// It is on its way out: its memory is gone, and with it whose it was.
    exiting: bool,
}

/// The services that are left.
#[derive(Debug)]
pub(super) struct Left {
    processes: Vec<Process>,
}

impl Claim {
    /// The engine's run directory without links, the value of [`MARK`].
    pub(super) fn run(&self) -> &Path {
        &self.run
    }

    /// Finds the services of a `gantry up` that has ended, as all before this one
    /// have.
    pub(super) fn left(&self) -> Left {
        let mark = [MARK.as_bytes(), b"=", self.run.as_os_str().as_bytes()].concat();
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let processes = pids
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(|pid| find(pid, &mark))
            .collect();
        Left { processes }
    }
}

/// The process, if it is a service of that engine, or one that may be.
fn find(pid: i32, mark: &[u8]) -> Option<Process> {
    let name = service(pid)?;
    // Opened before it is looked at again: another process may get its number.
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let exiting = environment.is_empty();
    let marked = environment
        .split(|byte| *byte == 0)
        .any(|line| line == mark);
    (service(pid) == Some(name) && (marked || exiting)).then_some(Process {
        name,
        process,
        exiting,
    })
}

/// The service that a process is by its name.
fn service(pid: i32) -> Option<&'static str> {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let name = comm.trim_end().strip_prefix("gantry-")?;
    SERVICES.into_iter().find(|service| *service == name)
}

impl Left {
    /// The names of those that are certain to be this engine's.
    pub(super) fn services(&self) -> Vec<&'static str> {
        let ours = self.processes.iter().filter(|process| !process.exiting);
        let mut names: Vec<_> = ours.map(|process| process.name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Waits until they have ended, and kills those that take longer than `limit`.
    ///
    /// # Errors
    /// One of them does not end.
    pub(super) async fn end(self, limit: Duration) -> Result<(), SuperviseError> {
        let names = self.services();
        if !names.is_empty() {
            eprintln!(
                "gantry up: waiting for {} of an engine that was killed",
                names.join(", ")
            );
        }
        for process in &self.processes {
            process.signal(Signal::TERM);
        }
        let deadline = Instant::now() + limit;
        for process in &self.processes {
            if process.ends_by(deadline).await {
                continue;
            }
            eprintln!(
                "gantry up: gantry-{} of an engine that was killed did not end in time; killing it",
                process.name
            );
            process.signal(Signal::KILL);
            if !process.ends_by(Instant::now() + KILLED_LIMIT).await && !process.exiting {
                return Err(SuperviseError::Left {
                    service: process.name,
                });
            }
        }
        Ok(())
    }
}

impl Process {
    fn signal(&self, signal: Signal) {
        if !self.exiting {
            // Fails where it has just ended.
            let _ended = pidfd_send_signal(&self.process, signal);
        }
    }

    async fn ends_by(&self, deadline: Instant) -> bool {
        matches!(
            timeout_at(deadline, readable(&self.process)).await,
            Ok(Ok(()))
        )
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn there_is_one_up_for_an_engine_and_the_next_waits_until_it_is_gone() {
        let run = tempfile::tempdir().unwrap();
        let first = claim(run.path()).await.unwrap();
        let second = tokio::spawn({
            let run = run.path().to_owned();
            async move { claim(&run).await }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        second.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn services_of_this_engine_alone_are_waited_for_and_killed_in_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let (own, other) = (directory.path().join("own"), directory.path().join("other"));
        for run in [&own, &other] {
            fs::create_dir(run).unwrap();
        }
        // By its name it is a service. It ignores SIGTERM.
        let program = directory.path().join("gantry-image");
        fs::copy("/bin/sh", &program).unwrap();
        let start = |run: &Path| {
            let mut child = Command::new(&program)
                .args(["-c", "trap '' TERM; echo; read never"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .env(MARK, run)
                .spawn()
                .unwrap();
            // It says so when it ignores the signal.
            let mut output = child.stdout.take().unwrap();
            output.read_exact(&mut [0]).unwrap();
            child
        };
        let (mut ours, mut others) = (start(&own), start(&other));
        let claimed = claim(&own).await.unwrap();
        let left = claimed.left();
        assert_eq!(left.services(), ["image"]);
        left.end(Duration::ZERO).await.unwrap();
        assert!(claimed.left().services().is_empty());
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!(ours.wait().unwrap().signal(), Some(9));
        assert_eq!(others.try_wait().unwrap(), None);
        others.kill().unwrap();
        others.wait().unwrap();
    }
}
