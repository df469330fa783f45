//! Loading: what came of an archive becomes images.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use gantry_oci::content::Commit;
use gantry_oci::{Descriptor, Digest, MediaType, Platform, Reference};
use tokio_util::sync::CancellationToken;

use super::ahead::{Ahead, Early, cancelled};
use super::entries::{Entries, Place};
use super::intake::Intake;
use super::plan::{self, Planned, PlannedLayer};
use crate::ImageStore;
use crate::compress::Cancellable;
use crate::error::ImageError;
use crate::garbage::Candidates;
use crate::image::{Image, ImageRecord, LayerRecord};
use crate::import::{Pieces, manifest_of};
use crate::layers::Layer;
use crate::pull::{Event, LayerState, Watcher, blocking};
use crate::unpack::{self, UnpackError};

/// How to load.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Which platform of an image for several. Absent: this machine's.
    pub platform: Option<Platform>,
    /// Cancelled when nobody wants the images any more.
    pub cancel: CancellationToken,
}

/// An image that was loaded.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub image: Arc<Image>,
    /// Names that the archive gave it.
    pub names: Vec<Reference>,
    /// Those of them that stood for another image before, with its id.
    pub taken: Vec<(Reference, Digest)>,
}

/// A part of an image that gets its name now.
enum Part {
    Place(Place),
    Bytes(Digest, Bytes),
}

impl ImageStore {
    /// Loads all images of an archive. `loaded` hears of each when it is on the
    /// disk and can be used; on an error nothing of the others is left.
    pub async fn load(
        &self,
        options: &LoadOptions,
        pieces: Pieces,
        watcher: Watcher,
        loaded: impl Fn(Loaded) + Send + Sync,
    ) -> Result<(), ImageError> {
        let cancel = options.cancel.child_token();
        let ahead = Ahead::new(self, &cancel);
        let mut intake = Intake::new(self, &ahead, &watcher, &cancel);
        let (intake, taken) = blocking("reading an archive", move || {
            let taken = intake.run(pieces);
            Ok((intake, taken))
        })
        .await?;
        let mut load = Load {
            store: self.clone(),
            ahead,
            watcher,
            cancel,
            intake: Some(intake),
        };
        let outcome = match taken {
            Ok(()) => load.images(options.platform.as_ref(), &loaded).await,
            Err(error) => Err(error),
        };
        load.end(outcome).await
    }

    /// An image that is here already and whole, and stays so while the lease lives.
    fn whole_image(&self, id: &Digest) -> Option<(Arc<Image>, crate::garbage::Lease)> {
        let image = self.catalogue().get(id).cloned()?;
        let blobs = image.blobs().map(ToString::to_string);
        let layers = image.record.layers.iter().map(|layer| layer.key.clone());
        let lease = self.lease(blobs.chain(layers).collect());
        // It may have gone between the look and the lease.
        let image = self.catalogue().get(id).cloned()?;
        let content = &self.shared.content;
        let whole = image.blobs().all(|blob| content.contains(blob))
            && image
                .record
                .layers
                .iter()
                .all(|layer| self.shared.layers.contains(&layer.key));
        whole.then_some((image, lease))
    }
}

/// One load after its archive has been read.
struct Load {
    store: ImageStore,
    ahead: Ahead,
    watcher: Watcher,
    cancel: CancellationToken,
    intake: Option<Intake>,
}

impl Load {
    fn entries(&mut self) -> Result<&mut Entries, ImageError> {
        let lost = ImageError::TaskLost { what: "a load" };
        self.intake
            .as_mut()
            .map(|intake| &mut intake.entries)
            .ok_or(lost)
    }

    async fn images(
        &mut self,
        platform: Option<&Platform>,
        loaded: &(impl Fn(Loaded) + Send + Sync),
    ) -> Result<(), ImageError> {
        let images = self.plan(platform).await?;
        let mut candidates = Candidates::default();
        for image in &images {
            candidates.blobs.extend(parts_of(image)?);
            let ids = image.layers.iter();
            let ids = ids.flat_map(|layer| [&layer.diff_id, &layer.chain_id]);
            candidates.layers.extend(ids.map(|id| id.hex().to_owned()));
        }
        let (store, blobs) = (self.store.clone(), candidates.blobs.clone());
        let intent = blocking("preparing a load", move || store.intend(&blobs)).await?;
        let mut outcome = Ok(());
        for image in images {
            match self.keep(image).await {
                Ok(image) => {
                    self.store.events().of_image("load", &image.image);
                    loaded(image);
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let (store, failed) = (self.store.clone(), outcome.is_err());
        let settled = blocking("ending a load", move || {
            if failed {
                store.collect(&candidates)?;
            }
            intent.settled()
        })
        .await;
        outcome.and(settled)
    }

    async fn plan(&mut self, platform: Option<&Platform>) -> Result<Vec<Planned>, ImageError> {
        let intake = self.intake.take();
        let platform = platform.cloned();
        let (intake, images) = blocking("reading an archive's list", move || {
            let images = match &intake {
                Some(intake) => plan::images(&intake.entries, platform.as_ref()),
                None => Ok(Vec::new()),
            };
            Ok((intake, images))
        })
        .await?;
        self.intake = intake;
        images
    }

    /// Makes one image whole, brings it to the disk and records it.
    async fn keep(&mut self, planned: Planned) -> Result<Loaded, ImageError> {
        let names = planned.names.clone();
        let taken = self.taken(&planned);
        let loaded = |image| Loaded {
            image,
            names: names.iter().cloned().collect(),
            taken,
        };
        if let Some((known, lease)) = self.store.whole_image(&planned.id) {
            let layers = known.record.layers.iter().rev();
            let directories: Vec<PathBuf> = layers
                .map(|layer| self.store.shared.layers.directory(&layer.key))
                .collect();
            for (position, layer) in planned.layers.iter().enumerate() {
                let above = planned.layers.len() - position;
                let below = directories.get(above..).unwrap_or_default();
                let early = self.entries()?.arrived_mut(layer.file).early.take();
                self.verify(layer, early, below).await?;
                let label = self.entries()?.arrived(layer.file).label.clone();
                self.report(label, LayerState::Exists, layer.descriptor.size);
            }
            // What it was packed as when it came first, it stays.
            let mut named = Image::clone(&known);
            named.record.tags.clone_from(&planned.names);
            let store = self.store.clone();
            let (image, _) = blocking("naming an image", move || {
                let recorded = store.record(named);
                drop(lease);
                recorded
            })
            .await?;
            return Ok(loaded(image));
        }
        let lease = self.store.lease(
            parts_of(&planned)?
                .iter()
                .map(ToString::to_string)
                .chain(planned.layers.iter().flat_map(|layer| {
                    [&layer.diff_id, &layer.chain_id].map(|id| id.hex().to_owned())
                }))
                .collect(),
        );
        let mut records = Vec::with_capacity(planned.layers.len());
        let mut below: Vec<PathBuf> = Vec::new();
        for layer in &planned.layers {
            let found = self.layer(layer, &below).await?;
            below.insert(0, self.store.shared.layers.directory(&found.key));
            records.push(LayerRecord {
                descriptor: layer.descriptor.clone(),
                kept_as: None,
                diff_id: found.meta.diff_id,
                key: found.key,
                size: found.meta.size,
                root: found.meta.root,
            });
        }
        let parts = self.parts(&planned)?;
        let store = self.store.clone();
        let image = blocking("recording an image", move || {
            let recorded = store.keep_loaded(planned, records, parts);
            drop(lease);
            recorded
        })
        .await?;
        Ok(loaded(image))
    }

    /// Names of an image that other images have now.
    fn taken(&self, planned: &Planned) -> Vec<(Reference, Digest)> {
        let catalogue = self.store.catalogue();
        let names = planned.names.iter();
        let held = names.filter_map(|name| Some((name, catalogue.named(name)?)));
        held.filter(|(_, image)| *image.id() != planned.id)
            .map(|(name, image)| (name.clone(), image.id().clone()))
            .collect()
    }

    /// One layer: the one that is here, or the one that was begun, or made now.
    async fn layer(
        &mut self,
        layer: &PlannedLayer,
        below: &[PathBuf],
    ) -> Result<Layer, ImageError> {
        if self.cancel.is_cancelled() {
            return Err(cancelled());
        }
        let arrived = self.entries()?.arrived_mut(layer.file);
        let (label, size, early) = (arrived.label.clone(), arrived.size, arrived.early.take());
        let known = self
            .store
            .shared
            .layers
            .find(&layer.diff_id, &layer.chain_id);
        if let Some(known) = known {
            self.verify(layer, early, below).await?;
            self.report(label, LayerState::Exists, size);
            return Ok(known);
        }
        self.report(label.clone(), LayerState::Unpacking, size);
        let algorithm = layer.diff_id.algorithm();
        let name = layer.descriptor.digest.to_string();
        let begun = match early {
            Some(early) => early.finish(below.to_vec()).await?,
            None => None,
        };
        let fresh = match begun {
            Some(fresh) if fresh.unpacked.diff_id.algorithm() == algorithm => fresh,
            _ => {
                let source = self.entries()?.open(layer.file)?;
                self.ahead
                    .unpack(source, algorithm, below.to_vec(), &name)
                    .await?
            }
        };
        let (layer, store) = (layer.clone(), self.store.clone());
        let found = blocking("naming a layer", move || {
            same_diff_id(&layer, &fresh.unpacked.diff_id)?;
            store.note_packing(&layer.descriptor.digest, &layer.diff_id);
            fresh.new.finish(&fresh.unpacked, &layer.chain_id)
        })
        .await?;
        self.report(label, LayerState::Complete, size);
        Ok(found)
    }

    /// Makes sure that an entry of the archive holds the layer that it is listed
    /// for, which is unpacked already. What is remembered of an equal entry is
    /// enough; else it is inflated and hashed.
    async fn verify(
        &mut self,
        layer: &PlannedLayer,
        early: Option<Early>,
        below: &[PathBuf],
    ) -> Result<(), ImageError> {
        let (blob, diff_id) = (layer.descriptor.digest.clone(), layer.diff_id.clone());
        if self.store.is_verified_packing(&blob, &diff_id) {
            if let Some(early) = early {
                early.discard().await;
            }
            return Ok(());
        }
        let algorithm = diff_id.algorithm();
        let begun = match early {
            Some(early) => early.finish(below.to_vec()).await?,
            None => None,
        };
        let source = match begun {
            Some(fresh) if fresh.unpacked.diff_id.algorithm() == algorithm => Err(fresh),
            _ => Ok(self.entries()?.open(layer.file)?),
        };
        let limits = self.store.shared.config.limits.clone();
        let cancel = self.cancel.clone();
        let (layer, store) = (layer.clone(), self.store.clone());
        blocking("verifying a layer", move || {
            let found = match source {
                // Dropped, the directory goes.
                Err(fresh) => fresh.unpacked.diff_id,
                Ok(source) => {
                    let source = Cancellable { source, cancel };
                    unpack::diff_id_of(source, algorithm, &limits).map_err(|source| {
                        ImageError::Layer {
                            digest: blob.to_string(),
                            source,
                        }
                    })?
                }
            };
            same_diff_id(&layer, &found)?;
            store.note_packing(&blob, &diff_id);
            Ok(())
        })
        .await
    }

    /// Takes what an image consists of out of the entries, to be named.
    fn parts(&mut self, planned: &Planned) -> Result<Vec<Part>, ImageError> {
        let mut parts = vec![Part::Bytes(planned.id.clone(), planned.config_raw.clone())];
        if let Some(manifest) = &planned.manifest {
            parts.push(Part::Bytes(
                manifest.digest().clone(),
                manifest.raw().clone(),
            ));
        }
        let entries = self.entries()?;
        for layer in &planned.layers {
            let arrived = entries.arrived_mut(layer.file);
            parts.push(match &arrived.place {
                // Another image of the archive may want it again.
                Place::Memory(bytes) => Part::Bytes(arrived.digest.clone(), bytes.clone()),
                Place::Sealed(_) => {
                    Part::Place(std::mem::replace(&mut arrived.place, Place::Stored))
                }
                Place::Stored => continue,
            });
        }
        Ok(parts)
    }

    fn report(&self, digest: Digest, state: LayerState, size: u64) {
        (self.watcher)(Event::Layer {
            digest,
            state,
            current: size,
            total: size,
        });
    }

    /// Removes what nobody wanted, and returns when nothing is written any more.
    async fn end(mut self, outcome: Result<(), ImageError>) -> Result<(), ImageError> {
        self.cancel.cancel();
        let Some(mut intake) = self.intake.take() else {
            return outcome;
        };
        for early in intake.entries.take_early() {
            early.discard().await;
        }
        blocking("ending a load", move || {
            drop(intake);
            Ok(())
        })
        .await?;
        outcome
    }
}

fn same_diff_id(layer: &PlannedLayer, found: &Digest) -> Result<(), ImageError> {
    if *found == layer.diff_id {
        return Ok(());
    }
    Err(ImageError::Layer {
        digest: layer.descriptor.digest.to_string(),
        source: UnpackError::DiffId {
            expected: layer.diff_id.clone(),
            found: found.clone(),
        },
    })
}

/// The blobs of an image: its documents and its packed layers.
fn parts_of(planned: &Planned) -> Result<Vec<Digest>, ImageError> {
    let manifest = match &planned.manifest {
        Some(manifest) => manifest.digest().clone(),
        None => Digest::sha256_of(&made_manifest(planned)?),
    };
    let layers = planned.layers.iter();
    Ok(layers
        .map(|layer| layer.descriptor.digest.clone())
        .chain([planned.id.clone(), manifest])
        .collect())
}

/// The manifest of an image that came without one.
fn made_manifest(planned: &Planned) -> Result<Vec<u8>, ImageError> {
    let size = planned.config_raw.len() as u64;
    let config = Descriptor::new(MediaType::OciConfig, planned.id.clone(), size);
    let layers = planned.layers.iter();
    manifest_of(
        config,
        layers.map(|layer| layer.descriptor.clone()).collect(),
    )
}

impl ImageStore {
    fn keep_loaded(
        &self,
        planned: Planned,
        layers: Vec<LayerRecord>,
        parts: Vec<Part>,
    ) -> Result<Arc<Image>, ImageError> {
        let content = &self.shared.content;
        for part in parts {
            match part {
                Part::Place(Place::Sealed(unnamed)) => unnamed.commit()?,
                Part::Place(_) => {}
                Part::Bytes(digest, bytes) => {
                    content.put_known(&digest, &bytes, Commit::Deferred)?;
                }
            }
        }
        let (manifest, manifest_media_type) = match &planned.manifest {
            Some(manifest) => (manifest.digest().clone(), manifest.media_type().clone()),
            None => {
                let raw = made_manifest(&planned)?;
                (content.put(&raw, Commit::Deferred)?, MediaType::OciManifest)
            }
        };
        content.sync_all_pending()?;
        let image = Image {
            record: ImageRecord {
                id: planned.id,
                manifest,
                manifest_media_type,
                index: None,
                layers,
                tags: planned.names,
                digests: BTreeSet::new(),
                parent: None,
            },
            config: planned.config,
            config_raw: planned.config_raw,
        };
        let recorded = self.record(image);
        self.settle_layers_behind();
        recorded.map(|(image, _)| image)
    }
}
