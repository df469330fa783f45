//! `gantry.runtime.v1` on the wire: requests in, domain types out.

mod copy;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt as _};
use gantry_kit::pages::{self, PageAsked};
use gantry_kit::telemetry::record_step;
use gantry_proto::runtime::v1 as wire;
use gantry_proto::shim::v1 as shim_wire;
use gantry_proto::types::v1 as types;
use prost_types::Timestamp;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status as RpcStatus, Streaming};

use crate::bundle::EtcFile;
use crate::error::Error;
use crate::files::Place;
use crate::life::{Container, ExitStatus, Status, unix_nanos};
use crate::logs;
use crate::roster::{Event, Happened};
use crate::runtime::{Create, Runtime, Timed, check_id};
use crate::shim::CALL_LIMIT;

/// Full name of the service.
pub const NAME: &str = "gantry.runtime.v1.RuntimeService";

/// The service on the socket.
#[derive(Debug)]
pub struct Grpc {
    runtime: Arc<Runtime>,
}

impl Grpc {
    #[must_use]
    pub fn new(runtime: Arc<Runtime>) -> Self {
        Self { runtime }
    }
}

type Answer<T> = Result<Response<T>, RpcStatus>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, RpcStatus>> + Send>>;

/// Forwards a call as it is to a container's shim.
macro_rules! forward {
    ($self:ident, $id:expr, $method:ident, $request:expr) => {{
        let shim = $self.runtime.roster.shim(&$id)?;
        let request = $request;
        $self
            .runtime
            .forward(&shim, CALL_LIMIT, |mut client| async move {
                client.$method(request).await
            })
            .await?
    }};
}

#[tonic::async_trait]
impl wire::runtime_service_server::RuntimeService for Grpc {
    async fn create(&self, request: Request<wire::CreateRequest>) -> Answer<wire::CreateResponse> {
        let begin = SystemTime::now();
        let (pid, shim_steps, own) = self.runtime.create(request.into_inner().into()).await?;
        let mut steps = vec![step(&Timed {
            name: "runtime.create".to_owned(),
            start: begin,
            duration: begin.elapsed().unwrap_or_default(),
        })];
        steps.extend(own.iter().map(step));
        steps.extend(shim_steps);
        record(&steps[1..]);
        Ok(Response::new(wire::CreateResponse { pid, steps }))
    }

    async fn start(&self, request: Request<wire::StartRequest>) -> Answer<wire::StartResponse> {
        let (started_at, steps) = self
            .runtime
            .start(&request.into_inner().container_id)
            .await?;
        record(&steps);
        Ok(Response::new(wire::StartResponse {
            started_at: Some(Timestamp::from(started_at)),
            steps,
        }))
    }

    type AttachStream = crate::attach::Window;

    async fn attach(
        &self,
        request: Request<Streaming<wire::AttachRequest>>,
    ) -> Answer<Self::AttachStream> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|first| first.message);
        let Some(wire::attach_request::Message::Open(open)) = first else {
            return Err(Error::Invalid {
                field: "message",
                problem: "the first message must be `open`".to_owned(),
            }
            .into());
        };
        Ok(Response::new(self.runtime.attach(open, inbound).await?))
    }

    async fn exec(&self, request: Request<wire::ExecRequest>) -> Answer<wire::ExecResponse> {
        let request = request.into_inner();
        let answer = forward!(
            self,
            request.container_id,
            exec,
            shim_wire::ExecRequest {
                exec_id: request.exec_id,
                process: request.process,
                user: request.user,
                stdin: request.stdin,
                terminal_size: request.terminal_size,
                open_window: request.open_window,
            }
        );
        Ok(Response::new(wire::ExecResponse { pid: answer.pid }))
    }

    async fn kill(&self, request: Request<wire::KillRequest>) -> Answer<wire::KillResponse> {
        let request = request.into_inner();
        forward!(
            self,
            request.container_id,
            kill,
            shim_wire::KillRequest {
                exec_id: request.exec_id,
                signal: request.signal,
                all: request.all,
                group: request.group,
            }
        );
        Ok(Response::new(wire::KillResponse {}))
    }

    async fn wait(&self, request: Request<wire::WaitRequest>) -> Answer<wire::WaitResponse> {
        let request = request.into_inner();
        let status = self
            .runtime
            .wait(&request.container_id, &request.exec_id)
            .await?;
        Ok(Response::new(wire::WaitResponse {
            status: Some(status.into()),
        }))
    }

    async fn resize(&self, request: Request<wire::ResizeRequest>) -> Answer<wire::ResizeResponse> {
        let request = request.into_inner();
        forward!(
            self,
            request.container_id,
            resize,
            shim_wire::ResizeRequest {
                exec_id: request.exec_id,
                size: request.size,
            }
        );
        Ok(Response::new(wire::ResizeResponse {}))
    }

    async fn pause(&self, request: Request<wire::PauseRequest>) -> Answer<wire::PauseResponse> {
        self.runtime
            .pause(&request.into_inner().container_id)
            .await?;
        Ok(Response::new(wire::PauseResponse {}))
    }

    async fn resume(&self, request: Request<wire::ResumeRequest>) -> Answer<wire::ResumeResponse> {
        self.runtime
            .resume(&request.into_inner().container_id)
            .await?;
        Ok(Response::new(wire::ResumeResponse {}))
    }

    async fn update(&self, request: Request<wire::UpdateRequest>) -> Answer<wire::UpdateResponse> {
        let request = request.into_inner();
        forward!(
            self,
            request.container_id,
            update,
            shim_wire::UpdateRequest {
                resources: request.resources,
            }
        );
        Ok(Response::new(wire::UpdateResponse {}))
    }

    async fn stats(&self, request: Request<wire::StatsRequest>) -> Answer<wire::StatsResponse> {
        let stats = forward!(
            self,
            request.into_inner().container_id,
            stats,
            shim_wire::StatsRequest {}
        );
        Ok(Response::new(wire::StatsResponse { stats: Some(stats) }))
    }

    async fn pids(&self, request: Request<wire::PidsRequest>) -> Answer<wire::PidsResponse> {
        let answer = forward!(
            self,
            request.into_inner().container_id,
            pids,
            shim_wire::PidsRequest {}
        );
        Ok(Response::new(wire::PidsResponse { pids: answer.pids }))
    }

    async fn delete(&self, request: Request<wire::DeleteRequest>) -> Answer<wire::DeleteResponse> {
        let request = request.into_inner();
        let deleted = self
            .runtime
            .delete(&request.container_id, request.force, request.remove_log)
            .await?;
        Ok(Response::new(wire::DeleteResponse {
            deleted: deleted.existed,
            exit: deleted.exit.map(Into::into),
            log_left: deleted.log_left,
        }))
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Answer<wire::GetResponse> {
        let container = self
            .runtime
            .roster
            .get(&request.into_inner().container_id)?;
        Ok(Response::new(wire::GetResponse {
            container: Some(container.into()),
        }))
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Answer<wire::ListResponse> {
        let request = request.into_inner();
        let asked = PageAsked {
            size: request.page_size,
            token: &request.page_token,
        };
        // Before the containers: a log of one that is made meanwhile has its owner.
        let log_container_ids = if request.page_token.is_empty() {
            self.runtime.logs()?
        } else {
            Vec::new()
        };
        let containers = self.runtime.roster.list();
        let place = |container: &Container| container.id.clone();
        let page = pages::page(containers, asked, place, wire::Container::from);
        Ok(Response::new(wire::ListResponse {
            containers: page.entries,
            next_page_token: page.next_token,
            log_container_ids,
        }))
    }

    type LogsStream = Answers<wire::LogsResponse>;

    async fn logs(&self, request: Request<wire::LogsRequest>) -> Answer<Self::LogsStream> {
        let request = request.into_inner();
        let id = request.container_id;
        check_id(&id)?;
        let shim = self.runtime.roster.shim(&id).ok();
        let directory = self.runtime.log_directory(&id);
        // Logs outlive their containers: of one that is gone, or was never
        // here, nothing was logged, and that is no error.
        if shim.is_some() && !directory.is_dir() {
            return Err(Error::NoLog { id }.into());
        }
        let time = |time: Option<Timestamp>| time.and_then(|time| SystemTime::try_from(time).ok());
        let query = logs::Query {
            since: time(request.since),
            until: time(request.until),
            tail: request.tail,
            out: request.stdout,
            err: request.stderr,
        };
        let (batches, received) = logs::queue();
        match shim {
            Some(shim) if request.follow => {
                tokio::spawn(async move {
                    let ended = async { drop(shim.exited().await) };
                    logs::follow(directory, query, batches, ended).await;
                });
            }
            _ => {
                tokio::task::spawn_blocking(move || logs::read(&directory, &query, &batches));
            }
        }
        let state = Some((received, self.runtime.stopping.clone()));
        let answers = futures::stream::unfold(state, |state| async {
            let (mut received, stopping) = state?;
            let batch = tokio::select! {
                batch = received.recv() => batch?,
                () = stopping.cancelled() => return Some((Err(Error::Stopping.into()), None)),
            };
            let answer = batch
                .map(|entries| wire::LogsResponse {
                    entries: entries.into_iter().map(Into::into).collect(),
                })
                .map_err(RpcStatus::from);
            Some((answer, Some((received, stopping))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    type EventsStream = Answers<wire::EventsResponse>;

    async fn events(&self, _: Request<wire::EventsRequest>) -> Answer<Self::EventsStream> {
        let (containers, events) = self.runtime.roster.follow();
        let now = Some(Timestamp::from(SystemTime::now()));
        let snapshot = containers
            .into_iter()
            .map(move |container| wire::EventsResponse {
                r#type: wire::EventType::Snapshot.into(),
                container: Some(container.into()),
                time: now,
            });
        let end = wire::EventsResponse {
            r#type: wire::EventType::SnapshotEnd.into(),
            container: None,
            time: now,
        };
        let after = futures::stream::unfold(Some(events), |events| async {
            let mut events = events?;
            match events.recv().await {
                Ok(event) => Some((Ok(event.into()), Some(events))),
                Err(RecvError::Lagged(_)) => Some((Err(Error::Lagged.into()), None)),
                Err(RecvError::Closed) => None,
            }
        });
        let snapshot = snapshot.chain([end]).map(Ok).collect::<Vec<_>>();
        let answers = futures::stream::iter(snapshot)
            .chain(after)
            .take_until(self.runtime.stopping.clone().cancelled_owned());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn stat_path(
        &self,
        request: Request<wire::StatPathRequest>,
    ) -> Answer<wire::StatPathResponse> {
        let wire::StatPathRequest {
            container_id,
            path,
            follow,
        } = request.into_inner();
        let found = self
            .runtime
            .stat_path(&container_id, Place { path, follow });
        Ok(Response::new(wire::StatPathResponse {
            stat: Some(found.await?.into()),
        }))
    }

    type CopyOutStream = Answers<wire::CopyOutResponse>;

    async fn copy_out(
        &self,
        request: Request<wire::CopyOutRequest>,
    ) -> Answer<Self::CopyOutStream> {
        let wire::CopyOutRequest {
            container_id,
            path,
            follow,
            name,
        } = request.into_inner();
        let place = Place { path, follow };
        let answers = copy::out(&self.runtime, &container_id, place, name).await?;
        Ok(Response::new(answers))
    }

    async fn copy_in(
        &self,
        request: Request<Streaming<wire::CopyInRequest>>,
    ) -> Answer<wire::CopyInResponse> {
        copy::into(&self.runtime, request.into_inner()).await?;
        Ok(Response::new(wire::CopyInResponse {}))
    }

    async fn find_runtime(
        &self,
        request: Request<wire::FindRuntimeRequest>,
    ) -> Answer<wire::FindRuntimeResponse> {
        let runtime = self.runtime.programs.find(&request.into_inner().name)?;
        Ok(Response::new(wire::FindRuntimeResponse { runtime }))
    }
}

/// Shows the steps as spans, too.
fn record(steps: &[types::Step]) {
    for step in steps {
        let nanos = |count: i64| Duration::from_nanos(u64::try_from(count).unwrap_or(0));
        let start = SystemTime::UNIX_EPOCH + nanos(step.start_unix_nanos);
        record_step(&step.name, start, nanos(step.duration_nanos));
    }
}

fn step(timed: &Timed) -> types::Step {
    types::Step {
        name: timed.name.clone(),
        start_unix_nanos: i64::try_from(unix_nanos(timed.start)).unwrap_or(i64::MAX),
        duration_nanos: i64::try_from(timed.duration.as_nanos()).unwrap_or(i64::MAX),
    }
}

impl From<wire::CreateRequest> for Create {
    fn from(request: wire::CreateRequest) -> Self {
        let etc_files = request.etc_files.into_iter().map(|file| EtcFile {
            path: file.path,
            content: file.content.into(),
            mode: file.mode,
        });
        Self {
            etc_files: etc_files.collect(),
            runtime: request.runtime,
            shim: shim_wire::CreateRequest {
                container_id: request.container_id,
                spec: request.spec,
                rootfs: request.rootfs,
                user: request.user,
                stdin: request.stdin,
                terminal_size: request.terminal_size,
                log: request.log,
                stdin_once: request.stdin_once,
                // The runtime's own to say.
                runtime: None,
                log_dir: String::new(),
                bundle_dir: String::new(),
            },
        }
    }
}

impl From<Container> for wire::Container {
    fn from(container: Container) -> Self {
        let status = match container.status {
            Status::Empty => shim_wire::Status::Empty,
            Status::Created => shim_wire::Status::Created,
            Status::Running => shim_wire::Status::Running,
            Status::Paused => shim_wire::Status::Paused,
            Status::Stopped => shim_wire::Status::Stopped,
        };
        Self {
            container_id: container.id,
            status: status.into(),
            pid: container.pid,
            shim_pid: container.shim_pid,
            created_at: Some(Timestamp::from(container.created_at)),
            started_at: container.started_at.map(Timestamp::from),
            exit: container.exit.map(Into::into),
            sick: container.sick,
        }
    }
}

impl From<ExitStatus> for types::ExitStatus {
    fn from(exit: ExitStatus) -> Self {
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(exit.exited_unix_nanos);
        Self {
            code: exit.code,
            signal: exit.signal,
            oom_killed: exit.oom_killed,
            exited_at: Some(Timestamp::from(at)),
            error: exit.error,
        }
    }
}

impl From<types::ExitStatus> for ExitStatus {
    fn from(exit: types::ExitStatus) -> Self {
        let at = exit.exited_at.and_then(|at| SystemTime::try_from(at).ok());
        Self {
            code: exit.code,
            signal: exit.signal,
            oom_killed: exit.oom_killed,
            exited_unix_nanos: at.map_or(0, unix_nanos),
            error: exit.error,
        }
    }
}

impl From<logs::Entry> for wire::LogEntry {
    fn from(entry: logs::Entry) -> Self {
        let stream = match entry.stream {
            logs::Stream::Out => types::Stream::Stdout,
            logs::Stream::Err => types::Stream::Stderr,
        };
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(entry.time);
        Self {
            time: Some(Timestamp::from(time)),
            stream: stream.into(),
            data: entry.data,
            gap: entry.gap.map(|gap| wire::LogGap {
                lines: gap.lines,
                bytes: gap.bytes,
                reason: gap.reason,
            }),
        }
    }
}

impl From<Event> for wire::EventsResponse {
    fn from(event: Event) -> Self {
        let happened = match event.happened {
            Happened::Created => wire::EventType::Created,
            Happened::Started => wire::EventType::Started,
            Happened::Exited => wire::EventType::Exited,
            Happened::Deleted => wire::EventType::Deleted,
            Happened::Paused => wire::EventType::Paused,
            Happened::Resumed => wire::EventType::Resumed,
            Happened::OutOfMemory => wire::EventType::Oom,
            Happened::Health => wire::EventType::Health,
        };
        Self {
            r#type: happened.into(),
            container: Some(event.container.into()),
            time: Some(Timestamp::from(event.time)),
        }
    }
}
