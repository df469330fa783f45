//! `ImageService`: images, to and from registries.

use std::sync::Arc;

use gantry_kit::pages::{self, PageAsked, newest_first};
use gantry_proto::image::v1 as proto;
use gantry_proto::image::v1::image_service_server::ImageService;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{Answer, EventStream, ImageGrpc, wire};
use crate::error::ImageError;
use crate::image::Image;
use crate::import::ImportOptions;
use crate::list::Filter;
use crate::pull::PullOptions;
use crate::registry_client::Credentials;
use crate::remove::RemoveOptions;
use crate::search::SearchOptions;

/// Pieces of an import between the connection and the thread that packs them.
const IMPORT_PIECES: usize = 8;

#[tonic::async_trait]
impl ImageService for ImageGrpc {
    type PullStream = EventStream<proto::PullResponse>;
    type PushStream = EventStream<proto::PushResponse>;
    type CompareImagesStream = EventStream<proto::CompareImagesResponse>;

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
                let reference = &request.reference;
                let pulled = if request.all_tags {
                    store.pull_all(reference, &options, watcher).await?
                } else {
                    store.pull(reference, &options, watcher).await?
                };
                Ok(wire::pull_done(&pulled))
            }
        })
    }

    async fn push(&self, request: Request<proto::PushRequest>) -> Answer<Self::PushStream> {
        let request = request.into_inner();
        let store = self.store.clone();
        let credentials: Option<Credentials> = request.auth.and_then(wire::credentials);
        if let Some(platform) = request.platform.map(wire::platform) {
            store.check_push(&request.reference, request.all_tags, &platform)?;
        }
        self.stream(wire::push_event, move |watcher, cancel| async move {
            let reference = &request.reference;
            let pushed = if request.all_tags {
                store
                    .push_all(reference, credentials, &cancel, watcher)
                    .await?
            } else {
                store.push(reference, credentials, &cancel, watcher).await?
            };
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
        if !header.source_url.is_empty() {
            let image = self.import_from(options, header.source_url).await?;
            return Ok(Response::new(proto::ImportResponse {
                image: Some(wire::image(&image)),
            }));
        }
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
        let request = request.into_inner();
        let filters: Vec<Filter> = request.filters.into_iter().map(wire::filter).collect();
        let images = self.store.list(request.all, &filters)?;
        let asked = PageAsked {
            size: request.page_size,
            token: &request.page_token,
        };
        // One without a time is the oldest.
        let place = |image: &Arc<Image>| {
            let created = image.created().map_or(i128::MIN, |at| at.as_nanosecond());
            newest_first(created, image.id().as_str())
        };
        let page = pages::page(images, asked, place, |image| wire::image(&image));
        Ok(Response::new(proto::ListResponse {
            images: page.entries,
            next_page_token: page.next_token,
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
            parent: image
                .record
                .parent
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
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
            .with_store(move |store| {
                let options = RemoveOptions {
                    force: request.force,
                    no_prune: request.no_prune,
                    running: request.running_containers.into_iter().collect(),
                };
                store.remove(&request.reference, &options)
            })
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
        let identity = self.store.login(&request.registry, credentials).await?;
        Ok(Response::new(proto::LoginResponse {
            status: "Login Succeeded".to_owned(),
            identity_token: identity.unwrap_or_default(),
        }))
    }

    async fn search(
        &self,
        request: Request<proto::SearchRequest>,
    ) -> Answer<proto::SearchResponse> {
        let request = request.into_inner();
        let filters = request.filters.into_iter().map(|filter| Filter {
            key: filter.key,
            value: filter.value,
        });
        let options = SearchOptions {
            term: request.term,
            limit: request.limit,
            filters: filters.collect(),
            credentials: request.auth.and_then(wire::credentials),
        };
        let found = self.store.search(&options).await?;
        Ok(Response::new(proto::SearchResponse {
            results: found.into_iter().map(wire::found).collect(),
        }))
    }

    async fn compare_images(
        &self,
        request: Request<proto::CompareImagesRequest>,
    ) -> Answer<Self::CompareImagesStream> {
        let request = request.into_inner();
        // Said at once, and not as the first message of a stream.
        for reference in [&request.from, &request.to] {
            self.store.resolve(reference)?;
        }
        let changes = self.pieces(move |store, give| {
            store.compare_images(&request.from, &request.to, &mut |changes| {
                let changes = changes.into_iter().map(wire::change).collect();
                give(proto::CompareImagesResponse { changes })
            })
        });
        Ok(Response::new(changes))
    }
}

impl ImageGrpc {
    /// Imports an archive that this service fetches. A caller that goes away ends it.
    async fn import_from(
        &self,
        options: ImportOptions,
        url: String,
    ) -> Result<Arc<Image>, ImageError> {
        let cancel = self.stopping.child_token();
        let _caller = cancel.clone().drop_guard();
        let store = self.store.clone();
        // On a task of its own, so that an import whose caller is gone cleans up.
        let importing =
            tokio::spawn(async move { store.import_from(&options, &url, &cancel).await });
        importing
            .await
            .map_err(|_| ImageError::TaskLost { what: "an import" })?
    }
}
