//! The runtime service: running containers.

use futures::Stream;
use futures::stream::{BoxStream, StreamExt as _};
use gantry_kit::client::{Client, MESSAGE_LIMIT};
use gantry_kit::pages::ANY_SIZE;
use gantry_proto::runtime::v1 as wire;
use gantry_proto::shim::v1 as shim;
use gantry_proto::types::v1 as types;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use wire::attach_request::Message as ToWindow;
use wire::runtime_service_client::RuntimeServiceClient;

use super::refused;
use crate::container::{ContainerId, Exit, Rootfs, StepTime};
use crate::error::{Error, Peer, Result};
use crate::wanted::LogOptions;
use crate::window::{Attached, Outputs, TerminalSize, WindowInput, WindowOutput};
use crate::wire as common;

/// A file that the engine makes for a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcFile {
    pub path: &'static str,
    pub content: String,
}

/// A container that is to be made.
#[derive(Clone, Debug, Default)]
pub struct ContainerWanted {
    pub spec: Vec<u8>,
    pub rootfs: Rootfs,
    /// As the image names it. Empty: root.
    pub user: String,
    pub stdin: bool,
    pub stdin_once: bool,
    pub terminal_size: Option<TerminalSize>,
    pub log: Option<LogOptions>,
    pub etc_files: Vec<EtcFile>,
    /// The OCI runtime, by name. Empty: the engine's own.
    pub runtime: String,
}

/// One more process in a container.
#[derive(Clone, Debug, Default)]
pub struct ExecWanted {
    pub exec_id: String,
    /// The OCI process object as JSON.
    pub process: Vec<u8>,
    pub user: String,
    pub stdin: bool,
    pub terminal_size: Option<TerminalSize>,
    /// Hold output back until a window is open.
    pub open_window: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiveStatus {
    /// Made, or being made; its program does not run yet.
    Created,
    Running,
    Paused,
    Stopped,
}

/// A container as the runtime sees it.
#[derive(Clone, Debug)]
pub struct Live {
    pub id: String,
    pub status: LiveStatus,
    pub pid: i32,
    pub started: Option<Timestamp>,
    pub exit: Option<Exit>,
    pub sick: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Snapshot,
    SnapshotEnd,
    Exited,
    Paused,
    Resumed,
    Oom,
    Health,
    /// One that this gateway does not act on.
    Other,
}

#[derive(Clone, Debug)]
pub struct RuntimeEvent {
    pub kind: EventKind,
    pub live: Option<Live>,
}

/// What a container uses, passed on as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats(pub shim::StatsResponse);

/// Logged lines, passed on as they came.
#[derive(Clone, Debug, PartialEq)]
pub struct LogBatch(pub wire::LogsResponse);

pub type LogStream = BoxStream<'static, Result<LogBatch>>;
pub type EventStream = BoxStream<'static, Result<RuntimeEvent>>;

/// Which logged lines are wanted.
#[derive(Clone, Debug, Default)]
pub struct LogsWanted {
    pub follow: bool,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub tail: Option<u64>,
    pub stdout: bool,
    pub stderr: bool,
}

/// What deleting a container came to.
#[derive(Clone, Debug, Default)]
pub struct Deleted {
    /// How its program ended, if it was started.
    pub exit: Option<Exit>,
    /// Why its log could not be removed. Empty: it was, or was to stay.
    pub log_left: String,
}

/// Ids of what the runtime holds.
#[derive(Clone, Debug, Default)]
pub struct HeldIds {
    pub containers: Vec<String>,
    pub logs: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Runtimes {
    pub(super) runtime: RuntimeServiceClient<Client>,
}

pub(super) fn error(status: &tonic::Status) -> Error {
    refused(Peer::Runtime, status)
}

fn live(wire: wire::Container) -> Live {
    let status = match wire.status() {
        shim::Status::Running => LiveStatus::Running,
        shim::Status::Paused => LiveStatus::Paused,
        shim::Status::Stopped => LiveStatus::Stopped,
        shim::Status::Created | shim::Status::Empty | shim::Status::Unspecified => {
            LiveStatus::Created
        }
    };
    Live {
        id: wire.container_id,
        status,
        pid: wire.pid,
        started: wire.started_at.as_ref().map(common::timestamp),
        exit: wire.exit.map(common::exit),
        sick: wire.sick,
    }
}

fn event(wire: wire::EventsResponse) -> RuntimeEvent {
    let kind = match wire.r#type() {
        wire::EventType::Snapshot => EventKind::Snapshot,
        wire::EventType::SnapshotEnd => EventKind::SnapshotEnd,
        wire::EventType::Exited => EventKind::Exited,
        wire::EventType::Paused => EventKind::Paused,
        wire::EventType::Resumed => EventKind::Resumed,
        wire::EventType::Oom => EventKind::Oom,
        wire::EventType::Health => EventKind::Health,
        wire::EventType::Created
        | wire::EventType::Started
        | wire::EventType::Deleted
        | wire::EventType::Unspecified => EventKind::Other,
    };
    RuntimeEvent {
        kind,
        live: wire.container.map(live),
    }
}

fn output(wire: shim::AttachResponse) -> Option<WindowOutput> {
    use shim::attach_response::Message;
    Some(match wire.message? {
        Message::Attached(wire) => WindowOutput::Attached(Attached {
            terminal: wire.terminal,
            primary: wire.primary,
            resumed: wire.resumed,
            typed: wire.typed,
        }),
        Message::Output(output) => WindowOutput::Output {
            stream: common::stream(output.stream()),
            data: output.data,
        },
        Message::Missed(missed) => WindowOutput::Missed {
            bytes: missed.bytes,
        },
        Message::Typed(typed) => WindowOutput::Typed {
            position: typed.position,
        },
        Message::Exited(status) => WindowOutput::Exited(common::exit(status)),
    })
}

/// A window on a process' output that is to be opened.
#[derive(Clone, Debug, Default)]
pub struct OutputWanted {
    /// Empty: the container's first process.
    pub exec_id: String,
    pub stdout: bool,
    pub stderr: bool,
    pub terminal_size: Option<TerminalSize>,
    /// Name of a primary window. Empty: a usual one.
    pub primary: String,
    /// Where a primary window goes on that is opened again.
    pub resume_at: Option<u64>,
}

impl Runtimes {
    pub(super) fn new(channel: Client) -> Self {
        Self {
            runtime: RuntimeServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT),
        }
    }

    /// Refuses the name of an OCI runtime that is not there.
    ///
    /// # Errors
    /// It is unknown, or the service fails.
    pub async fn find(&self, name: &str) -> Result<()> {
        let request = wire::FindRuntimeRequest {
            name: name.to_owned(),
        };
        let answer = self.runtime.clone().find_runtime(request).await;
        answer.map(drop).map_err(|status| error(&status))
    }

    /// Makes a container; its program waits. Answers the first process and the
    /// steps it took.
    ///
    /// # Errors
    /// The container cannot be made, or the service fails.
    pub async fn create(
        &self,
        id: &ContainerId,
        wanted: ContainerWanted,
    ) -> Result<(i32, Vec<StepTime>)> {
        let request = wire::CreateRequest {
            container_id: id.to_string(),
            spec: wanted.spec.into(),
            rootfs: Some(common::to_rootfs(&wanted.rootfs)),
            user: wanted.user,
            stdin: wanted.stdin,
            stdin_once: wanted.stdin_once,
            terminal_size: wanted.terminal_size.map(common::to_size),
            log: wanted.log.map(common::to_log),
            etc_files: wanted
                .etc_files
                .into_iter()
                .map(|file| types::EtcFile {
                    path: file.path.to_owned(),
                    content: file.content.into(),
                    mode: 0,
                })
                .collect(),
            runtime: wanted.runtime,
        };
        let answer = self.runtime.clone().create(request).await;
        let answer = answer.map_err(|status| error(&status))?.into_inner();
        let steps = answer.steps.into_iter().map(common::step).collect();
        Ok((answer.pid, steps))
    }

    /// Lets a container's program run. Answers when it does.
    ///
    /// # Errors
    /// The program cannot be executed, or the service fails.
    pub async fn start(&self, id: &ContainerId) -> Result<(Timestamp, Vec<StepTime>)> {
        let request = wire::StartRequest {
            container_id: id.to_string(),
        };
        let answer = self.runtime.clone().start(request).await;
        let answer = answer.map_err(|status| error(&status))?.into_inner();
        let started = answer
            .started_at
            .as_ref()
            .map_or_else(Timestamp::now, common::timestamp);
        Ok((
            started,
            answer.steps.into_iter().map(common::step).collect(),
        ))
    }

    /// Ends a container's shim with all that it made, if there is one; `force`
    /// kills what still runs.
    ///
    /// # Errors
    /// Something runs and `force` is false, or the service fails.
    pub async fn delete(&self, id: &str, force: bool, remove_log: bool) -> Result<Deleted> {
        let request = wire::DeleteRequest {
            container_id: id.to_owned(),
            force,
            remove_log,
        };
        let answer = self.runtime.clone().delete(request).await;
        let answer = answer.map_err(|status| error(&status))?.into_inner();
        Ok(Deleted {
            exit: answer.exit.map(common::exit),
            log_left: answer.log_left,
        })
    }

    /// What the runtime holds: ids of its containers, and of all containers that
    /// have a log.
    ///
    /// # Errors
    /// The service fails.
    pub async fn held(&self) -> Result<HeldIds> {
        let mut request = wire::ListRequest {
            page_size: ANY_SIZE,
            page_token: String::new(),
        };
        let mut held = HeldIds::default();
        loop {
            let answer = self.runtime.clone().list(request.clone()).await;
            let page = answer.map_err(|status| error(&status))?.into_inner();
            let ids = page.containers.into_iter().map(|found| found.container_id);
            held.containers.extend(ids);
            held.logs.extend(page.log_container_ids);
            if page.next_page_token.is_empty() {
                return Ok(held);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Opens a window on a process' output. `receipts` are positions up to which it
    /// was received.
    ///
    /// # Errors
    /// There is no such process, or the service fails.
    pub async fn attach(
        &self,
        id: &ContainerId,
        wanted: OutputWanted,
        receipts: watch::Receiver<u64>,
    ) -> Result<Outputs> {
        let window = shim::AttachOpen {
            exec_id: wanted.exec_id,
            stdin: false,
            stdout: wanted.stdout,
            stderr: wanted.stderr,
            terminal_size: wanted.terminal_size.map(common::to_size),
            primary: wanted.primary,
            resume_at: wanted.resume_at,
            typist: String::new(),
        };
        let receipts = WatchStream::from_changes(receipts)
            .map(|position| ToWindow::Received(shim::Received { position }));
        self.open(id, window, receipts).await
    }

    /// Opens a window on a process' input, under a name by which it can be opened
    /// again. What comes out of it tells what was taken.
    ///
    /// # Errors
    /// There is no such process, or the service fails.
    pub async fn type_into(
        &self,
        id: &ContainerId,
        exec_id: &str,
        typist: &str,
        inputs: mpsc::Receiver<WindowInput>,
    ) -> Result<Outputs> {
        let window = shim::AttachOpen {
            exec_id: exec_id.to_owned(),
            stdin: true,
            typist: typist.to_owned(),
            ..shim::AttachOpen::default()
        };
        let inputs = ReceiverStream::new(inputs).filter_map(|input| async move {
            Some(match input {
                WindowInput::Stdin(data) => ToWindow::Stdin(data),
                WindowInput::StdinClose => ToWindow::StdinClose(shim::StdinClose {}),
                // These go by calls of their own: nothing waits behind input.
                WindowInput::Resize(_) | WindowInput::Signal(_) | WindowInput::Detach => {
                    return None;
                }
            })
        });
        self.open(id, window, inputs).await
    }

    async fn open(
        &self,
        id: &ContainerId,
        window: shim::AttachOpen,
        more: impl Stream<Item = ToWindow> + Send + 'static,
    ) -> Result<Outputs> {
        let first = ToWindow::Open(wire::AttachOpen {
            container_id: id.to_string(),
            window: Some(window),
        });
        let requests = futures::stream::once(async { first })
            .chain(more)
            .map(|message| wire::AttachRequest {
                message: Some(message),
            });
        let answer = self.runtime.clone().attach(requests).await;
        let outputs = answer.map_err(|status| error(&status))?.into_inner();
        Ok(outputs
            .filter_map(|message| async {
                match message {
                    Ok(message) => output(message).map(Ok),
                    Err(status) => Some(Err(error(&status))),
                }
            })
            .boxed())
    }

    /// Sets the size of a process' terminal; empty `exec_id`: the container's first.
    ///
    /// # Errors
    /// It has no terminal or has ended, or the service fails.
    pub async fn resize(&self, id: &ContainerId, exec_id: &str, size: TerminalSize) -> Result<()> {
        let request = wire::ResizeRequest {
            container_id: id.to_string(),
            exec_id: exec_id.to_owned(),
            size: Some(common::to_size(size)),
        };
        let answer = self.runtime.clone().resize(request).await;
        answer.map(|_resized| ()).map_err(|status| error(&status))
    }

    /// Runs one more process in a container. Answers its pid.
    ///
    /// # Errors
    /// The program cannot be executed, or the service fails.
    pub async fn exec(&self, id: &ContainerId, wanted: ExecWanted) -> Result<i32> {
        let request = wire::ExecRequest {
            container_id: id.to_string(),
            exec_id: wanted.exec_id,
            process: wanted.process.into(),
            user: wanted.user,
            stdin: wanted.stdin,
            terminal_size: wanted.terminal_size.map(common::to_size),
            open_window: wanted.open_window,
        };
        let answer = self.runtime.clone().exec(request).await;
        Ok(answer.map_err(|status| error(&status))?.into_inner().pid)
    }

    /// Waits for a process that `exec` started to end.
    ///
    /// # Errors
    /// There is no such process, or the service fails.
    pub async fn wait(&self, id: &ContainerId, exec_id: &str) -> Result<Exit> {
        let request = wire::WaitRequest {
            container_id: id.to_string(),
            exec_id: exec_id.to_owned(),
        };
        let answer = self.runtime.clone().wait(request).await;
        let answer = answer.map_err(|status| error(&status))?.into_inner();
        Ok(common::exit(answer.status.unwrap_or_default()))
    }

    /// Sends a signal to a process; empty `exec_id`: the container's first.
    ///
    /// # Errors
    /// There is no such process, or the service fails.
    pub async fn kill(&self, id: &ContainerId, exec_id: &str, signal: u32) -> Result<()> {
        self.signal(wire::KillRequest {
            container_id: id.to_string(),
            exec_id: exec_id.to_owned(),
            signal,
            ..wire::KillRequest::default()
        })
        .await
    }

    /// Sends a signal to a process that `exec` started, and to its whole group.
    ///
    /// # Errors
    /// There is no such process, or the service fails.
    pub async fn kill_group(&self, id: &ContainerId, exec_id: &str, signal: u32) -> Result<()> {
        self.signal(wire::KillRequest {
            container_id: id.to_string(),
            exec_id: exec_id.to_owned(),
            signal,
            group: true,
            ..wire::KillRequest::default()
        })
        .await
    }

    async fn signal(&self, request: wire::KillRequest) -> Result<()> {
        let answer = self.runtime.clone().kill(request).await;
        answer.map(|_sent| ()).map_err(|status| error(&status))
    }

    /// Freezes a container's processes.
    ///
    /// # Errors
    /// It does not run, or the service fails.
    pub async fn pause(&self, id: &ContainerId) -> Result<()> {
        let request = wire::PauseRequest {
            container_id: id.to_string(),
        };
        let answer = self.runtime.clone().pause(request).await;
        answer.map(|_paused| ()).map_err(|status| error(&status))
    }

    /// Thaws a container's processes.
    ///
    /// # Errors
    /// It is not paused, or the service fails.
    pub async fn resume(&self, id: &ContainerId) -> Result<()> {
        let request = wire::ResumeRequest {
            container_id: id.to_string(),
        };
        let answer = self.runtime.clone().resume(request).await;
        answer.map(|_resumed| ()).map_err(|status| error(&status))
    }

    /// Changes the limits of a running container: the OCI `linux.resources`
    /// object; what is absent in it stays as it is.
    ///
    /// # Errors
    /// It does not run, the kernel refuses, or the service fails.
    pub async fn update(&self, id: &ContainerId, resources: Vec<u8>) -> Result<()> {
        let request = wire::UpdateRequest {
            container_id: id.to_string(),
            resources: resources.into(),
        };
        let answer = self.runtime.clone().update(request).await;
        answer.map(|_updated| ()).map_err(|status| error(&status))
    }

    /// What a container uses now.
    ///
    /// # Errors
    /// It does not run, or the service fails.
    pub async fn stats(&self, id: &ContainerId) -> Result<Stats> {
        let request = wire::StatsRequest {
            container_id: id.to_string(),
        };
        let answer = self.runtime.clone().stats(request).await;
        let answer = answer.map_err(|status| error(&status))?.into_inner();
        Ok(Stats(answer.stats.unwrap_or_default()))
    }

    /// The container's processes, as the host sees them.
    ///
    /// # Errors
    /// It does not run, or the service fails.
    pub async fn pids(&self, id: &ContainerId) -> Result<Vec<i32>> {
        let request = wire::PidsRequest {
            container_id: id.to_string(),
        };
        let answer = self.runtime.clone().pids(request).await;
        Ok(answer.map_err(|status| error(&status))?.into_inner().pids)
    }

    /// Logged output, as wanted.
    ///
    /// # Errors
    /// The service fails.
    pub async fn logs(&self, id: &ContainerId, wanted: &LogsWanted) -> Result<LogStream> {
        let request = wire::LogsRequest {
            container_id: id.to_string(),
            follow: wanted.follow,
            since: wanted.since.map(common::to_timestamp),
            until: wanted.until.map(common::to_timestamp),
            tail: wanted.tail,
            stdout: wanted.stdout,
            stderr: wanted.stderr,
        };
        let answer = self.runtime.clone().logs(request).await;
        let batches = answer.map_err(|status| error(&status))?.into_inner();
        Ok(batches
            .map(|batch| batch.map(LogBatch).map_err(|status| error(&status)))
            .boxed())
    }

    /// All containers as they are, then what happens to them.
    ///
    /// # Errors
    /// The service fails.
    pub async fn events(&self) -> Result<EventStream> {
        let answer = self.runtime.clone().events(wire::EventsRequest {}).await;
        let events = answer.map_err(|status| error(&status))?.into_inner();
        Ok(events
            .map(|message| message.map(event).map_err(|status| error(&status)))
            .boxed())
    }
}
