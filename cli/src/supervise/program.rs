//! One service's program: found, spawned, kept running.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use gantry_kit::directories;
use gantry_kit::paths::Paths;
use gantry_kit::socket;
use gantry_sys::spawn;
use gantry_sys::unix_socket::{self, Address};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixDatagram;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::backoff::{Backoff, pause};
use super::predecessor;
use super::{Event, SuperviseError, notify_directory, notify_socket};

/// Longest message of sd_notify(3) that is read.
const MESSAGE_MAX: usize = 4096;

/// Services run as root, as this process does.
const NOTIFY_MODE: u32 = 0o600;

/// What a service is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Run,
    Stop,
    Kill,
}

#[derive(Debug)]
pub(super) struct Program {
    name: &'static str,
    file: PathBuf,
    arguments: Vec<std::ffi::OsString>,
    /// Open as long as the engine is up, so that no call is ever refused.
    listener: UnixListener,
    notify: UnixDatagram,
    /// Held for as long as services write to it.
    notify_address: Address,
    /// The engine's run directory without links.
    run: PathBuf,
}

/// The program of the service `name`: beside this one, or in libexec.
pub(super) fn find(name: &str) -> Result<PathBuf, SuperviseError> {
    let program = format!("gantry-{name}");
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.parent().unwrap_or(Path::new("/usr/bin"));
    ["", "../libexec/gantry", "../lib/gantry"]
        .iter()
        .map(|directory| beside.join(directory).join(&program))
        .find(|file| file.is_file())
        .ok_or_else(|| SuperviseError::NoProgram {
            program,
            beside: own.clone(),
        })
}

impl Program {
    pub(super) fn new(
        name: &'static str,
        file: PathBuf,
        paths: &Paths,
        group: &str,
        assignments: &[String],
        run: &Path,
    ) -> Result<Self, SuperviseError> {
        let listener = socket::bind(&paths.socket(name), group)?;
        let notify_path = notify_socket(&notify_directory(paths), name);
        let failed = |source| SuperviseError::Notify {
            path: notify_path.clone(),
            source,
        };
        // Left by an engine that was killed.
        directories::remove_or_set_aside(&notify_path).map_err(failed)?;
        let (notify, notify_address) =
            unix_socket::bind_datagram(&notify_path, NOTIFY_MODE).map_err(failed)?;
        notify.set_nonblocking(true).map_err(failed)?;
        let notify = UnixDatagram::from_std(notify).map_err(failed)?;
        let mut arguments = Vec::new();
        if let Some(root) = &paths.root {
            arguments.extend(["--root".into(), root.into()]);
        }
        arguments.extend(["--config".into(), (&paths.config).into()]);
        for assignment in assignments {
            arguments.extend(["--set".into(), assignment.into()]);
        }
        Ok(Self {
            name,
            file,
            arguments,
            listener,
            notify,
            notify_address,
            run: run.to_owned(),
        })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    fn spawn(&self) -> io::Result<Child> {
        let mut command = Command::new(&self.file);
        command
            .args(&self.arguments)
            .env("LISTEN_FDS", "1")
            // Its number is not known before it runs; absent, it means anybody.
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDNAMES")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .env("NOTIFY_SOCKET", self.notify_address.for_others())
            .env(predecessor::MARK, &self.run)
            // Ctrl-C reaches this process alone: it stops the services in order.
            .process_group(0);
        spawn::pass_fds(&mut command, &[self.listener.as_fd()])?;
        spawn::die_with_parent(&mut command, Signal::SIGTERM as i32);
        tokio::process::Command::from(command).spawn()
    }

    /// Runs the service until it is ordered to stop, again and again.
    pub(super) async fn keep(
        self,
        events: mpsc::Sender<Event>,
        mut orders: watch::Receiver<Order>,
    ) {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            let mut child = match self.spawn() {
                Ok(child) => child,
                Err(source) => {
                    let program = self.file.clone();
                    let error = SuperviseError::Spawn { program, source };
                    let _nobody_listens = events.send(Event::Unstartable(error)).await;
                    return;
                }
            };
            let status = self.attend(&mut child, &events, &mut orders).await;
            if *orders.borrow() != Order::Run {
                return;
            }
            let delay = backoff.next(began.elapsed());
            if let Ok(status) = status {
                let event = Event::Ended {
                    service: self.name,
                    status,
                    delay,
                };
                let _nobody_listens = events.send(event).await;
            }
            pause(delay, &self.listener, &mut orders).await;
            if *orders.borrow() != Order::Run {
                return;
            }
        }
    }

    /// Passes orders on to a running service and its readiness back, until it
    /// ends.
    async fn attend(
        &self,
        child: &mut Child,
        events: &mpsc::Sender<Event>,
        orders: &mut watch::Receiver<Order>,
    ) -> io::Result<std::process::ExitStatus> {
        let mut message = [0; MESSAGE_MAX];
        let pid = child.id().map(|pid| Pid::from_raw(pid.cast_signed()));
        loop {
            tokio::select! {
                status = child.wait() => return status,
                _ = orders.changed() => {
                    let signal = match *orders.borrow_and_update() {
                        Order::Run => None,
                        Order::Stop => Some(Signal::SIGTERM),
                        Order::Kill => Some(Signal::SIGKILL),
                    };
                    if let (Some(pid), Some(signal)) = (pid, signal) {
                        // Fails where it has just ended: then wait says so.
                        let _ended = kill(pid, signal);
                    }
                }
                Ok(length) = self.notify.recv(&mut message) => {
                    let text = String::from_utf8_lossy(&message[..length]);
                    if text.lines().any(|line| line == "READY=1") {
                        let _nobody_listens = events.send(Event::Ready(self.name)).await;
                    }
                }
            }
        }
    }
}
