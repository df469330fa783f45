//! The records of the store: what is in the index, and the files it can be rebuilt from.
//!
//! | tree | key | value |
//! | --- | --- | --- |
//! | `images` | configuration's digest | [`ImageRecord`] as JSON |
//! | `snapshots` | container's id | [`SnapshotRecord`] as JSON |
//!
//! Each record is also a file (see [`crate::disk`]), written before the index.
//! An index that was lost or damaged is filled from them; a record that cannot
//! be read is reported, left out, and read from its file instead.

use std::fs;

use gantry_kit::store::{Batch, Durability, Index, Sled};
use gantry_oci::Digest;
use serde::de::DeserializeOwned;

use crate::disk::{Places, names_in, remove_file};
use crate::error::ImageError;
use crate::image::ImageRecord;
use crate::snapshots::SnapshotRecord;

const IMAGES: &str = "images";
const SNAPSHOTS: &str = "snapshots";

/// The records.
#[derive(Debug)]
pub(crate) struct Records {
    index: Box<dyn Index>,
    places: Places,
}

fn to_json<T: serde::Serialize>(record: &T) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(record).map_err(|error| ImageError::Stream {
        reason: format!("a record cannot be written: {error}"),
    })
}

impl Records {
    /// Opens the index, or begins one and fills it from the files.
    pub(crate) fn open(places: &Places) -> Result<Self, ImageError> {
        let opened = Sled::open(&places.root.join("index"))?;
        if let Some(aside) = &opened.quarantined {
            tracing::warn!(aside = %aside.display(), "the index was damaged and is rebuilt");
        }
        Ok(Self {
            index: Box::new(opened.index),
            places: places.clone(),
        })
    }

    /// All images.
    pub(crate) fn images(&self) -> Result<Vec<ImageRecord>, ImageError> {
        let mut records = self.scan::<ImageRecord>(IMAGES)?;
        let mut batch = Batch::new();
        let mut rebuilt = false;
        for name in names_in(&self.places.images)? {
            let known = name
                .strip_suffix(".json")
                .is_some_and(|hex| records.iter().any(|record| record.id.hex() == hex));
            if known {
                continue;
            }
            let path = self.places.images.join(&name);
            match read_file::<ImageRecord>(&path) {
                Some(record) => {
                    tracing::info!(image = %record.id, "an image's record is rebuilt from its file");
                    batch = batch.put(IMAGES, record.id.as_str(), to_json(&record)?);
                    rebuilt = true;
                    records.push(record);
                }
                None => {
                    self.places.discard(&path)?;
                }
            }
        }
        if rebuilt {
            self.index.apply(batch, Durability::Power)?;
        }
        Ok(records)
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
            batch = batch.delete(IMAGES, id.as_str());
        }
        self.index.apply(batch, Durability::Power)?;
        for id in gone {
            remove_file(&self.image_file(id))?;
        }
        Ok(())
    }

    fn image_file(&self, id: &Digest) -> std::path::PathBuf {
        self.places.images.join(format!("{}.json", id.hex()))
    }

    /// All writable layers. What has no directory any more is forgotten, and a
    /// directory without a record was never handed out: it is discarded.
    pub(crate) fn snapshots(&self) -> Result<Vec<SnapshotRecord>, ImageError> {
        let mut records = Vec::new();
        let mut batch = Batch::new();
        let indexed = self.scan::<SnapshotRecord>(SNAPSHOTS)?;
        for name in names_in(&self.places.writable)? {
            let directory = self.places.writable.join(&name);
            let record =
                read_file::<SnapshotRecord>(&directory.join("snapshot.json")).or_else(|| {
                    indexed
                        .iter()
                        .find(|record| record.container == name)
                        .cloned()
                });
            match record {
                Some(record) if record.container == name => {
                    batch = batch.put(SNAPSHOTS, name, to_json(&record)?);
                    records.push(record);
                }
                _ => {
                    tracing::warn!(
                        container = name,
                        "a writable layer without a record is removed"
                    );
                    self.places.discard(&directory)?;
                }
            }
        }
        for record in &indexed {
            if !records.iter().any(|r| r.container == record.container) {
                batch = batch.delete(SNAPSHOTS, record.container.as_str());
            }
        }
        self.index.apply(batch, Durability::Later)?;
        Ok(records)
    }

    pub(crate) fn put_snapshot(
        &self,
        record: &SnapshotRecord,
        durability: Durability,
    ) -> Result<(), ImageError> {
        let batch = Batch::new().put(SNAPSHOTS, record.container.as_str(), to_json(record)?);
        Ok(self.index.apply(batch, durability)?)
    }

    pub(crate) fn delete_snapshot(
        &self,
        container: &str,
        durability: Durability,
    ) -> Result<(), ImageError> {
        let batch = Batch::new().delete(SNAPSHOTS, container);
        Ok(self.index.apply(batch, durability)?)
    }

    fn scan<T: DeserializeOwned>(&self, tree: &'static str) -> Result<Vec<T>, ImageError> {
        let mut records = Vec::new();
        for (key, value) in self.index.scan(tree)? {
            match serde_json::from_slice(&value) {
                Ok(record) => records.push(record),
                Err(error) => {
                    let key = String::from_utf8_lossy(&key).into_owned();
                    tracing::error!(tree, key, %error, "a record of the index is damaged and left out");
                }
            }
        }
        Ok(records)
    }
}

/// A record's file; `None` when there is none that can be read.
fn read_file<T: DeserializeOwned>(path: &std::path::Path) -> Option<T> {
    let bytes = fs::read(path).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "a record's file is damaged");
            None
        }
    }
}
