//! The account of the disk: every file under the store's root has one owner.
//!
//! | what is there | owner | what frees it |
//! | --- | --- | --- |
//! | `layers/<hex>` | the layer | a prune, where neither a container nor an image that stays has it |
//! | `blobs/<digest>` of an image | the packed layer, or the image's documents | with the image |
//! | `blobs/<digest>` of none | a download that ended early | any prune |
//! | `ingest/<key>` | the same, or what is being written now | any prune |
//! | `writable/<container>` | the container | its removal |
//! | `volumes/<name>` | the volume | a prune of volumes, where no container uses it |
//! | `images/<hex>.json` | the image's documents | with the image |
//! | `trash/`, `damaged/`, `index.damaged-<n>` | leftovers | any prune |
//! | `index/`, the directories themselves, `reserve` | the store | nothing |
//! | anything else | nobody: a foreign file | nothing |
//!
//! Sizes are those of `du`: blocks on the disk, each file once. Nothing is locked
//! while the disk is read: what comes or goes meanwhile is in the account or not.
//! Layers never change, so each is walked once and then remembered; what is
//! walked each time is what containers wrote.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_oci::content::IngestKey;
use gantry_oci::{Algorithm, Digest};

use crate::ImageStore;
use crate::disk::NEW;
use crate::error::ImageError;
use crate::image::Image;
use crate::keepers::Keepers;
use crate::layers::is_layer_name;
use crate::measure;
use crate::snapshots::SnapshotRecord;
use crate::store::image_of_file;
use crate::volumes::attach::links;
use crate::volumes::{self, Volume};

/// What something under the root is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum OwnerKind {
    Layer,
    PackedLayer,
    Metadata,
    WritableLayer,
    Volume,
    PartialDownload,
    Trash,
    Index,
    InProgress,
    Store,
    Foreign,
}

/// What removes something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FreedBy {
    Nothing,
    Prune,
    ImagePrune,
    ImagePruneAll,
    ContainerRemoval,
    VolumePrune,
    VolumePruneAll,
}

/// Whom some bytes belong to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Owner {
    pub kind: OwnerKind,
    /// Empty where there is only one.
    pub name: String,
    pub bytes: u64,
    /// Names of images and ids of containers that keep it.
    pub kept_by: Vec<String>,
    pub freed_by: FreedBy,
}

/// An image in the account.
#[derive(Clone, Debug)]
pub struct ImageUse {
    pub image: Arc<Image>,
    /// Bytes of layers that other images have too, unpacked.
    pub shared: u64,
    /// Bytes of layers that no other image has, unpacked.
    pub unique: u64,
    pub containers: u64,
}

/// A writable layer in the account.
#[derive(Clone, Debug)]
pub struct SnapshotUse {
    pub record: Arc<SnapshotRecord>,
    /// Bytes of the files in it.
    pub size: u64,
    /// Bytes of the layers below it, unpacked.
    pub image_size: u64,
}

/// A volume in the account.
#[derive(Clone, Debug)]
pub struct VolumeUsage {
    pub volume: Volume,
    /// Bytes of the files in it.
    pub size: u64,
}

/// The account.
#[derive(Clone, Debug, Default)]
pub struct Account {
    pub images: Vec<ImageUse>,
    pub snapshots: Vec<SnapshotUse>,
    /// The largest first.
    pub owners: Vec<Owner>,
    /// The sum of all.
    pub total: u64,
    /// Bytes of all layers that images have, unpacked, each once.
    pub layers_size: u64,
    /// By their names.
    pub volumes: Vec<VolumeUsage>,
}

impl ImageStore {
    /// Who owns the bytes under the root. Blocks: it reads directories.
    pub fn account(&self) -> Result<Account, ImageError> {
        let keepers = Keepers::of(self);
        let mut ledger = Ledger {
            store: self,
            keepers: &keepers,
            entries: BTreeMap::new(),
            written: HashMap::new(),
            volumes: Vec::new(),
        };
        ledger.root()?;
        let written = ledger.written;
        let mut volumes = ledger.volumes;
        volumes.sort_by(|a, b| a.volume.record.name.cmp(&b.volume.record.name));
        let mut owners: Vec<Owner> = ledger.entries.into_values().collect();
        owners.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        let images = keepers.image_uses();
        let sizes: HashMap<&String, u64> = keepers
            .images
            .iter()
            .flat_map(|image| &image.record.layers)
            .map(|layer| (&layer.key, layer.size))
            .collect();
        let snapshots = keepers.snapshots.iter().map(|record| SnapshotUse {
            record: Arc::clone(record),
            size: written.get(&record.container).copied().unwrap_or(0),
            image_size: self.layers_size(&record.layers),
        });
        Ok(Account {
            snapshots: snapshots.collect(),
            total: owners.iter().map(|owner| owner.bytes).sum(),
            layers_size: sizes.values().sum(),
            images,
            owners,
            volumes,
        })
    }

    fn layers_size(&self, keys: &[String]) -> u64 {
        let metas = keys.iter().filter_map(|key| self.shared.layers.meta(key));
        metas.map(|meta| meta.size).sum()
    }
}

/// The account while it is drawn up.
struct Ledger<'a> {
    store: &'a ImageStore,
    keepers: &'a Keepers,
    entries: BTreeMap<(OwnerKind, String), Owner>,
    /// Bytes that each container wrote.
    written: HashMap<String, u64>,
    volumes: Vec<VolumeUsage>,
}

/// An entry of a directory: its name as text, and where it is.
type Entry = (String, PathBuf);

impl Ledger<'_> {
    fn root(&mut self) -> Result<(), ImageError> {
        let places = self.store.shared.places.clone();
        self.own(&places.root)?;
        for (name, path) in entries(&places.root)? {
            match name.as_str() {
                "blobs" => self.blobs(&path)?,
                "ingest" => self.ingests(&path)?,
                "pending" | "loads" => self.each(&path, OwnerKind::InProgress, FreedBy::Nothing)?,
                "layers" => self.layers(&path)?,
                "writable" => self.writable(&path)?,
                "volumes" => self.volumes(&path)?,
                "images" => self.images(&path)?,
                "trash" => self.each(&path, OwnerKind::Trash, FreedBy::Prune)?,
                "damaged" => self.each(&path, OwnerKind::Metadata, FreedBy::Prune)?,
                "empty" | "reserve" => self.whole(OwnerKind::Store, &name, &path)?,
                "index" => self.whole(OwnerKind::Index, "", &path)?,
                _ if name.starts_with("index.damaged-") => {
                    let bytes = measured(&path)?;
                    self.add(OwnerKind::Index, &name, bytes, Vec::new(), FreedBy::Prune);
                }
                _ => self.foreign(&name, &path)?,
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        kind: OwnerKind,
        name: &str,
        bytes: u64,
        kept_by: Vec<String>,
        freed_by: FreedBy,
    ) {
        let entry = self.entries.entry((kind, name.to_owned()));
        let owner = entry.or_insert_with(|| Owner {
            kind,
            name: name.to_owned(),
            bytes: 0,
            kept_by,
            freed_by,
        });
        owner.bytes += bytes;
    }

    /// A directory of the store itself, without what is in it.
    fn own(&mut self, path: &Path) -> Result<(), ImageError> {
        let bytes = measure::alone(path).map_err(ImageError::io("measure", path))?;
        self.add(OwnerKind::Store, "", bytes, Vec::new(), FreedBy::Nothing);
        Ok(())
    }

    fn whole(&mut self, kind: OwnerKind, name: &str, path: &Path) -> Result<(), ImageError> {
        let name = if kind == OwnerKind::Store { "" } else { name };
        let bytes = measured(path)?;
        self.add(kind, name, bytes, Vec::new(), FreedBy::Nothing);
        Ok(())
    }

    fn foreign(&mut self, name: &str, path: &Path) -> Result<(), ImageError> {
        // What is gone by now may well have been the store's.
        if fs::symlink_metadata(path).is_err() {
            return Ok(());
        }
        self.whole(OwnerKind::Foreign, name, path)
    }

    /// A directory of the store whose entries are all of one kind.
    fn each(&mut self, path: &Path, kind: OwnerKind, freed_by: FreedBy) -> Result<(), ImageError> {
        self.own(path)?;
        for (name, path) in entries(path)? {
            self.add(kind, &name, measured(&path)?, Vec::new(), freed_by);
        }
        Ok(())
    }

    fn blobs(&mut self, path: &Path) -> Result<(), ImageError> {
        self.own(path)?;
        for (name, path) in entries(path)? {
            let Some(algorithm) = Algorithm::ALL.into_iter().find(|a| a.as_str() == name) else {
                self.foreign(&format!("blobs/{name}"), &path)?;
                continue;
            };
            self.own(&path)?;
            for (hex, path) in entries(&path)? {
                match Digest::from_hex(algorithm, &hex) {
                    Ok(digest) => self.blob(&digest, &path)?,
                    Err(_) => self.foreign(&format!("blobs/{name}/{hex}"), &path)?,
                }
            }
        }
        Ok(())
    }

    fn blob(&mut self, digest: &Digest, path: &Path) -> Result<(), ImageError> {
        let bytes = measured(path)?;
        let leased = self.store.shared.leases.has(digest.as_str());
        if let Some(images) = self.keepers.by_blob.get(digest) {
            let (names, freed_by) = self.keepers.verdict(images);
            let kind = if self.keepers.packed.contains(digest) {
                OwnerKind::PackedLayer
            } else {
                OwnerKind::Metadata
            };
            let freed_by = if leased { FreedBy::Nothing } else { freed_by };
            self.add(kind, digest.as_str(), bytes, names, freed_by);
        } else if let Some(image) = self.keepers.unreadable.get(digest.as_str()) {
            let kept_by = vec![image.clone()];
            let kind = OwnerKind::PackedLayer;
            self.add(kind, digest.as_str(), bytes, kept_by, FreedBy::Nothing);
        } else if leased {
            let kind = OwnerKind::InProgress;
            self.add(kind, digest.as_str(), bytes, Vec::new(), FreedBy::Nothing);
        } else {
            let kind = OwnerKind::PartialDownload;
            self.add(kind, digest.as_str(), bytes, Vec::new(), FreedBy::Prune);
        }
        Ok(())
    }

    fn ingests(&mut self, path: &Path) -> Result<(), ImageError> {
        self.own(path)?;
        for (name, path) in entries(path)? {
            let Ok(key) = IngestKey::parse(&name) else {
                self.foreign(&format!("ingest/{name}"), &path)?;
                continue;
            };
            let name = shown_key(&key);
            let (kind, freed_by) = if self.store.is_ingest_in_use(&key) {
                (OwnerKind::InProgress, FreedBy::Nothing)
            } else {
                (OwnerKind::PartialDownload, FreedBy::Prune)
            };
            self.add(kind, &name, measured(&path)?, Vec::new(), freed_by);
        }
        Ok(())
    }

    fn layers(&mut self, path: &Path) -> Result<(), ImageError> {
        self.own(path)?;
        for (key, path) in entries(path)? {
            let meta = self.store.shared.layers.meta(&key);
            let Some(meta) = meta else {
                // One that just got its name, or just lost it, is known by its name.
                if key.starts_with(NEW) || is_layer_name(&key) {
                    self.whole(OwnerKind::InProgress, &format!("layers/{key}"), &path)?;
                } else {
                    self.foreign(&format!("layers/{key}"), &path)?;
                }
                continue;
            };
            let images = self.keepers.by_layer.get(&key);
            let bytes = self.store.shared.layers.disk_bytes(&key)?;
            let mut kept_by = Vec::new();
            let mut freed_by = FreedBy::Prune;
            if let Some(images) = images {
                (kept_by, freed_by) = self.keepers.verdict(images);
            }
            if let Some(containers) = self.keepers.containers_by_layer.get(&key) {
                kept_by.extend(containers.iter().cloned());
                freed_by = FreedBy::ContainerRemoval;
            }
            if let Some(image) = self.keepers.unreadable.get(&key) {
                kept_by.push(image.clone());
                freed_by = FreedBy::Nothing;
            }
            if self.store.shared.leases.has(&key) {
                freed_by = FreedBy::Nothing;
            }
            let name = meta.chain_id.unwrap_or(meta.diff_id);
            self.add(OwnerKind::Layer, name.as_str(), bytes, kept_by, freed_by);
        }
        Ok(())
    }

    fn writable(&mut self, path: &Path) -> Result<(), ImageError> {
        self.own(path)?;
        let mut known = self.keepers.snapshots.iter();
        let known: HashSet<&str> = known.by_ref().map(|s| s.container.as_str()).collect();
        let damaged = self.store.damaged_snapshots();
        for (container, path) in entries(path)? {
            if !known.contains(container.as_str()) {
                // One that came since the account was begun is a container's all the same.
                let is_known = self.store.get_snapshot(&container).is_ok();
                if !is_known && !damaged.contains(&container) {
                    self.foreign(&format!("writable/{container}"), &path)?;
                    continue;
                }
            }
            let size = measure::tree(&path).map_err(ImageError::io("measure", &path))?;
            let upper = path.join("upper");
            let upper = measure::tree(&upper).map_err(ImageError::io("measure", &upper))?;
            let kept_by = vec![container.clone()];
            let freed_by = FreedBy::ContainerRemoval;
            let kind = OwnerKind::WritableLayer;
            self.add(kind, &container, size.disk, kept_by, freed_by);
            self.written.insert(container, upper.content);
        }
        Ok(())
    }

    fn volumes(&mut self, path: &Path) -> Result<(), ImageError> {
        self.own(path)?;
        let links = links(self.keepers.snapshots.iter());
        for (name, path) in entries(path)? {
            let Some(record) = self.store.shared.volumes.get(&name) else {
                // One that just got its name, or just lost it, is known by its name.
                if name.starts_with(NEW) || volumes::check_name(&name).is_ok() {
                    self.whole(OwnerKind::InProgress, &format!("volumes/{name}"), &path)?;
                } else {
                    self.foreign(&format!("volumes/{name}"), &path)?;
                }
                continue;
            };
            let content = path.join(volumes::DATA);
            let size = measure::tree(&content).map_err(ImageError::io("measure", &content))?;
            let kept_by = links.get(name.as_str()).cloned().unwrap_or_default();
            let freed_by = match (kept_by.is_empty(), record.anonymous) {
                (false, _) => FreedBy::ContainerRemoval,
                (true, true) => FreedBy::VolumePrune,
                (true, false) => FreedBy::VolumePruneAll,
            };
            self.volumes.push(VolumeUsage {
                volume: Volume {
                    record,
                    mountpoint: content,
                    used_by: kept_by.clone(),
                },
                size: size.content,
            });
            let kind = OwnerKind::Volume;
            self.add(kind, &name, measured(&path)?, kept_by, freed_by);
        }
        Ok(())
    }

    fn images(&mut self, path: &Path) -> Result<(), ImageError> {
        self.own(path)?;
        for (name, path) in entries(path)? {
            let Some(hex) = image_of_file(&name) else {
                if name.starts_with(NEW) {
                    self.whole(OwnerKind::InProgress, &format!("images/{name}"), &path)?;
                } else {
                    self.foreign(&format!("images/{name}"), &path)?;
                }
                continue;
            };
            let images = &self.keepers.images;
            let bytes = measured(&path)?;
            match images.iter().position(|image| image.id().hex() == hex) {
                Some(position) => {
                    let id = images[position].id().to_string();
                    let (names, freed_by) = self.keepers.verdict(&[position]);
                    self.add(OwnerKind::Metadata, &id, bytes, names, freed_by);
                }
                None => {
                    // A pull that ended since the account was begun, or an image
                    // whose configuration is lost.
                    let name = format!("images/{name}");
                    let kind = OwnerKind::Metadata;
                    self.add(kind, &name, bytes, Vec::new(), FreedBy::Nothing);
                }
            }
        }
        Ok(())
    }
}

fn measured(path: &Path) -> Result<u64, ImageError> {
    let size = measure::tree(path).map_err(ImageError::io("measure", path))?;
    Ok(size.disk)
}

/// A download by the digest of what it is going to be, where that is known.
pub(crate) fn shown_key(key: &IngestKey) -> String {
    match key.digest() {
        Some(digest) => digest.to_string(),
        None => key.to_string(),
    }
}

fn entries(directory: &Path) -> Result<Vec<Entry>, ImageError> {
    let failed = |error| ImageError::io("list", directory)(error);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        found.push((name, entry.path()));
    }
    Ok(found)
}
