//! `gantry.image.v1`: wire types in, domain calls, wire types out.

mod status;
mod wire;

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use gantry_proto::image::v1::image_service_server::{ImageService, ImageServiceServer};
use gantry_proto::image::v1::snapshot_service_server::{SnapshotService, SnapshotServiceServer};
use gantry_proto::image::v1::{self as proto};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use crate::ImageStore;
use crate::error::ImageError;
use crate::import::ImportOptions;
use crate::list::Filter;
use crate::pull::{Event, PullOptions, Watcher, blocking};
use crate::registry_client::Credentials;

/// The services' full names, for health and reflection.
pub const SERVICES: &[&str] = &[
    "gantry.image.v1.ImageService",
    "gantry.image.v1.SnapshotService",
];

/// Pieces of an import between the connection and the thread that packs them.
const IMPORT_PIECES: usize = 8;

/// Both services over one store.
#[derive(Clone, Debug)]
pub struct ImageGrpc {
    store: ImageStore,
    stopping: CancellationToken,
}

type Answer<T> = Result<Response<T>, Status>;
type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl ImageGrpc {
    /// `stopping` ends what is under way when the service stops.
    #[must_use]
    pub const fn new(store: ImageStore, stopping: CancellationToken) -> Self {
        Self { store, stopping }
    }

    #[must_use]
    pub fn image_server(&self) -> ImageServiceServer<Self> {
        ImageServiceServer::new(self.clone())
            .max_encoding_message_size(gantry_kit::client::MESSAGE_LIMIT)
            .max_decoding_message_size(gantry_kit::client::MESSAGE_LIMIT)
    }

    #[must_use]
    pub fn snapshot_server(&self) -> SnapshotServiceServer<Self> {
        SnapshotServiceServer::new(self.clone())
            .max_encoding_message_size(gantry_kit::client::MESSAGE_LIMIT)
    }

    /// Runs something that blocks on the store.
    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ImageStore) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, Status> {
        let store = self.store.clone();
        Ok(blocking("a call", move || work(&store)).await?)
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

#[tonic::async_trait]
impl ImageService for ImageGrpc {
    type PullStream = EventStream<proto::PullResponse>;
    type PushStream = EventStream<proto::PushResponse>;

    async fn pull(&self, request: Request<proto::PullRequest>) -> Answer<Self::PullStream> {
        let request = request.into_inner();
        let store = self.store.clone();
        let mut options = PullOptions {
            platform: request.platform.map(wire::platform),
            credentials: request.auth.and_then(wire::credentials),
            cancel: CancellationToken::new(),
        };
        self.stream(wire::pull_event, move |watcher, cancel| {
            options.cancel = cancel;
            async move {
                let pulled = store.pull(&request.reference, &options, watcher).await?;
                Ok(wire::pull_done(&pulled))
            }
        })
    }

    async fn push(&self, request: Request<proto::PushRequest>) -> Answer<Self::PushStream> {
        let request = request.into_inner();
        let store = self.store.clone();
        let credentials: Option<Credentials> = request.auth.and_then(wire::credentials);
        self.stream(wire::push_event, move |watcher, cancel| async move {
            let pushed = store
                .push(&request.reference, credentials, &cancel, watcher)
                .await?;
            Ok(wire::push_done(&pushed))
        })
    }

    async fn import(
        &self,
        request: Request<Streaming<proto::ImportRequest>>,
    ) -> Answer<proto::ImportResponse> {
        let mut stream = request.into_inner();
        let first = stream.message().await?.and_then(|message| message.part);
        let Some(proto::import_request::Part::Header(header)) = first else {
            return Err(ImageError::Missing {
                field: "the header",
            }
            .into());
        };
        let options = ImportOptions {
            reference: Some(header.reference).filter(|text| !text.is_empty()),
            changes: header.changes,
            message: header.message,
            platform: header.platform.map(wire::platform),
        };
        let (sender, pieces) = mpsc::channel(IMPORT_PIECES);
        let stopping = self.stopping.clone();
        let forward = async move {
            loop {
                let message = tokio::select! {
                    message = stream.message() => message,
                    () = stopping.cancelled() => Err(Status::unavailable("the service stops")),
                };
                let piece = match message {
                    Ok(None) => return,
                    Ok(Some(message)) => match message.part {
                        Some(proto::import_request::Part::Chunk(chunk)) => Ok(chunk),
                        _ => Err("a chunk was expected".to_owned()),
                    },
                    Err(status) => Err(status.message().to_owned()),
                };
                let failed = piece.is_err();
                if sender.send(piece).await.is_err() || failed {
                    return;
                }
            }
        };
        // On a task of its own, so that an import whose caller is gone cleans up.
        let store = self.store.clone();
        let importing = tokio::spawn(async move { store.import(&options, pieces).await });
        let (imported, ()) = tokio::join!(importing, forward);
        let image = imported.map_err(|_| ImageError::TaskLost { what: "an import" })??;
        Ok(Response::new(proto::ImportResponse {
            image: Some(wire::image(&image)),
        }))
    }

    async fn list(&self, request: Request<proto::ListRequest>) -> Answer<proto::ListResponse> {
        let filters: Vec<Filter> = request
            .into_inner()
            .filters
            .into_iter()
            .map(|filter| Filter {
                key: filter.key,
                value: filter.value,
            })
            .collect();
        let images = self.store.list(&filters)?;
        Ok(Response::new(proto::ListResponse {
            images: images.iter().map(|image| wire::image(image)).collect(),
        }))
    }

    async fn inspect(
        &self,
        request: Request<proto::InspectRequest>,
    ) -> Answer<proto::InspectResponse> {
        let request = request.into_inner();
        let image = self.store.resolve(&request.reference)?;
        wire::check_platform(&image, request.platform, &request.reference)?;
        let read = Arc::clone(&image);
        let manifest = self.with_store(move |store| store.manifest(&read)).await?;
        Ok(Response::new(proto::InspectResponse {
            image: Some(wire::image(&image)),
            config: image.config_raw.clone(),
            manifest: manifest.into(),
            manifest_media_type: image.record.manifest_media_type.to_string(),
            layer_sizes: image.record.layers.iter().map(|layer| layer.size).collect(),
        }))
    }

    async fn tag(&self, request: Request<proto::TagRequest>) -> Answer<proto::TagResponse> {
        let request = request.into_inner();
        let name = self
            .with_store(move |store| store.tag(&request.source, &request.target))
            .await?;
        Ok(Response::new(proto::TagResponse {
            tag: name.familiar(),
        }))
    }

    async fn remove(
        &self,
        request: Request<proto::RemoveRequest>,
    ) -> Answer<proto::RemoveResponse> {
        let request = request.into_inner();
        let removed = self
            .with_store(move |store| store.remove(&request.reference, request.force))
            .await?;
        Ok(Response::new(proto::RemoveResponse {
            untagged: removed.untagged,
            deleted: removed.deleted,
        }))
    }

    async fn login(&self, request: Request<proto::LoginRequest>) -> Answer<proto::LoginResponse> {
        let request = request.into_inner();
        let credentials = request.auth.and_then(wire::credentials);
        let credentials = credentials.ok_or(ImageError::Missing {
            field: "the user name",
        })?;
        self.store.login(&request.registry, credentials).await?;
        Ok(Response::new(proto::LoginResponse {
            status: "Login Succeeded".to_owned(),
        }))
    }
}

#[tonic::async_trait]
impl SnapshotService for ImageGrpc {
    async fn prepare(
        &self,
        request: Request<proto::PrepareRequest>,
    ) -> Answer<proto::PrepareResponse> {
        let request = request.into_inner();
        let image = self.store.resolve(&request.image)?;
        wire::check_platform(&image, request.platform, &request.image)?;
        let work = move |store: &ImageStore| {
            store.prepare(&request.container_id, &request.image, request.ephemeral)
        };
        let (image, snapshot) = if request.ephemeral {
            // Nothing here waits for the disk: a trip to another thread would cost more.
            work(&self.store)?
        } else {
            self.with_store(work).await?
        };
        Ok(Response::new(proto::PrepareResponse {
            image: Some(wire::image(&image)),
            config: image.config_raw.clone(),
            rootfs: Some(wire::rootfs(&snapshot)),
        }))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Answer<proto::GetResponse> {
        let snapshot = self
            .store
            .get_snapshot(&request.into_inner().container_id)?;
        Ok(Response::new(proto::GetResponse {
            snapshot: Some(wire::snapshot(&snapshot)),
        }))
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteRequest>,
    ) -> Answer<proto::DeleteResponse> {
        let request = request.into_inner();
        let deleted = self
            .with_store(move |store| store.delete_snapshot(&request.container_id))
            .await?;
        Ok(Response::new(proto::DeleteResponse { deleted }))
    }

    async fn list_snapshots(
        &self,
        _request: Request<proto::ListSnapshotsRequest>,
    ) -> Answer<proto::ListSnapshotsResponse> {
        let snapshots = self.store.list_snapshots();
        Ok(Response::new(proto::ListSnapshotsResponse {
            snapshots: snapshots.iter().map(wire::snapshot).collect(),
        }))
    }
}
