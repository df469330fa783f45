//! Connections: HTTP and HTTPS, each host with its own idea of whom to trust.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use gantry_kit::socket;
use http::{Request, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::UnixStream;

use super::error::RegistryError;
use super::site::{PemFile, Tls};

/// What requests carry.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Connections to one host, over the network or over a Unix socket.
#[derive(Clone)]
pub(super) enum HttpClient {
    Network(Client<HttpsConnector<HttpConnector>, Body>),
    Socket(Client<SocketConnector, Body>),
}

impl HttpClient {
    pub(super) fn request(&self, request: Request<Body>) -> ResponseFuture {
        match self {
            Self::Network(client) => client.request(request),
            Self::Socket(client) => client.request(request),
        }
    }
}

/// Connects to a Unix socket, whatever host a request names.
#[derive(Clone)]
pub(super) struct SocketConnector {
    path: PathBuf,
}

impl tower::Service<Uri> for SocketConnector {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _host: Uri) -> Self::Future {
        let path = self.path.clone();
        Box::pin(async move { socket::connect(&path).await.map(TokioIo::new) })
    }
}

/// Makes a client for what listens on a Unix socket.
pub(super) fn socket_client(path: &Path) -> HttpClient {
    let path = path.to_owned();
    let client = Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_timer(TokioTimer::new())
        .http1_max_buf_size(256 << 10)
        .build(SocketConnector { path });
    HttpClient::Socket(client)
}

/// How long a host may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that may be under way on a connection, or wait in the kernel: what a
/// process that is killed has to fetch again. Left alone it grows to many
/// megabytes where the disk is slower than the network.
const WINDOW: usize = 1 << 20;
/// How long an idle connection is kept: a pull follows the one before soon or not at all.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Makes a client for a host on the network.
pub(super) fn client(host: &str, tls: &Tls) -> Result<HttpClient, RegistryError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(RegistryError::Tls)?;
    let builder = if tls.anybody {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider())))
    } else {
        builder.with_root_certificates(authorities(host, &tls.authorities)?)
    };
    let identities = Identities::read(host, &tls.identities)?;
    let tls = if identities.0.is_empty() {
        builder.with_no_client_auth()
    } else {
        builder.with_client_cert_resolver(Arc::new(identities))
    };
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    connector.set_recv_buffer_size(Some(WINDOW));
    // HTTP/1.1 alone: each layer gets a connection of its own, and none waits for another's window.
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    let client = Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_timer(TokioTimer::new())
        .http1_max_buf_size(256 << 10)
        .build(connector);
    Ok(HttpClient::Network(client))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn unusable(host: &str, path: &Path) -> impl Fn(io::Error) -> RegistryError + use<> {
    let (host, path) = (host.to_owned(), path.display().to_string());
    move |source| RegistryError::Certificate {
        host: host.clone(),
        path: path.clone(),
        source,
    }
}

/// The certificates in a PEM file, of which there must be one.
fn certificates(host: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let failed = unusable(host, path);
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(io::Error::other(error)))?;
    if found.is_empty() {
        return Err(failed(io::Error::other("it has no certificate")));
    }
    Ok(found)
}

fn authorities(host: &str, files: &[PemFile]) -> Result<RootCertStore, RegistryError> {
    let mut roots = RootCertStore::empty();
    for certificate in rustls_native_certs::load_native_certs().certs {
        // One odd certificate among the system's does not matter. With none at
        // all every certificate is refused, and the error says so.
        let _ = roots.add(certificate);
    }
    for file in files {
        for certificate in certificates(host, &file.path)? {
            let added = roots.add(certificate);
            added.map_err(|error| unusable(host, &file.path)(io::Error::other(error)))?;
        }
    }
    Ok(roots)
}

/// Who we are to a registry that asks.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

impl Identities {
    fn read(host: &str, files: &[(PemFile, PemFile)]) -> Result<Self, RegistryError> {
        let read = |(certificate, key): &(PemFile, PemFile)| {
            let chain = certificates(host, &certificate.path)?;
            let failed = unusable(host, &key.path);
            let private = PrivateKeyDer::from_pem_file(&key.path)
                .map_err(|error| failed(io::Error::other(error)))?;
            let identity = CertifiedKey::from_der(chain, private, &provider());
            identity
                .map(Arc::new)
                .map_err(|error| failed(io::Error::other(error)))
        };
        files.iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}

impl ResolvesClientCert for Identities {
    fn resolve(
        &self,
        root_hint_subjects: &[&[u8]],
        sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let usable =
            |identity: &&Arc<CertifiedKey>| identity.key.choose_scheme(sigschemes).is_some();
        // A certificate has its issuer's name in it, as the registry lists it.
        let wanted = |identity: &&Arc<CertifiedKey>| {
            let names = |hint: &&[u8]| {
                let mut chain = identity.cert.iter();
                chain.any(|der| der.windows(hint.len()).any(|part| part == *hint))
            };
            root_hint_subjects.iter().any(names)
        };
        let mut fitting = self.0.iter().filter(usable);
        let first = fitting.clone().next();
        fitting.find(wanted).or(first).cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes every certificate, for registries that were declared insecure.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
