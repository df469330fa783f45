use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::service::{Service, serve};

const SECOND: Duration = Duration::from_secs(1);

/// No bound is reached by itself.
fn generous() -> Limits {
    Limits {
        connections: 100,
        unopened: 100,
        opening: SECOND * 600,
        idle: SECOND * 600,
        idle_http2: true,
        progress: None,
    }
}

fn listener(directory: &Path) -> (UnixListener, std::path::PathBuf) {
    let path = directory.join("x.sock");
    (UnixListener::bind(&path).unwrap(), path)
}

/// Whether the server has closed a connection; waits until it has.
async fn is_closed(stream: &mut UnixStream) -> bool {
    let mut buffer = [0; 64];
    let ended = async { while !matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)) {} };
    timeout(SECOND * 30, ended).await.is_ok()
}

/// Reads until the connection ends.
async fn drain(mut stream: Watched<UnixStream>) {
    let mut buffer = [0; 64];
    while !matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)) {}
}

/// Takes connections and only reads from them.
fn take(listener: UnixListener, limits: Limits) {
    tokio::spawn(async move {
        let mut incoming = Incoming::new(listener, limits);
        loop {
            let stream = incoming.next().await;
            tokio::spawn(drain(stream));
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_to_a_service_do_not_shut_out_a_client() {
    raise_descriptor_limit();
    let directory = tempfile::tempdir().unwrap();
    let (listener, path) = listener(directory.path());
    let stopping = CancellationToken::new();
    let service = Service::new(Routes::default(), &[]);
    tokio::spawn(serve(service, listener, stopping.clone(), SECOND));
    let before = HealthClient::new(crate::client::connect(&path));
    let check = async |mut client: HealthClient<crate::client::Client>| {
        let request = HealthCheckRequest::default();
        let answer = timeout(SECOND * 10, client.check(request)).await;
        answer.expect("no answer").unwrap();
    };
    check(before.clone()).await;
    let mut silent = Vec::new();
    for number in 0..1100 {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
        }
        silent.push(stream);
    }
    check(HealthClient::new(crate::client::connect(&path))).await;
    // The first of them made room; a client that was there is let be.
    assert!(is_closed(&mut silent[0]).await);
    check(before).await;
    stopping.cancel();
}

#[tokio::test]
async fn a_connection_that_says_too_little_is_closed_and_one_that_speaks_http2_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (listener, path) = listener(directory.path());
    take(
        listener,
        Limits {
            opening: SECOND,
            idle: SECOND,
            idle_http2: false,
            ..generous()
        },
    );
    let mut silent = UnixStream::connect(&path).await.unwrap();
    let mut begun = UnixStream::connect(&path).await.unwrap();
    begun.write_all(b"PRI * HTTP").await.unwrap();
    let mut other = UnixStream::connect(&path).await.unwrap();
    other.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let mut engine = UnixStream::connect(&path).await.unwrap();
    engine
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    for stream in [&mut silent, &mut begun, &mut other] {
        assert!(is_closed(stream).await);
    }
    let mut byte = [0];
    let read = engine.try_read(&mut byte);
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn the_longest_idle_connection_makes_room_and_one_at_work_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let (listener, path) = listener(directory.path());
    let mut incoming = Incoming::new(
        listener,
        Limits {
            connections: 2,
            ..generous()
        },
    );
    let _working = UnixStream::connect(&path).await.unwrap();
    let working = incoming.next().await;
    let under_way = working.connection().begin();
    let mut idle = UnixStream::connect(&path).await.unwrap();
    tokio::spawn(drain(incoming.next().await));
    let _third = UnixStream::connect(&path).await.unwrap();
    let third = incoming.next().await;
    assert!(is_closed(&mut idle).await);

    // With both at work a further one waits until one of them ends.
    let also = third.connection().begin();
    let _fourth = UnixStream::connect(&path).await.unwrap();
    let waiting = tokio::spawn(async move {
        incoming.next().await;
        incoming
    });
    drop((under_way, working));
    let incoming = timeout(SECOND * 30, waiting).await.unwrap().unwrap();
    assert_eq!(incoming.open(), 1);
    drop((also, third));
}

#[tokio::test]
async fn a_client_that_owes_bytes_and_sends_too_few_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let (listener, path) = listener(directory.path());
    let mut incoming = Incoming::new(
        listener,
        Limits {
            progress: Some((1000, SECOND)),
            ..generous()
        },
    );
    let mut slow = UnixStream::connect(&path).await.unwrap();
    let stream = incoming.next().await;
    let connection = stream.connection();
    let _request = connection.begin();
    connection.awaits_body(true);
    tokio::spawn(drain(stream));
    let _patient = UnixStream::connect(&path).await.unwrap();
    let stream = incoming.next().await;
    // The server itself takes its time here.
    let served = stream.connection();
    let _at_work = served.begin();
    tokio::spawn(async move { incoming.next().await });
    slow.write_all(b"a few").await.unwrap();
    assert!(is_closed(&mut slow).await);
    assert!(!served.is_closing());
}

/// A listener for which there are no file descriptors at first.
struct Exhausted {
    listener: UnixListener,
    failures: AtomicUsize,
    asked: Arc<AtomicUsize>,
}

impl Listener for Exhausted {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let left = self.failures.load(Ordering::SeqCst);
        if left > 0 {
            self.failures.store(left - 1, Ordering::SeqCst);
            return Err(io::Error::from_raw_os_error(24));
        }
        Listener::accept(&self.listener).await
    }
}

#[tokio::test]
async fn a_shortage_of_descriptors_passes_and_does_not_spin() {
    let directory = tempfile::tempdir().unwrap();
    let (listener, path) = listener(directory.path());
    let asked = Arc::new(AtomicUsize::new(0));
    let mut incoming = Incoming::new(
        Exhausted {
            listener,
            failures: AtomicUsize::new(4),
            asked: Arc::clone(&asked),
        },
        generous(),
    );
    let _client = UnixStream::connect(&path).await.unwrap();
    timeout(SECOND * 30, incoming.next()).await.unwrap();
    // Twice a round: the attempt, and the one with the reserve.
    assert!(asked.load(Ordering::SeqCst) <= 6);
}
