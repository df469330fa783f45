//! `gantry up`: all services as child processes in the foreground.
//!
//! ```text
//! gantry up ──┬── gantry-image     fd 3: <run>/image.sock
//!             ├── gantry-network   fd 3: <run>/network.sock
//!             ├── …                each with NOTIFY_SOCKET <run>/up/<name>
//!             └── gantry-gateway   fd 3: <run>/gateway.sock
//! ```
//! - The sockets belong to this process, and a service gets its own by socket
//!   activation: while a service restarts, calls to it wait and are not refused.
//! - A service that ends is started again: at once the first times, and later each
//!   time it ends soon again, but for a call that waits for it ([`Backoff`]). One
//!   that exits before it was ever ready cannot work as configured: everything
//!   stops. One that is killed before is started again a few times.
//! - When this process is told to stop, the gateway goes first, since it calls
//!   all others; containers run on, each under its shim.
//! - When this process is killed, the kernel sends SIGTERM to the services. The next
//!   `gantry up` waits for their end ([`predecessor`]).
//! - A service gets its standard streams and its socket, and no other descriptor.

mod backoff;
mod directories;
mod predecessor;
mod program;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use gantry_kit::config::{Config, ConfigError, Engine as EngineConfig};
use gantry_kit::directories::DirectoryError;
use gantry_kit::paths::Paths;
use gantry_kit::socket::SocketError;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use predecessor::Claim;
use program::{Order, Program};

/// The services in the order of their start; the gateway calls all others.
const SERVICES: [&str; 5] = ["image", "network", "registry", "runtime", "gateway"];

/// How often a start that takes long says what it waits for.
const IMPATIENCE: Duration = Duration::from_secs(10);

/// How much longer than its drain a service may take to end.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// How often a service may be killed before it was ever ready.
const KILLED_STARTS_MAX: u32 = 5;

/// The engine cannot run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuperviseError {
    #[error(
        "only root can run an engine, which makes namespaces, mounts and network interfaces; try `sudo gantry up`"
    )]
    NotRoot,
    #[error(
        "cannot find the program {program}, which should be beside {beside:?}; is the installation complete?"
    )]
    NoProgram { program: String, beside: PathBuf },
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot listen for the readiness of services on {path:?}")]
    Notify { path: PathBuf, source: io::Error },
    #[error("cannot handle signals")]
    Signals { source: io::Error },
    #[error("cannot lock the directory {path:?}")]
    Claim { path: PathBuf, source: io::Error },
    #[error("another `gantry up` runs this engine (it has locked {run:?}); stop it first")]
    Running { run: PathBuf },
    #[error(
        "gantry-{service} of an engine that was killed does not end, not even by SIGKILL; see what it waits for in /proc/PID/stack"
    )]
    Left { service: &'static str },
    #[error("cannot start {program:?}")]
    Spawn { program: PathBuf, source: io::Error },
    #[error("gantry-{service} cannot start ({status}); it says why above")]
    EndedBeforeReady {
        service: &'static str,
        status: ExitStatus,
    },
    #[error(
        "gantry-{service} was killed {KILLED_STARTS_MAX} times before it was ready ({status}); see what kills it"
    )]
    KilledBeforeReady {
        service: &'static str,
        status: ExitStatus,
    },
}

/// What happens to a service.
#[derive(Debug)]
enum Event {
    Ready(&'static str),
    Ended {
        service: &'static str,
        status: ExitStatus,
        /// Until it is started again.
        delay: Duration,
    },
    Unstartable(SuperviseError),
}

/// All services of one engine.
#[derive(Debug)]
pub(crate) struct Supervisor {
    paths: Paths,
    drain: Duration,
    keepers: Vec<Keeper>,
    events: mpsc::Receiver<Event>,
    ready: BTreeSet<&'static str>,
    /// How often each was killed before it was ever ready.
    killed_starts: BTreeMap<&'static str, u32>,
    /// Held for as long as services run.
    _claim: Claim,
}

/// The task that keeps one service running.
#[derive(Debug)]
struct Keeper {
    service: &'static str,
    order: watch::Sender<Order>,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Checks all that can be checked, waits for what is left of an engine that was
    /// killed, then starts every service.
    ///
    /// # Errors
    /// Something is missing or in use; nothing runs then.
    pub(crate) async fn start(
        paths: Paths,
        assignments: &[String],
    ) -> Result<Self, SuperviseError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(SuperviseError::NotRoot);
        }
        let files = SERVICES
            .iter()
            .map(|name| program::find(name).map(|file| (*name, file)))
            .collect::<Result<Vec<_>, _>>()?;
        let engine: EngineConfig = Config::load(&paths.config, assignments)?.table("engine")?;
        let drain = Duration::from_secs(engine.drain_seconds);
        directories::create(&paths, &engine.socket_group)?;
        let claim = predecessor::claim(&paths.run).await?;
        let left = claim.left();
        // Their sockets lead nowhere any more. Calls to the new ones wait.
        directories::remove_sockets(&paths, &left.services());
        directories::create(&paths, &engine.socket_group)?;
        let programs = files
            .into_iter()
            .map(|(name, file)| {
                let group = &engine.socket_group;
                Program::new(name, file, &paths, group, assignments, claim.run())
            })
            .collect::<Result<Vec<_>, _>>()?;
        left.end(drain + STOP_GRACE).await?;
        let (sender, events) = mpsc::channel(64);
        let keepers = programs
            .into_iter()
            .map(|program| {
                let (order, orders) = watch::channel(Order::Run);
                Keeper {
                    service: program.name(),
                    order,
                    task: tokio::spawn(program.keep(sender.clone(), orders)),
                }
            })
            .collect();
        Ok(Self {
            paths,
            drain,
            keepers,
            events,
            ready: BTreeSet::new(),
            killed_starts: BTreeMap::new(),
            _claim: claim,
        })
    }

    /// Waits until every service was ready once.
    ///
    /// # Errors
    /// A service cannot start.
    pub(crate) async fn wait_until_ready(&mut self) -> Result<(), SuperviseError> {
        let mut impatient = Instant::now() + IMPATIENCE;
        while self.ready.len() < self.keepers.len() {
            match timeout_at(impatient, self.events.recv()).await {
                Ok(Some(event)) => self.note(event)?,
                Ok(None) => break,
                Err(_) => {
                    impatient = Instant::now() + IMPATIENCE;
                    let waiting: Vec<&str> = self
                        .keepers
                        .iter()
                        .map(|keeper| keeper.service)
                        .filter(|service| !self.ready.contains(service))
                        .collect();
                    eprintln!("gantry up: still waiting for {}", waiting.join(", "));
                }
            }
        }
        Ok(())
    }

    /// Restarts what ends; comes back only with an error, so cancel it to stop.
    ///
    /// # Errors
    /// A service's program is gone.
    pub(crate) async fn watch(&mut self) -> Result<(), SuperviseError> {
        while let Some(event) = self.events.recv().await {
            self.note(event)?;
        }
        Ok(())
    }

    fn note(&mut self, event: Event) -> Result<(), SuperviseError> {
        match event {
            Event::Ready(service) => {
                if !self.ready.insert(service) {
                    eprintln!("gantry up: gantry-{service} is back");
                }
            }
            Event::Ended {
                service,
                status,
                delay,
            } => {
                if !self.ready.contains(service) {
                    self.note_failed_start(service, status)?;
                }
                let when = match delay {
                    Duration::ZERO => "at once".to_owned(),
                    delay => format!("in {:.1} s, or when it is called", delay.as_secs_f64()),
                };
                eprintln!("gantry up: gantry-{service} ended ({status}); starting it again {when}");
            }
            Event::Unstartable(error) => return Err(error),
        }
        Ok(())
    }

    fn note_failed_start(
        &mut self,
        service: &'static str,
        status: ExitStatus,
    ) -> Result<(), SuperviseError> {
        if status.signal().is_none() {
            return Err(SuperviseError::EndedBeforeReady { service, status });
        }
        let times = self.killed_starts.entry(service).or_default();
        *times += 1;
        if *times >= KILLED_STARTS_MAX {
            return Err(SuperviseError::KilledBeforeReady { service, status });
        }
        Ok(())
    }

    /// Stops all services: the gateway, then the others together. What does not
    /// end in time, or when `hurry` is over, is killed.
    pub(crate) async fn stop(mut self, hurry: impl Future<Output = ()>) {
        // Nobody listens to events any more, and nobody must wait for that.
        self.events.close();
        let limit = self.drain + STOP_GRACE;
        let mut keepers = self.keepers;
        keepers.reverse();
        let others = keepers.split_off(1);
        let graceful = async {
            stop_together(keepers.iter_mut(), limit).await;
        };
        let hurried = async {
            hurry.await;
        };
        tokio::pin!(hurried);
        let mut in_a_hurry = tokio::select! {
            () = graceful => false,
            () = &mut hurried => true,
        };
        let mut others = others;
        if !in_a_hurry {
            in_a_hurry = tokio::select! {
                () = stop_together(others.iter_mut(), limit) => false,
                () = &mut hurried => true,
            };
        }
        if in_a_hurry {
            for keeper in keepers.iter_mut().chain(&mut others) {
                keeper.end_now().await;
            }
        }
        directories::remove_sockets(&self.paths, &SERVICES);
    }
}

async fn stop_together(keepers: impl Iterator<Item = &mut Keeper>, limit: Duration) {
    let deadline = Instant::now() + limit;
    let keepers: Vec<&mut Keeper> = keepers.collect();
    for keeper in &keepers {
        keeper.order.send_replace(Order::Stop);
    }
    for keeper in keepers {
        if timeout_at(deadline, &mut keeper.task).await.is_err() {
            eprintln!(
                "gantry up: gantry-{} did not end in time; killing it",
                keeper.service
            );
            keeper.end_now().await;
        }
    }
}

impl Keeper {
    async fn end_now(&mut self) {
        self.order.send_replace(Order::Kill);
        if !self.task.is_finished() {
            let _ended = (&mut self.task).await;
        }
    }
}

/// Waits until a descriptor is readable.
#[expect(
    deprecated,
    reason = "unsound for an integer; an OwnedFd stays open as long as it is watched"
)]
async fn readable(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd().try_clone_to_owned()?;
    let watched = AsyncFd::with_interest(fd, Interest::READABLE)?;
    watched.readable().await.map(drop)
}

/// The directory of the sockets through which services say that they are ready.
fn notify_directory(paths: &Paths) -> PathBuf {
    paths.run.join("up")
}

fn notify_socket(directory: &Path, service: &str) -> PathBuf {
    directory.join(service)
}
