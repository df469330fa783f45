//! The runtime service: files of a container, copied in and out.

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _};
use gantry_proto::runtime::v1 as wire;
use tokio_stream::wrappers::ReceiverStream;

use super::runtime::{Runtimes, error};
use crate::container::ContainerId;
use crate::error::Result;
use crate::lifecycle::copy::Pieces;

/// A path inside a container, and how far it is followed.
#[derive(Clone, Debug, Default)]
pub struct Place {
    pub path: String,
    /// What the last component leads to, where it is a link.
    pub follow: bool,
}

/// What is at a path, passed on as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundPath(pub wire::StatPathResponse);

impl Runtimes {
    /// What is at a path.
    ///
    /// # Errors
    /// There is nothing, or the service fails.
    pub async fn stat_path(&self, id: &ContainerId, place: Place) -> Result<FoundPath> {
        let request = wire::StatPathRequest {
            container_id: id.to_string(),
            path: place.path,
            follow: place.follow,
        };
        let answer = self.runtime.clone().stat_path(request).await;
        let answer = answer.map_err(|status| error(&status))?;
        Ok(FoundPath(answer.into_inner()))
    }

    /// What is at a path as an archive, named `name`; empty: as the path says.
    ///
    /// # Errors
    /// There is nothing, or the service fails.
    pub async fn copy_out(
        &self,
        id: &ContainerId,
        place: Place,
        name: String,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        let request = wire::CopyOutRequest {
            container_id: id.to_string(),
            path: place.path,
            follow: place.follow,
            name,
        };
        let answer = self.runtime.clone().copy_out(request).await;
        let pieces = answer.map_err(|status| error(&status))?.into_inner();
        let pieces = pieces.map(|piece| match piece {
            Ok(piece) => Ok(piece.chunk),
            Err(status) => Err(error(&status)),
        });
        Ok(pieces.boxed())
    }

    /// Unpacks an archive into a directory.
    ///
    /// # Errors
    /// The archive cannot be unpacked there, or the service fails.
    pub async fn copy_in(
        &self,
        id: &ContainerId,
        path: String,
        keep_owner: bool,
        pieces: Pieces,
    ) -> Result<()> {
        use wire::copy_in_request::Message;
        let open = Message::Open(wire::CopyInOpen {
            container_id: id.to_string(),
            path,
            keep_owner,
        });
        let pieces = ReceiverStream::new(pieces).map(|piece| match piece {
            Some(chunk) => Message::Chunk(chunk),
            None => Message::End(wire::CopyInEnd {}),
        });
        let requests = futures::stream::once(async { open })
            .chain(pieces)
            .map(|message| wire::CopyInRequest {
                message: Some(message),
            });
        let answer = self.runtime.clone().copy_in(requests).await;
        answer.map(|_copied| ()).map_err(|status| error(&status))
    }
}
