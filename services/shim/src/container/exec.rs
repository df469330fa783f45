//! `exec`: a further process in a running container.

use std::convert::Infallible;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use gantry_sys::clone::CloneOptions;
use oci_spec::runtime::{LinuxNamespaceType as Kind, LinuxPersonalityDomain, Process};
use rustix::fs::Mode;

use super::cgroup::Entrance;
use super::context::During;
use super::error::{Error, Result};
use super::handle::{Container, wait_ended};
use super::init::become_root;
use super::launch::{self, Clock, Plan};
use super::namespaces::{self, Join, Lent};
use super::options::Stdio;
use super::record::{Record, Status};
use super::seccomp::Filter;
use super::timing::Timing;
use super::wire::{self, Message};
use super::{identity, rootfs};

/// What `exec` needs.
#[derive(Debug)]
pub struct ExecOptions<'a> {
    /// The process as the runtime spec describes it: args, env, cwd, user, capabilities, rlimits,
    /// noNewPrivileges, terminal.
    pub process: &'a Process,
    /// The container's filter; `None`: unconfined.
    pub filter: Option<Arc<Filter>>,
    /// The execution domain that the container has (`linux.personality`).
    pub personality: Option<LinuxPersonalityDomain>,
    /// As in [`CreateOptions::user`](super::CreateOptions::user).
    pub user: Option<String>,
    /// The standard streams.
    pub stdio: Stdio,
    /// Make `cwd` where it is missing.
    pub create_cwd: bool,
    /// As in [`CreateOptions::preserve_fds`](super::CreateOptions::preserve_fds).
    pub preserve_fds: u32,
    /// Groups below the container's own to be in instead: `PATH` or `CONTROLLER[,CONTROLLER]:PATH`, which must exist.
    pub cgroups: Vec<String>,
    /// Also in a container that is paused, where the process waits with the others until it is resumed; this call too.
    pub ignore_paused: bool,
}

impl<'a> ExecOptions<'a> {
    /// The options with everything else at its default: the caller's streams, no filter.
    #[must_use]
    pub fn new(process: &'a Process) -> Self {
        Self {
            process,
            filter: None,
            personality: None,
            user: None,
            stdio: Stdio::Inherit,
            create_cwd: false,
            preserve_fds: 0,
            cgroups: Vec::new(),
            ignore_paused: false,
        }
    }
}

/// What `exec` returns.
#[derive(Debug)]
pub struct Executed {
    /// In this process' PID namespace.
    pub pid: i32,
    /// Readable once the process has ended. The caller reaps it.
    pub pidfd: OwnedFd,
    /// The terminal's master side.
    pub terminal: Option<OwnedFd>,
    /// The CPUs that it was born on, as one number in hexadecimal digits, of which CPU 0 is the lowest bit; `None`
    /// without `process.execCPUAffinity.initial`.
    pub initial_cpus: Option<String>,
    /// How long each step took.
    pub timings: Vec<Timing>,
}

impl Container {
    /// Runs a process in the container: all its namespaces, its cgroup, its root. Returns when the
    /// program has been executed, or with the error that prevented it (the process has been reaped then).
    /// The new process is a child of the caller, not of init.
    pub fn exec(&self, options: ExecOptions<'_>) -> Result<Executed> {
        let zero = Instant::now();
        let mut clock = Clock::start(zero);
        let threads = gantry_sys::clone::thread_count().during("count", "threads")?;
        if threads != 1 {
            return Err(Error::Threads { count: threads });
        }
        let mut states = vec![Status::Running, Status::Created];
        if options.ignore_paused {
            states.push(Status::Paused);
        }
        self.require("exec in", &states)?;
        let Some(init) = self.pidfd() else {
            return Err(Error::State {
                id: self.record.id.clone(),
                verb: "exec in",
                status: Status::Stopped,
            });
        };
        let terminal = matches!(options.stdio, Stdio::Terminal { .. });
        if terminal != options.process.terminal().unwrap_or(false) {
            return Err(Error::invalid(
                "process.terminal",
                "does not agree with the streams that are given",
            ));
        }
        let mut plan = Plan::new(options.process, options.filter, options.user.as_deref())?;
        plan.create_cwd = options.create_cwd;
        plan.preserve_fds = options.preserve_fds;
        plan.personality = options.personality;
        plan.groups = identity::group_names(&self.record.annotations);
        let group = self.cgroup()?;
        let entrance = group.entrance(&options.cgroups)?;
        let differing = Differing::of(self.record.pid)?;
        let (near, far) = wire::pair().during("make", "socket pair")?;
        clock.lap("check");
        let mut initial_cpus = None;
        let (pid, pidfd) = {
            // Before the child is born, for that may be into its cgroup.
            let cpus = plan.affinity.lend()?;
            if let Some(cpus) = &cpus {
                initial_cpus = Some(cpus.mask()?);
            }
            let mut lent = Lent::default();
            if let Some(join) = differing.pid {
                lent.to(&join)?;
            }
            let entry = Entry {
                plan: &plan,
                stdio: &options.stdio,
                init,
                namespaces: differing.flags,
                root: &differing.root,
                parent: far.as_fd(),
            };
            match entry.be_born(&entrance, zero) {
                Err(Error::Step { source, .. })
                    if source.raw_os_error() == Some(libc::EBUSY) && options.cgroups.is_empty() =>
                {
                    entry.be_born(&group.entrance_beside(self.record.pid)?, zero)
                }
                born => born,
            }?
        };
        drop(far);
        clock.lap("clone");
        let heard = listen(
            near.as_fd(),
            plan.filter.as_deref(),
            &self.record,
            pid,
            &mut clock,
        );
        match heard {
            Ok(terminal) => {
                clock.timings.sort_by_key(|timing| timing.start_ns);
                Ok(Executed {
                    pid,
                    pidfd,
                    terminal,
                    initial_cpus,
                    timings: clock.timings,
                })
            }
            Err(error) => {
                let _ = gantry_sys::process::send_signal_to(pidfd.as_fd(), libc::SIGKILL);
                let how = wait_ended(pidfd.as_fd());
                Err(match error {
                    Error::Died { step, .. } => Error::Died { step, how },
                    other => other,
                })
            }
        }
    }
}

/// Until the program is executed: the end of file.
fn listen(
    socket: BorrowedFd<'_>,
    filter: Option<&Filter>,
    record: &Record,
    pid: i32,
    clock: &mut Clock,
) -> Result<Option<OwnedFd>> {
    let mut terminal = None;
    let mut ready = false;
    loop {
        match wire::receive(socket).during("hear from", "the process")? {
            Some((Message::Ready { timings }, _)) => {
                clock.timings.extend(timings);
                ready = true;
            }
            Some((Message::Terminal, fd)) => terminal = fd,
            Some((Message::SeccompListener, fd)) => {
                if let (Some(filter), Some(fd)) = (filter, fd) {
                    filter.hand_over(&fd, record, Status::Running, pid)?;
                }
            }
            Some((
                Message::Born | Message::Root | Message::Hooks | Message::TimeOffsets { .. },
                _,
            )) => {}
            Some((Message::Failed(failure), _)) => return Err(failure.into()),
            None if ready => return Ok(terminal),
            None => {
                return Err(Error::Died {
                    step: "exec".to_owned(),
                    how: String::new(),
                });
            }
        }
    }
}

/// The namespaces in which a container is and this process is not.
struct Differing {
    flags: u64,
    pid: Option<Join>,
    /// The container's root, where it shares this process' mount namespace.
    root: Option<OwnedFd>,
}

impl Differing {
    fn of(pid: i32) -> Result<Self> {
        let mut differing = Self {
            flags: 0,
            pid: None,
            root: None,
        };
        for kind in [
            Kind::User,
            Kind::Ipc,
            Kind::Uts,
            Kind::Network,
            Kind::Pid,
            Kind::Cgroup,
            Kind::Time,
            Kind::Mount,
        ] {
            let name = namespaces::file_name(kind);
            let theirs = PathBuf::from(format!("/proc/{pid}/ns/{name}"));
            let own = PathBuf::from(format!("/proc/self/ns/{name}"));
            // A kernel without a kind has it nowhere.
            let same = match std::fs::read_link(&theirs) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
                link => {
                    link.during("look at", theirs.display())?
                        == std::fs::read_link(&own).during("look at", own.display())?
                }
            };
            if same {
                if kind == Kind::Mount {
                    let root = PathBuf::from(format!("/proc/{pid}/root"));
                    let fd = rootfs::open_in_place(&root)?;
                    differing.root = Some(fd);
                }
                continue;
            }
            if kind == Kind::Pid {
                let fd = File::open(&theirs).during("open namespace", theirs.display())?;
                differing.pid = Some(Join {
                    kind,
                    path: theirs,
                    fd: fd.into(),
                });
            } else {
                differing.flags |= namespaces::flag(kind);
            }
        }
        Ok(differing)
    }
}

/// What the child works with.
struct Entry<'a> {
    plan: &'a Plan<'a>,
    stdio: &'a Stdio,
    init: BorrowedFd<'a>,
    namespaces: u64,
    root: &'a Option<OwnedFd>,
    parent: BorrowedFd<'a>,
}

impl Entry<'_> {
    /// Clones the process, which then is in its v2 group.
    fn be_born(&self, entrance: &Entrance, zero: Instant) -> Result<(i32, OwnedFd)> {
        let unified = entrance.open_unified()?;
        let born = CloneOptions {
            namespaces: 0,
            cgroup: unified.as_ref().map(AsFd::as_fd),
            sibling: false,
        };
        gantry_sys::clone::clone(born, || self.run(entrance, zero))
            .during("clone", "a process for the container")
    }

    fn run(&self, entrance: &Entrance, zero: Instant) -> i32 {
        let Err(error) = self.live(entrance, zero);
        let _ = wire::send(self.parent, &Message::Failed((&error).into()), None);
        1
    }

    fn live(&self, entrance: &Entrance, zero: Instant) -> Result<Infallible> {
        let mut clock = Clock::start(zero);
        gantry_sys::process::reset_signals().during("reset", "signals")?;
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
            .during("make undumpable", "the process")?;
        let mut kept = vec![self.parent, self.init];
        if let Stdio::Pipes {
            stdin,
            stdout,
            stderr,
        } = self.stdio
        {
            kept.extend([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
        }
        kept.extend(self.root.as_ref().map(AsFd::as_fd));
        gantry_sys::fd::close_all_but(3 + self.plan.preserve_fds, &kept)
            .during("close descriptors", "of the parent")?;
        rustix::process::umask(Mode::empty());
        entrance.join()?;
        self.plan.affinity.settle()?;
        launch::set_oom_score(self.plan.process)?;
        clock.lap("cgroup");
        // By the pidfd all at once, and of the very process whose record we have.
        if self.namespaces != 0 {
            clock.across(|| {
                gantry_sys::clone::enter_namespaces(self.init, self.namespaces)
                    .during("join namespaces", "of the container")
            })?;
        }
        if let Some(root) = self.root {
            rustix::process::fchdir(root).during("enter root", "of the container")?;
            rustix::process::chroot(".").during("change root", "of the container")?;
        }
        rustix::process::chdir("/").during("enter root", "of the container")?;
        if self.namespaces & namespaces::flag(Kind::User) != 0 {
            become_root()?;
        }
        let _ = rustix::process::setsid();
        let root = rootfs::open_in_place(Path::new("/"))?;
        clock.lap("namespaces");
        let who = identity::resolve(
            root.as_fd(),
            self.plan.process.user(),
            self.plan.user,
            &self.plan.groups,
            self.plan.needs_home(),
        )?;
        if self.plan.create_cwd {
            launch::make_cwd(root.as_fd(), self.plan.process, &who)?;
        }
        let terminal = launch::open_terminal(root.as_fd(), self.stdio, self.plan)?;
        drop(root);
        if let Some((master, _)) = &terminal {
            wire::send(self.parent, &Message::Terminal, Some(master.as_fd()))
                .during("send", "terminal")?;
        }
        launch::set_streams(self.stdio, terminal.as_ref().map(|(_, slave)| slave), &who)?;
        drop(terminal);
        let ready = launch::prepare(self.plan, &who, self.parent)?;
        clock.lap("privileges");
        wire::send(
            self.parent,
            &Message::Ready {
                timings: clock.timings,
            },
            None,
        )
        .during("send", "ready")?;
        Err(ready.execute())
    }
}
