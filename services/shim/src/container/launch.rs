//! What `create` and `exec` have in common: from a process that is where it shall be to the program it becomes.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use oci_spec::runtime::{LinuxPersonalityDomain, Process};
use rustix::fs::{FileType, Mode};

use super::affinity::Affinity;
use super::beneath;
use super::context::During;
use super::error::{Error, Result};
use super::identity::Identity;
use super::options::{Stdio, TerminalSize};
use super::privileges::{self, CapabilitySets};
use super::program;
use super::seccomp::Filter;
use super::stand_in;
use super::terminal;
use super::timing::Timing;
use super::wire::{self, Message};

/// Notes steps and their times.
#[derive(Debug)]
pub(super) struct Clock {
    zero: Instant,
    last: Instant,
    pub(super) timings: Vec<Timing>,
}

impl Clock {
    pub(super) fn start(zero: Instant) -> Self {
        Self {
            zero,
            last: Instant::now(),
            timings: Vec::with_capacity(16),
        }
    }

    /// Carries out what may set the clock of this process, by entering a time namespace. Nobody can tell how long that took,
    /// so it counts as no time.
    pub(super) fn across<T>(&mut self, step: impl FnOnce() -> T) -> T {
        let before = Instant::now();
        let outcome = step();
        let now = Instant::now();
        let moved = |instant: Instant| now.checked_sub(before - instant).unwrap_or(now);
        (self.zero, self.last) = (moved(self.zero), moved(self.last));
        outcome
    }

    /// The step that has just ended, which began where the one before ended.
    pub(super) fn lap(&mut self, step: &str) {
        let now = Instant::now();
        self.timings.push(Timing {
            step: step.to_owned(),
            start_ns: (self.last - self.zero).as_nanos() as u64,
            duration_ns: (now - self.last).as_nanos() as u64,
        });
        self.last = now;
    }
}

/// A process, checked, and turned into what the calls want.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) process: &'a Process,
    pub(super) user: Option<&'a str>,
    /// Further groups, by name.
    pub(super) groups: Vec<String>,
    pub(super) arguments: Vec<CString>,
    pub(super) capabilities: CapabilitySets,
    pub(super) filter: Option<Arc<Filter>>,
    pub(super) create_cwd: bool,
    /// The supplementary groups stay the caller's.
    pub(super) keep_groups: bool,
    pub(super) preserve_fds: u32,
    pub(super) new_keyring: Option<CString>,
    pub(super) personality: Option<LinuxPersonalityDomain>,
    /// For processes of `exec` alone.
    pub(super) affinity: Affinity,
}

impl<'a> Plan<'a> {
    /// Checks all that can be checked from here.
    pub(super) fn new(
        process: &'a Process,
        filter: Option<Arc<Filter>>,
        user: Option<&'a str>,
    ) -> Result<Self> {
        let arguments = process.args().as_deref().unwrap_or_default();
        if arguments.is_empty() {
            return Err(Error::invalid(
                "process.args",
                "empty: there is no program to execute",
            ));
        }
        if !process.cwd().is_absolute() {
            return Err(Error::invalid(
                "process.cwd",
                format!("{:?} is not an absolute path", process.cwd()),
            ));
        }
        if let Some(scheduler) = process.scheduler() {
            privileges::check_scheduler(scheduler)?;
        }
        privileges::check_limits(process.rlimits().as_deref().unwrap_or_default())?;
        Ok(Self {
            process,
            user,
            groups: Vec::new(),
            arguments: program::c_strings(arguments, "process.args")?,
            capabilities: CapabilitySets::plan(process.capabilities().as_ref())?,
            filter,
            create_cwd: false,
            keep_groups: false,
            preserve_fds: 0,
            new_keyring: None,
            personality: None,
            affinity: Affinity::plan(process)?,
        })
    }

    /// The name of the program, for errors.
    pub(super) fn program(&self) -> &str {
        self.process
            .args()
            .as_deref()
            .and_then(|arguments| arguments.first())
            .map_or("", String::as_str)
    }

    /// The first size of the terminal.
    pub(super) fn terminal_size(&self, wanted: Option<TerminalSize>) -> Option<TerminalSize> {
        wanted.or_else(|| {
            self.process.console_size().map(|size| TerminalSize {
                width: size.width() as u16,
                height: size.height() as u16,
            })
        })
    }

    /// Whether the environment lacks a home directory.
    pub(super) fn needs_home(&self) -> bool {
        !self
            .process
            .env()
            .iter()
            .flatten()
            .any(|variable| variable.starts_with("HOME="))
    }

    fn environment(&self, identity: &Identity) -> Vec<String> {
        let mut environment = named_once(self.process.env().as_deref().unwrap_or_default());
        if self.needs_home() {
            environment.push(format!("HOME={}", identity.home));
        }
        environment
    }
}

/// The variables with each name once, and of several the last: programs differ in which of them they take.
fn named_once(variables: &[String]) -> Vec<String> {
    let name = |variable: &str| variable.split('=').next().map(str::to_owned);
    let mut seen = HashSet::new();
    let mut kept: Vec<String> = variables
        .iter()
        .rev()
        .filter(|variable| seen.insert(name(variable)))
        .cloned()
        .collect();
    kept.reverse();
    kept
}

/// A program about to be executed.
#[derive(Debug)]
pub(super) struct Ready<'a> {
    plan: &'a Plan<'a>,
    parent: BorrowedFd<'a>,
    path: CString,
    environment: Vec<CString>,
}

/// Writes the score that the kernel's OOM killer adds, while the host's /proc is still to be seen.
pub(super) fn set_oom_score(process: &Process) -> Result<()> {
    let Some(score) = process.oom_score_adj() else {
        return Ok(());
    };
    let file = "/proc/self/oom_score_adj";
    std::fs::write(file, score.to_string()).during("set OOM score", format_args!("{score}"))
}

/// The standard streams: a terminal out of `root`'s devpts, pipes, or what is there already.
/// The master is returned for the parent.
pub(super) fn open_terminal(
    root: BorrowedFd<'_>,
    stdio: &Stdio,
    plan: &Plan<'_>,
) -> Result<Option<(OwnedFd, OwnedFd)>> {
    match stdio {
        Stdio::Terminal { size } => terminal::open(root, plan.terminal_size(*size)).map(Some),
        Stdio::Inherit | Stdio::Pipes { .. } => Ok(None),
    }
}

/// Puts the streams in their places. The process leads its own session by now.
pub(super) fn set_streams(
    stdio: &Stdio,
    slave: Option<&OwnedFd>,
    identity: &Identity,
) -> Result<()> {
    match (stdio, slave) {
        (_, Some(slave)) => return terminal::adopt(slave, identity.uid),
        (
            Stdio::Pipes {
                stdin,
                stdout,
                stderr,
            },
            None,
        ) => {
            terminal::streams(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())?;
        }
        _ => {}
    }
    if identity.uid != 0 {
        // So that the user may open /dev/stdout anew. Pipes are the container's own; a file or a terminal
        // that was handed in is not ours to give away.
        for stream in [
            rustix::stdio::stdin(),
            rustix::stdio::stdout(),
            rustix::stdio::stderr(),
        ] {
            if rustix::fs::fstat(stream)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
            {
                let _ =
                    rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(identity.uid)), None);
            }
        }
    }
    Ok(())
}

/// Everything between the container's root being entered and the word to start.
pub(super) fn prepare<'a>(
    plan: &'a Plan<'a>,
    identity: &Identity,
    parent: BorrowedFd<'a>,
) -> Result<Ready<'a>> {
    let process = plan.process;
    if let Some(name) = &plan.new_keyring {
        match gantry_sys::process::join_session_keyring(name) {
            // A kernel without keys, or a host's filter that forbids them: then there are none to hide.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {}
            other => other.during("join session keyring", name.to_string_lossy())?,
        }
    }
    privileges::set_limits(process.rlimits().as_deref().unwrap_or_default())?;
    if let Some(scheduler) = process.scheduler() {
        privileges::set_scheduler(scheduler)?;
    }
    if let Some(priority) = process.io_priority() {
        privileges::set_io_priority(priority)?;
    }
    if let Some(domain) = plan.personality {
        let persona = match domain {
            LinuxPersonalityDomain::PerLinux => nix::sys::personality::Persona::empty(),
            LinuxPersonalityDomain::PerLinux32 => {
                // PER_LINUX32
                nix::sys::personality::Persona::from_bits_retain(0x0008)
            }
        };
        nix::sys::personality::set(persona).during("set personality", domain.to_string())?;
    }
    // First as root: the user's own directory may be below one that only root may pass.
    let denied = match enter_cwd(process.cwd()) {
        Err(Error::Directory { source, .. }) if source.raw_os_error() == Some(libc::EACCES) => true,
        other => other.map(|()| false)?,
    };
    if process.no_new_privileges() == Some(true) {
        rustix::thread::set_no_new_privs(true).during("set", "no_new_privs")?;
    }
    privileges::bound(plan.capabilities)?;
    // All that is open and not meant for the program shall not reach it, whatever opened it. Below that number are the
    // descriptors that the caller hands in, and where it hands in fewer, our own, which all close on exec.
    gantry_sys::fd::close_on_exec_from(3 + plan.preserve_fds)
        .during("mark descriptors", "close on exec")?;
    privileges::become_user(identity, !plan.keep_groups)?;
    if let Some(umask) = process.user().umask() {
        rustix::process::umask(Mode::from_raw_mode(umask));
    } else {
        rustix::process::umask(Mode::from_raw_mode(0o022));
    }
    if !loads_late(plan) {
        // Without no_new_privs loading a filter is a privilege, which is about to go.
        load(plan, parent)?;
    }
    privileges::reduce(plan.capabilities)?;
    if denied {
        enter_cwd(process.cwd())?;
    }
    let variables = plan.environment(identity);
    Ok(Ready {
        plan,
        parent,
        path: program::find(plan.program(), &variables)?,
        environment: program::c_strings(&variables, "process.env")?,
    })
}

/// The best moment for the filter is the last; it needs no_new_privs, or a right that the program has anyway. One that
/// notifies is loaded while the parent still listens.
fn loads_late(plan: &Plan<'_>) -> bool {
    let notifies = plan
        .filter
        .as_ref()
        .is_some_and(|filter| filter.listener.is_some());
    !notifies
        && (plan.process.no_new_privileges() == Some(true) || plan.capabilities.allow_filters())
}

fn load(plan: &Plan<'_>, parent: BorrowedFd<'_>) -> Result<()> {
    let Some(filter) = &plan.filter else {
        return Ok(());
    };
    match filter.load()? {
        Some(listener) => wire::send(parent, &Message::SeccompListener, Some(listener.as_fd()))
            .during("send", "seccomp listener"),
        None => Ok(()),
    }
}

/// Makes the working directory in `root` where it is missing, owned by the user.
pub(super) fn make_cwd(root: BorrowedFd<'_>, process: &Process, identity: &Identity) -> Result<()> {
    let cwd = process.cwd();
    match beneath::open(root, cwd) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        // What else may be wrong with it is told when it is entered.
        _ => return Ok(()),
    }
    let directory = beneath::open_or_make(root, cwd, beneath::Kind::Directory)
        .during("make working directory", cwd.display())?;
    rustix::fs::chownat(
        &directory,
        "",
        Some(rustix::fs::Uid::from_raw(identity.uid)),
        Some(rustix::fs::Gid::from_raw(identity.gid)),
        rustix::fs::AtFlags::EMPTY_PATH,
    )
    .during("own working directory", cwd.display())
}

fn enter_cwd(cwd: &Path) -> Result<()> {
    let refused = |errno: rustix::io::Errno| Error::Directory {
        path: cwd.to_owned(),
        source: errno.into(),
    };
    rustix::process::chdir(cwd).map_err(refused)?;
    // A path through a leaked descriptor would lead out of the root (CVE-2024-21626).
    let actual = rustix::process::getcwd(Vec::new()).map_err(refused)?;
    if !actual.as_bytes().starts_with(b"/") {
        return Err(Error::step(
            "enter working directory",
            format!("{} is outside of the container's root", cwd.display()),
            std::io::Error::from_raw_os_error(libc::EXDEV),
        ));
    }
    Ok(())
}

impl Ready<'_> {
    /// Becomes the program. Returns only with the failure.
    pub(super) fn execute(&self) -> Error {
        if loads_late(self.plan)
            && let Err(error) = load(self.plan, self.parent)
        {
            return error;
        }
        program::execute(
            self.plan.program(),
            &self.path,
            &self.plan.arguments,
            &self.environment,
        )
    }

    /// Starts the program as a child and stays with it as init. Returns only with the failure.
    pub(super) fn stay(&self) -> Error {
        if loads_late(self.plan)
            && let Err(error) = load(self.plan, self.parent)
        {
            return error;
        }
        stand_in::stay(
            self.plan.program(),
            &self.path,
            &self.plan.arguments,
            &self.environment,
        )
    }
}
