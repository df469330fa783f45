//! Channels to services.
//!
//! [`connect`] never waits and never fails: the connection is made at the first
//! call and again after the service was restarted. Each call carries the trace
//! context, and the deadline of its [`Class`](crate::calls::Class). A caller that
//! sets its own `grpc-timeout` keeps it.
//!
//! A peer that is frozen, or whose machine is, is noticed by PINGs: while a call
//! is under way on a connection and nothing has arrived for
//! [`KEEPALIVE_INTERVAL`], one is sent, and without an answer within
//! [`KEEPALIVE_TIMEOUT`] the connection is given up with all its calls. A
//! connection without calls sends none, so that an idle process is not woken.
//!
//! After a call that was not answered, the next one asks for the peer's health
//! first, and waits [`PROBE_LIMIT`] for that: a verb that takes several calls
//! does not wait for a frozen service several times.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use hyper_util::rt::TokioIo;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, TimeoutExpired};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower::{Service, ServiceExt as _, service_fn};

use crate::metadata::HEADERS_ACCEPTED;
use crate::{calls, socket, telemetry};

/// Bytes under way on a stream, and in one frame of it. HTTP/2's own frames have
/// 16 KiB, which makes tens of thousands of an archive, on each connection.
pub(crate) const WINDOW_BYTES: u32 = 1 << 20;

/// The most that HTTP/2 allows: many streams share a connection, and one whose
/// reader has stopped must not use up what the others need.
pub(crate) const CONNECTION_BYTES: u32 = (1 << 31) - 1;

/// Largest message that a client or a server takes, in bytes. Above gRPC's
/// default of 4 MiB, for what one object may hold.
pub const MESSAGE_LIMIT: usize = 64 << 20;

/// Largest answer about one object, in bytes: it may say several times what a
/// request has said once.
pub const ANSWER_LIMIT: usize = 4 * MESSAGE_LIMIT;

/// Silence on a connection with a call under way before a PING is sent.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long the answer to a PING may take.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a peer that did not answer a call may take to say that it is well.
pub const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// What the deadlines of a client of the gateway have beyond those of the
/// gateway's own calls: its answer, which names the service that is silent, comes
/// before the client gives up.
pub const FRONT_MARGIN: Duration = Duration::from_secs(10);

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// What a client adds to its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hop {
    /// Deadline, `more` than the class has, and trace context.
    Caller { more: Duration },
    /// Nothing. The wait for an answer is bounded by the class.
    Forwarder,
}

/// A channel whose calls are bounded.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    hop: Hop,
    /// The last call was not answered.
    suspected: Arc<AtomicBool>,
}

/// A channel to the service that listens on the Unix socket at `path`.
#[must_use]
pub fn connect(path: &Path) -> Client {
    let more = Duration::ZERO;
    Client::new(channel(path), Hop::Caller { more })
}

/// As [`connect`], to the gateway: see [`FRONT_MARGIN`].
#[must_use]
pub fn connect_gateway(path: &Path) -> Client {
    let more = FRONT_MARGIN;
    Client::new(channel(path), Hop::Caller { more })
}

/// As [`connect`], without PINGs: for a peer whose process the caller watches
/// itself, and which nothing must wake.
#[must_use]
pub fn connect_watched(path: &Path) -> Client {
    let more = Duration::ZERO;
    Client::new(lazy(path, endpoint()), Hop::Caller { more })
}

/// As [`connect`], for whoever forwards calls: their headers stay as they are.
#[must_use]
pub fn forward(path: &Path) -> Client {
    Client::new(channel(path), Hop::Forwarder)
}

/// As [`connect`], without deadlines and trace context.
#[must_use]
pub fn channel(path: &Path) -> Channel {
    kept_alive(path, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT)
}

fn kept_alive(path: &Path, interval: Duration, timeout: Duration) -> Channel {
    let endpoint = endpoint()
        .http2_keep_alive_interval(interval)
        .keep_alive_timeout(timeout)
        .keep_alive_while_idle(false);
    lazy(path, endpoint)
}

fn endpoint() -> Endpoint {
    // The URI is required and unused: what is connected is the socket.
    Endpoint::from_static("http://gantry.local")
        .initial_stream_window_size(WINDOW_BYTES)
        .max_frame_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_BYTES)
        // An answer with longer headers ends the connection, and with it all calls
        // on it: no server of ours sends such ones.
        .http2_max_header_list_size(HEADERS_ACCEPTED)
        // Calls that are ended on both sides at once are counted for as long as the
        // connection lives, and would close it in the end: that is for strangers.
        .http2_max_local_error_reset_streams(None)
}

fn lazy(path: &Path, endpoint: Endpoint) -> Channel {
    let path: PathBuf = path.to_owned();
    endpoint.connect_with_connector_lazy(service_fn(move |_| {
        let path = path.clone();
        async move { socket::connect(&path).await.map(TokioIo::new) }
    }))
}

/// Whether a call failed because nothing was heard of the peer: its deadline is
/// over, or a PING was not answered.
#[must_use]
pub fn is_silence(status: &Status) -> bool {
    let mut error: Option<&(dyn Error + 'static)> = status.source();
    while let Some(this) = error {
        if this.is::<TimeoutExpired>()
            || this
                .downcast_ref::<hyper::Error>()
                .is_some_and(hyper::Error::is_timeout)
        {
            return true;
        }
        error = this.source();
    }
    false
}

impl Client {
    fn new(channel: Channel, hop: Hop) -> Self {
        Self {
            channel,
            hop,
            suspected: Arc::default(),
        }
    }

    /// Asks whether the peer is well. Any answer will do: a shim has no health
    /// service.
    async fn probe(&self) -> Result<(), Status> {
        let mut request = tonic::Request::new(HealthCheckRequest::default());
        request.set_timeout(PROBE_LIMIT);
        match HealthClient::new(self.channel.clone()).check(request).await {
            Err(status) if status.source().is_some() => Err(status),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn answer(
        self,
        request: http::Request<Body>,
        limit: Option<Duration>,
    ) -> Result<http::Response<Body>, Status> {
        if self.suspected.load(Ordering::Relaxed) {
            self.probe().await?;
            self.suspected.store(false, Ordering::Relaxed);
        }
        let call = self.channel.oneshot(request);
        let answer = match limit {
            None => call.await.map_err(|error| Status::from_error(error.into())),
            Some(limit) => match tokio::time::timeout(limit, call).await {
                Ok(answer) => answer.map_err(|error| Status::from_error(error.into())),
                Err(_) => Err(Status::from_error(TimeoutExpired(()).into())),
            },
        };
        if answer.is_err() {
            self.suspected.store(true, Ordering::Relaxed);
        }
        answer
    }
}

impl Service<http::Request<Body>> for Client {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // Each call waits for the channel by itself.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let deadline = calls::class_of_path(request.uri().path()).deadline();
        let limit = match self.hop {
            Hop::Forwarder => deadline,
            Hop::Caller { more } => {
                let headers = request.headers_mut();
                if let Some(deadline) = deadline {
                    set_deadline(headers, deadline + more);
                }
                telemetry::inject(headers);
                // The channel knows the header.
                None
            }
        };
        Box::pin(self.clone().answer(request, limit))
    }
}

/// Sets a deadline where the caller has set none.
fn set_deadline(headers: &mut HeaderMap, deadline: Duration) {
    if headers.contains_key(GRPC_TIMEOUT) {
        return;
    }
    // At most eight digits, which is a day.
    if let Ok(value) = HeaderValue::from_str(&format!("{}m", deadline.as_millis())) {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

/// Whether a call was not answered by whoever was called, but broke off, or ran
/// out of time.
#[must_use]
pub fn is_unanswered(status: &Status) -> bool {
    // What a service of ours answers has details.
    status.details().is_empty()
        && matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded
        )
}

#[cfg(test)]
mod tests {
    use tonic_health::pb::HealthCheckResponse;
    use tonic_health::pb::health_server::{Health, HealthServer};

    use super::*;

    async fn check(client: &Client) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        let mut health = HealthClient::new(client.clone());
        health.check(HealthCheckRequest::default()).await
    }

    #[tokio::test]
    async fn a_service_that_does_not_run_is_unavailable() {
        let directory = tempfile::tempdir().unwrap();
        let client = connect(&directory.path().join("none.sock"));
        let status = check(&client).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(is_unanswered(&status));
        assert!(!is_silence(&status));
    }

    /// A listener that takes connections and never answers, as that of a frozen
    /// process does.
    fn frozen(directory: &Path) -> (PathBuf, std::os::unix::net::UnixListener) {
        let path = directory.join("frozen.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        (path, listener)
    }

    #[tokio::test]
    async fn a_call_to_a_frozen_service_ends_and_the_next_asks_for_its_health_first() {
        let directory = tempfile::tempdir().unwrap();
        let (path, _listener) = frozen(directory.path());
        let client = connect(&path);
        let mut request = tonic::Request::new(HealthCheckRequest::default());
        request.set_timeout(Duration::from_millis(50));
        let mut health = HealthClient::new(client.clone());
        let status = health.check(request).await.unwrap_err();
        assert!(is_silence(&status), "{status:?}");
        // A call without a limit of its own ends with the question.
        let watched = health.watch(HealthCheckRequest::default());
        let status = tokio::time::timeout(calls::QUICK / 2, watched).await;
        assert!(is_silence(&status.unwrap().unwrap_err()));
    }

    #[tokio::test]
    async fn a_stream_from_a_frozen_service_ends() {
        let directory = tempfile::tempdir().unwrap();
        let (path, _listener) = frozen(directory.path());
        let moment = Duration::from_millis(50);
        for hop in [Hop::Forwarder, Hop::Caller { more: moment }] {
            let client = Client::new(kept_alive(&path, moment, moment), hop);
            let mut health = HealthClient::new(client);
            let watched = health.watch(HealthCheckRequest::default());
            let status = tokio::time::timeout(calls::QUICK / 2, watched).await;
            let status = status.unwrap().unwrap_err();
            assert!(is_silence(&status), "{status:?}");
            assert!(is_unanswered(&status), "{status:?}");
        }
    }

    /// Keeps the deadline that a call came with.
    #[derive(Clone, Debug, Default)]
    struct Seen(Arc<std::sync::Mutex<Vec<Option<String>>>>);

    #[tonic::async_trait]
    impl Health for Seen {
        async fn check(
            &self,
            request: tonic::Request<HealthCheckRequest>,
        ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
            let deadline = request.metadata().get(GRPC_TIMEOUT);
            let deadline = deadline.map(|value| value.to_str().unwrap().to_owned());
            self.0.lock().unwrap().push(deadline);
            Ok(tonic::Response::new(HealthCheckResponse::default()))
        }

        type WatchStream =
            Pin<Box<dyn tokio_stream::Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

        async fn watch(
            &self,
            _: tonic::Request<HealthCheckRequest>,
        ) -> Result<tonic::Response<Self::WatchStream>, Status> {
            Err(Status::unimplemented(""))
        }
    }

    #[tokio::test]
    async fn a_call_carries_the_deadline_of_its_class_and_of_its_hop() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("health.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let seen = Seen::default();
        let server = tonic::transport::Server::builder()
            .add_service(HealthServer::new(seen.clone()))
            .serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener));
        let server = tokio::spawn(server);
        for client in [connect(&path), connect_gateway(&path), forward(&path)] {
            check(&client).await.unwrap();
        }
        let deadlines = std::mem::take(&mut *seen.0.lock().unwrap());
        let expected = [Some("30000m"), Some("40000m"), None].map(|d| d.map(str::to_owned));
        assert_eq!(deadlines, expected);
        server.abort();
    }
}
