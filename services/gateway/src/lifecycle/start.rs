//! `start`: an endpoint, a runtime container, a window if one is wanted, and the
//! program.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use futures::StreamExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::container::{Endpoint, Exit, Record, StepTime};
use crate::engine::{Engine, change, wrong_state};
use crate::error::{Error, Result};
use crate::etc_files;
use crate::health::{Check, Health};
use crate::peers::{ContainerWanted, EndpointWanted, OutputWanted};
use crate::restart::{self, Verdict};
use crate::roster::Entry;
use crate::signal::SIGKILL;
use crate::spec::{self, Namespace, Namespaces, process};
use crate::state::{Event, InvalidTransition, State};
use crate::steps::{self, Step};
use crate::wanted::{NamespaceMode, NetworkMode, PortMapping, Protocol};
use crate::window::{Outputs, TerminalSize, WindowOutput};

/// A window that is to be open before the program runs.
#[derive(Debug)]
pub struct FirstWindow {
    pub wanted: OutputWanted,
    /// Positions up to which its output was received.
    pub receipts: watch::Receiver<u64>,
    /// It types.
    pub stdin: bool,
    /// First size of the terminal.
    pub size: Option<TerminalSize>,
}

/// Who starts the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starter {
    Person,
    /// The restart policy.
    Policy,
    /// A failed health check, which has stopped the container for this.
    Check,
}

/// A start under way.
pub(super) struct Start<'a> {
    engine: &'a Engine,
    entry: &'a Entry,
    window: Mutex<Option<FirstWindow>>,
    outputs: Mutex<Option<Outputs>>,
    /// Cancelled when the caller no longer wants the program to run.
    given_up: CancellationToken,
    endpoint: OnceLock<Option<Endpoint>>,
    pid: OnceLock<i32>,
    started: OnceLock<Timestamp>,
    steps: Mutex<Vec<StepTime>>,
}

impl<'a> Start<'a> {
    pub(super) fn new(engine: &'a Engine, entry: &'a Entry, window: Option<FirstWindow>) -> Self {
        Self {
            engine,
            entry,
            window: Mutex::new(window),
            outputs: Mutex::new(None),
            given_up: CancellationToken::new(),
            endpoint: OnceLock::new(),
            pid: OnceLock::new(),
            started: OnceLock::new(),
            steps: Mutex::default(),
        }
    }

    /// Cancel it, and the start fails as long as the program does not run.
    pub(super) fn given_up(&self) -> &CancellationToken {
        &self.given_up
    }

    fn took(&self, name: &str, began: Timestamp, more: Vec<StepTime>) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.push(StepTime::since(name, began));
        steps.extend(more);
    }

    fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.get().and_then(Option::as_ref)
    }
}

/// The network namespace with its address, where the container has one of its
/// own.
pub(super) struct EndpointStep<'a>(pub(super) &'a Start<'a>);

impl Step for EndpointStep<'_> {
    fn name(&self) -> &'static str {
        "network.endpoint"
    }

    fn act(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let Start {
                engine,
                entry,
                endpoint,
                ..
            } = self.0;
            if endpoint.get().is_some() {
                return Ok(());
            }
            let record = entry.record();
            let made = match record.wanted.network() {
                NetworkMode::Network(network) => {
                    let began = Timestamp::now();
                    let wanted = EndpointWanted {
                        network,
                        ports: ports(&record)?,
                        address: record.wanted.ip_address.clone(),
                        mac: record.wanted.mac_address.clone(),
                        ephemeral: record.wanted.auto_remove,
                        own_ids: record.own_ids,
                        names: vec![record.name.clone(), record.hostname().to_owned()],
                    };
                    let networks = &engine.peers.network;
                    let made = match networks.create(&record.id, wanted.clone()).await {
                        // Left of an earlier run that could not be released.
                        Err(error) if error.is_reason("ENDPOINT_EXISTS") => {
                            networks.delete(record.id.as_str()).await?;
                            networks.create(&record.id, wanted).await?
                        }
                        outcome => outcome?,
                    };
                    self.0.took(self.name(), began, Vec::new());
                    Some(made)
                }
                NetworkMode::Host | NetworkMode::None | NetworkMode::Container(_) => None,
            };
            let _once = endpoint.set(made);
            Ok(())
        })
    }

    fn undo(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let Start { engine, entry, .. } = self.0;
            match entry.record().wanted.network() {
                NetworkMode::Network(_) => engine.peers.network.delete(entry.id.as_str()).await,
                NetworkMode::Host | NetworkMode::None | NetworkMode::Container(_) => Ok(()),
            }
        })
    }
}

/// The ports to publish: those asked for, and with `publish_all` every exposed
/// one on a free port of the host.
fn ports(record: &Record) -> Result<Vec<PortMapping>> {
    let mut ports = record.wanted.ports.clone();
    if !record.wanted.publish_all {
        return Ok(ports);
    }
    for exposed in record.exposed_ports() {
        let malformed = || Error::invalid("expose", format!("{exposed:?} is not a port"));
        let (numbers, protocol) = exposed.split_once('/').unwrap_or((&exposed, "tcp"));
        let protocol = Protocol::parse(protocol).ok_or_else(malformed)?;
        let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
        let first: u16 = first.parse().map_err(|_| malformed())?;
        let last: u16 = last.parse().map_err(|_| malformed())?;
        for container_port in first..=last {
            let published = ports
                .iter()
                .any(|port| port.container_port == container_port && port.protocol == protocol);
            if !published {
                ports.push(PortMapping {
                    host_ip: String::new(),
                    host_port: 0,
                    container_port,
                    protocol,
                });
            }
        }
    }
    Ok(ports)
}

/// Resolves the namespaces a container shares. `own` is its endpoint.
pub(crate) fn namespaces(
    engine: &Engine,
    record: &Record,
    own: Option<&Endpoint>,
) -> Result<Namespaces> {
    let wanted = &record.wanted;
    let of = |other: &str, kind: &str| -> Result<Namespace> {
        let other = engine.roster.find(other)?.record();
        if !other.state.is_running() || other.pid == 0 {
            return Err(Error::WrongState {
                name: other.name.clone(),
                verb: "share a namespace of",
                state: other.state,
            });
        }
        Ok(Namespace::Path(format!("/proc/{}/ns/{kind}", other.pid)))
    };
    let shared = |mode: Option<NamespaceMode>, kind: &str| match mode {
        Some(NamespaceMode::Host) => Ok(Namespace::Host),
        Some(NamespaceMode::Container(other)) => of(&other, kind),
        Some(NamespaceMode::Private) | None => Ok(Namespace::New),
    };
    let mode = NamespaceMode::parse;
    let network = match wanted.network() {
        NetworkMode::Network(_) => match own {
            Some(endpoint) => Namespace::Path(endpoint.netns.clone()),
            None => Namespace::New,
        },
        NetworkMode::None => Namespace::New,
        NetworkMode::Host => Namespace::Host,
        NetworkMode::Container(other) => of(&other, "net")?,
    };
    Ok(Namespaces {
        user: own
            .map(|endpoint| endpoint.userns.clone())
            .filter(|path| !path.is_empty()),
        network,
        pid: shared(mode(&wanted.pid_mode), "pid")?,
        ipc: shared(wanted.ipc(), "ipc")?,
        uts: shared(mode(&wanted.uts_mode), "uts")?,
        cgroup: shared(mode(&wanted.cgroupns_mode), "cgroup")?,
    })
}

/// The container in the runtime, its program waiting.
pub(super) struct ProcessStep<'a>(pub(super) &'a Start<'a>);

impl ProcessStep<'_> {
    fn wanted(&self, record: &Record) -> Result<ContainerWanted> {
        let Start { engine, window, .. } = self.0;
        let endpoint = self.0.endpoint();
        let namespaces = namespaces(engine, record, endpoint)?;
        let spec = spec::build(record, &namespaces, &engine.host)?;
        let shared = match record.wanted.network() {
            NetworkMode::Container(other) => engine.roster.find(&other)?.record().endpoint.clone(),
            _ => None,
        };
        let window = window.lock().unwrap_or_else(PoisonError::into_inner);
        let window = window.as_ref();
        Ok(ContainerWanted {
            spec: spec.to_string().into_bytes(),
            rootfs: record.rootfs.clone().unwrap_or_default(),
            user: process::user_or_root(record),
            stdin: record.wanted.stdin_open,
            // A terminal outlives its windows: whoever leaves may come back.
            stdin_once: record.wanted.stdin_open
                && !record.wanted.tty
                && window.is_some_and(|window| window.stdin),
            terminal_size: window.and_then(|window| window.size),
            log: Some(record.wanted.log.unwrap_or_else(|| engine.settings.log())),
            etc_files: etc_files::files(record, endpoint.or(shared.as_ref()))?,
            runtime: record.wanted.runtime.clone(),
        })
    }
}

impl Step for ProcessStep<'_> {
    fn name(&self) -> &'static str {
        "runtime.create"
    }

    fn act(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let Start { engine, entry, .. } = self.0;
            let began = Timestamp::now();
            entry.end_views().await?;
            let wanted = self.wanted(&entry.record())?;
            let runtime = &engine.peers.runtime;
            let (pid, steps) = match runtime.create(&entry.id, wanted.clone()).await {
                // Left of an earlier run that could not be released.
                Err(error) if error.is_reason("CONTAINER_EXISTS") => {
                    runtime.delete(entry.id.as_str(), true, false).await?;
                    runtime.create(&entry.id, wanted).await?
                }
                outcome => outcome?,
            };
            let _once = self.0.pid.set(pid);
            self.0.took(self.name(), began, steps);
            Ok(())
        })
    }

    fn undo(&self) -> BoxFuture<'_, Result<()>> {
        let Start { engine, entry, .. } = self.0;
        let id = entry.id.as_str();
        Box::pin(async { engine.peers.runtime.delete(id, true, false).await.map(drop) })
    }
}

/// The window, then the program.
pub(super) struct ProgramStep<'a>(pub(super) &'a Start<'a>);

impl Step for ProgramStep<'_> {
    fn name(&self) -> &'static str {
        "runtime.start"
    }

    fn act(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let Start {
                engine,
                entry,
                window,
                outputs,
                given_up,
                ..
            } = self.0;
            let runtime = &engine.peers.runtime;
            let window = {
                let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
                window.take()
            };
            if let Some(window) = window {
                let attached = runtime.attach(&entry.id, window.wanted, window.receipts);
                let mut opened = attached.await?;
                match opened.next().await {
                    Some(Ok(WindowOutput::Attached(_))) => {}
                    Some(Err(error)) => return Err(error),
                    Some(Ok(_)) | None => {
                        return Err(Error::Unanswered {
                            peer: crate::error::Peer::Runtime,
                            problem: "a window was not opened".to_owned(),
                        });
                    }
                }
                *outputs.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
            }
            if given_up.is_cancelled() {
                return Err(Error::CallerGone);
            }
            let began = Timestamp::now();
            let (started, steps) = runtime.start(&entry.id).await?;
            let _once = self.0.started.set(started);
            self.0.took(self.name(), began, steps);
            Ok(())
        })
    }

    fn undo(&self) -> BoxFuture<'_, Result<()>> {
        // A program that runs ends with its container, which is undone next.
        Box::pin(async { Ok(()) })
    }
}

/// Starts a container that does not run. Answers the first window's output,
/// where one was wanted.
///
/// # Errors
/// It runs already, or a step failed: then it is as it was before, with the
/// error noted in its record.
pub async fn start(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    starter: Starter,
    window: Option<FirstWindow>,
) -> Result<Option<Outputs>> {
    // Whatever is under way comes to its end first.
    let record = entry
        .wait_for("start", |record| {
            !matches!(
                record.state,
                State::Creating | State::Starting | State::Ending
            )
        })
        .await?;
    if record.state.is_running() && window.is_none() && starter == Starter::Person {
        // As Docker's: starting what runs succeeds.
        return Ok(None);
    }
    let start = Start::new(engine, entry, window);
    go(engine, entry, starter, &start).await
}

/// The start itself; `start` may have its endpoint already.
pub(super) async fn go(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    starter: Starter,
    start: &Start<'_>,
) -> Result<Option<Outputs>> {
    let before = entry.record();
    let mut allowed = true;
    let record = entry.decide(|record| {
        // A policy starts what waits for it and nothing else: whoever stopped it
        // meanwhile wants it to stay so.
        allowed = match starter {
            Starter::Person => true,
            Starter::Policy => record.state == State::Restarting,
            Starter::Check => matches!(record.state, State::Restarting | State::Exited),
        };
        if !allowed {
            return None;
        }
        record.start_began = Some(Timestamp::now());
        record.error = String::new();
        record.steps.truncate(usize::from(record.started.is_none()));
        if starter != Starter::Policy {
            record.stopped_by_user = false;
        }
        match starter {
            Starter::Person => record.restarts = 0,
            Starter::Policy | Starter::Check => record.restarts += 1,
        }
        Some(Event::Start)
    });
    let record = record.map_err(|refused| wrong_state(entry, "start", refused))?;
    if !allowed {
        let (event, state) = (Event::Start, before.state);
        return Err(wrong_state(
            entry,
            "start",
            InvalidTransition { state, event },
        ));
    }
    let ran_before = record.started.is_some();
    let performed = async {
        engine.note(&record).map_err(|error| steps::Failed {
            step: "gateway.note",
            error,
            left: Vec::new(),
        })?;
        let (endpoint, process, program) =
            (EndpointStep(start), ProcessStep(start), ProgramStep(start));
        steps::perform(&[&[&endpoint], &[&process], &[&program]]).await
    };
    match performed.await {
        Ok(()) => {
            succeeded(engine, entry, start).await?;
            let mut outputs = start.outputs.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(outputs.take())
        }
        Err(failed) => {
            if !failed.left.is_empty() {
                engine.untidy.notify_one();
            }
            failed_start(engine, entry, starter, ran_before, &failed.error).await;
            Err(failed.error)
        }
    }
}

async fn succeeded(engine: &Arc<Engine>, entry: &Arc<Entry>, start: &Start<'_>) -> Result<()> {
    let steps = {
        let mut steps = start.steps.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *steps)
    };
    let record = change(entry, "start", Event::Started, |record| {
        record.pid = start.pid.get().copied().unwrap_or_default();
        record.started = start.started.get().copied();
        record.endpoint = start.endpoint().cloned();
        record.steps.extend(steps);
        record.health = Check::of(record).map(|_check| Health::default());
        record.run_unfinished = false;
        // Before anybody sees that it runs: its end is told by others.
        engine.journal.note_held(record);
        engine.journal.note(record, "start", &[]);
    })?;
    super::health::watch(engine, entry);
    let kept = engine.keep(&record).await;
    if let Err(error) = &kept {
        not_started(engine, entry, &record, error).await;
    }
    kept
}

/// Ends a container whose start cannot be recorded: after a power cut nobody
/// would know that it ran.
async fn not_started(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    started: &Arc<Record>,
    error: &Error,
) {
    tracing::error!(container = %entry.id, %error, "a start cannot be recorded, and is taken back");
    entry.update(|record| record.stopped_by_user = true);
    let deleted = engine.peers.runtime.delete(entry.id.as_str(), true, false);
    let exit = match deleted.await {
        Ok(deleted) => deleted.exit,
        Err(error) => {
            tracing::warn!(container = %entry.id, %error, "it is ended later");
            engine.untidy.notify_one();
            None
        }
    };
    // One that ended by itself meanwhile is dealt with by others.
    if entry.record().started == started.started {
        let mut exit = exit.unwrap_or_else(|| Exit::killed(SIGKILL));
        exit.error = format!("its start could not be recorded: {error}");
        super::ended::ended(Arc::clone(engine), Arc::clone(entry), exit).await;
    }
}

/// Notes why a start failed. One by the policy waits for the next try, where the
/// policy still says so.
pub(super) async fn failed_start(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    starter: Starter,
    ran_before: bool,
    error: &Error,
) {
    let event = Event::StartFailed { ran_before };
    let note = |record: &mut Record| {
        record.error = error.to_string();
        record.pid = 0;
        record.endpoint = None;
    };
    let changed = match starter {
        Starter::Person => entry
            .change(event, note)
            .map(|record| (record, Verdict::Stay)),
        Starter::Policy | Starter::Check => restart::settle(engine, entry, event, note),
    };
    match changed {
        Ok((_, verdict)) => {
            // Where it is not kept it is tried again.
            let _reported = engine.keep_happened(entry).await;
            restart::go_on(engine, entry, verdict);
        }
        // Its program ended while the start was being answered: that is noted.
        Err(refused) => tracing::debug!(container = %entry.id, %refused, "a late failure"),
    }
}
