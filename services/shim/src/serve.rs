//! gRPC over a Unix socket with as little as it takes: hyper's HTTP/2 and the
//! generated service, without router, layers or TLS.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::shim::v1::shim_service_server::ShimServiceServer;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::codegen::Service as _;

use crate::grpc::Grpc;
use crate::shim::{Shim, Status};

/// What one window may type ahead of the program.
const STREAM_WINDOW: u32 = 1 << 20;
/// All windows together: no window takes another's share.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Windows and waits of one container at a time.
const STREAMS_MAX: u32 = 100_000;
/// Largest request; a specification may be long.
const MESSAGE_LIMIT: usize = 64 << 20;
/// How long a shim waits for the runtime that started it.
const CLAIM_LIMIT: Duration = Duration::from_secs(30);
/// How long the last answers may take to leave.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);
/// How long a connection may take until it says something.
const OPENING_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a failure to accept (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the shim is to end.
///
/// # Errors
/// The socket cannot be watched.
pub async fn serve(shim: Arc<Shim>, listener: UnixListener) -> io::Result<()> {
    let service = ShimServiceServer::new(Grpc::new(shim.clone()))
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    let ending = watch::Sender::new(false);
    let mut connections = JoinSet::new();
    let mut unclaimed = std::pin::pin!(tokio::time::sleep(CLAIM_LIMIT));
    let mut claimed = false;
    loop {
        tokio::select! {
            () = shim.ending.notified() => break,
            () = &mut unclaimed, if !claimed => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    claimed = true;
                    connections.spawn(converse(stream, service.clone(), ending.subscribe()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {
                // Whoever was to create a container here died before it could.
                if connections.is_empty() && shim.report().status == Status::Empty {
                    break;
                }
            }
        }
    }
    ending.send_replace(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    let _cut_off = tokio::time::timeout(DRAIN_LIMIT, drained).await;
    Ok(())
}

async fn converse(
    stream: UnixStream,
    service: ShimServiceServer<Grpc>,
    mut ending: watch::Receiver<bool>,
) {
    // A silent connection holds a file descriptor and no more than that.
    if tokio::time::timeout(OPENING_LIMIT, stream.readable())
        .await
        .is_err()
    {
        return;
    }
    let service = service_fn(move |request| {
        let mut service = service.clone();
        async move { service.call(request).await }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS_MAX)
        // These are counted for as long as the connection lives, and close it: they are for strangers. A call that is
        // ended on both sides at once counts, and so do calls that are given up while this process is stopped.
        .max_local_error_reset_streams(None)
        .max_pending_accept_reset_streams(Some(STREAMS_MAX as usize))
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // A caller that went away is no event here.
    tokio::select! {
        _ = &mut connection => return,
        _ = ending.changed() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _gone = connection.await;
}
