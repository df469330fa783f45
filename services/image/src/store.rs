//! The records of the store: what is in the index, and the files it can be rebuilt from.
//!
//! | tree | key | value |
//! | --- | --- | --- |
//! | `images` | configuration's digest | [`ImageRecord`] as JSON |
//! | `snapshots` | container's id | [`SnapshotRecord`] as JSON |
//! | `packings` | blob's digest, a space, diff ID | nothing (see [`crate::packings`]) |
//!
//! Each record but a packing is also a file (see [`crate::disk`]), written before the index
//! and removed before it: the files decide. The index stands in for a file that
//! was lost or damaged, which is then written anew; an index that was lost or
//! damaged is filled from the files. A file that cannot be read is set aside and
//! reported. An index that cannot be written any more (the disk is full) is
//! thrown away: the files carry everything, and the next start begins another.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use gantry_kit::durable::is_full;
use gantry_kit::store::{Batch, Durability, Index, Sled, StoreError};
use gantry_oci::{Digest, Reference};
use serde::de::DeserializeOwned;

use crate::disk::{Places, names_in, remove_file};
use crate::error::ImageError;
use crate::image::ImageRecord;
use crate::packings::Packing;
use crate::snapshots::{SnapshotRecord, check_container};

const IMAGES: &str = "images";
const SNAPSHOTS: &str = "snapshots";
const PACKINGS: &str = "packings";

/// The records.
#[derive(Debug)]
pub(crate) struct Records {
    /// None: there is no index until the next start.
    index: Mutex<Option<Box<dyn Index>>>,
    places: Places,
}

fn to_json<T: serde::Serialize>(record: &T) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(record).map_err(|error| ImageError::Stream {
        reason: format!("a record cannot be written: {error}"),
    })
}

impl Records {
    /// Opens the index, or begins one.
    pub(crate) fn open(places: &Places) -> Result<Self, ImageError> {
        let index: Option<Box<dyn Index>> = match Sled::open(&index_path(places)) {
            Ok(opened) => {
                if let Some(aside) = &opened.quarantined {
                    tracing::warn!(aside = %aside.display(), "the index was damaged and is rebuilt");
                }
                Some(Box::new(opened.index))
            }
            Err(StoreError::Open { source, .. } | StoreError::Access { source })
                if is_full(&source) =>
            {
                tracing::error!(error = %source, "no room for an index: the store does without until the next start");
                None
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            index: Mutex::new(index),
            places: places.clone(),
        })
    }

    fn index(&self) -> MutexGuard<'_, Option<Box<dyn Index>>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is an index at present.
    pub(crate) fn has_index(&self) -> bool {
        self.index().is_some()
    }

    /// Tells the index what the files say already. It is not worth a failure.
    fn apply(&self, batch: Batch, durability: Durability) {
        let mut index = self.index();
        let Some(open) = index.as_ref() else { return };
        if let Err(error) = open.apply(batch, durability) {
            let error = gantry_kit::fault::chain(&error);
            tracing::error!(
                error,
                "the index cannot be written and is thrown away; the next start fills another from the files"
            );
            *index = None;
            // What is left there would be out of date.
            if let Err(error) = self.places.discard(&index_path(&self.places)) {
                let error = gantry_kit::fault::chain(&error);
                tracing::error!(error, "the index that is out of date cannot be removed");
            }
        }
    }

    /// Throws the index away and fills another from what is known.
    pub(crate) fn rebuild_index(
        &self,
        images: &[ImageRecord],
        snapshots: &[SnapshotRecord],
        packings: &[Packing],
    ) -> Result<(), ImageError> {
        let mut index = self.index();
        *index = None;
        let path = index_path(&self.places);
        self.places.discard(&path)?;
        let opened = Sled::open(&path)?;
        let mut batch = Batch::new();
        for record in images {
            batch = batch.put(IMAGES, record.id.as_str(), to_json(record)?);
        }
        for record in snapshots {
            batch = batch.put(SNAPSHOTS, record.container.as_str(), to_json(record)?);
        }
        for packing in packings {
            batch = batch.put(PACKINGS, packing_key(packing), "");
        }
        opened.index.apply(batch, Durability::Power)?;
        *index = Some(Box::new(opened.index));
        Ok(())
    }

    /// All images.
    pub(crate) fn images(&self) -> Result<Vec<ImageRecord>, ImageError> {
        let indexed = self.indexed_images();
        let mut found: BTreeMap<Digest, (ImageRecord, SystemTime)> = BTreeMap::new();
        let mut batch = Batch::new();
        for name in names_in(&self.places.images)? {
            let Some(hex) = image_of_file(&name) else {
                tracing::warn!(name, "a foreign file among the images' records");
                continue;
            };
            let path = self.places.images.join(&name);
            match read_file::<ImageRecord>(&path) {
                Some(record) if record.id.hex() == hex => {
                    let written = fs::metadata(&path).and_then(|file| file.modified());
                    let written = written.unwrap_or(SystemTime::UNIX_EPOCH);
                    found.insert(record.id.clone(), (record, written));
                }
                _ => {
                    let aside = match self.places.set_aside(&path, None) {
                        Ok(aside) => aside,
                        Err(error) => {
                            let error = gantry_kit::fault::chain(&error);
                            tracing::error!(path = %path.display(), error, "an image's record can neither be read nor set aside, and is left out");
                            continue;
                        }
                    };
                    tracing::error!(aside = %aside.display(), "an image's record cannot be read and is set aside");
                }
            }
        }
        for (id, record) in &indexed {
            if !found.contains_key(id) {
                tracing::warn!(image = %id, "an image's file was lost and is written from the index");
                let json = to_json(record)?;
                self.places.write_file(&self.image_file(id), &json, true)?;
                found.insert(id.clone(), (record.clone(), SystemTime::UNIX_EPOCH));
            }
        }
        for changed in settle_names(&mut found) {
            // A change of several records that was cut short.
            let json = to_json(&found[&changed].0)?;
            self.places
                .write_file(&self.image_file(&changed), &json, true)?;
        }
        let records: Vec<ImageRecord> = found.into_values().map(|(record, _)| record).collect();
        for record in &records {
            if indexed.get(&record.id) != Some(record) {
                batch = batch.put(IMAGES, record.id.as_str(), to_json(record)?);
            }
        }
        self.apply(batch, Durability::Power);
        Ok(records)
    }

    /// What the index says of images.
    pub(crate) fn indexed_images(&self) -> HashMap<Digest, ImageRecord> {
        let records = self.scan::<ImageRecord>(IMAGES).into_iter();
        records.map(|record| (record.id.clone(), record)).collect()
    }

    /// What the index says of writable layers.
    pub(crate) fn indexed_snapshots(&self) -> HashMap<String, SnapshotRecord> {
        let records = self.scan::<SnapshotRecord>(SNAPSHOTS).into_iter();
        records
            .map(|record| (record.container.clone(), record))
            .collect()
    }

    /// What the file of an image says, if it can be read.
    pub(crate) fn image_in_file(&self, id: &Digest) -> Option<ImageRecord> {
        read_file(&self.image_file(id))
    }

    /// Writes images that changed and removes those that are gone, durably.
    pub(crate) fn change_images(
        &self,
        changed: &[&ImageRecord],
        gone: &[&Digest],
    ) -> Result<(), ImageError> {
        let mut batch = Batch::new();
        for record in changed {
            let json = to_json(record)?;
            self.places
                .write_file(&self.image_file(&record.id), &json, true)?;
            batch = batch.put(IMAGES, record.id.as_str(), json);
        }
        for id in gone {
            remove_file(&self.image_file(id))?;
            batch = batch.delete(IMAGES, id.as_str());
        }
        if !gone.is_empty() {
            let images = &self.places.images;
            File::open(images)
                .and_then(|directory| directory.sync_all())
                .map_err(ImageError::io("bring to the disk", images))?;
        }
        self.apply(batch, Durability::Power);
        Ok(())
    }

    pub(crate) fn image_file(&self, id: &Digest) -> PathBuf {
        self.places.images.join(format!("{}.json", id.hex()))
    }

    /// All writable layers, and containers whose layer has a record that cannot be
    /// read: these stay until the container is removed. What has no directory any
    /// more is forgotten, and a directory without a record and without files was
    /// never handed out: it is discarded.
    pub(crate) fn snapshots(&self) -> Result<(Vec<SnapshotRecord>, Vec<String>), ImageError> {
        let mut records = Vec::new();
        let mut damaged = Vec::new();
        let mut batch = Batch::new();
        let mut indexed = self.indexed_snapshots();
        for name in names_in(&self.places.writable)? {
            if check_container(&name).is_err() {
                tracing::warn!(name, "a foreign file among the writable layers");
                continue;
            }
            let directory = self.places.writable.join(&name);
            let file = directory.join(SNAPSHOT_FILE);
            let known = indexed.remove(&name);
            match read_file::<SnapshotRecord>(&file) {
                Some(record) if record.container == name => {
                    if known.as_ref() != Some(&record) {
                        batch = batch.put(SNAPSHOTS, name, to_json(&record)?);
                    }
                    records.push(record);
                }
                _ => match known {
                    Some(record) => {
                        tracing::warn!(
                            container = name,
                            "a writable layer's file was lost and is written from the index"
                        );
                        let json = to_json(&record)?;
                        self.places.write_file(&file, &json, !record.ephemeral)?;
                        records.push(record);
                    }
                    None if !file.exists() && is_without_files(&directory) => {
                        tracing::warn!(
                            container = name,
                            "a writable layer without a record is removed"
                        );
                        self.places.discard_or_leave(&directory);
                    }
                    None if !file.exists() && !is_engine_id(&name) => tracing::error!(
                        container = name,
                        "a directory among the writable layers has files and no record: it is left alone"
                    ),
                    None => {
                        tracing::error!(
                            container = name,
                            "a writable layer's record cannot be read: it is kept until its container is removed"
                        );
                        damaged.push(name);
                    }
                },
            }
        }
        for container in indexed.into_keys() {
            batch = batch.delete(SNAPSHOTS, container);
        }
        self.apply(batch, Durability::Later);
        Ok((records, damaged))
    }

    pub(crate) fn put_snapshot(
        &self,
        record: &SnapshotRecord,
        durability: Durability,
    ) -> Result<(), ImageError> {
        let batch = Batch::new().put(SNAPSHOTS, record.container.as_str(), to_json(record)?);
        self.apply(batch, durability);
        Ok(())
    }

    pub(crate) fn delete_snapshot(&self, container: &str, durability: Durability) {
        let batch = Batch::new().delete(SNAPSHOTS, container);
        self.apply(batch, durability);
    }

    /// The verified packings.
    pub(crate) fn packings(&self) -> Vec<Packing> {
        let keys = self.scan_raw(PACKINGS).into_iter();
        let pairs = keys.filter_map(|(key, _)| {
            let (blob, diff_id) = std::str::from_utf8(&key).ok()?.split_once(' ')?;
            Some((blob.parse().ok()?, diff_id.parse().ok()?))
        });
        pairs.collect()
    }

    /// Remembers a packing, without waiting for the disk.
    pub(crate) fn put_packing(&self, packing: &Packing) {
        let batch = Batch::new().put(PACKINGS, packing_key(packing), "");
        self.apply(batch, Durability::Later);
    }

    pub(crate) fn delete_packings(&self, packings: &[Packing]) {
        let mut batch = Batch::new();
        for packing in packings {
            batch = batch.delete(PACKINGS, packing_key(packing));
        }
        if !packings.is_empty() {
            self.apply(batch, Durability::Later);
        }
    }

    fn scan_raw(&self, tree: &'static str) -> Vec<gantry_kit::store::Record> {
        let index = self.index();
        let Some(open) = index.as_ref() else {
            return Vec::new();
        };
        open.scan(tree).unwrap_or_else(|error| {
            let error = gantry_kit::fault::chain(&error);
            tracing::error!(tree, error, "the index cannot be read");
            Vec::new()
        })
    }

    fn scan<T: DeserializeOwned>(&self, tree: &'static str) -> Vec<T> {
        let mut records = Vec::new();
        for (key, value) in self.scan_raw(tree) {
            match serde_json::from_slice(&value) {
                Ok(record) => records.push(record),
                Err(error) => {
                    let key = String::from_utf8_lossy(&key).into_owned();
                    tracing::error!(tree, key, %error, "a record of the index is damaged and left out");
                }
            }
        }
        records
    }
}

/// The name of a writable layer's record in its directory.
pub(crate) const SNAPSHOT_FILE: &str = "snapshot.json";

fn packing_key((blob, diff_id): &Packing) -> String {
    format!("{blob} {diff_id}")
}

fn index_path(places: &Places) -> PathBuf {
    places.root.join("index")
}

/// The hex digits of the image whose record's file has this name.
pub(crate) fn image_of_file(name: &str) -> Option<&str> {
    let hex = name.strip_suffix(".json")?;
    let digits = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (digits && matches!(hex.len(), 64 | 128)).then_some(hex)
}

/// A name belongs to the record that was written last. The images that lost one.
fn settle_names(found: &mut BTreeMap<Digest, (ImageRecord, SystemTime)>) -> Vec<Digest> {
    let mut owners: HashMap<Reference, (Digest, SystemTime)> = HashMap::new();
    for (id, (record, written)) in found.iter() {
        for tag in &record.tags {
            match owners.get(tag) {
                Some((_, other)) if other >= written => {}
                _ => _ = owners.insert(tag.clone(), (id.clone(), *written)),
            }
        }
    }
    let mut changed = Vec::new();
    for (id, (record, _)) in found.iter_mut() {
        let before = record.tags.len();
        record
            .tags
            .retain(|tag| owners.get(tag).is_some_and(|(owner, _)| owner == id));
        if record.tags.len() != before {
            changed.push(id.clone());
        }
    }
    changed
}

/// Whether a name has the form of the engine's container ids: without a record a
/// directory of another name may be anybody's.
fn is_engine_id(name: &str) -> bool {
    name.len() == 64
        && name
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether no container can have written here.
fn is_without_files(directory: &Path) -> bool {
    match fs::read_dir(directory.join("upper")) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// A record's file; `None` when there is none that can be read.
pub(crate) fn read_file<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = fs::read(path).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "a record's file is damaged");
            None
        }
    }
}
