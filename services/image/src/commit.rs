//! A container becomes an image: its image's layers, and one more of what it changed.
//!
//! ```text
//! thread: read the files, make a tar ─┬─▶ thread: hash, write the blob
//!                                     └─▶ thread: make the layer's files
//! ```
//!
//! The layer's packed form is the plain tar. Compressing it would cost more than
//! everything else together, for an image that most often stays here; a push
//! compresses what it sends. The same stream makes the layer's directory, as it
//! would anywhere else: so the image that is here is the one that others get.
//! The blob is written past the page cache, and what it has in common with the
//! files is read once.
//!
//! Only what differs from the image is in the layer ([`crate::union::compare`]).
//! Whoever changed nothing gets an image without a new layer.
//!
//! The image is named when its blobs are on the disk; the layer's files follow
//! ([`crate::layers`]). A commit that fails or is cancelled leaves nothing.

use std::sync::Arc;

use bytes::Bytes;
use gantry_oci::content::{Commit, Expected, IngestKey};
use gantry_oci::{ContainerConfig, Descriptor, History, MediaType, Reference};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::ImageStore;
use crate::changes;
use crate::error::ImageError;
use crate::files::ContainerFiles;
use crate::garbage::Candidates;
use crate::image::{Image, LayerRecord};
use crate::import::{PieceReader, Pieces};
use crate::layers::NewLayer;
use crate::pack::Packer;
use crate::pull::blocking;
use crate::snapshots::root_of;
use crate::union::compare::{Detail, compare_container};
use crate::unpack::{self, Nothing, RootAttributes, Unpacked};

/// Pieces of the archive that wait for the slower of its two readers.
const PIECES: usize = 8;

/// What a committed image is to be.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// Its name, if it gets one.
    pub reference: Option<String>,
    pub author: String,
    /// A remark for its history.
    pub message: String,
    /// Dockerfile instructions for its configuration.
    pub changes: Vec<String>,
    /// What the container ran with. Absent: what its image says.
    pub config: Option<ContainerConfig>,
    /// When it counts as made. Absent: now.
    pub created: Option<jiff::Timestamp>,
    /// Cancelled when nobody wants the image any more.
    pub cancel: CancellationToken,
}

/// A layer that was made, and is not named yet.
struct Made {
    packed: Descriptor,
    new: NewLayer,
    unpacked: Unpacked,
}

impl ImageStore {
    /// Makes an image of a container. What is wrong with the options is said
    /// before anything is read.
    pub async fn commit(
        &self,
        container: &str,
        options: &CommitOptions,
    ) -> Result<Arc<Image>, ImageError> {
        let name = match &options.reference {
            Some(text) => Some(self.new_name(text)?),
            None => None,
        };
        let snapshot = self.get_snapshot(container)?;
        let id = snapshot.record.image.clone();
        let parent = self.catalogue().get(&id).cloned();
        let missing = || ImageError::NotFound {
            reference: id.to_string(),
        };
        let parent = parent.ok_or_else(missing)?;
        let ran_with = match &options.config {
            Some(config) => config.clone(),
            None => parent.config.config.clone(),
        };
        let mut config = ran_with.clone();
        for change in &options.changes {
            changes::apply(&mut config, change)?;
        }
        // Whatever happens to the image meanwhile, what it consists of stays.
        let blobs = parent.blobs().map(ToString::to_string);
        let layers = parent.record.layers.iter().map(|layer| layer.key.clone());
        let lease = self.lease(blobs.chain(layers).collect());
        if self.catalogue().get(&id).is_none() {
            return Err(missing());
        }
        let opened = blocking("opening a container's files", move || {
            ContainerFiles::open(snapshot).map(Arc::new)
        });
        let root = root_of(&parent).unwrap_or_default();
        let made = self.commit_layer(opened.await?, root, options).await?;
        let created = options.created.unwrap_or_else(jiff::Timestamp::now);
        let history = History {
            created: Some(created.to_string()),
            created_by: Some(ran_with.cmd.unwrap_or_default().join(" ")),
            author: some(&options.author),
            comment: some(&options.message),
            empty_layer: made.is_none(),
            ..History::default()
        };
        let new = NewImage {
            parent,
            config,
            author: options.author.clone(),
            history,
            name,
        };
        let store = self.clone();
        let image = blocking("recording an image", move || store.keep_commit(new, made)).await;
        drop(lease);
        image
    }

    /// Packs what differs, and unpacks it into a layer. None: nothing does.
    async fn commit_layer(
        &self,
        files: Arc<ContainerFiles>,
        root: RootAttributes,
        options: &CommitOptions,
    ) -> Result<Option<Made>, ImageError> {
        let (to_blob, for_blob) = mpsc::channel(PIECES);
        let (to_layer, for_layer) = mpsc::channel(PIECES);
        let cancel = options.cancel.clone();
        let read = Arc::clone(&files);
        let packing = blocking("packing a commit", move || {
            let readers = [to_blob, to_layer];
            let packed = pack(&read, root, &readers, &cancel);
            // Without a word the readers would take what they have for the whole.
            let reason = match &packed {
                Ok(0) => "nothing was changed".to_owned(),
                Ok(_) => return Ok(packed),
                Err(error) => error.to_string(),
            };
            for reader in &readers {
                reader.blocking_send(Err(reason.clone())).ok();
            }
            Ok(packed)
        });
        let content = self.shared.content.clone();
        let storing = blocking("storing a commit", move || store_blob(&content, for_blob));
        let layers = self.shared.layers.clone();
        let limits = self.shared.config.limits.clone();
        let unpacking = blocking("unpacking a commit", move || {
            let new = layers.begin()?;
            let directory = new.open()?;
            let source = PieceReader::new(for_layer);
            let unpacked = unpack::unpack_unhashed(source, directory, &limits, &mut Nothing);
            let unpacked = unpacked.map_err(|source| ImageError::Layer {
                digest: "of the commit".to_owned(),
                source,
            })?;
            Ok((new, unpacked))
        });
        let (packed, stored, unpacked) = tokio::join!(packing, storing, unpacking);
        let failure = match packed? {
            Ok(0) => None,
            Ok(_) => match (stored, unpacked) {
                (Ok(packed), Ok((new, unpacked))) => {
                    // The packed form is the plain tar: its digest is the diff ID.
                    let unpacked = unpacked.with_diff_id(packed.digest.clone());
                    return Ok(Some(Made {
                        packed,
                        new,
                        unpacked,
                    }));
                }
                (Ok(packed), Err(error)) => {
                    self.let_go(vec![packed.digest], Vec::new()).await?;
                    Some(error)
                }
                (Err(error), _) => Some(error),
            },
            Err(Failed::Files(error)) => Some(error),
            // A reader went away, and says why; or nobody wants the image.
            Err(Failed::Unwanted) if options.cancel.is_cancelled() => Some(ImageError::Cancelled {
                what: "the commit".to_owned(),
            }),
            Err(Failed::Unwanted) => Some(match (stored, unpacked) {
                (Err(error), _) if !is_consequence(&error) => error,
                (_, Err(error)) | (Err(error), _) => error,
                (Ok(_), Ok(_)) => ImageError::TaskLost { what: "a commit" },
            }),
        };
        match failure {
            Some(error) => Err(error),
            None => Ok(None),
        }
    }

    async fn let_go(
        &self,
        blobs: Vec<gantry_oci::Digest>,
        layers: Vec<String>,
    ) -> Result<(), ImageError> {
        let store = self.clone();
        blocking("removing what a failed commit left", move || {
            store.collect(&Candidates { blobs, layers }).map(drop)
        })
        .await
    }

    /// Names the layer and the image. Blocks for the disk.
    fn keep_commit(&self, new: NewImage, made: Option<Made>) -> Result<Arc<Image>, ImageError> {
        let mut config = new.parent.config.clone();
        config.created.clone_from(&new.history.created);
        config.author = new.author;
        config.config = new.config;
        config.history.push(new.history);
        // What older engines tell of the container that made the parent is not true of this one.
        for stale in ["container", "container_config", "docker_version"] {
            config.extra.remove(stale);
        }
        let mut layers = new.parent.record.layers.clone();
        let mut candidates = Candidates::default();
        let mut _lease = None;
        if let Some(made) = made {
            let diff_id = &made.unpacked.diff_id;
            config.rootfs.diff_ids.push(diff_id.clone());
            let chain_id = config.chain_ids().pop().unwrap_or_else(|| diff_id.clone());
            // From here on nobody removes the same content, if it was there already.
            _lease = Some(self.lease(vec![
                diff_id.hex().to_owned(),
                made.packed.digest.to_string(),
            ]));
            self.shared.content.stat(&made.packed.digest)?;
            let layer = made.new.finish(&made.unpacked, &chain_id)?;
            candidates.blobs.push(made.packed.digest.clone());
            candidates.layers.push(layer.key.clone());
            layers.push(LayerRecord {
                descriptor: made.packed,
                kept_as: None,
                diff_id: layer.meta.diff_id,
                key: layer.key,
                size: layer.meta.size,
                root: layer.meta.root,
            });
        }
        let tags = new.name.into_iter().collect();
        let parent = Some(new.parent.id().clone());
        let kept = self.keep_image(config, layers, tags, parent);
        if kept.is_err() {
            _lease = None;
            // The first failure is the one to report.
            self.collect(&candidates).ok();
        }
        kept
    }
}

/// An image in the making.
struct NewImage {
    parent: Arc<Image>,
    config: ContainerConfig,
    author: String,
    history: History,
    name: Option<Reference>,
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Why nothing, or not all, was packed.
#[derive(Debug)]
enum Failed {
    Files(ImageError),
    Unwanted,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Files(error) => error.fmt(f),
            Self::Unwanted => f.write_str("it is not wanted any more"),
        }
    }
}

/// Whether a reader only says that the stream broke off.
fn is_consequence(error: &ImageError) -> bool {
    matches!(error, ImageError::Stream { .. })
}

/// Gives the archive of what differs to both readers. How many entries it has.
fn pack(
    files: &ContainerFiles,
    root: RootAttributes,
    readers: &[mpsc::Sender<Result<Bytes, String>>; 2],
    cancel: &CancellationToken,
) -> Result<u64, Failed> {
    let failed = |error| {
        files
            .not_packed(error)
            .map_or(Failed::Unwanted, Failed::Files)
    };
    let take = |piece: Bytes| {
        if cancel.is_cancelled() {
            return false;
        }
        let mut readers = readers.iter();
        readers.all(|reader| reader.blocking_send(Ok(piece.clone())).is_ok())
    };
    let now = files.root().map_err(Failed::Files)?;
    let mut packer = Packer::of_layer(&files.whole, take);
    if RootAttributes::of(&now.stat) != root {
        packer.root(&now).map_err(failed)?;
    }
    compare_container(&files.image, &files.whole, Detail::Layer, &mut packer).map_err(failed)?;
    files.still_there().map_err(Failed::Files)?;
    packer.finish().map_err(failed)
}

/// Writes the blob. On an error what was written is gone.
fn store_blob(
    content: &gantry_oci::content::Store,
    mut pieces: Pieces,
) -> Result<Descriptor, ImageError> {
    let mut writer = content.writer(&IngestKey::random())?;
    writer.write_behind();
    while let Some(piece) = pieces.blocking_recv() {
        let written = match piece {
            Ok(piece) => writer.write(&piece).map_err(ImageError::from),
            Err(reason) => Err(ImageError::Stream { reason }),
        };
        if let Err(error) = written {
            writer.abort()?;
            return Err(error);
        }
    }
    let committed = writer.commit(&Expected::anything(), Commit::Deferred)?;
    Ok(Descriptor::new(
        MediaType::OciLayer,
        committed.digest,
        committed.size,
    ))
}
