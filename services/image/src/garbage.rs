//! What nobody refers to any more goes: blobs, layers, leftovers of earlier processes.
//!
//! A blob or layer stays while an image's record, a container's writable layer
//! or a [`Lease`] names it. A lease is taken by work that is about to refer to
//! something; decisions are made under one lock, so that nothing is removed
//! between being found and being leased.
//!
//! While the record of an image or of a writable layer cannot be read, nothing is
//! removed for want of a name: the record may have named it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use gantry_oci::Digest;
use gantry_oci::content::{ContentError, IngestKey};

use crate::ImageStore;
use crate::error::ImageError;
use crate::image::{Image, ImageRecord};

/// How long parts of a download are kept for it to be resumed.
const RESUMABLE_FOR: Duration = Duration::from_secs(24 * 3600);

/// Names that are in use by work under way, and how often.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    names: Mutex<HashMap<String, usize>>,
}

/// Keeps blobs and layers in the store while it lives.
#[derive(Debug)]
pub(crate) struct Lease {
    leases: Arc<Leases>,
    names: Vec<String>,
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.lock().contains_key(name)
    }
}

impl Lease {
    /// Keeps one more blob.
    pub(crate) fn add(&mut self, store: &ImageStore, digest: &Digest) {
        let _keep = store.shared.keep_lock();
        let name = digest.to_string();
        *self.leases.lock().entry(name.clone()).or_default() += 1;
        self.names.push(name);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut names = self.leases.lock();
        for name in &self.names {
            if let Some(count) = names.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    names.remove(name);
                }
            }
        }
    }
}

/// What may go, if nobody else refers to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Candidates {
    pub(crate) blobs: Vec<Digest>,
    /// Layers by their directories' names.
    pub(crate) layers: Vec<String>,
}

/// What went.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Collected {
    pub(crate) blobs: Vec<Digest>,
    /// Diff IDs of layers, the top-most first.
    pub(crate) layers: Vec<Digest>,
    /// Names of their directories.
    pub(crate) layer_keys: Vec<String>,
}

impl Collected {
    pub(crate) fn add(&mut self, more: Self) {
        self.blobs.extend(more.blobs);
        self.layers.extend(more.layers);
        self.layer_keys.extend(more.layer_keys);
    }
}

impl Candidates {
    pub(crate) fn layers(layers: impl Iterator<Item = String>) -> Self {
        Self {
            blobs: Vec::new(),
            layers: layers.collect(),
        }
    }

    pub(crate) fn of_image(image: &Image) -> Self {
        Self::of_record(&image.record)
    }

    pub(crate) fn of_record(record: &ImageRecord) -> Self {
        let layers = &record.layers;
        Self {
            blobs: record.blobs().cloned().collect(),
            layers: layers.iter().map(|layer| layer.key.clone()).collect(),
        }
    }
}

impl ImageStore {
    /// Keeps blobs (by digest) and layers (by directory name) from being removed.
    pub(crate) fn lease(&self, names: Vec<String>) -> Lease {
        let _keep = self.shared.keep_lock();
        let mut counts = self.shared.leases.lock();
        for name in &names {
            *counts.entry(name.clone()).or_default() += 1;
        }
        drop(counts);
        Lease {
            leases: Arc::clone(&self.shared.leases),
            names,
        }
    }

    /// Removes those candidates that nobody refers to.
    pub(crate) fn collect(&self, candidates: &Candidates) -> Result<Collected, ImageError> {
        let _keep = self.shared.keep_lock();
        if self.has_damaged_records()? {
            tracing::warn!(
                blobs = candidates.blobs.len(),
                layers = candidates.layers.len(),
                "a record cannot be read: what no other record names is kept"
            );
            return Ok(Collected::default());
        }
        let (live_blobs, live_layers) = self.referenced();
        let leases = &self.shared.leases;
        let mut gone = Collected::default();
        let mut first_error = None;
        for key in candidates.layers.iter().rev() {
            if live_layers.contains(key) || leases.has(key) {
                continue;
            }
            match self.shared.layers.discard(key) {
                Ok(Some(diff_id)) => {
                    gone.layers.push(diff_id);
                    gone.layer_keys.push(key.clone());
                }
                Ok(None) => {}
                Err(error) => _ = first_error.get_or_insert(error),
            }
        }
        for digest in &candidates.blobs {
            if live_blobs.contains(digest) || leases.has(digest.as_str()) {
                continue;
            }
            match self.shared.content.delete(digest) {
                Ok(_) => gone.blobs.push(digest.clone()),
                Err(ContentError::NotFound { .. }) => {}
                Err(error) => _ = first_error.get_or_insert(error.into()),
            }
        }
        self.forget_packings(&gone.blobs);
        self.empty_trash_behind();
        match first_error {
            Some(error) => Err(error),
            None => Ok(gone),
        }
    }

    /// Whether there are records of images or writable layers that cannot be read.
    /// Nobody knows then all that is in use.
    pub(crate) fn has_damaged_records(&self) -> Result<bool, ImageError> {
        Ok(!self.shared.snapshots.damaged().is_empty()
            || !self.shared.places.damaged_images()?.is_empty())
    }

    /// Throws away what came of a blob that is not wanted any more.
    pub(crate) fn forget_ingest(&self, digest: &Digest) {
        match self
            .shared
            .content
            .remove_ingest(&IngestKey::for_digest(digest))
        {
            Ok(()) | Err(ContentError::IngestNotFound { .. } | ContentError::Busy { .. }) => {}
            Err(error) => tracing::warn!(%digest, %error, "unfinished content cannot be removed"),
        }
    }

    /// What the records refer to: blobs, and layers by their directories' names.
    pub(crate) fn referenced(&self) -> (HashSet<Digest>, HashSet<String>) {
        let catalogue = self.catalogue();
        let unreadable = self.shared.unreadable();
        let records = || {
            let readable = catalogue.images().map(|image| &image.record);
            readable.chain(unreadable.iter())
        };
        let blobs = records().flat_map(ImageRecord::blobs).cloned().collect();
        let layers = records().flat_map(|record| &record.layers);
        let mut layers: HashSet<String> = layers.map(|layer| layer.key.clone()).collect();
        for snapshot in self.shared.snapshots.all() {
            layers.extend(snapshot.all_layers().cloned());
        }
        (blobs, layers)
    }

    /// Removes what earlier processes left: layers without an owner (they may
    /// not be on the disk), and parts of downloads that nobody resumed.
    pub(crate) fn collect_leftovers(&self) -> Result<(), ImageError> {
        let everything = Candidates {
            blobs: self.stale_blobs()?,
            layers: self.shared.layers.keys(),
        };
        if let Err(error) = self.collect(&everything) {
            let error = gantry_kit::fault::chain(&error);
            tracing::error!(
                error,
                "not all that nobody refers to can be removed; check the store"
            );
        }
        self.undo_loads()?;
        for ingest in self.shared.content.list_ingests()? {
            // Who chose a name at random does not find it again.
            let can_be_resumed = ingest.key.digest().is_some();
            if is_stale(ingest.modified) || !can_be_resumed {
                self.shared.content.remove_ingest(&ingest.key).ok();
            }
        }
        Ok(())
    }

    fn stale_blobs(&self) -> Result<Vec<Digest>, ImageError> {
        let blobs = self.shared.content.list()?;
        let stale = blobs.into_iter().filter(|blob| is_stale(blob.modified));
        Ok(stale.map(|blob| blob.digest).collect())
    }
}

fn is_stale(modified: SystemTime) -> bool {
    // A time in the future is a clock that was set back: not stale.
    modified.elapsed().is_ok_and(|age| age > RESUMABLE_FOR)
}
