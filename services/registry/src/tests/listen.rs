use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::listen::{ListenError, Listening};

struct Server {
    address: std::net::SocketAddr,
    stopping: CancellationToken,
    task: JoinHandle<()>,
}

fn any_port() -> Config {
    Config {
        listen: "127.0.0.1:0".to_owned(),
        ..Config::default()
    }
}

fn tls_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("src/tests/tls")
        .join(name)
}

async fn serve(registry: &Fixture) -> Server {
    let listening = Listening::bind(&registry.registry.config)
        .await
        .unwrap()
        .unwrap();
    let address = listening.address();
    let stopping = CancellationToken::new();
    let router = crate::http::router(registry.registry.clone());
    let task = tokio::spawn(listening.serve(router, stopping.clone()));
    Server {
        address,
        stopping,
        task,
    }
}

async fn request(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), path: &str) -> String {
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn the_registry_answers_over_http() {
    let registry = Fixture::with(any_port());
    let server = serve(&registry).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let reply = request(&mut stream, "/v2/").await;
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    server.stopping.cancel();
    server.task.await.unwrap();
}

#[tokio::test]
async fn the_registry_answers_over_https_with_the_configured_certificate() {
    let registry = Fixture::with(Config {
        tls_cert: tls_file("certificate.pem"),
        tls_key: tls_file("key.pem"),
        ..any_port()
    });
    let server = serve(&registry).await;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(tls_file("certificate.pem")).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("localhost").unwrap(), stream)
        .await
        .unwrap();
    let reply = request(&mut stream, "/v2/").await;
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
}

#[tokio::test]
async fn a_stop_lets_a_download_end_and_takes_no_new_connection() {
    let registry = Fixture::with(any_port());
    // More than the sockets' buffers hold, so that it can not have left already.
    let content = vec![1_u8; 32 << 20];
    let digest = registry.push("a", &content).await;
    let server = serve(&registry).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 1024];
    stream.read_exact(&mut first).await.unwrap();
    server.stopping.cancel();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(first.len() + rest.len() > content.len());
    server.task.await.unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn wrong_listening_options_are_told_before_anything_starts() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bind = async |config: Config| Listening::bind(&config).await;
    let address = taken.local_addr().unwrap().to_string();
    let error = bind(Config {
        listen: address.clone(),
        ..any_port()
    })
    .await
    .unwrap_err();
    assert!(error.to_string().contains(&address));
    let half = Config {
        tls_cert: tls_file("certificate.pem"),
        ..any_port()
    };
    assert!(matches!(bind(half).await, Err(ListenError::HalfTls)));
    let missing = Config {
        tls_cert: tls_file("nothing.pem"),
        tls_key: tls_file("key.pem"),
        ..any_port()
    };
    assert!(matches!(bind(missing).await, Err(ListenError::Pem { .. })));
    let none = Config {
        listen: String::new(),
        ..Config::default()
    };
    assert!(bind(none).await.unwrap().is_none());
}
