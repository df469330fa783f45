//! Removing what nobody needs, and saying what that freed.
//!
//! | prune | images that go |
//! | --- | --- |
//! | of images | those without a tag that no container was made from |
//! | of all images | all that no container was made from |
//!
//! An image that others were made from goes only with the last of them. With
//! either go the leftovers: downloads that ended early, blobs and layers of
//! nobody, records that were set aside, and what is in the trash.
//!
//! A prune ends when the trash is empty, so that the bytes are free when it says
//! so. What it says is what `du` says of the files that went; the index and the
//! store's directories are not counted.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gantry_kit::journal::Kind;
use gantry_oci::Digest;
use gantry_oci::content::{ContentError, IngestKey};

use crate::ImageStore;
use crate::account::shown_key;
use crate::disk::names_in;
use crate::error::ImageError;
use crate::garbage::{Candidates, Collected};
use crate::image::Image;
use crate::list::{Condition, Filter, passes};
use crate::measure;

/// What to prune.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Also images that have a name.
    pub all: bool,
    /// All must hold.
    pub filters: Vec<Filter>,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What a prune did, or would do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pruned {
    /// Names that are no more, as a person writes them.
    pub untagged: Vec<String>,
    /// Ids of images, diff IDs of layers and names of downloads that are no more.
    pub deleted: Vec<String>,
    /// Bytes on the disk that this freed.
    pub reclaimed: u64,
}

/// What a prune may take, understood.
struct Scope {
    all: bool,
    conditions: Vec<Condition>,
    /// Leftovers from after this time stay.
    until: Option<SystemTime>,
    leftovers: bool,
}

impl ImageStore {
    /// Removes what nobody needs. Blocks until it is gone.
    pub fn prune(&self, options: &PruneOptions) -> Result<Pruned, ImageError> {
        let scope = self.scope(options)?;
        let images = self.prunable(scope.all, &scope.conditions);
        let sizes = self.sizes_of(&images, &scope)?;
        if options.dry_run {
            return Ok(self.foretell(&images, &scope, &sizes));
        }
        let mut pruned = Pruned::default();
        {
            // What others throw away meanwhile is theirs to count.
            let held = self.shared.places.hold_trash();
            let trash = &self.shared.places.trash;
            let trashed = measure::tree(trash).map_err(ImageError::io("measure", trash))?;
            let alone = measure::alone(trash).map_err(ImageError::io("measure", trash))?;
            pruned.reclaimed = trashed.disk.saturating_sub(alone);
            let outcome = self.prune_held(&images, &scope, &sizes, &mut pruned);
            self.shared.places.empty_held_trash(&held);
            outcome?;
        }
        self.shared.places.refill_reserve();
        self.events().pruned(Kind::Image, pruned.reclaimed);
        Ok(pruned)
    }

    fn prune_held(
        &self,
        images: &[Arc<Image>],
        scope: &Scope,
        sizes: &Sizes,
        pruned: &mut Pruned,
    ) -> Result<(), ImageError> {
        for image in images {
            if let Some(removed) = self.remove_unused(image)? {
                pruned.untagged.extend(removed.untagged);
                pruned.deleted.extend(removed.deleted);
                pruned.reclaimed += sizes.of(&removed.collected) + sizes.record(image.id());
            }
        }
        if !scope.leftovers {
            return Ok(());
        }
        let orphans = self.orphans(scope.until)?;
        let gone = self.collect(&orphans)?;
        pruned.reclaimed += sizes.of(&gone);
        let gone = gone.layers.iter().chain(&gone.blobs);
        pruned.deleted.extend(gone.map(ToString::to_string));
        for key in self.abandoned_ingests(scope.until)? {
            if self.remove_abandoned(&key)? {
                pruned.deleted.push(shown_key(&key));
                pruned.reclaimed += sizes.ingests.get(&key).copied().unwrap_or(0);
            }
        }
        for name in self.set_aside(scope.until)? {
            self.shared
                .places
                .discard(&self.shared.places.root.join(&name))?;
            pruned.reclaimed += sizes.others.get(&name).copied().unwrap_or(0);
            pruned.deleted.push(name);
        }
        Ok(())
    }

    fn scope(&self, options: &PruneOptions) -> Result<Scope, ImageError> {
        let mut scope = Scope {
            all: options.all,
            conditions: Vec::new(),
            until: None,
            leftovers: true,
        };
        for filter in &options.filters {
            let condition = match filter.key.as_str() {
                "label" | "label!" | "until" | "dangling" => self.condition(filter)?,
                _ => return Err(filter.wrong("the keys are dangling, label, label! and until")),
            };
            match &condition {
                Condition::Dangling(dangling) => {
                    scope.all = !dangling;
                    continue;
                }
                // A leftover has no labels.
                Condition::Label(..) => scope.leftovers = false,
                Condition::Until(time) => {
                    let since = time.duration_since(jiff::Timestamp::UNIX_EPOCH);
                    let since = Duration::try_from(since).unwrap_or_default();
                    let time = SystemTime::UNIX_EPOCH + since;
                    scope.until = Some(scope.until.map_or(time, |other| other.min(time)));
                }
                _ => {}
            }
            scope.conditions.push(condition);
        }
        Ok(scope)
    }

    /// The images that a prune takes, those that were made from others before these.
    pub(crate) fn prunable(&self, all: bool, conditions: &[Condition]) -> Vec<Arc<Image>> {
        let used: HashSet<Digest> = {
            let snapshots = self.shared.snapshots.all();
            snapshots
                .iter()
                .flat_map(|record| record.all_images())
                .cloned()
                .collect()
        };
        let images = self.images();
        let mut children: HashMap<&Digest, usize> = HashMap::new();
        for image in &images {
            if let Some(parent) = &image.record.parent {
                *children.entry(parent).or_default() += 1;
            }
        }
        let had_children: HashSet<Digest> = children.keys().copied().cloned().collect();
        let mut planned: Vec<Arc<Image>> = Vec::new();
        let mut left: Vec<&Arc<Image>> = images
            .iter()
            .filter(|image| !used.contains(image.id()))
            .collect();
        loop {
            let (ready, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(|image| {
                let record = &image.record;
                // It has no name and was kept for those that are made from it: it goes with them.
                let parent = record.is_nameless() && had_children.contains(&record.id);
                let chosen = (all || record.tags.is_empty()) && passes(conditions, image);
                children.get(&record.id).is_none_or(|count| *count == 0) && (parent || chosen)
            });
            if ready.is_empty() {
                return planned;
            }
            for image in ready {
                if let Some(parent) = &image.record.parent
                    && let Some(count) = children.get_mut(parent)
                {
                    *count -= 1;
                }
                planned.push(Arc::clone(image));
            }
            left = rest;
        }
    }

    /// Blobs and layers that neither an image nor a container names.
    fn orphans(&self, until: Option<SystemTime>) -> Result<Candidates, ImageError> {
        if self.has_damaged_records()? {
            return Ok(Candidates::default());
        }
        let (live_blobs, live_layers) = self.referenced();
        let blobs = self.shared.content.list()?;
        let blobs = blobs
            .into_iter()
            .filter(|blob| !live_blobs.contains(&blob.digest) && is_before(blob.modified, until));
        let mut layers = self.shared.layers.keys();
        layers.retain(|key| !live_layers.contains(key));
        Ok(Candidates {
            blobs: blobs.map(|blob| blob.digest).collect(),
            layers,
        })
    }

    /// Whether somebody writes an ingest, or is about to. One with a name made up
    /// for it is its maker's until it is gone: those that a killed process made
    /// are removed at the next start.
    pub(crate) fn is_ingest_in_use(&self, key: &IngestKey) -> bool {
        self.shared.content.is_being_written(key)
            || key
                .digest()
                .is_none_or(|digest| self.shared.leases.has(digest.as_str()))
    }

    fn abandoned_ingests(&self, until: Option<SystemTime>) -> Result<Vec<IngestKey>, ImageError> {
        let ingests = self.shared.content.list_ingests()?;
        let abandoned = ingests.into_iter().filter(|ingest| {
            !self.is_ingest_in_use(&ingest.key) && is_before(ingest.modified, until)
        });
        Ok(abandoned.map(|ingest| ingest.key).collect())
    }

    /// Removes an ingest that nobody writes. False: somebody began to, or was faster.
    fn remove_abandoned(&self, key: &IngestKey) -> Result<bool, ImageError> {
        // Who resumes it takes a lease first, and cannot while this is held.
        let _keep = self.shared.keep_lock();
        if self.is_ingest_in_use(key) {
            return Ok(false);
        }
        match self.shared.content.remove_ingest(key) {
            Ok(()) => Ok(true),
            Err(ContentError::IngestNotFound { .. } | ContentError::Busy { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Records and indexes that were set aside, by their paths under the root.
    fn set_aside(&self, until: Option<SystemTime>) -> Result<Vec<String>, ImageError> {
        let places = &self.shared.places;
        let mut found: Vec<String> = names_in(&places.root)?
            .into_iter()
            .filter(|name| name.starts_with("index.damaged-"))
            .collect();
        if places.damaged.is_dir() {
            // What an image's record named is kept with it.
            let needed = places.damaged_images()?;
            let names = names_in(&places.damaged)?.into_iter();
            let names = names.filter(|name| !needed.contains(name));
            found.extend(names.map(|name| format!("damaged/{name}")));
        }
        found.retain(|name| {
            let file = fs::symlink_metadata(places.root.join(name));
            file.and_then(|file| file.modified())
                .is_ok_and(|modified| is_before(modified, until))
        });
        Ok(found)
    }

    /// What each thing that may go takes on the disk. It is measured before, since
    /// it cannot be after.
    fn sizes_of(&self, images: &[Arc<Image>], scope: &Scope) -> Result<Sizes, ImageError> {
        let mut sizes = Sizes::default();
        let mut parts: Vec<Candidates> = images
            .iter()
            .map(|image| Candidates::of_image(image))
            .collect();
        if scope.leftovers {
            parts.push(self.orphans(scope.until)?);
            for key in self.abandoned_ingests(scope.until)? {
                let path = self.shared.content.root().join("ingest").join(key.as_str());
                sizes.ingests.insert(key, on_disk(&path)?);
            }
            for name in self.set_aside(scope.until)? {
                let bytes = on_disk(&self.shared.places.root.join(&name))?;
                sizes.others.insert(name, bytes);
            }
        }
        for part in parts {
            for digest in part.blobs {
                let bytes = on_disk(&self.shared.content.blob_path(&digest))?;
                sizes.blobs.insert(digest, bytes);
            }
            for key in part.layers {
                let bytes = self.shared.layers.disk_bytes(&key)?;
                sizes.layers.insert(key, bytes);
            }
        }
        for image in images {
            let bytes = on_disk(&self.shared.records.image_file(image.id()))?;
            sizes.records.insert(image.id().clone(), bytes);
        }
        Ok(sizes)
    }

    /// What a prune would do now.
    fn foretell(&self, images: &[Arc<Image>], scope: &Scope, sizes: &Sizes) -> Pruned {
        let going = crate::remove::ids(images);
        let mut kept = Candidates::default();
        for image in self.images() {
            if !going.contains(image.id()) {
                let parts = Candidates::of_image(&image);
                kept.blobs.extend(parts.blobs);
                kept.layers.extend(parts.layers);
            }
        }
        for record in self.shared.snapshots.all() {
            kept.layers.extend(record.all_layers().cloned());
        }
        for record in self.shared.unreadable().iter() {
            kept.blobs.extend(record.blobs().cloned());
            kept.layers
                .extend(record.layers.iter().map(|l| l.key.clone()));
        }
        let blobs: HashSet<Digest> = kept.blobs.into_iter().collect();
        let layers: HashSet<String> = kept.layers.into_iter().collect();
        let leases = &self.shared.leases;
        let mut pruned = Pruned::default();
        for image in images {
            let names = image.record.names().map(gantry_oci::Reference::familiar);
            pruned.untagged.extend(names);
            pruned.deleted.push(image.id().to_string());
            pruned.reclaimed += sizes.record(image.id());
        }
        for (key, bytes) in &sizes.layers {
            if !layers.contains(key)
                && !leases.has(key)
                && let Some(meta) = self.shared.layers.meta(key)
            {
                pruned.deleted.push(meta.diff_id.to_string());
                pruned.reclaimed += bytes;
            }
        }
        for (digest, bytes) in &sizes.blobs {
            if !blobs.contains(digest) && !leases.has(digest.as_str()) {
                pruned.reclaimed += bytes;
            }
        }
        if scope.leftovers {
            for (key, bytes) in &sizes.ingests {
                pruned.deleted.push(shown_key(key));
                pruned.reclaimed += bytes;
            }
            for (name, bytes) in &sizes.others {
                pruned.deleted.push(name.clone());
                pruned.reclaimed += bytes;
            }
        }
        pruned
    }
}

/// Bytes on the disk of what may go.
#[derive(Debug, Default)]
struct Sizes {
    blobs: HashMap<Digest, u64>,
    layers: HashMap<String, u64>,
    records: HashMap<Digest, u64>,
    ingests: HashMap<IngestKey, u64>,
    others: HashMap<String, u64>,
}

impl Sizes {
    fn of(&self, gone: &Collected) -> u64 {
        let blobs = gone
            .blobs
            .iter()
            .filter_map(|digest| self.blobs.get(digest));
        let layers = gone
            .layer_keys
            .iter()
            .filter_map(|key| self.layers.get(key));
        blobs.chain(layers).sum()
    }

    fn record(&self, id: &Digest) -> u64 {
        self.records.get(id).copied().unwrap_or(0)
    }
}

fn on_disk(path: &Path) -> Result<u64, ImageError> {
    let size = measure::tree(path).map_err(ImageError::io("measure", path))?;
    Ok(size.disk)
}

fn is_before(modified: SystemTime, until: Option<SystemTime>) -> bool {
    until.is_none_or(|until| modified <= until)
}
