//! Copies on the wire: archives in pieces.

use std::pin::pin;
use std::sync::Arc;

use futures::future::{Either, select};
use gantry_proto::runtime::v1 as wire;
use prost_types::Timestamp;
use tokio::sync::mpsc;
use tonic::{Status as RpcStatus, Streaming};
use wire::copy_in_request::Message;

use super::Answers;
use crate::error::Error;
use crate::files::{PathStat, Place};
use crate::runtime::Runtime;

/// What is at a place, as an archive.
pub(super) async fn out(
    runtime: &Arc<Runtime>,
    id: &str,
    place: Place,
    name: String,
) -> Result<Answers<wire::CopyOutResponse>, RpcStatus> {
    let pieces = runtime.copy_out(id, place, name).await?;
    let state = Some((pieces, runtime.stopping.clone()));
    // One that just ended would look whole.
    let answers = futures::stream::unfold(state, |state| async {
        let (mut pieces, stopping) = state?;
        let piece = tokio::select! {
            piece = pieces.recv() => piece?,
            () = stopping.cancelled() => return Some((Err(Error::Stopping.into()), None)),
        };
        let answer = piece
            .map(|chunk| wire::CopyOutResponse { chunk })
            .map_err(RpcStatus::from);
        Some((answer, Some((pieces, stopping))))
    });
    Ok(Box::pin(answers))
}

/// Unpacks what arrives.
pub(super) async fn into(
    runtime: &Runtime,
    mut inbound: Streaming<wire::CopyInRequest>,
) -> Result<(), RpcStatus> {
    let first = inbound.message().await?.and_then(|first| first.message);
    let Some(Message::Open(open)) = first else {
        return Err(Error::Invalid {
            field: "message",
            problem: "the first message must be `open`".to_owned(),
        }
        .into());
    };
    let (sender, pieces) = mpsc::channel(1);
    let copy = runtime.copy_in(&open.container_id, open.path, open.keep_owner, pieces);
    // The sender goes with it: a stream that ends without `end` is broken off.
    let receive = async move {
        while let Ok(Some(message)) = inbound.message().await {
            let (piece, last) = match message.message {
                Some(Message::Chunk(chunk)) => (Some(chunk), false),
                Some(Message::End(_)) => (None, true),
                Some(Message::Open(_)) | None => continue,
            };
            if sender.send(piece).await.is_err() || last {
                return;
            }
        }
    };
    // A copy that has failed is told at once, whatever is still to come.
    match select(pin!(copy), pin!(receive)).await {
        Either::Left((copied, _)) => copied?,
        Either::Right(((), copy)) => copy.await?,
    }
    Ok(())
}

impl From<PathStat> for wire::PathStat {
    fn from(found: PathStat) -> Self {
        let stat = found.stat;
        Self {
            name: found.name,
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode,
            modified: Some(Timestamp {
                seconds: stat.st_mtime,
                nanos: i32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            }),
            link_target: found.link_target,
            link_resolved: found.link_resolved,
        }
    }
}
