//! `create`: a spec in, a container that waits for `start` out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use gantry_sys::unix_socket;
use oci_spec::runtime::LinuxNamespaceType as Kind;
use rustix::net::SocketType;

use super::birth;
use super::context::During;
use super::error::{Error, Result};
use super::handle::{Container, Created, wait_ended};
use super::hooks;
use super::host_root::HostRoot;
use super::init::Lines;
use super::launch::Clock;
use super::namespaces;
use super::net_devices::Given;
use super::options::{CreateOptions, Gate};
use super::record::{Record, Status, start_time};
use super::setup::Setup;
use super::wire::{self, Message};

/// Whoever opens the gate starts the container: the same user alone.
const GATE_MODE: u32 = 0o600;

/// How long the remains of a failed creation are waited for.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// Makes the container. On an error nothing of it is left: no process, cgroup or mount.
///
/// Returns when init has done all it can do before `start`: root file system, mounts, user looked up,
/// executable found, terminal open. So an unknown user, a missing program or mount source is reported here.
pub fn create(options: CreateOptions<'_>) -> Result<Created> {
    let zero = Instant::now();
    let mut clock = Clock::start(zero);
    let threads = gantry_sys::clone::thread_count().during("count", "threads")?;
    if threads != 1 {
        return Err(Error::Threads { count: threads });
    }
    let setup = Setup::new(&options)?;
    clock.lap("check");
    let unified = setup.cgroup.make_unified()?;
    let made = carry_out(&setup, unified.as_ref(), zero, &mut clock);
    if made.is_err() {
        // Also what was never made is no error to remove.
        let _ = setup.cgroup.remove(Instant::now() + CLEAN_UP);
        if let Gate::Socket(path) = &options.gate {
            let _ = std::fs::remove_file(path);
        }
    }
    made
}

fn carry_out(
    setup: &Setup<'_>,
    unified: Option<&OwnedFd>,
    zero: Instant,
    clock: &mut Clock,
) -> Result<Created> {
    if !setup.mounts_on_host() {
        return make(setup, unified, None, zero, clock);
    }
    let root = HostRoot::attach(&setup.root)?;
    make(setup, unified, Some(root.clone()), zero, clock).inspect_err(|_| {
        // Whoever mounted something over it sees it; what failed first is what is to be said.
        let _covered = root.detach();
    })
}

fn make(
    setup: &Setup<'_>,
    unified: Option<&OwnedFd>,
    host_root: Option<HostRoot>,
    zero: Instant,
    clock: &mut Clock,
) -> Result<Created> {
    let (near, far) = wire::pair().during("make", "socket pair")?;
    let gate = match &setup.options.gate {
        Gate::Held => None,
        Gate::Socket(path) => Some(listen(path)?),
    };
    let (pid, pidfd) = {
        let lines = Lines {
            parent: far.as_fd(),
            gate: gate.as_ref().map(AsFd::as_fd),
        };
        birth::first_process(setup, unified, lines, zero)?
    };
    drop(far);
    drop(gate);
    clock.lap("clone");
    let mut record = setup.record();
    record.pid = pid;
    record.host_root = host_root;
    let mut given = None;
    match attend(setup, near.as_fd(), &mut record, &mut given, clock) {
        Ok(terminal) => {
            let held = matches!(setup.options.gate, Gate::Held).then_some(near);
            clock.timings.sort_by_key(|timing| timing.start_ns);
            Ok(Created {
                container: Container {
                    record,
                    pidfd: Some(pidfd),
                    gate: held,
                    started: false,
                },
                terminal,
                filter: setup.launch.filter.clone(),
                timings: std::mem::take(&mut clock.timings),
                given,
            })
        }
        Err(error) => {
            let _ = gantry_sys::process::send_signal_to(pidfd.as_fd(), libc::SIGKILL);
            let status = wait_ended(pidfd.as_fd());
            let error = match error {
                Error::Died { step, .. } => Error::Died { step, how: status },
                other => other,
            };
            Err(take_back(given, error))
        }
    }
}

/// Gives the host its devices back. What could not be given back is told with the reason that it had to be.
fn take_back(given: Option<Given>, error: Error) -> Error {
    let failures = given.map(|given| given.take_back()).unwrap_or_default();
    failures
        .into_iter()
        .fold(error, |first, failure| match failure {
            Error::Step {
                step,
                object,
                source,
            } => Error::step(
                step,
                format!("{object} (after {})", in_one_line(&first)),
                source,
            ),
            other => other,
        })
}

fn in_one_line(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The parent's part while the child lives: mappings, network devices, cgroups, hooks.
fn attend(
    setup: &Setup<'_>,
    socket: BorrowedFd<'_>,
    record: &mut Record,
    given: &mut Option<Given>,
    clock: &mut Clock,
) -> Result<Option<OwnedFd>> {
    let pid = record.pid;
    record.start_time = start_time(pid).during("read", format_args!("/proc/{pid}/stat"))?;
    let tell = |byte: u8, what: &str| match wire::signal(socket, byte) {
        // It has ended, and has said why, or will be found dead, below.
        Err(error) if error.raw_os_error() == Some(libc::EPIPE) => Ok(()),
        other => other.during("tell init", what),
    };
    if setup.namespaces.has_new(Kind::User) {
        namespaces::write_id_maps(pid, setup.spec)?;
        tell(wire::MAPPED, "id mappings")?;
    }
    if !setup.net_devices.is_empty() {
        let given = given.insert(Given::between(&setup.namespaces, pid)?);
        for device in &setup.net_devices {
            given.give(device)?;
        }
        clock.lap("network devices (parent)");
    }
    let resources = setup
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    setup.cgroup.make(resources)?;
    if setup.parent_adds() {
        setup.cgroup.add(pid)?;
    }
    tell(wire::CGROUP, "cgroups")?;
    clock.lap("cgroup (parent)");
    let mut terminal = None;
    loop {
        match wire::receive(socket).during("hear from", "init")? {
            Some((Message::Ready { timings }, _)) => {
                clock.timings.extend(timings);
                return Ok(terminal);
            }
            Some((Message::Terminal, fd)) => terminal = fd,
            Some((Message::Born | Message::Root, _)) => {}
            Some((Message::TimeOffsets { lines }, _)) => {
                std::fs::write(format!("/proc/{pid}/timens_offsets"), &lines)
                    .during("set time offsets", lines.trim_end())?;
                tell(wire::TIME_SET, "time offsets")?;
            }
            Some((Message::Hooks, _)) => {
                run_hooks(setup, record)?;
                tell(wire::HOOKS_DONE, "hooks")?;
            }
            Some((Message::SeccompListener, fd)) => {
                if let (Some(filter), Some(fd)) = (&setup.launch.filter, fd) {
                    filter.hand_over(&fd, record, Status::Creating, pid)?;
                }
            }
            Some((Message::Failed(failure), _)) => return Err(failure.into()),
            None => {
                return Err(Error::Died {
                    step: "create".to_owned(),
                    how: String::new(),
                });
            }
        }
    }
}

fn run_hooks(setup: &Setup<'_>, record: &Record) -> Result<()> {
    let Some(wanted) = setup.hooks() else {
        return Ok(());
    };
    let state = hooks::state(record, Status::Creating, record.pid);
    let directory = Some(setup.options.bundle);
    for (kind, hooks) in [
        ("prestart", super::setup::prestart(wanted)),
        ("createRuntime", wanted.create_runtime().as_deref()),
    ] {
        hooks::run(kind, hooks.unwrap_or_default(), &state, directory)?;
    }
    Ok(())
}

/// The gate's socket.
fn listen(path: &Path) -> Result<OwnedFd> {
    let listening = (|| -> std::io::Result<OwnedFd> {
        let (socket, _address) = unix_socket::bound(path, GATE_MODE, SocketType::SEQPACKET)?;
        rustix::net::listen(&socket, 1)?;
        Ok(socket)
    })();
    listening.during("listen", path.display())
}
