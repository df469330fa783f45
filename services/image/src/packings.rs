//! Which blob holds which layer: pairs of a packed layer and a diff ID that were verified.
//!
//! A manifest says which blob a layer is packed in, a configuration says what
//! its diff ID is, and neither is true because it is written there. A pair is
//! verified when the blob was inflated and hashed, as unpacking does. Only a
//! verified blob is saved, pushed, or used for a layer that came packed
//! otherwise. A plain tar needs no record: its digest is the diff ID.
//!
//! Verified pairs are remembered in the index (tree `packings`, key
//! `<blob> <diff ID>`). They are facts about bytes and cannot become wrong; one
//! that was lost, or that an older version never wrote, costs inflating the blob
//! once more.
//!
//! **Locking.** The map's lock is held for microseconds, never over the disk.

use std::collections::{BTreeSet, HashMap};
use std::sync::{PoisonError, RwLock};

use gantry_oci::content::ContentError;
use gantry_oci::{Descriptor, Digest};
use tokio_util::sync::CancellationToken;

use crate::ImageStore;
use crate::compress::Cancellable;
use crate::error::ImageError;
use crate::image::{ImageRecord, LayerRecord};
use crate::unpack::{self, UnpackError};

/// A blob and the diff ID of the layer that is packed in it.
pub(crate) type Packing = (Digest, Digest);

/// All verified pairs, in memory.
#[derive(Debug, Default)]
pub(crate) struct Packings {
    verified: RwLock<HashMap<Digest, BTreeSet<Digest>>>,
}

impl Packings {
    pub(crate) fn new(pairs: Vec<Packing>) -> Self {
        let mut verified: HashMap<Digest, BTreeSet<Digest>> = HashMap::new();
        for (blob, diff_id) in pairs {
            verified.entry(blob).or_default().insert(diff_id);
        }
        Self {
            verified: RwLock::new(verified),
        }
    }

    fn has(&self, blob: &Digest, diff_id: &Digest) -> bool {
        let verified = self.verified.read().unwrap_or_else(PoisonError::into_inner);
        verified.get(blob).is_some_and(|ids| ids.contains(diff_id))
    }

    /// False: it was known.
    fn add(&self, blob: &Digest, diff_id: &Digest) -> bool {
        let mut verified = self
            .verified
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let ids = verified.entry(blob.clone()).or_default();
        ids.insert(diff_id.clone())
    }

    fn remove(&self, blob: &Digest) -> BTreeSet<Digest> {
        let mut verified = self
            .verified
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        verified.remove(blob).unwrap_or_default()
    }

    pub(crate) fn all(&self) -> Vec<Packing> {
        let verified = self.verified.read().unwrap_or_else(PoisonError::into_inner);
        let pairs = verified.iter().flat_map(|(blob, ids)| {
            let ids = ids.iter().cloned();
            ids.map(|diff_id| (blob.clone(), diff_id))
        });
        pairs.collect()
    }
}

impl ImageStore {
    /// Whether a blob is known to hold a layer.
    pub(crate) fn is_verified_packing(&self, blob: &Digest, diff_id: &Digest) -> bool {
        blob == diff_id || self.shared.packings.has(blob, diff_id)
    }

    /// Remembers that a blob was inflated and gave a layer.
    pub(crate) fn note_packing(&self, blob: &Digest, diff_id: &Digest) {
        if blob != diff_id && self.shared.packings.add(blob, diff_id) {
            let pair = (blob.clone(), diff_id.clone());
            self.shared.records.put_packing(&pair);
        }
    }

    /// Forgets what removed blobs held.
    pub(crate) fn forget_packings<'a>(&self, blobs: impl IntoIterator<Item = &'a Digest>) {
        for blob in blobs {
            let ids = self.shared.packings.remove(blob).into_iter();
            let pairs: Vec<Packing> = ids.map(|diff_id| (blob.clone(), diff_id)).collect();
            self.shared.records.delete_packings(&pairs);
        }
    }

    /// Inflates and hashes a blob of the store, whatever is known of it: the
    /// digest of the tar in it. Blocks for as long as that takes.
    pub(crate) fn inflated_digest(
        &self,
        blob: &Digest,
        diff_id: &Digest,
        cancel: &CancellationToken,
    ) -> Result<Digest, ImageError> {
        let (source, _) = self.shared.content.open_blob(blob)?;
        let source = Cancellable {
            source,
            cancel: cancel.clone(),
        };
        let limits = &self.shared.config.limits;
        unpack::diff_id_of(source, diff_id.algorithm(), limits).map_err(|source| {
            if cancel.is_cancelled() {
                return ImageError::Cancelled {
                    what: format!("verifying layer {blob}"),
                };
            }
            ImageError::Layer {
                digest: blob.to_string(),
                source,
            }
        })
    }

    /// Makes sure that a blob of the store holds a layer, and remembers it.
    /// Blocks for as long as inflating takes, unless it is remembered.
    ///
    /// # Errors
    /// It holds something else, or cannot be read.
    pub(crate) fn verify_packing(
        &self,
        blob: &Digest,
        diff_id: &Digest,
        cancel: &CancellationToken,
    ) -> Result<(), ImageError> {
        if self.is_verified_packing(blob, diff_id) {
            return Ok(());
        }
        let found = self.inflated_digest(blob, diff_id, cancel)?;
        if found != *diff_id {
            return Err(ImageError::Layer {
                digest: blob.to_string(),
                source: UnpackError::DiffId {
                    expected: diff_id.clone(),
                    found,
                },
            });
        }
        self.note_packing(blob, diff_id);
        Ok(())
    }

    /// The first of the candidates that is in the store and holds the layer.
    /// `None`: none of them is in the store. Blocks.
    ///
    /// # Errors
    /// Of those in the store, each holds something else.
    pub(crate) fn first_verified(
        &self,
        diff_id: &Digest,
        candidates: &[Descriptor],
        cancel: &CancellationToken,
    ) -> Result<Option<Descriptor>, ImageError> {
        let mut failure = None;
        let mut seen = BTreeSet::new();
        for candidate in candidates {
            if !self.has(candidate) || !seen.insert(&candidate.digest) {
                continue;
            }
            match self.verify_packing(&candidate.digest, diff_id, cancel) {
                Ok(()) => return Ok(Some(candidate.clone())),
                Err(ImageError::Content(ContentError::NotFound { .. })) => {}
                Err(error @ ImageError::Layer { .. }) => _ = failure.get_or_insert(error),
                Err(error) => return Err(error),
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(None),
        }
    }

    /// All blobs that images name for a layer, other than the one given.
    pub(crate) fn other_packings(&self, diff_id: &Digest, own: &Digest) -> Vec<Descriptor> {
        let mut others: Vec<Descriptor> = Vec::new();
        let mut gather = |record: &ImageRecord| {
            let layers = record.layers.iter().filter(|l| l.diff_id == *diff_id);
            for descriptor in layers.flat_map(|layer| {
                let kept = layer.kept_as.as_ref();
                std::iter::once(&layer.descriptor).chain(kept)
            }) {
                let known = others.iter().any(|other| other.digest == descriptor.digest);
                if descriptor.digest != *own && !known {
                    others.push(descriptor.clone());
                }
            }
        };
        for image in self.catalogue().images() {
            gather(&image.record);
        }
        for record in self.shared.unreadable().iter() {
            gather(record);
        }
        // Those that need no verification first.
        others.sort_by_key(|other| !self.is_verified_packing(&other.digest, diff_id));
        others
    }

    /// All blobs that may hold a layer of an image, its own first.
    pub(crate) fn packings_of_layer(&self, layer: &LayerRecord) -> Vec<Descriptor> {
        let mut all = vec![layer.descriptor.clone()];
        all.extend(layer.kept_as.clone());
        all.extend(self.other_packings(&layer.diff_id, &layer.descriptor.digest));
        all
    }

    /// Whether a blob is in the store, with the size that is said of it.
    pub(crate) fn has(&self, blob: &Descriptor) -> bool {
        let found = self.shared.content.stat(&blob.digest);
        found.is_ok_and(|found| found.size == blob.size)
    }
}
