//! One container, as the shim sees it.
//!
//! ```text
//! Empty ── create ──► Created ── start ──► Running ◄── resume ── Paused
//!                        │                    │  └───── pause ─────►
//!                        └── its process ends ┴──► Stopped
//! ```
//! The status is never stored: it follows from what is known of the container
//! and of its first process.
//!
//! # Locking
//! One thread; one lock around the state, never held over an await.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use oci_spec::runtime::{LinuxResources, Process as SpecProcess, Spec};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::container::{
    self, CreateOptions, ExecOptions, Overlay, Record, Stats, Target, TerminalSize, Timing,
};
pub use crate::created::Status;
use crate::created::{Created, shares_pids};
use crate::error::{Error, Result, chain};
use crate::exit::{self, ExitStatus};
use crate::foreign::{Births, Foreign, Program};
use crate::log::{Limits, Log};
use crate::process::{Process, Wanted, streams};
use crate::stdio::lock;

/// The container library's record, for whoever cleans up after a dead shim.
pub const RECORD_FILE: &str = "container.json";

/// How long killed processes may take to go.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Processes that have ended and may still be asked for.
const ENDED_MAX: usize = 32;

/// The same, where output of theirs may have to be sent again.
const ENDED_KEPT_MAX: usize = 256;

/// All that creating needs.
#[derive(Debug)]
pub struct Create {
    pub id: String,
    pub spec: Spec,
    pub overlay: Option<Overlay>,
    pub user: Option<String>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub size: Option<TerminalSize>,
    pub log: Option<(PathBuf, Limits)>,
    pub bundle: PathBuf,
    /// The program that makes it. `None`: the library.
    pub runtime: Option<Program>,
}

impl Create {
    /// The streams of the first process.
    pub(crate) fn wanted(&self) -> Wanted {
        Wanted {
            terminal: terminal(self.spec.process().as_ref()),
            size: self.size,
            stdin: self.stdin,
            stdin_once: self.stdin_once,
            hold: false,
        }
    }
}

/// All that one more process needs.
#[derive(Debug)]
pub struct Exec {
    pub exec_id: String,
    pub process: SpecProcess,
    pub user: Option<String>,
    pub stdin: bool,
    pub size: Option<TerminalSize>,
    pub hold: bool,
}

impl Exec {
    /// The streams of the process.
    pub(crate) fn wanted(&self) -> Wanted {
        Wanted {
            terminal: terminal(Some(&self.process)),
            size: self.size,
            stdin: self.stdin,
            stdin_once: false,
            hold: self.hold,
        }
    }
}

/// What the shim tells of its container.
#[derive(Clone, Debug)]
pub struct Report {
    pub id: String,
    pub status: Status,
    pub pid: i32,
    pub started_at: Option<SystemTime>,
    pub exit: Option<ExitStatus>,
    pub exec_ids: Vec<String>,
    pub log_lines_dropped: u64,
    /// Why its runtime cannot be relied on. Empty: it can.
    pub sick: String,
}

/// The shim.
#[derive(Debug, Default)]
pub struct Shim {
    pub(crate) created: Mutex<Option<Created>>,
    /// Every process the shim is the parent of and has to reap.
    children: Mutex<HashMap<i32, Arc<Process>>>,
    reaped: Notify,
    /// Children beside them, of a program that makes the container.
    pub(crate) births: Births,
    /// Told when the shim is to end.
    pub ending: Notify,
    /// The `oom_score_adj` the shim was started with, which its container is to
    /// have unless the spec says otherwise.
    oom_score: Option<i32>,
}

impl Shim {
    #[must_use]
    pub fn new(oom_score: Option<i32>) -> Self {
        Self {
            oom_score,
            ..Self::default()
        }
    }

    /// The program that drives the container. `None`: the library, or nothing yet.
    pub(crate) fn foreign(&self) -> Option<Arc<Foreign>> {
        lock(&self.created)
            .as_ref()
            .and_then(|created| created.foreign.clone())
    }

    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Created) -> Result<T>) -> Result<T> {
        lock(&self.created).as_mut().map_or(Err(Error::Empty), act)
    }

    /// Creates the container. Blocks this thread for its milliseconds: the shim
    /// has nothing else to do before it.
    ///
    /// # Errors
    /// There is one already, or it cannot be made: then nothing of it is left.
    pub fn create(&self, mut create: Create) -> Result<(i32, Vec<Timing>)> {
        let mut created = lock(&self.created);
        if let Some(created) = &*created {
            return Err(Error::Created {
                id: created.container.id().to_owned(),
            });
        }
        let wanted = create.wanted();
        if let Some(process) = create.spec.process_mut() {
            self.keep_oom_score(process);
        }
        let (stdio, ends) = streams(&wanted)?;
        let mut options = CreateOptions::new(&create.id, &create.bundle, &create.spec);
        options.overlay = create.overlay;
        options.user = create.user;
        options.stdio = stdio;
        options.create_cwd = true;
        let made = container::create(options)?;
        let pid = made.container.pid();
        let log = create.log.map(Self::log);
        let taken = keep_record(made.container.record(), &create.bundle).and_then(|()| {
            Process::adopt("", pid, None, ends, made.terminal, &wanted, log.clone())
        });
        let init = match taken {
            Ok(init) => init,
            Err(error) => {
                // Nothing half-made may stay behind; the first error is the one to tell.
                let _killed = made.container.kill(libc::SIGKILL, Target::All);
                let _deleted = made.container.delete();
                return Err(error);
            }
        };
        lock(&self.children).insert(pid, init.clone());
        *created = Some(Created {
            filter: made.filter,
            ..Created::new(
                made.container,
                shares_pids(&create.spec),
                create.bundle,
                init,
                log,
            )
        });
        Ok((pid, made.timings))
    }

    pub(crate) fn log((directory, limits): (PathBuf, Limits)) -> Arc<Mutex<Log>> {
        Arc::new(Mutex::new(Log::new(directory, limits)))
    }

    /// Takes up a container that a program has made.
    pub(crate) fn keep(&self, created: Created) {
        lock(&self.children).insert(created.init.pid, created.init.clone());
        *lock(&self.created) = Some(created);
    }

    /// Takes up a process that a program has made.
    ///
    /// # Errors
    /// There is no container.
    pub(crate) fn enter(&self, process: Arc<Process>) -> Result<()> {
        self.with(|created| {
            lock(&self.children).insert(process.pid, process.clone());
            created.ended.retain(|id| *id != process.exec_id);
            created.execs.insert(process.exec_id.clone(), process);
            Ok(())
        })
    }

    /// A process that was just taken up may have ended before.
    pub(crate) fn catch_up(self: &Arc<Self>, pid: i32) {
        if let Some(status) = self.births.early(pid) {
            self.reaped(pid, status);
        }
    }

    pub(crate) fn keep_oom_score(&self, process: &mut SpecProcess) {
        if process.oom_score_adj().is_none() {
            process.set_oom_score_adj(self.oom_score);
        }
    }

    /// Lets the first process execute its program.
    ///
    /// # Errors
    /// It was started already, has ended, or its program cannot be executed.
    pub fn start(&self) -> Result<SystemTime> {
        self.with(|created| {
            match created.status() {
                Status::Created => {}
                Status::Running | Status::Paused => return Err(Error::Started),
                Status::Stopped | Status::Empty => return Err(Error::NotRunning),
            }
            let now = SystemTime::now();
            match created.container.start() {
                Ok(()) => {
                    created.started_at = Some(now);
                    Ok(now)
                }
                Err(error) => {
                    created.start_error = Some((error.exit_code(), chain(&error)));
                    Err(error.into())
                }
            }
        })
    }

    /// Runs one more process in the container.
    ///
    /// # Errors
    /// The container does not run, the id is taken, or the program cannot be
    /// executed.
    pub fn exec(&self, mut exec: Exec) -> Result<i32> {
        self.with(|created| {
            if created.status() != Status::Running {
                return Err(Error::NotRunning);
            }
            created.free(&exec.exec_id)?;
            let wanted = exec.wanted();
            self.keep_oom_score(&mut exec.process);
            let (stdio, ends) = streams(&wanted)?;
            let made = created.container.exec(ExecOptions {
                process: &exec.process,
                filter: created.filter.clone(),
                personality: None,
                user: exec.user,
                stdio,
                create_cwd: false,
                preserve_fds: 0,
                cgroups: Vec::new(),
                ignore_paused: false,
            })?;
            let process = Process::adopt(
                &exec.exec_id,
                made.pid,
                Some(made.pidfd),
                ends,
                made.terminal,
                &wanted,
                None,
            )?;
            lock(&self.children).insert(made.pid, process.clone());
            created.ended.retain(|id| *id != exec.exec_id);
            created.execs.insert(exec.exec_id, process);
            Ok(made.pid)
        })
    }

    /// The process `exec_id`; empty: the container's first.
    ///
    /// # Errors
    /// There is none.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        self.with(|created| created.process(exec_id).cloned())
    }

    /// Sends a signal to one process or to all of the container's.
    ///
    /// # Errors
    /// No such process or signal, or the process has ended.
    pub fn kill(&self, exec_id: &str, signal: i32, all: bool, group: bool) -> Result<()> {
        self.with(|created| {
            if all {
                return Ok(created.container.kill(signal, Target::All)?);
            }
            let process = created.process(exec_id)?;
            if process.exit().is_some() {
                return Err(Error::NotRunning);
            }
            if exec_id.is_empty() {
                return Ok(created.container.kill(signal, Target::Init)?);
            }
            if group {
                // Its number is nobody else's until it is reaped, which is done here.
                let _no_group = gantry_sys::process::send_signal(-process.pid, signal);
            }
            process.signal(signal)
        })
    }

    pub fn report(&self) -> Report {
        match &*lock(&self.created) {
            None => Report {
                id: String::new(),
                status: Status::Empty,
                pid: 0,
                started_at: None,
                exit: None,
                exec_ids: Vec::new(),
                log_lines_dropped: 0,
                sick: String::new(),
            },
            Some(created) => Report {
                id: created.container.id().to_owned(),
                status: created.status(),
                pid: created.init.pid,
                started_at: created.started_at,
                exit: created.init.exit(),
                exec_ids: created
                    .execs
                    .values()
                    .filter(|process| process.exit().is_none())
                    .map(|process| process.exec_id.clone())
                    .collect(),
                log_lines_dropped: created.log.as_ref().map_or(0, |log| lock(log).dropped()),
                sick: created
                    .foreign
                    .as_ref()
                    .map(|foreign| foreign.trouble())
                    .unwrap_or_default(),
            },
        }
    }

    /// # Errors
    /// The container does not run, or cannot be frozen.
    pub fn pause(&self) -> Result<()> {
        self.with(|created| match created.status() {
            Status::Running => {
                created.container.pause()?;
                created.paused = true;
                Ok(())
            }
            Status::Paused => Ok(()),
            Status::Empty | Status::Created | Status::Stopped => Err(Error::NotRunning),
        })
    }

    /// # Errors
    /// The container has ended, or cannot be thawed.
    pub fn resume(&self) -> Result<()> {
        self.with(|created| match created.status() {
            Status::Paused => {
                created.container.resume()?;
                created.paused = false;
                Ok(())
            }
            Status::Running => Ok(()),
            Status::Empty | Status::Created | Status::Stopped => Err(Error::NotRunning),
        })
    }

    /// # Errors
    /// A limit cannot be set.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        self.with(|created| Ok(created.container.update(resources)?))
    }

    /// The counters, and the process whose network they are to be joined with.
    ///
    /// # Errors
    /// There is no container, or its cgroup cannot be read.
    pub fn stats(&self) -> Result<(Stats, i32)> {
        self.with(|created| Ok((created.container.stats()?, created.init.pid)))
    }

    /// # Errors
    /// There is no container, or its cgroup cannot be read.
    pub fn pids(&self) -> Result<Vec<i32>> {
        self.with(|created| Ok(created.container.processes()?))
    }

    /// A child was reaped. Orphans of the container, which came here because
    /// the shim is their subreaper, are nobody's.
    pub fn reaped(self: &Arc<Self>, pid: i32, status: ExitStatus) {
        let Some(process) = lock(&self.children).remove(&pid) else {
            self.births.reaped(pid, status);
            return;
        };
        self.reaped.notify_waiters();
        tokio::spawn(self.clone().ended(process, status));
    }

    async fn ended(self: Arc<Self>, process: Arc<Process>, mut status: ExitStatus) {
        let first = process.exec_id.is_empty();
        // A container that was never made has no counters.
        let _unknown = self.with(|created| {
            status.oom_killed = created.container.oom_kills().unwrap_or(0) > 0;
            if first {
                if created.shares_pids {
                    // What is gone already needs no signal.
                    let _gone = created.container.kill(libc::SIGKILL, Target::All);
                }
                if let Some((code, error)) = created.start_error.take() {
                    status.code = code;
                    status.signal = 0;
                    status.error = error;
                }
            }
            Ok(())
        });
        process.drain().await;
        let _no_container = self.with(|created| {
            if first {
                if let Err(error) = exit::keep(&created.bundle, &status) {
                    eprintln!("exit status {}: {}", status.code, chain(&error));
                }
            } else {
                created.ended.push_back(process.exec_id.clone());
                forget_ended(created);
            }
            Ok(())
        });
        process.finish(&status);
    }

    /// Removes all that is left of the container. The shim ends after it.
    ///
    /// # Errors
    /// The container runs and `force` is not given, or something of it can not
    /// be removed.
    pub async fn shutdown(&self, force: bool) -> Result<()> {
        let status = self.report().status;
        let alive = match status {
            Status::Running | Status::Paused => {
                if !force {
                    return Err(Error::Busy);
                }
                true
            }
            Status::Created => true,
            Status::Empty | Status::Stopped => false,
        };
        if alive {
            self.with(|created| {
                created.container.kill(libc::SIGKILL, Target::All)?;
                if std::mem::take(&mut created.paused) {
                    created.container.thaw()?;
                }
                Ok(())
            })?;
            timeout(KILL_LIMIT, self.childless())
                .await
                .map_err(|_| Error::Stuck { limit: KILL_LIMIT })?;
            self.process("")?.exited().await;
        }
        if status != Status::Empty {
            let foreign = self.foreign();
            if let Some(foreign) = &foreign {
                foreign.delete(self).await;
            }
            self.with(|created| Ok(created.container.delete().map(drop)?))?;
            if let Some(foreign) = &foreign {
                foreign.leave();
            }
        }
        self.ending.notify_one();
        Ok(())
    }

    async fn childless(&self) {
        loop {
            let reaped = self.reaped.notified();
            if lock(&self.children).is_empty() {
                return;
            }
            reaped.await;
        }
    }

    /// Whether nothing needs this shim any more.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        lock(&self.children).is_empty() && self.births.is_idle()
    }
}

/// Forgets the oldest of the processes that have ended, where they are too many.
fn forget_ended(created: &mut Created) {
    if created.ended.len() <= ENDED_MAX {
        return;
    }
    let is_read = |id: &String| {
        let process = created.execs.get(id);
        process.is_none_or(|process| process.output().kept() == 0)
    };
    let oldest = match created.ended.iter().position(is_read) {
        Some(place) => Some(place),
        None => (created.ended.len() > ENDED_KEPT_MAX).then_some(0),
    };
    if let Some(id) = oldest.and_then(|place| created.ended.remove(place)) {
        created.execs.remove(&id);
    }
}

fn terminal(process: Option<&SpecProcess>) -> bool {
    process.and_then(SpecProcess::terminal).unwrap_or(false)
}

pub(crate) fn keep_record(record: &Record, bundle: &Path) -> Result<()> {
    let failed = |source| Error::Io {
        step: "cannot write the container's record",
        source,
    };
    let text = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
    exit::write_whole(bundle, RECORD_FILE, &text)
        .map_err(|error| failed(std::io::Error::other(error)))
}
