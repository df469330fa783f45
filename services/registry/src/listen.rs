//! The network: port, TLS, and how connections begin and end.
//!
//! An own accept loop, because these are ours to decide: how many connections
//! there are, how long a client may take for a TLS handshake, a request's head or
//! a body ([`gantry_kit::incoming`]), and that on a stop each connection finishes
//! the request it is in and takes no further one.
//!
//! A port that is in use does not keep the service from starting: it is reported
//! ([`Listening::error`]) and tried again, with growing pauses, as long as the
//! service runs. The kernel does not announce ports that get free.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use gantry_kit::fault::chain;
use gantry_kit::incoming::{self, Connection, Incoming, Limits, Watched};
use http::{Request, Response};
use http_body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::config::Config;

/// How long a client may take for its first request, TLS handshake included, and
/// for the head of a further one.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a connection is kept without a request.
const IDLE: Duration = Duration::from_secs(60);
/// The bytes that a client moves at least in a time while it sends or takes a body.
const PROGRESS: (u64, Duration) = (32 << 10, Duration::from_secs(60));
/// First and longest pause before a port that is in use is tried again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// Why the registry can not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address can not be had.
    #[error(
        "cannot listen on {address:?} (registry.listen); choose another address or stop what uses it"
    )]
    Bind {
        address: String,
        #[source]
        source: io::Error,
    },
    /// One of the two files was given without the other.
    #[error("registry.tls_cert and registry.tls_key must be set both, or neither")]
    HalfTls,
    /// A file is missing, or is not PEM.
    #[error("cannot read {what} {}", path.display())]
    Pem {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: pem::Error,
    },
    /// Certificate and key do not fit, or are of a kind that is not supported.
    #[error("the certificate {} and the key {} cannot be used", certificate.display(), key.display())]
    Tls {
        certificate: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
}

/// What is said of the network's side.
#[derive(Debug, Default)]
pub struct Listening {
    tls: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    address: Option<SocketAddr>,
    error: String,
}

impl Listening {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it listens, with the real port. Absent: nowhere at present.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.state().address
    }

    /// Why it does not listen where it should. Empty: it does, or it should not.
    #[must_use]
    pub fn error(&self) -> String {
        self.state().error.clone()
    }

    /// Whether it speaks TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls
    }
}

/// The configured address, with what is needed to serve it.
#[derive(Debug)]
pub struct Endpoint {
    address: String,
    listener: Option<TcpListener>,
    tls: Option<Arc<ServerConfig>>,
    limits: Limits,
    listening: Arc<Listening>,
}

impl Endpoint {
    /// The configured address; `None` where there is none. Does not listen yet.
    ///
    /// # Errors
    /// Certificate and key cannot be used.
    pub fn of(config: &Config) -> Result<Option<Self>, ListenError> {
        if config.listen.is_empty() {
            return Ok(None);
        }
        let tls = tls(&config.tls_cert, &config.tls_key)?;
        // A download has a file open beside its connection.
        let room = incoming::room_for_connections() / 2;
        let connections = config.max_connections.clamp(1, room.max(1));
        Ok(Some(Self {
            address: config.listen.clone(),
            listener: None,
            listening: Arc::new(Listening {
                tls: tls.is_some(),
                state: Mutex::default(),
            }),
            tls,
            limits: Limits {
                connections,
                unopened: connections,
                opening: PATIENCE,
                idle: IDLE,
                idle_http2: true,
                progress: Some(PROGRESS),
            },
        }))
    }

    /// What is said of it while it is served.
    #[must_use]
    pub fn listening(&self) -> Arc<Listening> {
        Arc::clone(&self.listening)
    }

    /// Listens, if the address is free now. One that is in use is reported.
    ///
    /// # Errors
    /// There can be no such address.
    pub async fn bind(&mut self) -> Result<(), ListenError> {
        let bound = async {
            let listener = TcpListener::bind(&self.address).await?;
            io::Result::Ok((listener.local_addr()?, listener))
        };
        match bound.await {
            Ok((address, listener)) => {
                tracing::info!(%address, tls = self.tls.is_some(), "the registry listens");
                *self.listening.state() = State {
                    address: Some(address),
                    error: String::new(),
                };
                self.listener = Some(listener);
                Ok(())
            }
            Err(source) => {
                let passes = matches!(
                    source.kind(),
                    io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
                );
                let address = self.address.clone();
                let error = ListenError::Bind { address, source };
                if !passes {
                    return Err(error);
                }
                let error = chain(&error);
                let mut state = self.listening.state();
                if state.error != error {
                    tracing::warn!("{error}; the registry tries again until it can");
                    state.error = error;
                }
                Ok(())
            }
        }
    }

    /// Serves until `stopping`, and then until every request under way is answered.
    pub async fn serve(mut self, router: Router, stopping: CancellationToken) {
        let Some(listener) = self.listener_when_free(&stopping).await else {
            return;
        };
        let tasks = tokio_util::task::TaskTracker::new();
        let acceptor = self.tls.map(TlsAcceptor::from);
        let mut incoming = Incoming::new(listener, self.limits);
        loop {
            let stream = tokio::select! {
                () = stopping.cancelled() => break,
                stream = incoming.next() => stream,
            };
            let (router, acceptor) = (router.clone(), acceptor.clone());
            tasks.spawn(converse(stream, acceptor, router, stopping.clone()));
        }
        drop(incoming);
        tasks.close();
        tasks.wait().await;
    }

    /// Waits until it listens; `None` when the service stops before.
    async fn listener_when_free(&mut self, stopping: &CancellationToken) -> Option<TcpListener> {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(listener) = self.listener.take() {
                return Some(listener);
            }
            tokio::select! {
                () = stopping.cancelled() => return None,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LAST_PAUSE);
            if let Err(error) = self.bind().await {
                let error = chain(&error);
                tracing::warn!("{error}");
                self.listening.state().error = error;
            }
        }
    }
}

async fn converse(
    stream: Watched<TcpStream>,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    stopping: CancellationToken,
) {
    // Small answers are not to wait for more.
    stream.stream().set_nodelay(true).ok();
    let connection = stream.connection();
    let peer = connection.peer();
    match acceptor {
        None => talk(stream, router, stopping, connection).await,
        // How long a handshake may take is among the bounds of the connection.
        Some(acceptor) => match acceptor.accept(stream).await {
            Ok(stream) => talk(stream, router, stopping, connection).await,
            Err(error) => tracing::debug!(%peer, %error, "the TLS handshake failed"),
        },
    }
}

async fn talk<S>(stream: S, router: Router, stopping: CancellationToken, connection: Connection)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = connection.peer();
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(128 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(64)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_send_buf_size(1 << 20);
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let under_way = connection.begin();
        let request = request.map(|body| {
            Body::new(Awaited {
                body: Body::new(body),
                connection: connection.clone(),
                waits: false,
            })
        });
        let answer = router.clone().oneshot(request);
        async move {
            let response: Response<Body> = answer.await?;
            Ok::<_, std::convert::Infallible>(response.map(|body| Answered {
                body,
                _under_way: under_way,
            }))
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%peer, error, "a connection broke");
    }
}

/// The body of a request, which says whether it is waited for.
struct Awaited {
    body: Body,
    connection: Connection,
    waits: bool,
}

impl Awaited {
    fn note(&mut self, waits: bool) {
        if self.waits != waits {
            self.waits = waits;
            self.connection.awaits_body(waits);
        }
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.note(false);
    }
}

impl http_body::Body for Awaited {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let outcome = Pin::new(&mut self.body).poll_frame(context);
        self.note(outcome.is_pending());
        outcome
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer; its request is under way until it has been sent.
struct Answered {
    body: Body,
    _under_way: incoming::Request,
}

impl http_body::Body for Answered {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Reads certificate and key.
fn tls(certificate: &Path, key: &Path) -> Result<Option<Arc<ServerConfig>>, ListenError> {
    match (
        certificate.as_os_str().is_empty(),
        key.as_os_str().is_empty(),
    ) {
        (true, true) => return Ok(None),
        (false, false) => {}
        _ => return Err(ListenError::HalfTls),
    }
    let unreadable = |what, path: &Path| {
        let path = path.to_owned();
        move |source| ListenError::Pem { what, path, source }
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(unreadable("the certificate", certificate))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(unreadable("the key", key))?;
    let failed = |source| ListenError::Tls {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(failed)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(Arc::new(config)))
}
