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
//! - A service that ends is started again, later each time. One that ends before
//!   it was ever ready cannot work as configured: everything stops.
//! - When this process is told to stop, the gateway goes first, since it calls
//!   all others; containers run on, each under its shim.
//! - When this process is killed, the kernel sends SIGTERM to the services.

mod directories;
mod program;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use gantry_kit::config::{Config, ConfigError, Engine as EngineConfig};
use gantry_kit::directories::DirectoryError;
use gantry_kit::paths::Paths;
use gantry_kit::socket::SocketError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use program::{Order, Program};

/// The services in the order of their start; the gateway calls all others.
const SERVICES: [&str; 5] = ["image", "network", "registry", "runtime", "gateway"];

/// How often a start that takes long says what it waits for.
const IMPATIENCE: Duration = Duration::from_secs(10);

/// How much longer than its drain a service may take to end.
const STOP_GRACE: Duration = Duration::from_secs(5);

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
    #[error("cannot start {program:?}")]
    Spawn { program: PathBuf, source: io::Error },
    #[error("gantry-{service} cannot start ({status}); it says why above")]
    EndedBeforeReady {
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
}

/// The task that keeps one service running.
#[derive(Debug)]
struct Keeper {
    service: &'static str,
    order: watch::Sender<Order>,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Checks all that can be checked, then starts every service.
    ///
    /// # Errors
    /// Something is missing or in use; nothing runs then.
    pub(crate) fn start(paths: Paths, assignments: &[String]) -> Result<Self, SuperviseError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(SuperviseError::NotRoot);
        }
        let files = SERVICES
            .iter()
            .map(|name| program::find(name).map(|file| (*name, file)))
            .collect::<Result<Vec<_>, _>>()?;
        let engine: EngineConfig = Config::load(&paths.config, assignments)?.table("engine")?;
        directories::create(&paths, &engine.socket_group)?;
        let programs = files
            .into_iter()
            .map(|(name, file)| Program::new(name, file, &paths, &engine.socket_group, assignments))
            .collect::<Result<Vec<_>, _>>()?;
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
            drain: Duration::from_secs(engine.drain_seconds),
            keepers,
            events,
            ready: BTreeSet::new(),
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
                service, status, ..
            } if !self.ready.contains(service) => {
                return Err(SuperviseError::EndedBeforeReady { service, status });
            }
            Event::Ended {
                service,
                status,
                delay,
            } => eprintln!(
                "gantry up: gantry-{service} ended ({status}); starting it again in {:.1} s",
                delay.as_secs_f64()
            ),
            Event::Unstartable(error) => return Err(error),
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

/// Later each time, up to this.
const LAST_DELAY: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// How long to wait before the next start of a service that ran for `ran`.
fn next_delay(last: Option<Duration>, ran: Duration) -> Duration {
    match last {
        Some(last) if ran < LAST_DELAY => (last * 2).min(LAST_DELAY),
        _ => FIRST_DELAY,
    }
}

/// Waits for `delay`, or until there is another order.
async fn pause(delay: Duration, orders: &mut watch::Receiver<Order>) {
    tokio::select! {
        () = sleep(delay) => {}
        _ = orders.changed() => {}
    }
}

/// The directory of the sockets through which services say that they are ready.
fn notify_directory(paths: &Paths) -> PathBuf {
    paths.run.join("up")
}

fn notify_socket(directory: &Path, service: &str) -> PathBuf {
    directory.join(service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_keeps_ending_is_started_later_each_time() {
        let short = Duration::from_secs(1);
        let first = next_delay(None, short);
        let second = next_delay(Some(first), short);
        assert!(second > first);
        assert_eq!(next_delay(Some(LAST_DELAY), short), LAST_DELAY);
        assert_eq!(next_delay(Some(LAST_DELAY), LAST_DELAY), FIRST_DELAY);
    }
}
