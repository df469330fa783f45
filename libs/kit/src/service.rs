//! The life of a service process.
//!
//! [`main`] reads the arguments and the configuration, sets up telemetry, sees to
//! the engine's directories ([`directories`]), takes the socket that systemd or
//! `gantry up` hands over (or makes its own), builds the service, says that it is
//! ready, serves until SIGTERM or SIGINT, and drains: it stops taking connections,
//! tells streams to end through [`Context::stopping`], waits for calls under way
//! for `drain_seconds`, and leaves.
//!
//! Exit codes: 0 after a drained stop, 1 when the service cannot start or
//! fails, 2 for wrong arguments.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nix::sys::stat::Mode;
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::client::{CONNECTION_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, WINDOW_BYTES};
use crate::config::{Config, Engine};
use crate::directories;
use crate::fault::chain;
use crate::incoming::{self, Incoming, Limits};
use crate::metadata::{BoundMetadata, HEADERS_ACCEPTED};
use crate::paths::Paths;
pub use crate::socket::{SocketError, bind};
use crate::telemetry::{self, ServerTraceLayer};

/// Whatever kept a service from starting or serving.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Calls over one connection at a time. A gateway waits for, and is attached to,
/// each of its containers: hyper's own limit of 200 would have it hang.
const STREAMS_MAX: u32 = 100_000;

/// What a service makes is for it alone, unless it says otherwise: nothing must
/// depend on the umask of whoever started the engine.
const UMASK: u32 = 0o077;

/// What each service's command takes.
#[derive(Debug, Parser)]
struct Arguments {
    /// Keep all files of the engine below this directory
    #[arg(long, env = "GANTRY_ROOT", value_name = "DIR")]
    root: Option<PathBuf>,
    /// Read this configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key of the configuration
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    set: Vec<String>,
}

/// What a service is built from.
#[derive(Debug)]
pub struct Context<C> {
    /// The service's own table of the configuration.
    pub config: C,
    /// The table that all services share.
    pub engine: Engine,
    pub paths: Paths,
    /// Cancelled when the service stops: long streams end at it.
    pub stopping: CancellationToken,
}

/// A service that is built and can be served.
#[derive(Debug)]
pub struct Service {
    routes: Routes,
    names: Vec<&'static str>,
    beside: Vec<JoinHandle<()>>,
    http1: bool,
    keepalive: bool,
}

impl Service {
    /// `names` are the full names of the services in `routes`, for health and
    /// reflection: "gantry.image.v1.ImageService".
    #[must_use]
    pub fn new(routes: Routes, names: &[&'static str]) -> Self {
        Self {
            routes,
            names: names.to_vec(),
            beside: Vec::new(),
            http1: false,
            keepalive: false,
        }
    }

    /// Takes HTTP/1.1 beside HTTP/2 on the service's socket: for routes that are
    /// not gRPC.
    #[must_use]
    pub const fn accept_http1(mut self) -> Self {
        self.http1 = true;
        self
    }

    /// Gives up a client that is frozen: one that does not acknowledge a PING
    /// within [`KEEPALIVE_TIMEOUT`], which is sent when nothing has arrived for
    /// [`KEEPALIVE_INTERVAL`]. For a service whose clients are people's programs;
    /// hyper sends PINGs to idle connections too, and the engine's own services
    /// must not wake each other.
    #[must_use]
    pub fn gives_up_frozen_clients(mut self) -> Self {
        self.keepalive = true;
        self
    }

    /// Work that goes on beside the calls (another listener, say), ends by
    /// itself at [`Context::stopping`], and is drained with them.
    #[must_use]
    pub fn beside(mut self, task: JoinHandle<()>) -> Self {
        self.beside.push(task);
        self
    }
}

/// Runs the service `name` ("image"): the whole of a `main` function.
pub fn main<C, F, Fut>(name: &'static str, build: F) -> ExitCode
where
    C: DeserializeOwned,
    F: FnOnce(Context<C>) -> Fut,
    Fut: Future<Output = Result<Service, BoxError>>,
{
    let arguments = Arguments::parse();
    nix::sys::stat::umask(Mode::from_bits_truncate(UMASK));
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(name, &error),
    };
    let outcome = runtime.block_on(run(name, arguments, build));
    // Blocking work that is still under way must not hold the process.
    runtime.shutdown_timeout(Duration::from_millis(200));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(name, error.as_ref()),
    }
}

fn fail(name: &str, error: &(dyn Error + 'static)) -> ExitCode {
    eprintln!("gantry-{name}: {}", chain(error));
    ExitCode::FAILURE
}

async fn run<C, F, Fut>(name: &'static str, arguments: Arguments, build: F) -> Result<(), BoxError>
where
    C: DeserializeOwned,
    F: FnOnce(Context<C>) -> Fut,
    Fut: Future<Output = Result<Service, BoxError>>,
{
    let mut paths = Paths::resolve(arguments.root.as_deref())?;
    if let Some(file) = arguments.config {
        paths.config = file;
    }
    let tables = Config::load(&paths.config, &arguments.set)?;
    let engine: Engine = tables.table("engine")?;
    let config: C = tables.table(name)?;
    let telemetry = telemetry::init(&format!("gantry-{name}"), &engine)?;
    // What the runtime starts inherits its limits: those are the operator's.
    if name != "runtime" {
        incoming::raise_descriptor_limit();
    }

    directories::prepare(&paths, &engine.socket_group)?;
    let socket = paths.socket(name);
    let listener = listener(&socket, &engine.socket_group)?;
    let stopping = CancellationToken::new();
    let drain = Duration::from_secs(engine.drain_seconds);
    let service = build(Context {
        config,
        engine,
        paths,
        stopping: stopping.clone(),
    })
    .await?;

    stop_on_signal(stopping.clone())?;
    let served = serve(service, listener, stopping, drain);
    sd_notify::notify(&[sd_notify::NotifyState::Ready])?;
    tracing::info!(service = name, socket = %socket.display(), "ready");
    let outcome = served.await;
    tracing::info!(service = name, "stopped");
    // The exporter's own connection lives on the runtime: do not block it.
    tokio::task::spawn_blocking(move || telemetry.flush()).await?;
    outcome
}

/// Serves on `listener` until `stopping`, then drains for at most `drain`.
///
/// # Errors
/// The listener or the reflection data cannot be used.
pub async fn serve(
    service: Service,
    listener: UnixListener,
    stopping: CancellationToken,
    drain: Duration,
) -> Result<(), BoxError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let mut reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(gantry_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("grpc.health.v1.Health")
        .with_service_name("grpc.reflection.v1.ServerReflection");
    for name in &service.names {
        health
            .set_service_status(name, tonic_health::ServingStatus::Serving)
            .await;
        reflection = reflection.with_service_name(*name);
    }
    let routes = service
        .routes
        .add_service(health_service)
        .add_service(reflection.build_v1()?);
    let incoming = Incoming::new(listener, Limits::of_socket());
    let served = Server::builder()
        .layer(ServerTraceLayer)
        .accept_http1(service.http1)
        .layer(BoundMetadata)
        .http2_max_header_list_size(HEADERS_ACCEPTED)
        .http2_keepalive_interval(service.keepalive.then_some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(WINDOW_BYTES)
        .max_frame_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        // Callers are this engine's own: one that gives up many calls at once is no
        // reason to break off the others on its connection.
        .http2_max_local_error_reset_streams(None)
        .http2_max_pending_accept_reset_streams(Some(STREAMS_MAX as usize))
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            futures::stream::unfold(incoming, |mut incoming| async move {
                let connection = incoming.next().await;
                Some((io::Result::Ok(connection), incoming))
            }),
            stopping.clone().cancelled_owned(),
        );
    tokio::pin!(served);
    tokio::select! {
        biased;
        () = stopping.cancelled() => {}
        outcome = &mut served => return Ok(outcome?),
    }
    for name in &service.names {
        health
            .set_service_status(name, tonic_health::ServingStatus::NotServing)
            .await;
    }
    let drained = async {
        let outcome = served.await;
        for task in service.beside {
            // A task that panicked has said so itself.
            task.await.ok();
        }
        outcome
    };
    match tokio::time::timeout(drain, drained).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => {
            tracing::warn!(seconds = drain.as_secs(), "calls under way were cut off");
            Ok(())
        }
    }
}

fn stop_on_signal(stopping: CancellationToken) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.cancel();
    });
    Ok(())
}

/// The socket that was handed over (systemd's socket activation), or a new one
/// at `path` with mode 0660 and the given group.
fn listener(path: &Path, group: &str) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Listen {
        path: path.to_owned(),
        source,
    };
    let handed = listenfd::ListenFd::from_env()
        .take_unix_listener(0)
        .map_err(failed)?;
    let listener = match handed {
        Some(listener) => listener,
        None => bind(path, group)?,
    };
    listener.set_nonblocking(true).map_err(failed)?;
    UnixListener::from_std(listener).map_err(failed)
}
