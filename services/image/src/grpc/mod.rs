//! `gantry.image.v1`: wire types in, domain calls, wire types out.

mod archives;
mod images;
mod snapshots;
mod status;
mod stores;
mod volumes;
mod wire;

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use gantry_kit::client::MESSAGE_LIMIT;
use gantry_proto::image::v1::archive_service_server::ArchiveServiceServer;
use gantry_proto::image::v1::image_service_server::ImageServiceServer;
use gantry_proto::image::v1::snapshot_service_server::SnapshotServiceServer;
use gantry_proto::image::v1::store_service_server::StoreServiceServer;
use gantry_proto::image::v1::volume_service_server::VolumeServiceServer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Response, Status};
use tracing::Instrument as _;

use crate::ImageStore;
use crate::error::ImageError;
use crate::pull::{Event, Watcher, blocking};

/// The services' full names, for health and reflection.
pub const SERVICES: &[&str] = &[
    "gantry.image.v1.ArchiveService",
    "gantry.image.v1.ImageService",
    "gantry.image.v1.SnapshotService",
    "gantry.image.v1.StoreService",
    "gantry.image.v1.VolumeService",
];

/// All services over one store.
#[derive(Clone, Debug)]
pub struct ImageGrpc {
    store: ImageStore,
    stopping: CancellationToken,
}

/// Messages of a stream that wait for who takes them.
const PIECES: usize = 8;

type Answer<T> = Result<Response<T>, Status>;
type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl ImageGrpc {
    /// `stopping` ends what is under way when the service stops.
    #[must_use]
    pub const fn new(store: ImageStore, stopping: CancellationToken) -> Self {
        Self { store, stopping }
    }

    /// All services, for a server.
    #[must_use]
    pub fn routes(&self) -> Routes {
        Routes::new(
            ImageServiceServer::new(self.clone())
                .max_encoding_message_size(MESSAGE_LIMIT)
                .max_decoding_message_size(MESSAGE_LIMIT),
        )
        .add_service(
            SnapshotServiceServer::new(self.clone())
                .max_encoding_message_size(MESSAGE_LIMIT)
                .max_decoding_message_size(MESSAGE_LIMIT),
        )
        .add_service(
            ArchiveServiceServer::new(self.clone())
                .max_encoding_message_size(MESSAGE_LIMIT)
                .max_decoding_message_size(MESSAGE_LIMIT),
        )
        .add_service(StoreServiceServer::new(self.clone()).max_encoding_message_size(MESSAGE_LIMIT))
        .add_service(
            VolumeServiceServer::new(self.clone()).max_encoding_message_size(MESSAGE_LIMIT),
        )
    }

    /// Runs something that blocks on the store.
    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ImageStore) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, Status> {
        let store = self.store.clone();
        Ok(blocking("a call", move || work(&store)).await?)
    }

    /// Starts work that blocks and gives messages while it runs, at the pace of
    /// who takes them. It ends when the caller is gone or the service stops.
    fn pieces<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ImageStore, &mut dyn FnMut(T) -> bool) -> Result<(), ImageError>
        + Send
        + 'static,
    ) -> EventStream<T> {
        let (sender, receiver) = mpsc::channel(PIECES);
        let store = self.store.clone();
        let stopping = self.stopping.clone();
        let runtime = tokio::runtime::Handle::current();
        let span = tracing::Span::current();
        tokio::task::spawn_blocking(move || {
            let _in_span = span.enter();
            let give = |message: Result<T, Status>| {
                runtime.block_on(async {
                    tokio::select! {
                        sent = sender.send(message) => sent.is_ok(),
                        () = stopping.cancelled() => false,
                    }
                })
            };
            let worked = work(&store, &mut |message| give(Ok(message)));
            let last = match worked {
                Err(error) => Err(Status::from(error)),
                Ok(()) if stopping.is_cancelled() => Err(Status::unavailable("the service stops")),
                Ok(()) => return,
            };
            // A caller that is gone, or does not take it, need not know.
            sender.try_send(last).ok();
        });
        Box::pin(ReceiverStream::new(receiver))
    }

    /// Starts work that reports while it runs. It is cancelled when the caller
    /// is gone or the service stops, and then still cleans up after itself.
    fn stream<T: Send + 'static, F>(
        &self,
        event: impl Fn(Event) -> Option<T> + Send + Sync + 'static,
        work: impl FnOnce(Watcher, CancellationToken) -> F,
    ) -> Answer<EventStream<T>>
    where
        F: Future<Output = Result<T, ImageError>> + Send + 'static,
    {
        // Unbounded, but filled at the pace of ten events a second for each layer.
        let (sender, receiver) = mpsc::unbounded_channel();
        let cancel = self.stopping.child_token();
        let watcher: Watcher = {
            let sender = sender.clone();
            Arc::new(move |happened| {
                if let Some(message) = event(happened) {
                    // A caller that is gone is noticed below.
                    let _ = sender.send(Ok(message));
                }
            })
        };
        let work = work(watcher, cancel.clone());
        tokio::spawn(
            async move {
                let mut work = Box::pin(work);
                let outcome = tokio::select! {
                    outcome = &mut work => outcome,
                    () = sender.closed() => {
                        cancel.cancel();
                        work.await
                    }
                };
                let _ = sender.send(outcome.map_err(Status::from));
            }
            .in_current_span(),
        );
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            receiver,
        ))))
    }
}
