//! `gantry.shim.v1` on the wire: requests in, domain types out.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use gantry_proto::shim::v1 as wire;
use gantry_proto::types::v1 as types;
use prost_types::Timestamp;
use tokio::sync::{Notify, OwnedMutexGuard, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status, Streaming};
use wire::attach_request::Message as FromWindow;
use wire::attach_response::Message as ToWindow;

use crate::container::{Overlay, Stats, TerminalSize, Timing};
use crate::error::{Error, Result};
use crate::exit::{ExitStatus, unix_nanos};
use crate::foreign::{self, Program};
use crate::interfaces;
use crate::log::Limits;
use crate::process::Process;
use crate::shim::{self, Shim};
use crate::stdio::{Input, Item, Opening, Stream, Typist};

/// Version of the protocol; grows with each addition.
const PROTOCOL: u32 = 3;

/// Input is acknowledged whenever so much of it was taken.
const TELL_BYTES: u64 = 64 << 10;

/// How long an earlier connection of a typist may take to be seen as ended.
const SEAT_LIMIT: Duration = Duration::from_secs(5);

/// The service on the shim's socket.
#[derive(Debug)]
pub struct Grpc {
    shim: Arc<Shim>,
}

impl Grpc {
    #[must_use]
    pub fn new(shim: Arc<Shim>) -> Self {
        Self { shim }
    }
}

type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl wire::shim_service_server::ShimService for Grpc {
    async fn create(&self, request: Request<wire::CreateRequest>) -> Answer<wire::CreateResponse> {
        let mut create = shim::Create::try_from(request.into_inner())?;
        let begin = SystemTime::now();
        let (pid, timings) = match create.runtime.take() {
            None => self.shim.create(create)?,
            Some(program) => {
                foreign::whole(foreign::create(self.shim.clone(), create, program)).await?
            }
        };
        let mut steps = vec![step("shim.create", begin)];
        steps.extend(timings.iter().map(|timing| timed(begin, timing)));
        Ok(Response::new(wire::CreateResponse { pid, steps }))
    }

    async fn start(&self, _: Request<wire::StartRequest>) -> Answer<wire::StartResponse> {
        let begin = SystemTime::now();
        let started_at = match self.shim.foreign() {
            None => self.shim.start()?,
            Some(foreign) => foreign::whole(foreign::start(self.shim.clone(), foreign)).await?,
        };
        Ok(Response::new(wire::StartResponse {
            started_at: Some(Timestamp::from(started_at)),
            steps: vec![step("shim.start", begin)],
        }))
    }

    type AttachStream = Pin<
        Box<dyn futures::Stream<Item = std::result::Result<wire::AttachResponse, Status>> + Send>,
    >;

    async fn attach(
        &self,
        request: Request<Streaming<wire::AttachRequest>>,
    ) -> Answer<Self::AttachStream> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|first| first.message);
        let Some(FromWindow::Open(open)) = first else {
            return Err(invalid("message", "the first message must be `open`").into());
        };
        if open.stdin && !open.primary.is_empty() {
            return Err(invalid("stdin", "a primary window does not type").into());
        }
        let process = self.shim.process(&open.exec_id)?;
        if let Some(size) = size(open.terminal_size)? {
            // A window on a process that has ended, or has no terminal, has no
            // size to set.
            let _no_terminal = process.resize(size);
        }
        let closed = Arc::new(Notify::new());
        // Before the window, so that its first byte finds it counted.
        let typing = match open.stdin {
            true => Typing::begin(&process, open.typist).await?,
            false => None,
        };
        let wanted = Opening {
            out: open.stdout,
            err: open.stderr,
            primary: open.primary,
            resume_at: open.resume_at,
        };
        let (window, opened) = process.window(&wanted, closed.clone());
        let attached = ToWindow::Attached(wire::Attached {
            terminal: process.is_terminal(),
            primary: opened.primary,
            resumed: opened.resumed,
            typed: typing.as_ref().map_or(0, Typing::taken),
        });
        let (typed, told) = watch::channel(0);
        tokio::spawn(async move {
            tokio::select! {
                () = closed.notified() => {}
                () = listen(inbound, process, typing, typed, wanted.primary) => {}
            }
        });
        let shown = window.map(|item| Some(ToWindow::from(item)));
        let told = WatchStream::from_changes(told)
            .map(|position| Some(ToWindow::Typed(wire::Received { position })));
        // The window's end is the end, whoever may type on.
        let shown = futures::stream::select(shown.chain(futures::stream::iter([None])), told)
            .take_while(|message| std::future::ready(message.is_some()))
            .filter_map(std::future::ready);
        let outbound = futures::stream::once(async { attached })
            .chain(shown)
            .map(|message| {
                Ok(wire::AttachResponse {
                    message: Some(message),
                })
            });
        Ok(Response::new(Box::pin(outbound)))
    }

    async fn release_window(
        &self,
        request: Request<wire::ReleaseWindowRequest>,
    ) -> Answer<wire::ReleaseWindowResponse> {
        let request = request.into_inner();
        // A process that is forgotten has no windows.
        if let Ok(process) = self.shim.process(&request.exec_id) {
            if !request.primary.is_empty() {
                process.output().release_window(&request.primary);
            }
            if let Some(input) = process.input() {
                input.release(&request.typist);
            }
        }
        Ok(Response::new(wire::ReleaseWindowResponse {}))
    }

    async fn exec(&self, request: Request<wire::ExecRequest>) -> Answer<wire::ExecResponse> {
        let exec = shim::Exec::try_from(request.into_inner())?;
        let pid = match self.shim.foreign() {
            None => self.shim.exec(exec)?,
            Some(foreign) => {
                foreign::whole(foreign::exec(self.shim.clone(), foreign, exec)).await?
            }
        };
        Ok(Response::new(wire::ExecResponse { pid }))
    }

    async fn kill(&self, request: Request<wire::KillRequest>) -> Answer<wire::KillResponse> {
        let request = request.into_inner();
        let signal = i32::try_from(request.signal)
            .ok()
            .filter(|signal| (1..=64).contains(signal))
            .ok_or_else(|| invalid("signal", "must be 1-64"))?;
        let wire::KillRequest { all, group, .. } = request;
        self.shim.kill(&request.exec_id, signal, all, group)?;
        Ok(Response::new(wire::KillResponse {}))
    }

    async fn wait(&self, request: Request<wire::WaitRequest>) -> Answer<wire::WaitResponse> {
        let process = self.shim.process(&request.into_inner().exec_id)?;
        let status = process.exited().await.map(types::ExitStatus::from);
        Ok(Response::new(wire::WaitResponse { status }))
    }

    async fn state(&self, _: Request<wire::StateRequest>) -> Answer<wire::StateResponse> {
        let report = self.shim.report();
        Ok(Response::new(wire::StateResponse {
            container_id: report.id,
            status: wire::Status::from(report.status).into(),
            pid: report.pid,
            started_at: report.started_at.map(Timestamp::from),
            exit: report.exit.map(types::ExitStatus::from),
            exec_ids: report.exec_ids,
            protocol: PROTOCOL,
            log_lines_dropped: report.log_lines_dropped,
            sick: report.sick,
        }))
    }

    async fn resize(&self, request: Request<wire::ResizeRequest>) -> Answer<wire::ResizeResponse> {
        let request = request.into_inner();
        let size = size(request.size)?.ok_or_else(|| invalid("size", "is absent"))?;
        self.shim.process(&request.exec_id)?.resize(size)?;
        Ok(Response::new(wire::ResizeResponse {}))
    }

    async fn pause(&self, _: Request<wire::PauseRequest>) -> Answer<wire::PauseResponse> {
        match self.shim.foreign() {
            None => self.shim.pause()?,
            Some(foreign) => foreign::whole(foreign::pause(self.shim.clone(), foreign)).await?,
        }
        Ok(Response::new(wire::PauseResponse {}))
    }

    async fn resume(&self, _: Request<wire::ResumeRequest>) -> Answer<wire::ResumeResponse> {
        match self.shim.foreign() {
            None => self.shim.resume()?,
            Some(foreign) => foreign::whole(foreign::resume(self.shim.clone(), foreign)).await?,
        }
        Ok(Response::new(wire::ResumeResponse {}))
    }

    async fn update(&self, request: Request<wire::UpdateRequest>) -> Answer<wire::UpdateResponse> {
        let resources = json("resources", &request.into_inner().resources)?;
        match self.shim.foreign() {
            None => self.shim.update(&resources)?,
            Some(foreign) => {
                let verb = foreign::update(self.shim.clone(), foreign, resources);
                foreign::whole(verb).await?;
            }
        }
        Ok(Response::new(wire::UpdateResponse {}))
    }

    async fn stats(&self, _: Request<wire::StatsRequest>) -> Answer<wire::StatsResponse> {
        let (stats, pid) = self.shim.stats()?;
        let network = interfaces::read(pid);
        Ok(Response::new(counters(&stats, network)))
    }

    async fn pids(&self, _: Request<wire::PidsRequest>) -> Answer<wire::PidsResponse> {
        let pids = self.shim.pids()?;
        Ok(Response::new(wire::PidsResponse { pids }))
    }

    async fn shutdown(
        &self,
        request: Request<wire::ShutdownRequest>,
    ) -> Answer<wire::ShutdownResponse> {
        self.shim.shutdown(request.into_inner().force).await?;
        Ok(Response::new(wire::ShutdownResponse {}))
    }
}

/// A window's right to type.
enum Typing {
    Usual(Typist),
    /// It outlives the connection.
    Named {
        typist: OwnedMutexGuard<Typist>,
        _kept: KeptName,
    },
}

/// Keeps a typist's name for a while once its connection has ended.
struct KeptName {
    input: Arc<Input>,
    name: String,
    opening: u64,
}

impl Drop for KeptName {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.name);
        self.input.keep_for_a_while(name, self.opening);
    }
}

impl Typing {
    /// `None`: the process has no standard input.
    async fn begin(process: &Process, name: String) -> Result<Option<Self>> {
        let Some(input) = process.input() else {
            return Ok(None);
        };
        if name.is_empty() {
            return Ok(Some(Self::Usual(input.typist())));
        }
        let (seat, opening) = input.named(&name);
        let kept = KeptName {
            input: input.clone(),
            name,
            opening,
        };
        // An earlier connection lets go of it when it ends.
        let typist = timeout(SEAT_LIMIT, seat.lock_owned())
            .await
            .map_err(|_| invalid("typist", "types over another connection"))?;
        Ok(Some(Self::Named {
            typist,
            _kept: kept,
        }))
    }

    fn typist(&mut self) -> &mut Typist {
        match self {
            Self::Usual(typist) => typist,
            Self::Named { typist, .. } => typist,
        }
    }

    fn taken(&self) -> u64 {
        match self {
            Self::Usual(typist) => typist.taken(),
            Self::Named { typist, .. } => typist.taken(),
        }
    }
}

/// Takes what a window types until it goes.
async fn listen(
    mut inbound: Streaming<wire::AttachRequest>,
    process: Arc<Process>,
    mut typing: Option<Typing>,
    typed: watch::Sender<u64>,
    primary: String,
) {
    let mut told = typing.as_ref().map_or(0, Typing::taken);
    while let Ok(Some(request)) = inbound.message().await {
        match request.message {
            Some(FromWindow::Stdin(data)) => {
                if let Some(typing) = &mut typing {
                    typing.typist().enter(data).await;
                    let taken = typing.taken();
                    if matches!(typing, Typing::Named { .. }) && taken - told >= TELL_BYTES {
                        told = taken;
                        typed.send_replace(taken);
                    }
                }
            }
            Some(FromWindow::StdinClose(_)) => {
                if let Some(typing) = &mut typing {
                    typing.typist().close().await;
                }
            }
            Some(FromWindow::Resize(wanted)) => {
                if let Ok(Some(size)) = size(Some(wanted)) {
                    // The process may have ended just now.
                    let _ended = process.resize(size);
                }
            }
            Some(FromWindow::Received(received)) => {
                process.output().acknowledge(&primary, received.position);
            }
            // A message of a newer protocol, or a second `open`: not ours.
            Some(FromWindow::Open(_)) | None => {}
        }
    }
    // The window may read on: its right to type ends with the window itself.
    std::future::pending::<()>().await;
}

fn invalid(field: &'static str, problem: impl Into<String>) -> Error {
    Error::Invalid {
        field,
        problem: problem.into(),
    }
}

fn json<T: serde::de::DeserializeOwned>(field: &'static str, text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(|error| invalid(field, error.to_string()))
}

fn named(user: String) -> Option<String> {
    (!user.is_empty()).then_some(user)
}

fn size(size: Option<types::TerminalSize>) -> Result<Option<TerminalSize>> {
    let Some(size) = size else {
        return Ok(None);
    };
    let cells = |count: u32| {
        u16::try_from(count).map_err(|_| invalid("terminal_size", format!("{count} is too much")))
    };
    Ok(Some(TerminalSize {
        width: cells(size.columns)?,
        height: cells(size.rows)?,
    }))
}

impl TryFrom<wire::CreateRequest> for shim::Create {
    type Error = Error;

    fn try_from(request: wire::CreateRequest) -> Result<Self> {
        let log = match request.log {
            Some(log) if !log.enabled => None,
            log => {
                let mut limits = Limits::default();
                if let Some(bytes) = log.map(|log| log.max_segment_bytes).filter(|b| *b > 0) {
                    limits.segment_bytes = bytes;
                }
                if let Some(segments) = log.map(|log| log.max_segments).filter(|s| *s > 0) {
                    limits.segments = segments;
                }
                Some((PathBuf::from(request.log_dir), limits))
            }
        };
        Ok(Self {
            id: request.container_id,
            spec: json("spec", &request.spec)?,
            overlay: request.rootfs.map(overlay),
            user: named(request.user),
            stdin: request.stdin,
            stdin_once: request.stdin_once,
            size: size(request.terminal_size)?,
            log,
            bundle: PathBuf::from(request.bundle_dir),
            runtime: request.runtime.map(Program::try_from).transpose()?,
        })
    }
}

impl TryFrom<wire::Runtime> for Program {
    type Error = Error;

    fn try_from(runtime: wire::Runtime) -> Result<Self> {
        let path = PathBuf::from(runtime.path);
        if !path.is_absolute() {
            return Err(invalid("runtime", format!("{path:?} is not absolute")));
        }
        Ok(Self {
            name: runtime.name,
            path,
            args: runtime.args,
        })
    }
}

fn overlay(rootfs: types::Rootfs) -> Overlay {
    let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
    Overlay {
        lower: rootfs.lower_dirs.into_iter().map(PathBuf::from).collect(),
        upper: path(rootfs.upper_dir),
        work: path(rootfs.work_dir),
        // Some kernels keep an index by default, which gives a file that was changed under one
        // name its other names too. A commit, which reads the layers without it, would not see that.
        options: vec!["index=off".to_owned()],
    }
}

/// Longest name of a process.
const EXEC_ID_MAX: usize = 64;

impl TryFrom<wire::ExecRequest> for shim::Exec {
    type Error = Error;

    fn try_from(request: wire::ExecRequest) -> Result<Self> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let exec_id = request.exec_id;
        if exec_id.is_empty() || exec_id.len() > EXEC_ID_MAX || !exec_id.bytes().all(good) {
            return Err(invalid(
                "exec_id",
                format!("{exec_id:?} is not 1-{EXEC_ID_MAX} characters of [a-zA-Z0-9_.-]"),
            ));
        }
        Ok(Self {
            exec_id,
            process: json("process", &request.process)?,
            user: named(request.user),
            stdin: request.stdin,
            size: size(request.terminal_size)?,
            hold: request.open_window,
        })
    }
}

impl From<Item> for ToWindow {
    fn from(item: Item) -> Self {
        match item {
            Item::Missed(bytes) => Self::Missed(wire::Missed { bytes }),
            Item::Output(stream, data) => {
                let stream = match stream {
                    Stream::Out => types::Stream::Stdout,
                    Stream::Err => types::Stream::Stderr,
                };
                Self::Output(wire::Output {
                    stream: stream.into(),
                    data,
                })
            }
            Item::Exited(status) => Self::Exited(status.into()),
        }
    }
}

impl From<ExitStatus> for types::ExitStatus {
    fn from(status: ExitStatus) -> Self {
        Self {
            exited_at: Some(Timestamp::from(status.exited_at())),
            code: status.code,
            signal: status.signal,
            oom_killed: status.oom_killed,
            error: status.error,
        }
    }
}

impl From<shim::Status> for wire::Status {
    fn from(status: shim::Status) -> Self {
        match status {
            shim::Status::Empty => Self::Empty,
            shim::Status::Created => Self::Created,
            shim::Status::Running => Self::Running,
            shim::Status::Paused => Self::Paused,
            shim::Status::Stopped => Self::Stopped,
        }
    }
}

fn counters(stats: &Stats, network: interfaces::Traffic) -> wire::StatsResponse {
    wire::StatsResponse {
        cpu_nanos: stats.cpu.usage_ns,
        memory_bytes: stats
            .memory
            .usage
            .saturating_sub(stats.memory.inactive_file),
        memory_limit_bytes: stats.memory.limit.unwrap_or(0),
        pids: stats.pids.current,
        pids_limit: stats.pids.limit.unwrap_or(0),
        block_read_bytes: stats.block.read_bytes,
        block_write_bytes: stats.block.write_bytes,
        read_at: Some(Timestamp::from(SystemTime::now())),
        cpu_user_nanos: stats.cpu.user_ns,
        cpu_system_nanos: stats.cpu.system_ns,
        network_rx_bytes: network.received,
        network_tx_bytes: network.sent,
        cpu_pressure: stats.pressure.cpu,
        memory_pressure: stats.pressure.memory,
        io_pressure: stats.pressure.io,
    }
}

fn nanos(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A step that ends now.
fn step(name: &str, begin: SystemTime) -> types::Step {
    let duration = begin.elapsed().unwrap_or_default();
    types::Step {
        name: name.to_owned(),
        start_unix_nanos: nanos(unix_nanos(begin)),
        duration_nanos: i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX),
    }
}

fn timed(begin: SystemTime, timing: &Timing) -> types::Step {
    types::Step {
        name: format!("shim.create.{}", timing.step),
        start_unix_nanos: nanos(unix_nanos(begin).saturating_add(timing.start_ns)),
        duration_nanos: nanos(timing.duration_ns),
    }
}
