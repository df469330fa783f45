//! Who keeps the parts of images, and what frees them: the images and containers
//! of one moment, for the account.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use gantry_oci::Digest;

use crate::ImageStore;
use crate::account::{FreedBy, ImageUse};
use crate::image::Image;
use crate::remove::ids;
use crate::snapshots::SnapshotRecord;

/// Who keeps what, at one moment.
pub(crate) struct Keepers {
    pub(crate) images: Vec<Arc<Image>>,
    pub(crate) snapshots: Vec<Arc<SnapshotRecord>>,
    pub(crate) by_layer: HashMap<String, Vec<usize>>,
    pub(crate) by_blob: HashMap<Digest, Vec<usize>>,
    /// Containers by the layers they have below them.
    pub(crate) containers_by_layer: HashMap<String, Vec<String>>,
    /// What images whose configuration is lost still name.
    pub(crate) unreadable: HashMap<String, String>,
    pub(crate) packed: HashSet<Digest>,
    prune: HashSet<Digest>,
    prune_all: HashSet<Digest>,
}

impl Keepers {
    pub(crate) fn of(store: &ImageStore) -> Self {
        let mut images = store.images();
        images.sort_by_key(|image| image.display_name());
        let mut snapshots = store.shared.snapshots.all();
        snapshots.sort_by_key(|record| record.created);
        let mut by_layer: HashMap<String, Vec<usize>> = HashMap::new();
        let mut by_blob: HashMap<Digest, Vec<usize>> = HashMap::new();
        let mut packed = HashSet::new();
        for (position, image) in images.iter().enumerate() {
            for layer in &image.record.layers {
                packed.insert(layer.descriptor.digest.clone());
                push_once(by_layer.entry(layer.key.clone()).or_default(), position);
            }
            for blob in image.blobs() {
                push_once(by_blob.entry(blob.clone()).or_default(), position);
            }
        }
        let mut containers_by_layer: HashMap<String, Vec<String>> = HashMap::new();
        for record in &snapshots {
            for key in record.all_layers() {
                let containers = containers_by_layer.entry(key.clone()).or_default();
                containers.push(record.container.clone());
            }
        }
        let mut unreadable = HashMap::new();
        for record in store.shared.unreadable().iter() {
            for blob in record.blobs() {
                unreadable.insert(blob.to_string(), record.id.to_string());
            }
            for layer in &record.layers {
                unreadable.insert(layer.key.clone(), record.id.to_string());
            }
        }
        Self {
            prune: ids(&store.prunable(false, &[])),
            prune_all: ids(&store.prunable(true, &[])),
            images,
            snapshots,
            by_layer,
            by_blob,
            containers_by_layer,
            unreadable,
            packed,
        }
    }

    pub(crate) fn image_uses(&self) -> Vec<ImageUse> {
        let uses = self.images.iter().map(|image| {
            let (mut shared, mut unique) = (0, 0);
            for layer in &image.record.layers {
                match self.by_layer.get(&layer.key).map_or(0, Vec::len) {
                    0 | 1 => unique += layer.size,
                    _ => shared += layer.size,
                }
            }
            let users = self.snapshots.iter();
            let users = users.filter(|s| s.all_images().any(|used| used == image.id()));
            ImageUse {
                containers: users.count() as u64,
                image: Arc::clone(image),
                shared,
                unique,
            }
        });
        uses.collect()
    }

    /// The names of images, and what frees what only they keep.
    pub(crate) fn verdict(&self, images: &[usize]) -> (Vec<String>, FreedBy) {
        let keepers = images.iter().map(|position| &self.images[*position]);
        let names = keepers.clone().map(|image| image.display_name()).collect();
        let all_in = |set: &HashSet<Digest>| keepers.clone().all(|image| set.contains(image.id()));
        let freed_by = if all_in(&self.prune) {
            FreedBy::ImagePrune
        } else if all_in(&self.prune_all) {
            FreedBy::ImagePruneAll
        } else {
            FreedBy::ContainerRemoval
        };
        (names, freed_by)
    }
}

fn push_once(positions: &mut Vec<usize>, position: usize) {
    if positions.last() != Some(&position) {
        positions.push(position);
    }
}
