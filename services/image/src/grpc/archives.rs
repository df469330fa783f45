//! `ArchiveService`: images in tar archives.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use gantry_oci::Reference;
use gantry_proto::image::v1 as proto;
use gantry_proto::image::v1::archive_service_server::ArchiveService;
use gantry_proto::image::v1::load_request::Part;
use gantry_proto::image::v1::load_response::Event;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Streaming};
use tracing::Instrument as _;

use super::{Answer, EventStream, ImageGrpc, wire};
use crate::archive::{Gone, LoadOptions, Loaded};
use crate::error::ImageError;
use crate::pull::{Watcher, blocking};

/// Pieces of an archive between the connection and the thread that reads or writes them.
const PIECES: usize = 8;

#[tonic::async_trait]
impl ArchiveService for ImageGrpc {
    type SaveStream = EventStream<proto::SaveResponse>;
    type LoadStream = EventStream<proto::LoadResponse>;

    async fn save(&self, request: Request<proto::SaveRequest>) -> Answer<Self::SaveStream> {
        let request = request.into_inner();
        let platform = request.platform.map(wire::platform);
        let saving = self
            .with_store(move |store| store.saving(&request.references, platform.as_ref()))
            .await?;
        let (sender, receiver) = mpsc::channel(PIECES);
        let stopping = self.stopping.clone();
        let writing = async move {
            let pieces = sender.clone();
            let written = blocking("a save", move || {
                saving.write(|chunk| {
                    if stopping.is_cancelled() {
                        return Err(Gone);
                    }
                    let piece = Ok(proto::SaveResponse { chunk });
                    pieces.blocking_send(piece).map_err(|_| Gone)
                })
            });
            if let Err(error) = written.await {
                // A caller that is gone needs no reason.
                let _ = sender.send(Err(error.into())).await;
            }
        };
        tokio::spawn(writing.in_current_span());
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn load(
        &self,
        request: Request<Streaming<proto::LoadRequest>>,
    ) -> Answer<Self::LoadStream> {
        let store = self.store.clone();
        let cancel = self.stopping.child_token();
        let (events, receiver) = mpsc::unbounded_channel();
        let watcher: Watcher = {
            let events = events.clone();
            Arc::new(move |event| {
                if let Some(layer) = wire::layer_progress(event) {
                    // A caller that is gone is noticed below.
                    let _ = events.send(Ok(response(Event::Layer(layer))));
                }
            })
        };
        let loading = async move {
            let told = events.clone();
            let loaded = move |image: Loaded| {
                let _ = told.send(Ok(response(Event::Loaded(wire_loaded(&image)))));
            };
            let (sender, pieces) = mpsc::channel(PIECES);
            let mut incoming = Incoming {
                stream: request.into_inner(),
                cancel: cancel.clone(),
            };
            let outcome = match incoming.header().await {
                Ok((header, first)) => {
                    let options = LoadOptions {
                        platform: header.platform.map(wire::platform),
                        cancel: cancel.clone(),
                    };
                    let mut feeding = pin!(incoming.feed(first, sender));
                    let mut work = pin!(store.load(&options, pieces, watcher, loaded));
                    let mut fed = false;
                    loop {
                        tokio::select! {
                            outcome = &mut work => break outcome,
                            () = &mut feeding, if !fed => fed = true,
                            () = events.closed(), if !cancel.is_cancelled() => cancel.cancel(),
                        }
                    }
                }
                Err(reason) => Err(ImageError::Stream { reason }),
            };
            if let Err(error) = outcome {
                let _ = events.send(Err(error.into()));
            }
        };
        // On a task of its own, so that a load whose caller is gone cleans up.
        tokio::spawn(loading.in_current_span());
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            receiver,
        ))))
    }
}

/// The messages of a load.
struct Incoming {
    stream: Streaming<proto::LoadRequest>,
    cancel: CancellationToken,
}

impl Incoming {
    async fn next(&mut self) -> Result<Option<Part>, String> {
        tokio::select! {
            message = self.stream.message() => match message {
                Ok(None) => Ok(None),
                Ok(Some(message)) => Ok(Some(message.part.unwrap_or(Part::Chunk(Bytes::new())))),
                Err(status) => Err(status.message().to_owned()),
            },
            () = self.cancel.cancelled() => Err("nobody waits for it any more".to_owned()),
        }
    }

    /// The header, and the first piece of the archive where there is no header.
    async fn header(&mut self) -> Result<(proto::LoadHeader, Bytes), String> {
        Ok(match self.next().await? {
            Some(Part::Header(header)) => (header, Bytes::new()),
            Some(Part::Chunk(chunk)) => (proto::LoadHeader::default(), chunk),
            None => (proto::LoadHeader::default(), Bytes::new()),
        })
    }

    async fn feed(mut self, first: Bytes, pieces: mpsc::Sender<Result<Bytes, String>>) {
        let mut piece = Ok(first);
        loop {
            let failed = piece.is_err();
            if pieces.send(piece).await.is_err() || failed {
                return;
            }
            piece = match self.next().await {
                Ok(None) => return,
                Ok(Some(Part::Chunk(chunk))) => Ok(chunk),
                Ok(Some(Part::Header(_))) => Err("a chunk was expected".to_owned()),
                Err(reason) => Err(reason),
            };
        }
    }
}

fn response(event: Event) -> proto::LoadResponse {
    proto::LoadResponse { event: Some(event) }
}

fn wire_loaded(loaded: &Loaded) -> proto::LoadedImage {
    proto::LoadedImage {
        image: Some(wire::image(&loaded.image)),
        names: loaded.names.iter().map(Reference::familiar).collect(),
        taken: loaded
            .taken
            .iter()
            .map(|(name, image)| proto::TakenName {
                name: name.familiar(),
                image_id: image.to_string(),
            })
            .collect(),
    }
}
