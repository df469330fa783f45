//! The packed form of an image: what a push sends, and a save writes.
//!
//! An image is kept with the manifest that it came with. That is not always one
//! whose blobs are here: a layer that was there already, packed otherwise, was
//! not fetched again. Then the packing that is here takes its place, or, where
//! there is none, the blob is fetched from where the image is known to be. And a
//! push packs what came plain, as Docker does. Either makes another manifest for
//! the same configuration, and so for the same image.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use gantry_oci::content::{Commit, ContentError, Expected, IngestKey};
use gantry_oci::manifest::MANIFEST_MAX;
use gantry_oci::{
    Compression, Descriptor, Digest, Document, DocumentKind, Manifest, MediaType, Reference,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::ImageStore;
use crate::compress::compress;
use crate::download::Download;
use crate::error::ImageError;
use crate::flight::Role;
use crate::garbage::{Candidates, Lease};
use crate::image::{Image, LayerRecord};
use crate::pull::{Watcher, blocking};
use crate::registry_client::{Credentials, Repository};

/// Pieces of a download between the task that receives and the thread that
/// writes: enough for both to work, and little to lose.
const CHANNEL_PIECES: usize = 4;

/// Credentials for the registry of a reference.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    /// The registry they are for, and no other.
    pub(crate) domain: String,
    pub(crate) credentials: Credentials,
}

/// An image as it is sent: every blob of it is in the store while this lives.
#[derive(Debug)]
pub(crate) struct Packed {
    /// The manifest; not the record's where [`Packed::changed`] says so.
    pub(crate) document: Document,
    /// The layers as the manifest has them, the lowest first.
    pub(crate) layers: Vec<LayerRecord>,
    /// The manifest was made here, and is not in the store.
    pub(crate) changed: bool,
    /// Blobs that were made or fetched for it.
    made: Vec<Digest>,
    lease: Lease,
}

impl Packed {
    /// The blobs that the manifest names, with the files they are in; the
    /// configuration first. Foreign layers, which nobody but their owner may
    /// hand out, are left out.
    pub(crate) fn blobs(&self, store: &ImageStore) -> Vec<(Descriptor, PathBuf)> {
        let own = |descriptor: &&Descriptor| !descriptor.media_type.is_foreign_layer();
        let blobs = self.document.descriptors().filter(own);
        blobs
            .map(|blob| (blob.clone(), store.shared.content.blob_path(&blob.digest)))
            .collect()
    }
}

impl ImageStore {
    /// Brings an image into a form that can be sent. What is fetched for that
    /// is asked for with `login` where it is for the same registry.
    pub(crate) async fn packed(
        &self,
        image: &Arc<Image>,
        login: Option<&Login>,
        cancel: &CancellationToken,
    ) -> Result<Packed, ImageError> {
        let packings = self.packings_of(image);
        let names = image.blobs().cloned();
        let others = packings.iter().flatten().map(|other| other.digest.clone());
        let names = names.chain(others).map(|digest| digest.to_string());
        let mut packed = Packed {
            document: self.own_document(image)?,
            layers: image.record.layers.clone(),
            changed: false,
            made: Vec::new(),
            lease: self.lease(names.collect()),
        };
        let filled = self.fill(&mut packed, image, &packings, login, cancel);
        match filled.await {
            Ok(()) => Ok(packed),
            Err(error) => {
                self.abandon(packed).await?;
                Err(error)
            }
        }
    }

    fn own_document(&self, image: &Image) -> Result<Document, ImageError> {
        let record = &image.record;
        let raw = self
            .shared
            .content
            .read(&record.manifest, MANIFEST_MAX as u64)?;
        let read = Document::parse_verified(
            raw,
            Some(&record.manifest_media_type),
            &record.manifest,
            None,
        );
        read.map_err(|source| unusable(image, source))
    }

    /// For each layer, the blobs that may hold it.
    fn packings_of(&self, image: &Image) -> Vec<Vec<Descriptor>> {
        let layers = image.record.layers.iter();
        layers.map(|layer| self.packings_of_layer(layer)).collect()
    }

    /// What stands for a packed layer that was not fetched, since the layer was
    /// here in another packing. Blocks.
    pub(crate) fn packing_in_place_of(
        &self,
        descriptor: &Descriptor,
        diff_id: &Digest,
    ) -> Option<Descriptor> {
        if self.has(descriptor) {
            return None;
        }
        let others = self.other_packings(diff_id, &descriptor.digest);
        let cancel = CancellationToken::new();
        let found = self.first_verified(diff_id, &others, &cancel);
        found.unwrap_or_else(|error| {
            let error = gantry_kit::fault::chain(&error);
            tracing::warn!(layer = %diff_id, error, "a blob holds another layer than its image says; check the store");
            None
        })
    }

    /// Sees to it that there is a blob for each layer, and the manifest that names them.
    async fn fill(
        &self,
        packed: &mut Packed,
        image: &Arc<Image>,
        packings: &[Vec<Descriptor>],
        login: Option<&Login>,
        cancel: &CancellationToken,
    ) -> Result<(), ImageError> {
        for (position, candidates) in packings.iter().enumerate() {
            let mut descriptor = packed.layers[position].descriptor.clone();
            if descriptor.media_type.is_foreign_layer() {
                continue;
            }
            let diff_id = packed.layers[position].diff_id.clone();
            match self.verified(image, &diff_id, candidates, cancel).await? {
                Some(other) if other.digest != descriptor.digest => {
                    descriptor = in_place_of(descriptor, &other);
                }
                Some(_) => {}
                None => {
                    packed.made.push(descriptor.digest.clone());
                    self.fetch_blob(image, &descriptor, login, cancel).await?;
                    let fetched = std::slice::from_ref(&descriptor);
                    self.verified(image, &diff_id, fetched, cancel).await?;
                }
            }
            if let Some(compressed) = compress(&self.shared.content, &descriptor, cancel).await? {
                packed.made.push(compressed.digest.clone());
                packed.lease.add(self, &compressed.digest);
                self.note_packing(&compressed.digest, &diff_id);
                descriptor = Descriptor {
                    annotations: descriptor.annotations,
                    ..compressed
                };
            }
            packed.layers[position].descriptor = descriptor;
        }
        let same = image
            .record
            .layers
            .iter()
            .zip(&packed.layers)
            .all(|(old, new)| old.descriptor.digest == new.descriptor.digest);
        if !same {
            let layers = packed.layers.iter().map(|layer| &layer.descriptor);
            packed.document = manifest_with(&packed.document, layers, image)?;
            packed.changed = true;
            let layers = match packed.document.kind() {
                DocumentKind::Manifest(manifest) => manifest.layers.clone(),
                DocumentKind::Index(_) => Vec::new(),
            };
            for (record, descriptor) in packed.layers.iter_mut().zip(layers) {
                record.descriptor = descriptor;
            }
        }
        Ok(())
    }

    /// The manifest of an image with one blob in the place of another.
    pub(crate) fn document_with(
        &self,
        image: &Image,
        old: &Digest,
        new: &Descriptor,
    ) -> Result<Document, ImageError> {
        let own = self.own_document(image)?;
        let layers: Vec<Descriptor> = image
            .record
            .layers
            .iter()
            .map(|layer| match layer.descriptor.digest == *old {
                true => in_place_of(layer.descriptor.clone(), new),
                false => layer.descriptor.clone(),
            })
            .collect();
        manifest_with(&own, layers.iter(), image)
    }

    /// A blob of the store that holds a layer of the image, see
    /// [`ImageStore::first_verified`].
    async fn verified(
        &self,
        image: &Image,
        diff_id: &Digest,
        candidates: &[Descriptor],
        cancel: &CancellationToken,
    ) -> Result<Option<Descriptor>, ImageError> {
        let (store, cancel) = (self.clone(), cancel.clone());
        let (id, candidates) = (diff_id.clone(), candidates.to_vec());
        let found = blocking("verifying a layer", move || {
            store.first_verified(&id, &candidates, &cancel)
        });
        found.await.map_err(|error| wrong_packing(image, error))
    }

    /// The manifest of an image with the packings of its layers that are here,
    /// as far as there are any: what an archive has. Nothing is fetched or made.
    /// Blocks, where it was never verified what a blob holds.
    pub(crate) fn document_of_what_is_here(&self, image: &Image) -> Result<Document, ImageError> {
        let own = self.own_document(image)?;
        let mut layers: Vec<Descriptor> = Vec::with_capacity(image.record.layers.len());
        for layer in &image.record.layers {
            let candidates = self.packings_of_layer(layer);
            let cancel = CancellationToken::new();
            let found = self.first_verified(&layer.diff_id, &candidates, &cancel);
            let descriptor = layer.descriptor.clone();
            layers.push(match found.map_err(|error| wrong_packing(image, error))? {
                Some(other) if other.digest != descriptor.digest => in_place_of(descriptor, &other),
                _ => descriptor,
            });
        }
        let mut recorded = image.record.layers.iter().map(|layer| &layer.descriptor);
        if layers.iter().all(|layer| recorded.next() == Some(layer)) {
            return Ok(own);
        }
        manifest_with(&own, layers.iter(), image)
    }

    /// Fetches a blob of the image from a registry that the image is known to be in.
    async fn fetch_blob(
        &self,
        image: &Image,
        descriptor: &Descriptor,
        login: Option<&Login>,
        cancel: &CancellationToken,
    ) -> Result<(), ImageError> {
        let flight = format!("packed {}", descriptor.digest);
        let _leader = loop {
            match self.shared.flights.join(&flight) {
                Role::Leader(leader) => break leader,
                Role::Follower(mut done) => tokio::select! {
                    _ = done.changed() => {}
                    () = cancel.cancelled() => {}
                },
            }
            if cancel.is_cancelled() {
                return Err(ImageError::Cancelled { what: flight });
            }
        };
        if self.has(descriptor) {
            return Ok(());
        }
        let mut sources = Vec::new();
        for name in image.record.digests.iter().chain(&image.record.tags) {
            sources.extend(self.sources_of(name, login).await?);
        }
        if sources.is_empty() {
            return Err(missing(image, descriptor));
        }
        let content = self.shared.content.clone();
        let key = IngestKey::for_digest(&descriptor.digest);
        let (total, algorithm) = (descriptor.size, descriptor.digest.algorithm());
        let mut writer = blocking("opening a layer", move || {
            let mut writer = content.writer_with(&key, algorithm)?;
            if writer.offset() > total {
                writer.restart()?;
            }
            Ok(writer)
        })
        .await?;
        let offset = writer.offset();
        let (sender, mut receiver) = mpsc::channel::<Bytes>(CHANNEL_PIECES);
        let writing = tokio::task::spawn_blocking(move || {
            let mut written = Ok(());
            while let Some(piece) = receiver.blocking_recv() {
                written = writer.write(&piece);
                if written.is_err() {
                    break;
                }
            }
            (writer, written)
        });
        let watcher: Watcher = Arc::new(|_| {});
        let download = Download {
            sources: &sources,
            descriptor,
            watcher: &watcher,
            bytes: &AtomicU64::new(0),
        };
        let downloaded = tokio::select! {
            downloaded = download.run(offset, &sender) => downloaded,
            () = cancel.cancelled() => Err(ImageError::Cancelled {
                what: format!("layer {}", descriptor.digest),
            }),
        };
        drop(sender);
        let lost = |_| ImageError::TaskLost {
            what: "writing a layer",
        };
        let (writer, written) = writing.await.map_err(lost)?;
        written?;
        match downloaded {
            Ok(()) => {}
            Err(ImageError::Registry(error)) if !error.is_transient() => {
                let reason = gantry_kit::fault::chain(&error);
                tracing::info!(layer = %descriptor.digest, reason, "a packed layer cannot be had again");
                return Err(missing(image, descriptor));
            }
            Err(error) => return Err(error),
        }
        let expected = Expected::exactly(&descriptor.digest, descriptor.size);
        let digest = descriptor.digest.clone();
        blocking("committing a layer", move || {
            let unusable = |source: ContentError| ImageError::LayerContent { digest, source };
            let committed = writer.commit(&expected, Commit::Deferred);
            committed.map(drop).map_err(unusable)
        })
        .await
    }

    /// Where the blobs of a name can be had.
    async fn sources_of(
        &self,
        name: &Reference,
        login: Option<&Login>,
    ) -> Result<Vec<Repository>, ImageError> {
        let login = login.filter(|login| login.domain == name.domain());
        let credentials = login.map(|login| login.credentials.clone());
        let sources = self.shared.client.sources(name, credentials).await?;
        Ok(sources
            .into_iter()
            .filter(Repository::gives_content)
            .collect())
    }

    /// Makes the packed form the one that the image is kept with, under a name
    /// it now has. Blocks for the disk.
    pub(crate) fn adopt(
        &self,
        image: &Image,
        mut packed: Packed,
        name: Reference,
    ) -> Result<(), ImageError> {
        let content = &self.shared.content;
        if packed.changed {
            let document = &packed.document;
            packed.lease.add(self, document.digest());
            content.put_known(document.digest(), document.raw(), Commit::Deferred)?;
            content.sync_all_pending()?;
        }
        let amended = self.amend(image.id(), |record| {
            record.digests.insert(name);
            if packed.changed {
                record.manifest = packed.document.digest().clone();
                record.manifest_media_type = packed.document.media_type().clone();
                record.layers.clone_from(&packed.layers);
                // The index does not name this manifest.
                record.index = None;
            }
        });
        match amended {
            // Removed meanwhile: there is nothing to know any more.
            Ok(_) | Err(ImageError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        // What only the old packing had was kept until now.
        drop(packed.lease);
        let old = Candidates {
            layers: Vec::new(),
            ..Candidates::of_image(image)
        };
        self.collect(&old).map(drop)
    }

    /// Lets go of a packed form that was not sent: what was made for it goes.
    pub(crate) async fn abandon(&self, packed: Packed) -> Result<(), ImageError> {
        let candidates = Candidates {
            blobs: packed.made,
            layers: Vec::new(),
        };
        drop(packed.lease);
        let store = self.clone();
        blocking("removing what a failed push left", move || {
            store.collect(&candidates).map(drop)
        })
        .await
    }
}

/// Another packing of a layer, with all else that its manifest says of it.
fn in_place_of(mut descriptor: Descriptor, other: &Descriptor) -> Descriptor {
    descriptor.media_type.clone_from(&other.media_type);
    descriptor.digest.clone_from(&other.digest);
    descriptor.size = other.size;
    descriptor
}

/// An image's manifest with other layers.
fn manifest_with<'a>(
    document: &Document,
    layers: impl Iterator<Item = &'a Descriptor> + Clone,
    image: &Image,
) -> Result<Document, ImageError> {
    let DocumentKind::Manifest(old) = document.kind() else {
        return Err(ImageError::Unusable {
            reference: image.id().to_string(),
            reason: "its manifest is an index".into(),
        });
    };
    let manifest = in_one_dialect(old, document.media_type(), layers);
    let raw = serde_json::to_vec(&manifest).map_err(|error| ImageError::Unusable {
        reference: image.id().to_string(),
        reason: format!("its manifest cannot be written: {error}"),
    })?;
    let media_type = manifest.media_type.as_ref();
    Document::parse(raw, media_type).map_err(|source| unusable(image, source))
}

fn unusable(image: &Image, source: gantry_oci::ManifestError) -> ImageError {
    ImageError::Config {
        reference: image.id().to_string(),
        source,
    }
}

/// Says of which image a blob is that does not hold its layer.
fn wrong_packing(image: &Image, error: ImageError) -> ImageError {
    match error {
        ImageError::Layer { digest, source } => ImageError::WrongPacking {
            reference: image.display_name(),
            blob: digest,
            source,
        },
        other => other,
    }
}

fn missing(image: &Image, layer: &Descriptor) -> ImageError {
    let names = image.record.tags.iter().chain(&image.record.digests);
    let name = names.map(Reference::familiar).next();
    ImageError::PackedMissing {
        reference: name.unwrap_or_else(|| image.id().to_string()),
        layer: layer.digest.clone(),
    }
}

/// A manifest whose media types are all Docker's or all OCI's: Docker's while
/// there is one for each of them, which there is not for zstd.
fn in_one_dialect<'a>(
    old: &Manifest,
    media_type: &MediaType,
    layers: impl Iterator<Item = &'a Descriptor> + Clone,
) -> Manifest {
    let is_zstd =
        |layer: &Descriptor| layer.media_type.layer_compression() == Some(Compression::Zstd);
    let docker = *media_type == MediaType::DockerManifest && !layers.clone().any(is_zstd);
    let typed = |layer: &Descriptor| {
        let mut layer = layer.clone();
        if !layer.media_type.is_foreign_layer() {
            layer.media_type = match (layer.media_type.layer_compression(), docker) {
                (Some(Compression::Gzip), true) => MediaType::DockerLayerGzip,
                (Some(Compression::None), true) => MediaType::DockerLayer,
                (Some(Compression::Gzip), false) => MediaType::OciLayerGzip,
                (Some(Compression::Zstd), _) => MediaType::OciLayerZstd,
                (Some(Compression::None), false) => MediaType::OciLayer,
                (None, _) => layer.media_type,
            };
        }
        layer
    };
    let (own, config) = if docker {
        (MediaType::DockerManifest, MediaType::DockerConfig)
    } else {
        (MediaType::OciManifest, MediaType::OciConfig)
    };
    Manifest {
        media_type: Some(own),
        config: Descriptor {
            media_type: config,
            ..old.config.clone()
        },
        layers: layers.map(typed).collect(),
        ..old.clone()
    }
}
