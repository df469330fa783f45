//! Copies on the wire: archives in pieces.

use std::sync::Arc;

use futures::StreamExt as _;
use gantry_proto::gateway::v1 as wire;
use gantry_proto::runtime::v1 as runtime;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::containers::BoxStream;
use super::request;
use super::status::status;
use crate::engine::Engine;
use crate::lifecycle::copy::{self, Pieces};
use crate::lifecycle::to_its_end;
use crate::peers::Place;
use crate::roster::Entry;

/// What is at a place, as an archive.
pub(super) async fn out(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    place: Place,
    name: String,
) -> Result<BoxStream<runtime::CopyOutResponse>, Status> {
    let pieces = copy::out(engine, entry, place, name)
        .await
        .map_err(status)?;
    let pieces = pieces.map(|piece| match piece {
        Ok(chunk) => Ok(runtime::CopyOutResponse { chunk }),
        Err(error) => Err(status(error)),
    });
    Ok(pieces.boxed())
}

/// Where an archive is to go.
pub(super) async fn open(
    stream: &mut Streaming<wire::CopyInRequest>,
) -> Result<wire::CopyInOpen, Status> {
    match request::first(stream, "open").await?.message {
        Some(wire::copy_in_request::Message::Open(open)) => Ok(open),
        _ => Err(request::missing("open")),
    }
}

/// Unpacks what arrives.
pub(super) async fn into(
    engine: &Arc<Engine>,
    entry: Arc<Entry>,
    open: wire::CopyInOpen,
    stream: Streaming<wire::CopyInRequest>,
) -> Result<(), Status> {
    let engine = Arc::clone(engine);
    // A caller that goes away ends the archive, and so the copy.
    let copy = async move {
        let pieces = pieces(stream);
        copy::into(&engine, &entry, open.path, open.keep_owner, pieces).await
    };
    to_its_end(copy).await.map_err(status)
}

/// The pieces of an archive. Where the caller goes away they just end, which is
/// not their end.
fn pieces(mut stream: Streaming<wire::CopyInRequest>) -> Pieces {
    use wire::copy_in_request::Message;
    let (sender, pieces) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                () = sender.closed() => return,
            };
            let Ok(Some(message)) = message else {
                return;
            };
            let piece = match message.message {
                Some(Message::Chunk(chunk)) => Some(chunk),
                Some(Message::End(_)) => None,
                Some(Message::Open(_)) | None => continue,
            };
            let last = piece.is_none();
            if sender.send(piece).await.is_err() || last {
                return;
            }
        }
    });
    pieces
}
