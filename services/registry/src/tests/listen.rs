use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_kit::paths::Paths;
use gantry_kit::service::{self, Context};
use gantry_proto::registry::v1::StatusRequest;
use gantry_proto::registry::v1::registry_service_client::RegistryServiceClient;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::listen::{Endpoint, ListenError};

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
    let mut endpoint = Endpoint::of(&registry.registry.config).unwrap().unwrap();
    endpoint.bind().await.unwrap();
    let address = endpoint.listening().address().unwrap();
    let stopping = CancellationToken::new();
    let router = crate::http::router(registry.registry.clone(), Side::Network);
    let task = tokio::spawn(endpoint.serve(router, stopping.clone()));
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
    let bind = async |config: Config| {
        let Some(mut endpoint) = Endpoint::of(&config)? else {
            return Ok(None);
        };
        endpoint.bind().await.map(|()| Some(endpoint))
    };
    let error = bind(Config {
        listen: "nowhere".to_owned(),
        ..any_port()
    })
    .await
    .unwrap_err();
    assert!(error.to_string().contains("\"nowhere\""));
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

/// Waits for what nobody announces.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_port_in_use_is_reported_and_taken_when_it_gets_free() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let registry = Fixture::with(Config {
        listen: address.to_string(),
        ..Config::default()
    });
    let mut endpoint = Endpoint::of(&registry.registry.config).unwrap().unwrap();
    endpoint.bind().await.unwrap();
    let listening = endpoint.listening();
    assert_eq!(listening.address(), None);
    let error = listening.error();
    assert!(
        error.contains(&address.to_string()) && error.contains("in use"),
        "{error}"
    );
    let stopping = CancellationToken::new();
    let router = crate::http::router(registry.registry.clone(), Side::Network);
    let task = tokio::spawn(endpoint.serve(router, stopping.clone()));
    drop(taken);
    let found = until("the port", async || listening.address()).await;
    assert_eq!((found, listening.error().as_str()), (address, ""));
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert!(request(&mut stream, "/v2/").await.contains("200 OK"));
    stopping.cancel();
    task.await.unwrap();
}

/// Lets this process have two thousand connections and both of their ends.
fn many_files() {
    gantry_kit::incoming::raise_descriptor_limit();
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_do_not_shut_out_those_that_ask() {
    many_files();
    let registry = Fixture::with(any_port());
    let server = serve(&registry).await;
    let mut silent = Vec::new();
    for number in 0..1100 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // Some begin to speak, and stop.
        match number % 3 {
            0 => {}
            1 => stream
                .write_all(b"GET /v2/ HTTP/1.1\r\nhost:")
                .await
                .unwrap(),
            _ => stream.write_all(b"PRI * HTTP/2").await.unwrap(),
        }
        silent.push(stream);
    }
    for _ in 0..3 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let reply = tokio::time::timeout(Duration::from_secs(10), request(&mut stream, "/v2/"));
        let reply = reply.await.expect("no answer beside silent connections");
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    }
    server.stopping.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_in_the_middle_makes_room_for_one_that_does_not() {
    let registry = Fixture::with(Config {
        max_connections: 2,
        ..any_port()
    });
    let upload = registry.begin("a").await;
    let server = serve(&registry).await;
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!("PATCH {upload} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nx");
        stream.write_all(head.as_bytes()).await.unwrap();
        stalled.push(stream);
    }
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let reply = tokio::time::timeout(Duration::from_secs(30), request(&mut stream, "/v2/"));
    let reply = reply.await.expect("no answer beside stalled uploads");
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    server.stopping.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_s_socket_has_the_administration_and_the_distribution_api() {
    let root = tempfile::tempdir().unwrap();
    let stopping = CancellationToken::new();
    let service = crate::build(Context {
        config: Config::default(),
        engine: gantry_kit::config::Engine::default(),
        paths: Paths::under(root.path()).unwrap(),
        stopping: stopping.clone(),
    })
    .await
    .unwrap();
    let socket = root.path().join("registry.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let drain = Duration::from_secs(5);
    let task = tokio::spawn(service::serve(service, listener, stopping.clone(), drain));

    let mut stream = UnixStream::connect(&socket).await.unwrap();
    let reply = request(&mut stream, "/v2/").await;
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    // Whoever may use the socket may delete.
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    let head = "DELETE /v2/a/manifests/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    assert!(reply.contains("MANIFEST_UNKNOWN"), "{reply}");

    let mut client = RegistryServiceClient::new(gantry_kit::client::connect(&socket));
    let asked = StatusRequest { listen_only: true };
    let status = client.status(asked).await.unwrap().into_inner();
    assert!(status.listen_addresses.is_empty() && status.listen_error.is_empty());
    // A gRPC method that is not there is no path of the distribution API.
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    let head = "POST /gantry.registry.v1.RegistryService/Fly HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    assert!(reply.contains("grpc-status: 12"), "{reply}");
    stopping.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(
        UnixStream::connect(&socket).await.unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );
}
