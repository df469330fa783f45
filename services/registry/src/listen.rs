//! Sockets, TLS, and how connections begin and end.
//!
//! An own accept loop, because three things are ours to decide: how many
//! connections there are at a time, how long a client may take for a TLS
//! handshake or a request's head, and that on a stop each connection finishes
//! the request it is in and takes no further one.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// How long a client may take for a TLS handshake, or for the head of a request.
const PATIENCE: Duration = Duration::from_secs(30);

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

/// A socket that listens and is not served yet.
#[derive(Debug)]
pub struct Listening {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    connections: Arc<Semaphore>,
}

impl Listening {
    /// Listens as configured; `None` where the configuration wants no HTTP side.
    pub async fn bind(config: &Config) -> Result<Option<Self>, ListenError> {
        let address = config.listen.as_str();
        if address.is_empty() {
            return Ok(None);
        }
        let tls = tls(&config.tls_cert, &config.tls_key)?;
        let failed = |source| ListenError::Bind {
            address: address.to_owned(),
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        Ok(Some(Self {
            address: listener.local_addr().map_err(failed)?,
            listener,
            tls,
            connections: Arc::new(Semaphore::new(config.max_connections.max(1))),
        }))
    }

    /// The address, with the real port.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it speaks TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Serves until `stopping`, and then until every request under way is answered.
    pub async fn serve(self, router: Router, stopping: CancellationToken) {
        let tasks = tokio_util::task::TaskTracker::new();
        let acceptor = self.tls.map(TlsAcceptor::from);
        loop {
            let accepted = async {
                let permit = Arc::clone(&self.connections).acquire_owned().await;
                (permit, self.listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                () = stopping.cancelled() => break,
                accepted = accepted => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, say: the next attempt waits until some may be free.
                    tracing::warn!(%error, "cannot take a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (router, acceptor) = (router.clone(), acceptor.clone());
            let stopping = stopping.clone();
            tasks.spawn(async move {
                converse(stream, acceptor, router, stopping, peer).await;
                drop(permit);
            });
        }
        drop(self.listener);
        tasks.close();
        tasks.wait().await;
    }
}

async fn converse(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    stopping: CancellationToken,
    peer: SocketAddr,
) {
    // Small answers are not to wait for more.
    stream.set_nodelay(true).ok();
    match acceptor {
        None => talk(stream, router, stopping, peer).await,
        Some(acceptor) => match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => talk(stream, router, stopping, peer).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "the TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
        },
    }
}

async fn talk<S>(stream: S, router: Router, stopping: CancellationToken, peer: SocketAddr)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
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
    let connection =
        builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
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
