//! Channels to services.
//!
//! [`connect`] never waits and never fails: the connection is made at the first
//! call and again after the service was restarted. Each call carries the trace
//! context, and a deadline: [`DEFAULT_DEADLINE`], except for the methods that
//! wait for something by their nature (see [`has_deadline`]). A caller that sets
//! its own `grpc-timeout` keeps it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{GrpcMethod, Request, Status};
use tower::service_fn;

use crate::{socket, telemetry};

/// Limit of a call that does not name its own.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// Bytes under way on a stream, and in one frame of it. HTTP/2's own frames have
/// 16 KiB, which makes tens of thousands of an archive, on each connection.
pub(crate) const WINDOW_BYTES: u32 = 1 << 20;

/// The most that HTTP/2 allows: many streams share a connection, and one whose
/// reader has stopped must not use up what the others need.
pub(crate) const CONNECTION_BYTES: u32 = (1 << 31) - 1;

/// A channel whose calls carry a deadline and the trace context.
pub type Client = InterceptedService<Channel, Outbound>;

/// Largest message that a client or a server takes, in bytes. Above gRPC's
/// default of 4 MiB, since a list of all containers is one message.
pub const MESSAGE_LIMIT: usize = 64 << 20;

/// A channel to the service that listens on the Unix socket at `path`.
#[must_use]
pub fn connect(path: &Path) -> Client {
    InterceptedService::new(channel(path), Outbound)
}

/// As [`connect`], without deadlines and trace context: for whoever forwards
/// calls that carry their own.
#[must_use]
pub fn channel(path: &Path) -> Channel {
    let path: PathBuf = path.to_owned();
    // The URI is required and unused: what is connected is the socket.
    Endpoint::from_static("http://gantry.local")
        .initial_stream_window_size(WINDOW_BYTES)
        .max_frame_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_BYTES)
        // Calls that are ended on both sides at once are counted for as long as the
        // connection lives, and would close it in the end: that is for strangers.
        .http2_max_local_error_reset_streams(None)
        .connect_with_connector_lazy(service_fn(move |_| {
            let path = path.clone();
            async move { socket::connect(&path).await.map(TokioIo::new) }
        }))
}

/// Adds deadline and trace context to each call.
#[derive(Clone, Copy, Debug)]
pub struct Outbound;

impl Interceptor for Outbound {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let bounded = request
            .extensions()
            .get::<GrpcMethod<'static>>()
            .is_none_or(|method| has_deadline(method.service(), method.method()));
        if bounded && !request.metadata().contains_key("grpc-timeout") {
            request.set_timeout(DEFAULT_DEADLINE);
        }
        let mut headers = http::HeaderMap::new();
        telemetry::inject(&mut headers);
        for name in ["traceparent", "tracestate"] {
            if let Some(value) = headers.get(name)
                && let Ok(value) = MetadataValue::try_from(value.as_bytes())
            {
                request.metadata_mut().insert(name, value);
            }
        }
        Ok(request)
    }
}

/// Whether calls of a method end by themselves in bounded time. Those that do
/// not move content of any size, or wait for a container or a person.
#[must_use]
pub fn has_deadline(service: &str, method: &str) -> bool {
    !matches!(
        (service.rsplit('.').next().unwrap_or(service), method),
        (
            "ContainerService",
            "Run" | "Attach" | "Exec" | "Logs" | "Events" | "Wait" | "Stop" | "Restart" | "Remove"
        ) | ("ImageService", "Pull" | "Push" | "Import")
            | ("ArchiveService", "Save" | "Load")
            | ("RegistryService", "CollectGarbage")
            | ("StoreService", "DiskUsage" | "Prune" | "Check" | "Events")
            | ("RuntimeService", "Attach" | "Wait" | "Logs" | "Events")
            | ("ShimService", "Attach" | "Wait")
            | ("Health", "Watch")
            | ("ServerReflection", _)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_gets_a_deadline_unless_it_waits_by_nature() {
        assert!(has_deadline("gantry.gateway.v1.ContainerService", "List"));
        assert!(has_deadline("gantry.runtime.v1.RuntimeService", "Create"));
        assert!(!has_deadline("gantry.gateway.v1.ContainerService", "Wait"));
        assert!(!has_deadline("gantry.image.v1.ImageService", "Pull"));
    }

    #[tokio::test]
    async fn a_service_that_does_not_run_is_unavailable() {
        let directory = tempfile::tempdir().unwrap();
        let client = connect(&directory.path().join("none.sock"));
        let mut health = tonic_health::pb::health_client::HealthClient::new(client);
        let status = health
            .check(tonic_health::pb::HealthCheckRequest::default())
            .await
            .unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
    }
}
