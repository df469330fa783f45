//! `gantry up`: the engine in the foreground.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use gantry_kit::fault::chain;
use gantry_proto::gateway::v1::ListRequest;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;
use crate::lists;
use crate::session::Session;
use crate::supervise::{SuperviseError, Supervisor};

/// How long the count of running containers may hold up the end.
const COUNT_LIMIT: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Read this configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key of the configuration (may be repeated)
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    set: Vec<String>,
}

impl Up {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let mut paths = session.paths.clone();
        if let Some(file) = self.config {
            paths.config = std::path::absolute(file)?;
        }
        let mut stop = Stop::new().map_err(failed)?;
        let mut supervisor = tokio::select! {
            supervisor = Supervisor::start(paths.clone(), &self.set) => supervisor.map_err(failed)?,
            () = stop.asked() => return Ok(0),
        };
        let started = tokio::select! {
            ready = supervisor.wait_until_ready() => ready,
            () = stop.asked() => {
                supervisor.stop(async { stop.asked().await }).await;
                return Ok(0);
            }
        };
        if let Err(error) = started {
            supervisor.stop(async { stop.asked().await }).await;
            return Err(failed(error));
        }
        let mut out = std::io::stdout();
        // Whoever started it may have closed the pipe: that is no reason to stop.
        let _nobody_reads = writeln!(
            out,
            "gantry is up: socket {}, state {}",
            paths.socket("gateway").display(),
            paths.state.display()
        )
        .and_then(|()| out.flush());
        sd_notify::notify(&[sd_notify::NotifyState::Ready])?;

        let outcome = tokio::select! {
            outcome = supervisor.watch() => outcome,
            () = stop.asked() => Ok(()),
        };
        let _no_manager = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let running = running(session).await;
        supervisor.stop(async { stop.asked().await }).await;
        match running {
            Some(0) => eprintln!("gantry up: stopped"),
            Some(1) => eprintln!("gantry up: stopped; 1 container runs on"),
            Some(count) => eprintln!("gantry up: stopped; {count} containers run on"),
            None => eprintln!("gantry up: stopped; containers run on, if there are any"),
        }
        outcome.map(|()| 0).map_err(failed)
    }
}

fn failed(error: SuperviseError) -> Failure {
    Failure::new(format!("up: {}", chain(&error)))
}

/// How many containers run, if the gateway says so in time.
async fn running(session: &Session) -> Option<usize> {
    let list = lists::containers(session.engine.containers(), ListRequest::default());
    let listed = tokio::time::timeout(COUNT_LIMIT, list).await.ok()?.ok()?;
    Some(listed.len())
}

/// The signals that end the engine.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Stop {
    fn new() -> Result<Self, SuperviseError> {
        let handle = |kind| signal(kind).map_err(|source| SuperviseError::Signals { source });
        Ok(Self {
            terminate: handle(SignalKind::terminate())?,
            interrupt: handle(SignalKind::interrupt())?,
            hangup: handle(SignalKind::hangup())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
