//! The image, network and runtime services as the gateway sees them: what they
//! hold is in one [`World`] that a test looks at, and any of their calls can be
//! told to fail, or to stop before or after it has had its effect.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures::{Stream, StreamExt as _, stream};
use gantry_kit::client::MESSAGE_LIMIT;
use gantry_kit::fault::Fault;
use gantry_kit::paths::Paths;
use gantry_kit::service::{self, Service};
use gantry_proto::image::v1 as image;
use gantry_proto::network::v1 as network;
use gantry_proto::runtime::v1 as runtime;
use gantry_proto::shim::v1 as shim;
use gantry_proto::types::v1 as types;
use tokio::net::UnixListener;
use tokio::sync::{Notify, broadcast, watch};
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::events::Teller;

pub(crate) type Answer<T> = Result<Response<T>, Status>;
pub(crate) type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the services hold.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) snapshots: Mutex<BTreeSet<String>>,
    pub(crate) endpoints: Mutex<BTreeMap<String, Vec<network::PortMapping>>>,
    pub(crate) containers: Mutex<BTreeMap<String, runtime::Container>>,
    /// Containers that have a log.
    pub(crate) logs: Mutex<BTreeSet<String>>,
    /// No log can be removed.
    pub(crate) stubborn_logs: AtomicBool,
    /// Programs end with 1 as soon as they are started.
    pub(crate) crashing: AtomicBool,
    /// What the last layer was asked for.
    pub(crate) prepared: Mutex<image::PrepareRequest>,
    /// Layers that were removed with their volumes.
    pub(crate) without_volumes: Mutex<BTreeSet<String>>,
    /// Images that are in the store.
    pub(crate) images: Mutex<BTreeSet<String>>,
    /// Calls in the order they came.
    pub(crate) calls: Mutex<Vec<String>>,
    /// Calls that fail, and with which reason.
    pub(crate) failing: Mutex<BTreeMap<&'static str, &'static str>>,
    /// A call that stops for ever, before (false) or after (true) its effect.
    pub(crate) stuck: Mutex<Option<(&'static str, bool)>>,
    /// Windows that break off after their first output, as when the service ends.
    pub(crate) breaking: Mutex<usize>,
    /// Whether a window that broke off cannot go on where it was.
    pub(crate) forgets: Mutex<bool>,
    /// How windows were opened.
    pub(crate) windows: Mutex<Vec<shim::AttachOpen>>,
    /// Told when a call got stuck.
    pub(crate) reached: Notify,
    /// Lets the call that is stuck go on.
    released: Notify,
    /// What happens to images.
    pub(crate) teller: Teller,
    events: broadcast::Sender<runtime::EventsResponse>,
    exits: watch::Sender<BTreeMap<String, types::ExitStatus>>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            snapshots: Mutex::default(),
            endpoints: Mutex::default(),
            containers: Mutex::default(),
            logs: Mutex::default(),
            stubborn_logs: AtomicBool::new(false),
            crashing: AtomicBool::new(false),
            prepared: Mutex::default(),
            without_volumes: Mutex::default(),
            images: Mutex::new(["debian".to_owned()].into()),
            calls: Mutex::default(),
            failing: Mutex::default(),
            stuck: Mutex::default(),
            breaking: Mutex::default(),
            forgets: Mutex::default(),
            windows: Mutex::default(),
            reached: Notify::new(),
            released: Notify::new(),
            teller: Teller::default(),
            events: broadcast::Sender::new(256),
            exits: watch::Sender::default(),
        }
    }
}

impl World {
    /// Whether no service holds anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.snapshots.lock().unwrap().is_empty()
            && self.endpoints.lock().unwrap().is_empty()
            && self.containers.lock().unwrap().is_empty()
            && self.logs.lock().unwrap().is_empty()
    }

    pub(crate) fn fail(&self, call: &'static str, reason: &'static str) {
        self.failing.lock().unwrap().insert(call, reason);
    }

    pub(crate) fn heal(&self) {
        self.failing.lock().unwrap().clear();
        self.stubborn_logs.store(false, Ordering::Relaxed);
        *self.stuck.lock().unwrap() = None;
    }

    /// Lets the call that is stuck go on.
    pub(crate) fn go_on(&self) {
        *self.stuck.lock().unwrap() = None;
        self.released.notify_one();
    }

    fn set_status(&self, id: &str, status: shim::Status) {
        if let Some(container) = self.containers.lock().unwrap().get_mut(id) {
            container.set_status(status);
        }
    }

    pub(crate) fn called(&self, call: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|made| *made == call).count()
    }

    async fn before(&self, call: &'static str) -> Result<(), Status> {
        self.calls.lock().unwrap().push(call.to_owned());
        let reason = self.failing.lock().unwrap().get(call).copied();
        if let Some(reason) = reason {
            return Err(Fault::new(Code::FailedPrecondition, "fake", reason, "told to").into());
        }
        self.stop(call, false).await;
        Ok(())
    }

    async fn stop(&self, call: &'static str, after: bool) {
        let stuck = *self.stuck.lock().unwrap() == Some((call, after));
        if stuck {
            self.reached.notify_one();
            self.released.notified().await;
        }
    }

    fn tell(&self, kind: runtime::EventType, container: &runtime::Container) {
        let _nobody_listens = self.events.send(runtime::EventsResponse {
            r#type: kind.into(),
            container: Some(container.clone()),
            time: None,
        });
    }

    /// Ends a container's program.
    pub(crate) fn exit(&self, id: &str, code: i32, signal: i32) {
        let now = std::time::SystemTime::now();
        let status = types::ExitStatus {
            code,
            signal,
            exited_at: Some(now.into()),
            ..Default::default()
        };
        let told = {
            let mut containers = self.containers.lock().unwrap();
            let Some(container) = containers.get_mut(id) else {
                return;
            };
            container.status = shim::Status::Stopped.into();
            container.exit = Some(status.clone());
            container.clone()
        };
        self.exits.send_modify(|exits| {
            exits.insert(id.to_owned(), status);
        });
        self.tell(runtime::EventType::Exited, &told);
    }
}

/// Serves all three on their sockets until `stopping`.
pub(crate) async fn serve(paths: &Paths, world: &Arc<World>, stopping: &CancellationToken) {
    std::fs::create_dir_all(&paths.run).unwrap();
    let fake = || Fake(Arc::clone(world));
    let images = image::image_service_server::ImageServiceServer::new(fake());
    let images = Routes::new(images.max_decoding_message_size(MESSAGE_LIMIT))
        .add_service(image::snapshot_service_server::SnapshotServiceServer::new(
            fake(),
        ))
        .add_service(image::store_service_server::StoreServiceServer::new(fake()));
    let networks = Routes::new(network::network_service_server::NetworkServiceServer::new(
        fake(),
    ));
    let runtimes = Routes::new(runtime::runtime_service_server::RuntimeServiceServer::new(
        fake(),
    ));
    for (name, routes) in [
        ("image", images),
        ("network", networks),
        ("runtime", runtimes),
    ] {
        let listener = UnixListener::bind(paths.socket(name)).unwrap();
        tokio::spawn(service::serve(
            Service::new(routes, &[]),
            listener,
            stopping.clone(),
            std::time::Duration::ZERO,
        ));
    }
}

pub(crate) struct Fake(pub(crate) Arc<World>);

pub(crate) fn unused<T>() -> Answer<T> {
    Err(Status::unimplemented("no test calls this"))
}

#[tonic::async_trait]
impl image::image_service_server::ImageService for Fake {
    type PullStream = BoxStream<image::PullResponse>;
    type PushStream = BoxStream<image::PushResponse>;
    type CompareImagesStream = BoxStream<image::CompareImagesResponse>;

    async fn pull(&self, request: Request<image::PullRequest>) -> Answer<Self::PullStream> {
        self.0.before("pull").await?;
        let reference = request.into_inner().reference;
        self.0.images.lock().unwrap().insert(reference);
        let done = image::PullResponse {
            event: Some(image::pull_response::Event::Done(image::PullDone::default())),
        };
        Ok(Response::new(stream::iter([Ok(done)]).boxed()))
    }

    async fn push(&self, _: Request<image::PushRequest>) -> Answer<Self::PushStream> {
        unused()
    }

    async fn import(
        &self,
        _: Request<Streaming<image::ImportRequest>>,
    ) -> Answer<image::ImportResponse> {
        unused()
    }

    async fn list(&self, _: Request<image::ListRequest>) -> Answer<image::ListResponse> {
        Ok(Response::new(image::ListResponse {
            images: vec![image::Image::default()],
            ..Default::default()
        }))
    }

    /// Knows no image, and says so as the real one does.
    async fn inspect(
        &self,
        request: Request<image::InspectRequest>,
    ) -> Answer<image::InspectResponse> {
        let reference = request.into_inner().reference;
        let message = format!("no such image: {reference}");
        let fault = Fault::new(Code::NotFound, "gantry.image", "IMAGE_NOT_FOUND", message);
        Err(fault.with("reference", reference).into())
    }

    async fn tag(&self, _: Request<image::TagRequest>) -> Answer<image::TagResponse> {
        unused()
    }

    async fn remove(
        &self,
        request: Request<image::RemoveRequest>,
    ) -> Answer<image::RemoveResponse> {
        self.0.before("remove image").await?;
        assert!(request.metadata().contains_key("traceparent-of-the-test"));
        let request = request.into_inner();
        Ok(Response::new(image::RemoveResponse {
            untagged: vec![request.reference],
            deleted: request.running_containers,
        }))
    }

    async fn search(&self, _: Request<image::SearchRequest>) -> Answer<image::SearchResponse> {
        Err(Status::unimplemented("search"))
    }

    async fn compare_images(
        &self,
        _: Request<image::CompareImagesRequest>,
    ) -> Answer<Self::CompareImagesStream> {
        Err(Status::unimplemented("compare_images"))
    }

    async fn login(&self, _: Request<image::LoginRequest>) -> Answer<image::LoginResponse> {
        unused()
    }
}

#[tonic::async_trait]
impl image::snapshot_service_server::SnapshotService for Fake {
    type DiffStream = BoxStream<image::DiffResponse>;
    type ExportStream = BoxStream<image::ExportResponse>;

    async fn diff(&self, _: Request<image::DiffRequest>) -> Answer<Self::DiffStream> {
        Err(Status::unimplemented("diff"))
    }

    async fn commit(
        &self,
        request: Request<image::CommitRequest>,
    ) -> Answer<image::CommitResponse> {
        self.0.before("commit").await?;
        let image = image::Image {
            tags: vec![request.into_inner().reference],
            ..Default::default()
        };
        Ok(Response::new(image::CommitResponse { image: Some(image) }))
    }

    async fn export(&self, _: Request<image::ExportRequest>) -> Answer<Self::ExportStream> {
        Err(Status::unimplemented("export"))
    }

    async fn prepare(
        &self,
        request: Request<image::PrepareRequest>,
    ) -> Answer<image::PrepareResponse> {
        self.0.before("prepare").await?;
        let request = request.into_inner();
        if !self.0.images.lock().unwrap().contains(&request.image) {
            let reason = "IMAGE_NOT_FOUND";
            return Err(Fault::new(Code::NotFound, "gantry.image", reason, "no image").into());
        }
        let found = |(number, volume): (usize, &image::VolumeMount)| image::PreparedMount {
            target: volume.target.clone(),
            volume: match volume.volume.as_str() {
                "" => format!("made-{number}"),
                name => name.to_owned(),
            },
            anonymous: volume.anonymous || volume.volume.is_empty(),
            mountpoint: format!("/volumes/{number}"),
            r#type: "bind".to_owned(),
            source: format!("/volumes/{number}"),
            driver: "local".to_owned(),
            ..Default::default()
        };
        let mut mounts: Vec<_> = request.volumes.iter().enumerate().map(found).collect();
        if request.image == "with-volume" {
            mounts.push(image::PreparedMount {
                target: "/of-image".to_owned(),
                volume: "made-for-image".to_owned(),
                anonymous: true,
                r#type: "bind".to_owned(),
                source: "/volumes/image".to_owned(),
                ..Default::default()
            });
        }
        *self.0.prepared.lock().unwrap() = request.clone();
        self.0
            .snapshots
            .lock()
            .unwrap()
            .insert(request.container_id);
        self.0.stop("prepare", true).await;
        Ok(Response::new(image::PrepareResponse {
            image: Some(image::Image {
                id: "sha256:1".to_owned(),
                ..Default::default()
            }),
            config: br#"{"config":{"Cmd":["true"],"ExposedPorts":{"80/tcp":{}}}}"#[..].into(),
            rootfs: Some(types::Rootfs::default()),
            mounts,
        }))
    }

    async fn get(&self, _: Request<image::GetRequest>) -> Answer<image::GetResponse> {
        unused()
    }

    async fn delete(
        &self,
        request: Request<image::DeleteRequest>,
    ) -> Answer<image::DeleteResponse> {
        self.0.before("delete_snapshot").await?;
        let request = request.into_inner();
        let id = request.container_id;
        if request.remove_volumes {
            self.0.without_volumes.lock().unwrap().insert(id.clone());
        }
        let deleted = self.0.snapshots.lock().unwrap().remove(&id);
        self.0.stop("delete_snapshot", true).await;
        Ok(Response::new(image::DeleteResponse { deleted }))
    }

    async fn list_snapshots(
        &self,
        _: Request<image::ListSnapshotsRequest>,
    ) -> Answer<image::ListSnapshotsResponse> {
        let snapshots = self.0.snapshots.lock().unwrap();
        let snapshots = snapshots.iter().map(|id| image::Snapshot {
            container_id: id.clone(),
            ..Default::default()
        });
        Ok(Response::new(image::ListSnapshotsResponse {
            snapshots: snapshots.collect(),
            ..Default::default()
        }))
    }
}

#[tonic::async_trait]
impl network::network_service_server::NetworkService for Fake {
    async fn create_endpoint(
        &self,
        request: Request<network::CreateEndpointRequest>,
    ) -> Answer<network::CreateEndpointResponse> {
        self.0.before("create_endpoint").await?;
        let request = request.into_inner();
        let id = request.container_id;
        let mut ports = request.ports;
        for port in ports.iter_mut().filter(|port| port.host_port == 0) {
            port.host_port = 32768;
        }
        self.0
            .endpoints
            .lock()
            .unwrap()
            .insert(id.clone(), ports.clone());
        self.0.stop("create_endpoint", true).await;
        Ok(Response::new(network::CreateEndpointResponse {
            endpoint: Some(network::Endpoint {
                container_id: id,
                network: request.network,
                netns_path: "/run/netns/fake".to_owned(),
                address: "10.66.0.5/16".to_owned(),
                ports,
                ..Default::default()
            }),
        }))
    }

    async fn delete_endpoint(
        &self,
        request: Request<network::DeleteEndpointRequest>,
    ) -> Answer<network::DeleteEndpointResponse> {
        self.0.before("delete_endpoint").await?;
        let id = request.into_inner().container_id;
        let deleted = self.0.endpoints.lock().unwrap().remove(&id).is_some();
        self.0.stop("delete_endpoint", true).await;
        Ok(Response::new(network::DeleteEndpointResponse { deleted }))
    }

    async fn get_endpoint(
        &self,
        _: Request<network::GetEndpointRequest>,
    ) -> Answer<network::GetEndpointResponse> {
        unused()
    }

    async fn list_endpoints(
        &self,
        _: Request<network::ListEndpointsRequest>,
    ) -> Answer<network::ListEndpointsResponse> {
        let endpoints = self.0.endpoints.lock().unwrap();
        let endpoints = endpoints.keys().map(|id| network::Endpoint {
            container_id: id.clone(),
            ..Default::default()
        });
        Ok(Response::new(network::ListEndpointsResponse {
            endpoints: endpoints.collect(),
            ..Default::default()
        }))
    }

    async fn list_networks(
        &self,
        _: Request<network::ListNetworksRequest>,
    ) -> Answer<network::ListNetworksResponse> {
        Ok(Response::new(network::ListNetworksResponse {
            networks: vec![network::Network {
                name: "bridge".to_owned(),
                ..Default::default()
            }],
        }))
    }
}

#[tonic::async_trait]
impl runtime::runtime_service_server::RuntimeService for Fake {
    type AttachStream = BoxStream<shim::AttachResponse>;
    type LogsStream = BoxStream<runtime::LogsResponse>;
    type EventsStream = BoxStream<runtime::EventsResponse>;

    /// Knows every runtime, but "nosuch".
    async fn find_runtime(
        &self,
        request: Request<runtime::FindRuntimeRequest>,
    ) -> Answer<runtime::FindRuntimeResponse> {
        self.0.before("find_runtime").await?;
        match request.into_inner().name.as_str() {
            "nosuch" => Err(Status::invalid_argument(
                "unknown or invalid runtime name: nosuch",
            )),
            _ => Ok(Response::new(runtime::FindRuntimeResponse::default())),
        }
    }

    async fn create(
        &self,
        request: Request<runtime::CreateRequest>,
    ) -> Answer<runtime::CreateResponse> {
        self.0.before("create").await?;
        let request = request.into_inner();
        let container = runtime::Container {
            container_id: request.container_id.clone(),
            status: shim::Status::Created.into(),
            pid: 4242,
            ..Default::default()
        };
        self.0.exits.send_modify(|exits| {
            exits.remove(&request.container_id);
        });
        let id = request.container_id;
        self.0.logs.lock().unwrap().insert(id.clone());
        self.0.containers.lock().unwrap().insert(id, container);
        self.0.stop("create", true).await;
        Ok(Response::new(runtime::CreateResponse {
            pid: 4242,
            steps: Vec::new(),
        }))
    }

    async fn start(
        &self,
        request: Request<runtime::StartRequest>,
    ) -> Answer<runtime::StartResponse> {
        self.0.before("start").await?;
        let id = request.into_inner().container_id;
        let now = std::time::SystemTime::now();
        if let Some(container) = self.0.containers.lock().unwrap().get_mut(&id) {
            container.status = shim::Status::Running.into();
            container.started_at = Some(now.into());
        }
        self.0.stop("start", true).await;
        if self.0.crashing.load(Ordering::Relaxed) {
            self.0.exit(&id, 1, 0);
        }
        Ok(Response::new(runtime::StartResponse {
            started_at: Some(now.into()),
            steps: Vec::new(),
        }))
    }

    async fn attach(
        &self,
        request: Request<Streaming<runtime::AttachRequest>>,
    ) -> Answer<Self::AttachStream> {
        self.0.before("attach").await?;
        let first = request.into_inner().message().await?;
        let Some(runtime::attach_request::Message::Open(open)) =
            first.and_then(|first| first.message)
        else {
            return Err(Status::invalid_argument("not opened"));
        };
        let message = |message| shim::AttachResponse {
            message: Some(message),
        };
        use shim::attach_response::Message;
        let window = open.window.unwrap_or_default();
        self.0.windows.lock().unwrap().push(window.clone());
        let attached = message(Message::Attached(shim::Attached {
            primary: !window.primary.is_empty(),
            resumed: window.resume_at.is_some() && !*self.0.forgets.lock().unwrap(),
            ..Default::default()
        }));
        // Six bytes, first "hello", then "again".
        let text = match window.resume_at {
            None => &b"hello\n"[..],
            Some(_) => b"again\n",
        };
        let output = message(Message::Output(shim::Output {
            stream: types::Stream::Stdout.into(),
            data: text.into(),
        }));
        let shows = window.stdout || window.stderr;
        let mut begin = vec![Ok(attached)];
        begin.extend(shows.then_some(Ok(output)));
        let breaks = {
            let mut breaking = self.0.breaking.lock().unwrap();
            let breaks = shows && *breaking > 0;
            *breaking -= usize::from(breaks);
            breaks
        };
        if breaks {
            begin.push(Err(Status::unavailable("the connection broke")));
            return Ok(Response::new(stream::iter(begin).boxed()));
        }
        let mut exits = self.0.exits.subscribe();
        let last = async move {
            let found = exits.wait_for(|exits| exits.contains_key(&open.container_id));
            let exits = found.await.map_err(|_| Status::unavailable("gone"))?;
            Ok(message(Message::Exited(exits[&open.container_id].clone())))
        };
        let outputs = stream::iter(begin).chain(stream::once(last));
        Ok(Response::new(outputs.boxed()))
    }

    async fn exec(&self, _: Request<runtime::ExecRequest>) -> Answer<runtime::ExecResponse> {
        self.0.before("exec").await?;
        Ok(Response::new(runtime::ExecResponse { pid: 4343 }))
    }

    async fn kill(&self, request: Request<runtime::KillRequest>) -> Answer<runtime::KillResponse> {
        self.0.before("kill").await?;
        let runtime::KillRequest {
            container_id,
            signal,
            ..
        } = request.into_inner();
        // These programs die of SIGKILL and SIGTERM, and of no other signal.
        if matches!(signal, 9 | 15) {
            let signal = i32::try_from(signal).unwrap();
            self.0.exit(&container_id, 128 + signal, signal);
        }
        Ok(Response::new(runtime::KillResponse {}))
    }

    async fn wait(&self, _: Request<runtime::WaitRequest>) -> Answer<runtime::WaitResponse> {
        unused()
    }

    async fn resize(&self, _: Request<runtime::ResizeRequest>) -> Answer<runtime::ResizeResponse> {
        self.0.before("resize").await?;
        Ok(Response::new(runtime::ResizeResponse {}))
    }

    async fn pause(
        &self,
        request: Request<runtime::PauseRequest>,
    ) -> Answer<runtime::PauseResponse> {
        self.0.before("pause").await?;
        let id = request.into_inner().container_id;
        self.0.set_status(&id, shim::Status::Paused);
        Ok(Response::new(runtime::PauseResponse {}))
    }

    async fn resume(
        &self,
        request: Request<runtime::ResumeRequest>,
    ) -> Answer<runtime::ResumeResponse> {
        self.0.before("resume").await?;
        let id = request.into_inner().container_id;
        self.0.set_status(&id, shim::Status::Running);
        Ok(Response::new(runtime::ResumeResponse {}))
    }

    async fn update(&self, _: Request<runtime::UpdateRequest>) -> Answer<runtime::UpdateResponse> {
        self.0.before("update").await?;
        Ok(Response::new(runtime::UpdateResponse {}))
    }

    async fn stats(&self, _: Request<runtime::StatsRequest>) -> Answer<runtime::StatsResponse> {
        unused()
    }

    async fn pids(&self, _: Request<runtime::PidsRequest>) -> Answer<runtime::PidsResponse> {
        unused()
    }

    async fn delete(
        &self,
        request: Request<runtime::DeleteRequest>,
    ) -> Answer<runtime::DeleteResponse> {
        self.0.before("delete").await?;
        let runtime::DeleteRequest {
            container_id: id,
            remove_log,
            ..
        } = request.into_inner();
        let runs = |container: &runtime::Container| container.status() != shim::Status::Stopped;
        let killed = self.0.containers.lock().unwrap().get(&id).is_some_and(runs);
        if killed {
            self.0.exit(&id, 137, 9);
        }
        let mut log_left = String::new();
        if remove_log && self.0.stubborn_logs.load(Ordering::Relaxed) {
            "told to".clone_into(&mut log_left);
        } else if remove_log {
            self.0.logs.lock().unwrap().remove(&id);
        }
        let deleted = self.0.containers.lock().unwrap().remove(&id);
        self.0.stop("delete", true).await;
        Ok(Response::new(runtime::DeleteResponse {
            deleted: deleted.is_some(),
            exit: deleted.and_then(|container| container.exit),
            log_left,
        }))
    }

    async fn get(&self, _: Request<runtime::GetRequest>) -> Answer<runtime::GetResponse> {
        unused()
    }

    async fn list(&self, _: Request<runtime::ListRequest>) -> Answer<runtime::ListResponse> {
        self.0.before("list").await?;
        let containers = self.0.containers.lock().unwrap();
        Ok(Response::new(runtime::ListResponse {
            containers: containers.values().cloned().collect(),
            log_container_ids: self.0.logs.lock().unwrap().iter().cloned().collect(),
            ..Default::default()
        }))
    }

    async fn stat_path(
        &self,
        request: Request<runtime::StatPathRequest>,
    ) -> Answer<runtime::StatPathResponse> {
        self.0.before("stat_path").await?;
        let request = request.into_inner();
        let there = self.0.containers.lock().unwrap();
        assert!(there.contains_key(&request.container_id));
        Ok(Response::new(runtime::StatPathResponse { stat: None }))
    }

    type CopyOutStream = BoxStream<runtime::CopyOutResponse>;

    async fn copy_out(&self, _: Request<runtime::CopyOutRequest>) -> Answer<Self::CopyOutStream> {
        unused()
    }

    async fn copy_in(
        &self,
        request: Request<Streaming<runtime::CopyInRequest>>,
    ) -> Answer<runtime::CopyInResponse> {
        self.0.before("copy_in").await?;
        let mut stream = request.into_inner();
        while let Some(message) = stream.message().await? {
            if let Some(runtime::copy_in_request::Message::End(_)) = message.message {
                return Ok(Response::new(runtime::CopyInResponse {}));
            }
        }
        Err(Status::aborted("broken off"))
    }

    async fn logs(&self, _: Request<runtime::LogsRequest>) -> Answer<Self::LogsStream> {
        unused()
    }

    async fn events(&self, _: Request<runtime::EventsRequest>) -> Answer<Self::EventsStream> {
        let live = BroadcastStream::new(self.0.events.subscribe())
            .map(|event| event.map_err(|_| Status::data_loss("too slow")));
        let containers = self.0.containers.lock().unwrap();
        let event = |kind: runtime::EventType, container| runtime::EventsResponse {
            r#type: kind.into(),
            container,
            time: None,
        };
        let mut snapshot: Vec<_> = containers
            .values()
            .map(|container| Ok(event(runtime::EventType::Snapshot, Some(container.clone()))))
            .collect();
        snapshot.push(Ok(event(runtime::EventType::SnapshotEnd, None)));
        Ok(Response::new(stream::iter(snapshot).chain(live).boxed()))
    }
}
