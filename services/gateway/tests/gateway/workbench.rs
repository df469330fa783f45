//! A gateway on fake services, which can be killed and started again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_gateway::settings::Settings;
use gantry_kit::client::{self, Client};
use gantry_kit::config::Engine;
use gantry_kit::fault::Fault;
use gantry_kit::paths::Paths;
use gantry_kit::service::{self, Context};
use gantry_proto::gateway::v1 as wire;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use wire::container_service_client::ContainerServiceClient;
use wire::run_response::Message;
use wire::system_service_client::SystemServiceClient;

use crate::fakes::{self, World};

/// How long anything may take that a test waits for.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Bench {
    pub(crate) paths: Paths,
    pub(crate) world: Arc<World>,
    settings: Settings,
    services: CancellationToken,
    gateway: Option<(Runtime, CancellationToken)>,
    _root: tempfile::TempDir,
}

impl Bench {
    /// Fake services, and a gateway on them.
    pub(crate) async fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path()).unwrap();
        let world = Arc::new(World::default());
        let services = CancellationToken::new();
        fakes::serve(&paths, &world, &services).await;
        let settings = Settings {
            restart_backoff_ms: 1,
            ..Settings::default()
        };
        let mut bench = Self {
            paths,
            world,
            settings,
            services,
            gateway: None,
            _root: root,
        };
        bench.start().await;
        bench
    }

    /// Starts the gateway, in threads of its own.
    pub(crate) async fn start(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let stopping = CancellationToken::new();
        let context = Context {
            config: self.settings.clone(),
            engine: Engine::default(),
            paths: self.paths.clone(),
            stopping: stopping.clone(),
        };
        let socket = self.paths.socket("gateway");
        let token = stopping.clone();
        let serving = runtime.spawn(async move {
            let listener = gantry_kit::socket::bind(&socket, "").unwrap();
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            let built = gantry_gateway::build(context).await.unwrap();
            tokio::spawn(service::serve(built, listener, token, LIMIT));
        });
        serving.await.unwrap();
        self.gateway = Some((runtime, stopping));
    }

    /// Asks the gateway to end, as SIGTERM does.
    pub(crate) fn terminate(&self) {
        if let Some((_, stopping)) = &self.gateway {
            stopping.cancel();
        }
    }

    /// Ends the gateway as SIGKILL would: at once, whatever it is doing.
    pub(crate) fn kill(&mut self) {
        if let Some((runtime, _)) = self.gateway.take() {
            // Not from within the test's own runtime, which it would block.
            let ending = std::thread::spawn(move || runtime.shutdown_timeout(LIMIT));
            tokio::task::block_in_place(|| ending.join().unwrap());
        }
    }

    pub(crate) fn client(&self) -> ContainerServiceClient<Client> {
        ContainerServiceClient::new(client::connect(&self.paths.socket("gateway")))
    }

    /// Runs a container and answers the stream.
    pub(crate) async fn run(&self, open: wire::RunOpen) -> Run {
        let first = wire::RunRequest {
            message: Some(wire::run_request::Message::Run(open)),
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        sender.send(first).await.unwrap();
        let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let answers = self.client().run(requests).await.unwrap().into_inner();
        Run {
            answers,
            _requests: sender,
        }
    }

    pub(crate) fn system(&self) -> SystemServiceClient<Client> {
        SystemServiceClient::new(client::connect(&self.paths.socket("gateway")))
    }

    /// Creates a container by `create`; answers its id.
    pub(crate) async fn create(&self, name: &str, config: wire::ContainerConfig) -> String {
        let create = wire::CreateRequest {
            config: Some(config),
            name: name.to_owned(),
        };
        let created = self.client().create(create).await.unwrap();
        created.into_inner().container_id
    }

    pub(crate) async fn begin(&self, container: &str) -> Result<(), Fault> {
        let container = container.to_owned();
        let started = self.client().start(wire::StartRequest { container }).await;
        started
            .map(drop)
            .map_err(|status| Fault::from_status(&status))
    }

    pub(crate) async fn stop(&self, container: &str) -> Result<(), Fault> {
        let stop = wire::StopRequest {
            container: container.to_owned(),
            ..Default::default()
        };
        let stopped = self.client().stop(stop).await;
        stopped
            .map(drop)
            .map_err(|status| Fault::from_status(&status))
    }

    pub(crate) async fn remove(&self, container: &str, force: bool) -> Result<(), Fault> {
        let remove = wire::RemoveRequest {
            container: container.to_owned(),
            force,
            ..Default::default()
        };
        let removed = self.client().remove(remove).await;
        removed
            .map(drop)
            .map_err(|status| Fault::from_status(&status))
    }

    pub(crate) async fn inspect(&self, container: &str) -> wire::ContainerDetail {
        let inspect = wire::InspectRequest {
            container: container.to_owned(),
            size: false,
        };
        let detail = self.client().inspect(inspect).await.unwrap();
        detail.into_inner().container.unwrap()
    }

    pub(crate) async fn list(&self) -> Vec<wire::ContainerSummary> {
        let all = wire::ListRequest {
            all: true,
            ..Default::default()
        };
        self.client()
            .list(all)
            .await
            .unwrap()
            .into_inner()
            .containers
    }

    /// Files of records that are on the disk.
    pub(crate) fn records(&self) -> usize {
        [
            self.paths.state_of("gateway").join("containers"),
            self.paths.run.join("gateway"),
        ]
        .iter()
        .map(|directory| std::fs::read_dir(directory).unwrap().count())
        .sum()
    }

    /// Waits until `is` holds.
    pub(crate) async fn until(&self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !is(self) {
            assert!(begun.elapsed() < LIMIT, "{what}: {:?}", self.world);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until nothing at all is left.
    pub(crate) async fn until_nothing_is_left(&self) {
        let begun = Instant::now();
        loop {
            // In this order: a record is removed from the disk before its name is free.
            let gone = self.world.is_empty() && self.records() == 0;
            let listed = self.list().await;
            if gone && listed.is_empty() {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "{listed:?} {:?}", self.world);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.kill();
        self.services.cancel();
    }
}

pub(crate) struct Run {
    answers: Streaming<wire::RunResponse>,
    _requests: tokio::sync::mpsc::Sender<wire::RunRequest>,
}

impl Run {
    /// The next message. None: the stream is over.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>, Fault> {
        let message = tokio::time::timeout(LIMIT, self.answers.message())
            .await
            .expect("the gateway says nothing");
        match message {
            Ok(message) => Ok(message.and_then(|message| message.message)),
            Err(status) => Err(Fault::from_status(&status)),
        }
    }

    /// All messages, and how the stream ended.
    pub(crate) async fn all(&mut self) -> (Vec<Message>, Result<(), Fault>) {
        let mut all = Vec::new();
        loop {
            match self.next().await {
                Ok(Some(message)) => all.push(message),
                Ok(None) => return (all, Ok(())),
                Err(fault) => return (all, Err(fault)),
            }
        }
    }

    /// Reads on until the container has started; answers its id.
    pub(crate) async fn started(&mut self) -> String {
        let mut id = String::new();
        loop {
            match self.next().await.unwrap().expect("it ended") {
                Message::Created(created) => id = created.container_id,
                Message::Started(_) => return id,
                _ => {}
            }
        }
    }
}

/// `run debian`, attached or detached, with or without `--rm`.
pub(crate) fn open(auto_remove: bool, detach: bool) -> wire::RunOpen {
    wire::RunOpen {
        config: Some(wire::ContainerConfig {
            image: "debian".to_owned(),
            auto_remove,
            ..Default::default()
        }),
        detach,
        attach_stdout: true,
        attach_stderr: true,
        ..Default::default()
    }
}
