//! Getting one layer: download, inflate, hash and write, all at once.
//!
//! ```text
//! registry ─▶ task ─channel─▶ thread: hash, write ─▶ blob's file ─▶ thread: inflate ─▶ thread: hash, make files
//! ```
//!
//! The layer gets its name when the packed bytes are those of its descriptor
//! and the unpacked ones those of the configuration.
//!
//! One layer is got once however many pulls want it. A layer that has to wait
//! for those below it lets go of that right first: two images that have the
//! same layers in different order can then not wait for each other.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use gantry_oci::content::{Commit, ContentError, Expected, IngestKey, Writer};
use gantry_oci::{Descriptor, Digest};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::ImageStore;
use crate::chain::{BelowInChain, Chain};
use crate::download::Download;
use crate::error::ImageError;
use crate::flight::{Leader, Role};
use crate::growing::{self, GrowingFile, Growth};
use crate::layers::{Layer, NewLayer};
use crate::pull::{Event, LayerState, Watcher, blocking};
use crate::registry_client::Repository;
use crate::unpack::{self, Unpacked};

/// Pieces of a download between the task that receives and the thread that
/// writes: enough for both to work, and little to lose.
const CHANNEL_PIECES: usize = 4;
/// Small pieces are gathered up to this many bytes before they are hashed and written.
const GATHER_BYTES: usize = 256 << 10;
/// Packed bytes from which on a layer is brought to the disk by itself.
const DURABLE_FROM: u64 = 4 << 20;

/// One layer to get.
pub(crate) struct LayerJob {
    pub(crate) store: ImageStore,
    pub(crate) sources: Arc<Vec<Repository>>,
    pub(crate) descriptor: Descriptor,
    pub(crate) diff_id: Digest,
    pub(crate) chain_id: Digest,
    pub(crate) position: usize,
    pub(crate) chain: Arc<Chain>,
    pub(crate) cancel: CancellationToken,
    pub(crate) watcher: Watcher,
    pub(crate) bytes: Arc<AtomicU64>,
}

/// An unpacked layer without a name.
struct Fresh {
    new: NewLayer,
    unpacked: Unpacked,
    /// Until the layer has its name, nobody may begin the same.
    leader: Option<Leader>,
}

/// The packed bytes of a layer, as far as they are there.
enum Packed {
    Whole(File, u64),
    Partial(Box<Writer>, File),
}

impl LayerJob {
    /// Gets the layer. On an error the whole pull is cancelled.
    pub(crate) async fn run(&self) -> Result<Layer, ImageError> {
        let outcome = self.obtain().await;
        match &outcome {
            Ok(layer) => {
                let directory = self.store.shared.layers.directory(&layer.key);
                self.chain.set(self.position, directory);
            }
            Err(_) => {
                self.cancel.cancel();
                self.chain.give_up();
            }
        }
        outcome
    }

    fn report(&self, state: LayerState, current: u64) {
        (self.watcher)(Event::Layer {
            digest: self.descriptor.digest.clone(),
            state,
            current,
            total: self.descriptor.size,
        });
    }

    async fn obtain(&self) -> Result<Layer, ImageError> {
        let size = self.descriptor.size;
        loop {
            if let Some(layer) = self.store.shared.layers.find(&self.diff_id, &self.chain_id) {
                self.verify_known().await?;
                self.report(LayerState::Exists, size);
                return Ok(layer);
            }
            if self.cancel.is_cancelled() {
                return Err(self.cancelled());
            }
            match self.store.shared.flights.join(self.diff_id.as_str()) {
                Role::Leader(leader) => {
                    // It may have come between the look and the join.
                    if self.store.shared.layers.contains(self.diff_id.hex()) {
                        continue;
                    }
                    let layer = self.fetch(leader).await?;
                    self.report(LayerState::Complete, size);
                    return Ok(layer);
                }
                Role::Follower(mut done) => {
                    self.report(LayerState::Waiting, 0);
                    tokio::select! {
                        _ = done.changed() => {}
                        () = self.cancel.cancelled() => {}
                    }
                }
            }
        }
    }

    /// The layer is here. Its blob may be here too, of another image that says
    /// that it holds another layer: then it is inflated and compared. One that
    /// is not here is verified when it is fetched or used.
    async fn verify_known(&self) -> Result<(), ImageError> {
        let (blob, diff_id) = (&self.descriptor.digest, &self.diff_id);
        if self.store.is_verified_packing(blob, diff_id) || !self.store.has(&self.descriptor) {
            return Ok(());
        }
        let (store, cancel) = (self.store.clone(), self.cancel.clone());
        let (blob, diff_id) = (blob.clone(), diff_id.clone());
        blocking("verifying a layer", move || {
            store.verify_packing(&blob, &diff_id, &cancel)
        })
        .await
    }

    fn cancelled(&self) -> ImageError {
        ImageError::Cancelled {
            what: format!("layer {}", self.descriptor.digest),
        }
    }

    /// Downloads and unpacks. What an earlier process left of the download may
    /// be damaged, and a mirror may lie: then it is thrown away, once, and
    /// fetched anew from the registry itself.
    async fn fetch(&self, leader: Leader) -> Result<Layer, ImageError> {
        let (outcome, resumed) = self.fetch_once(leader, &self.sources).await;
        let error = match outcome {
            Err(error) if !error.is_transient() && !error.is_out_of_space() => error,
            outcome => return outcome,
        };
        let (mirrors, itself): (Vec<_>, Vec<_>) = self
            .sources
            .iter()
            .cloned()
            .partition(Repository::is_mirror);
        if !resumed && (mirrors.is_empty() || itself.is_empty()) {
            return Err(error);
        }
        let sources = if itself.is_empty() { mirrors } else { itself };
        let reason = gantry_kit::fault::chain(&error);
        tracing::warn!(layer = %self.descriptor.digest, reason, "a download was damaged and begins anew");
        match self.store.shared.flights.join(self.diff_id.as_str()) {
            Role::Leader(leader) => self.fetch_once(leader, &sources).await.0,
            Role::Follower(_) => Err(error),
        }
    }

    /// The layer, and whether the download went on from an earlier one.
    async fn fetch_once(
        &self,
        leader: Leader,
        sources: &[Repository],
    ) -> (Result<Layer, ImageError>, bool) {
        let packed = match self.open_packed().await {
            Ok(packed) => packed,
            Err(error) => return (Err(error), false),
        };
        match packed {
            Packed::Whole(file, size) => {
                let (growth, reader) = growing::pair(file, size);
                growth.finish();
                self.report(LayerState::Unpacking, size);
                let unpacked = self.unpack(reader, leader).await;
                (self.name(unpacked).await, false)
            }
            Packed::Partial(writer, file) => {
                let resumed = writer.offset() > 0;
                let layer = self.download_and_unpack(*writer, file, leader, sources);
                (layer.await, resumed)
            }
        }
    }

    async fn open_packed(&self) -> Result<Packed, ImageError> {
        let content = self.store.shared.content.clone();
        let descriptor = self.descriptor.clone();
        blocking("opening a layer", move || {
            match content.open_blob(&descriptor.digest) {
                Ok((file, size)) if size == descriptor.size => {
                    return Ok(Packed::Whole(file, size));
                }
                Ok(_) | Err(ContentError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            let key = IngestKey::for_digest(&descriptor.digest);
            let mut writer = content.writer_with(&key, descriptor.digest.algorithm())?;
            if writer.offset() > descriptor.size {
                writer.restart()?;
            }
            let path = content.root().join("ingest").join(key.as_str());
            let file = File::open(&path).map_err(ImageError::io("open", &path))?;
            Ok(Packed::Partial(Box::new(writer), file))
        })
        .await
    }

    async fn download_and_unpack(
        &self,
        writer: Writer,
        file: File,
        leader: Leader,
        sources: &[Repository],
    ) -> Result<Layer, ImageError> {
        let offset = writer.offset();
        let (growth, reader) = growing::pair(file, offset);
        let mut unpacking = tokio::spawn(self.unpack(reader, leader));
        let (sender, receiver) = mpsc::channel(CHANNEL_PIECES);
        let sink = spawn_blocking(move || write_pieces(writer, growth, receiver));
        let mut early = None;
        let download = Download {
            sources,
            descriptor: &self.descriptor,
            watcher: &self.watcher,
            bytes: &self.bytes,
        };
        let downloaded = tokio::select! {
            downloaded = download.run(offset, &sender) => downloaded,
            () = self.cancel.cancelled() => Err(self.cancelled()),
            // Before the last byte is verified it can only fail.
            unpacked = &mut unpacking => {
                early = Some(unpacked);
                Err(self.cancelled())
            }
        };
        drop(sender);
        let broken_archive = early.is_some();
        let packed = self.settle_download(sink, downloaded, broken_archive).await;
        let unpacked = match early {
            Some(unpacked) => unpacked,
            None => unpacking.await,
        };
        let unpacked = unpacked.unwrap_or(Err(ImageError::TaskLost {
            what: "unpacking a layer",
        }));
        match (packed, unpacked) {
            (Ok(()), unpacked) => self.name(unpacked).await,
            (Err(error), Ok(new)) => {
                drop_blocking(new).await;
                Err(error)
            }
            // The archive was damaged before the download failed or ended, and so is the reason.
            (Err(_), Err(error)) if broken_archive => Err(error),
            (Err(error), Err(_)) => Err(error),
        }
    }

    /// Waits for the writing thread; commits what it wrote, or fails the reader.
    async fn settle_download(
        &self,
        sink: JoinHandle<(Writer, Growth, Result<(), ContentError>)>,
        downloaded: Result<(), ImageError>,
        worthless: bool,
    ) -> Result<(), ImageError> {
        let Ok((writer, growth, written)) = sink.await else {
            return Err(ImageError::TaskLost {
                what: "writing a layer",
            });
        };
        let unusable = {
            let digest = self.descriptor.digest.clone();
            move |source| ImageError::LayerContent { digest, source }
        };
        let expected = Expected::exactly(&self.descriptor.digest, self.descriptor.size);
        // A large one is brought to the disk while others still come; small ones go together.
        let durability = if self.descriptor.size > DURABLE_FROM {
            Commit::Durable
        } else {
            Commit::Deferred
        };
        // A failed write is why the download ended, and not the other way round.
        let outcome = written.map_err(unusable.clone()).and(downloaded);
        blocking("committing a layer", move || match outcome {
            Ok(()) => match writer.commit(&expected, durability) {
                Ok(_) => {
                    growth.finish();
                    Ok(())
                }
                Err(error) => {
                    growth.fail(error.to_string());
                    Err(unusable(error))
                }
            },
            Err(error) => {
                growth.fail(error.to_string());
                if worthless || !error.is_transient() {
                    writer.abort()?;
                }
                Err(error)
            }
        })
        .await
    }

    /// Gives the finished layer its name.
    async fn name(&self, fresh: Result<Fresh, ImageError>) -> Result<Layer, ImageError> {
        let fresh = fresh?;
        let chain_id = self.chain_id.clone();
        // The blob's bytes are those that were unpacked.
        self.store
            .note_packing(&self.descriptor.digest, &self.diff_id);
        blocking("naming a layer", move || {
            let layer = fresh.new.finish(&fresh.unpacked, &chain_id);
            drop(fresh.leader);
            layer
        })
        .await
    }

    /// Unpacks into a new directory and checks the diff ID. On an error the
    /// directory is gone when this returns.
    fn unpack(
        &self,
        reader: GrowingFile,
        leader: Leader,
    ) -> impl Future<Output = Result<Fresh, ImageError>> + Send + use<> {
        let layers = self.store.shared.layers.clone();
        let limits = self.store.shared.config.limits.clone();
        let expected = self.diff_id.clone();
        let digest = self.descriptor.digest.clone();
        let mut lower = BelowInChain {
            chain: Arc::clone(&self.chain),
            position: self.position,
            leader: Some(leader),
        };
        blocking("unpacking a layer", move || {
            let failed = |source| ImageError::Layer {
                digest: digest.to_string(),
                source,
            };
            let new = layers.begin()?;
            let unpacked = unpack::unpack_as(reader, new.open()?, &expected, &limits, &mut lower)
                .map_err(failed)?;
            Ok(Fresh {
                new,
                unpacked,
                leader: lower.leader,
            })
        })
    }
}

async fn drop_blocking<T: Send + 'static>(value: T) {
    // Only a panic in a destructor could fail it, and that is reported by itself.
    let _ = spawn_blocking(move || drop(value)).await;
}

/// Hashes and writes what comes. Ends with the channel, or at the first failure.
fn write_pieces(
    mut writer: Writer,
    growth: Growth,
    mut receiver: mpsc::Receiver<Bytes>,
) -> (Writer, Growth, Result<(), ContentError>) {
    while let Some(first) = receiver.blocking_recv() {
        let piece = if first.len() >= GATHER_BYTES / 4 {
            first
        } else {
            let mut gathered = Vec::with_capacity(GATHER_BYTES);
            gathered.extend_from_slice(&first);
            while gathered.len() < GATHER_BYTES
                && let Ok(more) = receiver.try_recv()
            {
                gathered.extend_from_slice(&more);
            }
            Bytes::from(gathered)
        };
        if let Err(error) = writer.write(&piece) {
            return (writer, growth, Err(error));
        }
        growth.passed(piece, writer.written());
    }
    // The reader has to find what is still in memory, too.
    if let Err(error) = writer.flush() {
        return (writer, growth, Err(error));
    }
    growth.wrote(writer.written());
    (writer, growth, Ok(()))
}
