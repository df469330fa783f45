//! A gateway that knows one container, and programs whose behaviour is their
//! name, on a Unix socket of its own.

use std::io::Write as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Command, Output as ProcessOutput, Stdio};
use std::sync::{Arc, Mutex};

use gantry_kit::fault::Fault;
use gantry_proto::gateway::v1::container_service_server::{
    ContainerService, ContainerServiceServer,
};
use gantry_proto::gateway::v1::run_request::Message as Asked;
use gantry_proto::gateway::v1::run_response::Message as Answer;
use gantry_proto::gateway::v1::*;
use gantry_proto::image::v1::image_service_server::{ImageService, ImageServiceServer};
use gantry_proto::image::v1::{self as image, Image};
use gantry_proto::network::v1::{Endpoint, PortMapping};
use gantry_proto::runtime::v1::{
    CopyInResponse, CopyOutResponse, LogEntry, LogsResponse, StatPathResponse,
};
use gantry_proto::shim::v1::{AttachResponse, Missed, Output};
use gantry_proto::types::v1::{ExitStatus, Step, Stream};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream as Answers;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Code, Request, Response, Status, Streaming};

pub(crate) const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

type Stream2<T> = Pin<Box<dyn Answers<Item = Result<T, Status>> + Send>>;

/// What the gateway was asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<RunOpen>>>, Arc<watch::Sender<Vec<String>>>);

impl Seen {
    /// Waits for a signal that was passed on by a call of its own.
    async fn signal(&self, number: &str) {
        let mut signals = self.1.subscribe();
        let came = signals.wait_for(|signals| signals.iter().any(|signal| signal == number));
        came.await.unwrap();
    }

    /// Waits for any signal.
    async fn any_signal(&self) -> String {
        let mut signals = self.1.subscribe();
        let signals = signals.wait_for(|signals| !signals.is_empty()).await;
        signals.unwrap()[0].clone()
    }

    pub(crate) fn last(&self) -> RunOpen {
        self.0.lock().unwrap().last().cloned().expect("a run")
    }
}

pub(crate) struct Gateway {
    _runtime: tokio::runtime::Runtime,
    directory: tempfile::TempDir,
    pub(crate) seen: Seen,
}

impl Gateway {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let seen = Seen::default();
        let path = directory.path().join("gateway.sock");
        let listener = {
            let _entered = runtime.enter();
            UnixListener::bind(path).unwrap()
        };
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(ContainerServiceServer::new(Fake(seen.clone())))
                .add_service(ImageServiceServer::new(FakeImages))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self {
            _runtime: runtime,
            directory,
            seen,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let socket = self.path("gateway.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_gantry"));
        command
            .arg(format!("--host=unix://{}", socket.display()))
            .args(arguments)
            .env_remove("GANTRY_ROOT")
            .env_remove("GANTRY_HOST")
            .env("DOCKER_CONFIG", self.path("docker"))
            .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn gantry(&self, arguments: &[&str]) -> Outcome {
        self.command(arguments).output().unwrap().into()
    }

    pub(crate) fn gantry_with_input(&self, arguments: &[&str], input: &[u8]) -> Outcome {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap().into()
    }
}

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<ProcessOutput> for Outcome {
    fn from(output: ProcessOutput) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub(crate) fn web() -> ContainerSummary {
    let mut web = ContainerSummary {
        id: ID.to_owned(),
        name: "web".to_owned(),
        image: "debian:12".to_owned(),
        image_id: format!("sha256:{ID}"),
        command: ["sleep", "a-long-argument-to-cut"]
            .map(str::to_owned)
            .to_vec(),
        created: Some(prost_types::Timestamp {
            seconds: 1_577_836_800,
            nanos: 0,
        }),
        started_at: Some(prost_types::Timestamp {
            seconds: 1_577_836_801,
            nanos: 500_000_000,
        }),
        ports: vec![PortMapping {
            host_port: 8080,
            container_port: 80,
            ..PortMapping::default()
        }],
        labels: [("tier".to_owned(), "front".to_owned())].into(),
        network_mode: "bridge".to_owned(),
        ip_address: "10.66.0.5".to_owned(),
        ..ContainerSummary::default()
    };
    web.set_state(ContainerState::Running);
    web
}

fn not_found(name: &str) -> Status {
    Fault::new(
        Code::NotFound,
        "gantry.gateway",
        "CONTAINER_NOT_FOUND",
        format!("there is no container {name:?}"),
    )
    .into()
}

fn known(name: &str) -> Result<(), Status> {
    if name == "web" || (!name.is_empty() && ID.starts_with(name)) {
        Ok(())
    } else {
        Err(not_found(name))
    }
}

struct Fake(Seen);

// As `async_trait` would write it: it does not see into macros.
macro_rules! unanswered {
    ($($name:ident($request:ty) -> $response:ty;)*) => {
        $(
            fn $name<'life, 'answer>(
                &'life self,
                _: Request<$request>,
            ) -> Pin<Box<dyn Future<Output = Result<Response<$response>, Status>> + Send + 'answer>>
            where
                'life: 'answer,
                Self: 'answer,
            {
                Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
            }
        )*
    };
}

#[tonic::async_trait]
impl ContainerService for Fake {
    type RunStream = Stream2<RunResponse>;
    type AttachStream = Stream2<AttachResponse>;
    type ExecStream = Stream2<ExecResponse>;
    type LogsStream = Stream2<LogsResponse>;
    type EventsStream = Stream2<EventsResponse>;
    type DiffStream = Stream2<image::DiffResponse>;
    type ExportStream = Stream2<image::ExportResponse>;
    type CopyOutStream = Stream2<CopyOutResponse>;

    async fn run(
        &self,
        request: Request<Streaming<RunRequest>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let mut requests = request.into_inner();
        let Some(RunRequest {
            message: Some(Asked::Run(open)),
        }) = requests.message().await?
        else {
            return Err(Status::invalid_argument("the first message is run"));
        };
        self.0.0.lock().unwrap().push(open.clone());
        let program = open.config.unwrap_or_default().command;
        let (answers, waiting) = mpsc::channel(16);
        let seen = self.0.clone();
        tokio::spawn(async move { play(&program, requests, answers, seen).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(waiting))))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let containers = vec![web()];
        Ok(Response::new(ListResponse {
            containers,
            ..ListResponse::default()
        }))
    }

    async fn inspect(
        &self,
        request: Request<InspectRequest>,
    ) -> Result<Response<InspectResponse>, Status> {
        known(&request.get_ref().container)?;
        let detail = ContainerDetail {
            summary: Some(web()),
            config: Some(ContainerConfig {
                command: web().command,
                ..ContainerConfig::default()
            }),
            cmd: web().command,
            entrypoint: vec!["/init".to_owned()],
            pid: 42,
            args: [&["/init".to_owned()][..], &web().command].concat(),
            env: vec!["A=1".to_owned()],
            endpoint: Some(Endpoint {
                address: "10.66.0.5/16".to_owned(),
                gateway: "10.66.0.1".to_owned(),
                ports: web().ports,
                ..Endpoint::default()
            }),
            steps: vec![Step {
                name: "image.prepare".to_owned(),
                start_unix_nanos: 5,
                duration_nanos: 2_500_000,
            }],
            ..ContainerDetail::default()
        };
        Ok(Response::new(InspectResponse {
            container: Some(detail),
        }))
    }

    async fn remove(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        known(&request.get_ref().container)?;
        Ok(Response::new(RemoveResponse {
            container_id: ID.to_owned(),
        }))
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        known(&request.get_ref().container)?;
        Ok(Response::new(StopResponse {
            container_id: ID.to_owned(),
        }))
    }

    async fn kill(&self, request: Request<KillRequest>) -> Result<Response<KillResponse>, Status> {
        known(&request.get_ref().container)?;
        let signal = request.into_inner().signal;
        self.0.1.send_modify(|signals| signals.push(signal));
        Ok(Response::new(KillResponse {
            container_id: ID.to_owned(),
        }))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        known(&request.get_ref().container)?;
        Ok(Response::new(WaitResponse {
            status: Some(exit(7)),
        }))
    }

    async fn logs(
        &self,
        request: Request<LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        known(&request.get_ref().container)?;
        let entry = |data: &'static [u8], stream: Stream| LogEntry {
            time: Some(prost_types::Timestamp {
                seconds: 1_577_836_800,
                nanos: 5,
            }),
            stream: stream.into(),
            data: data.into(),
            gap: None,
        };
        let answer = LogsResponse {
            entries: vec![
                entry(b"one\n", Stream::Stdout),
                entry(b"half ", Stream::Stdout),
                entry(b"wrong\n", Stream::Stderr),
                entry(b"line\n", Stream::Stdout),
            ],
        };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(answer)))))
    }

    async fn attach(
        &self,
        _: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::unimplemented("attach"))
    }

    async fn exec(
        &self,
        _: Request<Streaming<ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        Err(Status::unimplemented("exec"))
    }

    async fn events(
        &self,
        _: Request<EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        Err(Status::unimplemented("events"))
    }

    async fn diff(&self, _: Request<DiffRequest>) -> Result<Response<Self::DiffStream>, Status> {
        Err(Status::unimplemented("diff"))
    }

    async fn export(
        &self,
        _: Request<ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        Err(Status::unimplemented("export"))
    }

    async fn copy_out(
        &self,
        _: Request<CopyOutRequest>,
    ) -> Result<Response<Self::CopyOutStream>, Status> {
        Err(Status::unimplemented("copy_out"))
    }

    async fn copy_in(
        &self,
        _: Request<Streaming<CopyInRequest>>,
    ) -> Result<Response<CopyInResponse>, Status> {
        Err(Status::unimplemented("copy_in"))
    }

    unanswered! {
        stat_path(StatPathRequest) -> StatPathResponse;
        update(UpdateRequest) -> UpdateResponse;
        prune(PruneRequest) -> PruneResponse;
        create(CreateRequest) -> CreateResponse;
        start(StartRequest) -> StartResponse;
        restart(RestartRequest) -> RestartResponse;
        resize(ResizeRequest) -> ResizeResponse;
        pause(PauseRequest) -> PauseResponse;
        unpause(UnpauseRequest) -> UnpauseResponse;
        rename(RenameRequest) -> RenameResponse;
        stats(StatsRequest) -> StatsResponse;
        top(TopRequest) -> TopResponse;
        commit(CommitRequest) -> CommitResponse;
    }
}

fn exit(code: i32) -> ExitStatus {
    ExitStatus {
        code,
        ..ExitStatus::default()
    }
}

/// Plays the program that `program` names.
async fn play(
    program: &[String],
    mut requests: Streaming<RunRequest>,
    answers: mpsc::Sender<Result<RunResponse, Status>>,
    seen: Seen,
) {
    let say = async |message: Answer| {
        let _gone = answers
            .send(Ok(RunResponse {
                message: Some(message),
            }))
            .await;
    };
    let write = async |stream: Stream, data: Vec<u8>| {
        say(Answer::Output(Output {
            stream: stream.into(),
            data: data.into(),
        }))
        .await;
    };
    let words: Vec<&str> = program.iter().map(String::as_str).collect();
    if let ["refused", reason] = words.as_slice() {
        let fault = Fault::new(
            Code::FailedPrecondition,
            "gantry.shim",
            reason,
            format!("it failed with {reason}"),
        );
        let _gone = answers.send(Err(fault.into())).await;
        return;
    }
    say(Answer::Created(CreateResponse {
        container_id: ID.to_owned(),
        warnings: Vec::new(),
    }))
    .await;
    say(Answer::Started(Started::default())).await;
    let code = match words.as_slice() {
        ["echo", text] => {
            write(Stream::Stdout, format!("{text}\n").into_bytes()).await;
            write(Stream::Stderr, b"complaint\n".to_vec()).await;
            0
        }
        ["exit", code] => code.parse().unwrap(),
        ["cat"] => loop {
            match requests.message().await.unwrap().and_then(|r| r.message) {
                Some(Asked::Stdin(bytes)) => write(Stream::Stdout, bytes.to_vec()).await,
                Some(Asked::StdinClose(_)) => break 0,
                Some(_) => {}
                None => break 99,
            }
        },
        ["trap"] => {
            write(Stream::Stdout, b"ready\n".to_vec()).await;
            128 + seen.any_signal().await.parse::<i32>().unwrap()
        }
        // Reads nothing, and ends once it got a signal.
        ["deaf", number] => {
            write(Stream::Stdout, b"ready\n".to_vec()).await;
            seen.signal(number).await;
            5
        }
        ["flood"] => loop {
            write(Stream::Stdout, vec![b'x'; 64 << 10]).await;
            if answers.is_closed() {
                break 0;
            }
        },
        // Not all of its output comes.
        ["gap", bytes] => {
            write(Stream::Stdout, b"the rest\n".to_vec()).await;
            say(Answer::Missed(Missed {
                bytes: bytes.parse().unwrap(),
            }))
            .await;
            0
        }
        // The gateway goes away.
        ["vanish"] => return,
        other => panic!("no program {other:?}"),
    };
    say(Answer::Exited(exit(code))).await;
}

struct FakeImages;

macro_rules! no_image {
    ($($name:ident($request:ty) -> $response:ty;)*) => {
        $(
            fn $name<'life, 'answer>(
                &'life self,
                _: Request<$request>,
            ) -> Pin<Box<dyn Future<Output = Result<Response<$response>, Status>> + Send + 'answer>>
            where
                'life: 'answer,
                Self: 'answer,
            {
                Box::pin(async {
                    let fault = Fault::new(Code::NotFound, "gantry.image", "IMAGE_NOT_FOUND", "there is no such image");
                    Err(fault.into())
                 })
            }
        )*
    };
}

#[tonic::async_trait]
impl ImageService for FakeImages {
    type PullStream = Stream2<image::PullResponse>;
    type PushStream = Stream2<image::PushResponse>;
    type CompareImagesStream = Stream2<image::CompareImagesResponse>;

    async fn pull(
        &self,
        request: Request<image::PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        use image::pull_response::Event;
        let layer = |state: image::LayerState, current| {
            Event::Layer(image::LayerProgress {
                digest: format!("sha256:{ID}"),
                state: state.into(),
                current,
                total: 100,
            })
        };
        let events = vec![
            Event::Resolved(image::Resolved {
                reference: format!("docker.io/library/{}", request.get_ref().reference),
                digest: format!("sha256:{ID}"),
                layers: vec![image::LayerSummary {
                    digest: format!("sha256:{ID}"),
                    size: 100,
                }],
            }),
            layer(image::LayerState::Downloading, 50),
            layer(image::LayerState::Unpacking, 100),
            layer(image::LayerState::Complete, 100),
            Event::Done(image::PullDone {
                digest: format!("sha256:{ID}"),
                updated: true,
                ..image::PullDone::default()
            }),
        ];
        let answers = events
            .into_iter()
            .map(|event| Ok(image::PullResponse { event: Some(event) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(
            answers.collect::<Vec<_>>(),
        ))))
    }

    async fn push(
        &self,
        _: Request<image::PushRequest>,
    ) -> Result<Response<Self::PushStream>, Status> {
        Err(Status::unimplemented("push"))
    }

    async fn import(
        &self,
        request: Request<Streaming<image::ImportRequest>>,
    ) -> Result<Response<image::ImportResponse>, Status> {
        let mut parts = request.into_inner();
        let mut bytes = 0;
        while let Some(part) = parts.message().await? {
            if let Some(image::import_request::Part::Chunk(chunk)) = part.part {
                bytes += chunk.len();
            }
        }
        Ok(Response::new(image::ImportResponse {
            image: Some(Image {
                id: format!("sha256:{bytes}"),
                ..Image::default()
            }),
        }))
    }

    async fn list(
        &self,
        _: Request<image::ListRequest>,
    ) -> Result<Response<image::ListResponse>, Status> {
        let images = vec![Image {
            id: format!("sha256:{ID}"),
            tags: vec!["debian:12".to_owned()],
            size: 124_600_000,
            ..Image::default()
        }];
        Ok(Response::new(image::ListResponse {
            images,
            ..image::ListResponse::default()
        }))
    }

    no_image! {
        inspect(image::InspectRequest) -> image::InspectResponse;
        tag(image::TagRequest) -> image::TagResponse;
        remove(image::RemoveRequest) -> image::RemoveResponse;
    }

    /// Lets "bob" in, and gives a token to whose password is "for-a-token".
    async fn login(
        &self,
        request: Request<image::LoginRequest>,
    ) -> Result<Response<image::LoginResponse>, Status> {
        let request = request.into_inner();
        let auth = request.auth.unwrap_or_default();
        if auth.username != "bob" {
            let message = format!("registry {} does not know you", request.registry);
            let fault = Fault::new(
                Code::PermissionDenied,
                "gantry.image",
                "REGISTRY_DENIED",
                message,
            );
            return Err(fault.into());
        }
        let token = if auth.password == "for-a-token" {
            "tok"
        } else {
            ""
        };
        Ok(Response::new(image::LoginResponse {
            status: String::new(),
            identity_token: token.to_owned(),
        }))
    }

    async fn search(
        &self,
        request: Request<image::SearchRequest>,
    ) -> Result<Response<image::SearchResponse>, Status> {
        let request = request.into_inner();
        let result = |name: &str, stars, official| image::SearchResult {
            name: name.to_owned(),
            description: format!("{} of {}", request.term, request.limit),
            stars,
            official,
            automated: !official,
        };
        let mut results = vec![
            result("few", 3, false),
            result("many", 70, true),
            result("some", 9, false),
        ];
        results.extend(request.filters.iter().map(|filter| {
            let name = format!("{}={}", filter.key, filter.value);
            result(&name, 0, false)
        }));
        Ok(Response::new(image::SearchResponse { results }))
    }

    async fn compare_images(
        &self,
        _: Request<image::CompareImagesRequest>,
    ) -> Result<Response<Self::CompareImagesStream>, Status> {
        Err(Status::unimplemented("compare_images"))
    }
}
