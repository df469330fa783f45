//! Writable layers: one for each container, above an image's layers.
//!
//! Preparing one is on the way of every `run`, so it is two directories, one
//! small file and an entry in memory; the index hears of it without waiting,
//! except where the layer must survive a power cut. Removing one is a rename
//! into the trash, which is emptied behind the caller's back.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use gantry_kit::store::Durability;
use gantry_oci::Digest;
use serde::{Deserialize, Serialize};

use crate::ImageStore;
use crate::error::ImageError;
use crate::garbage::Candidates;
use crate::image::Image;
use crate::store::SNAPSHOT_FILE;
use crate::unpack::RootAttributes;

/// What is kept of a writable layer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SnapshotRecord {
    /// Its owner.
    pub container: String,
    /// The image below it.
    pub image: Digest,
    /// The layers below it by their directories' names, the lowest first.
    pub layers: Vec<String>,
    pub created: jiff::Timestamp,
    /// It ends with its container, and need not survive a power cut.
    #[serde(default)]
    pub ephemeral: bool,
}

/// A writable layer, and how to mount it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub record: SnapshotRecord,
    /// The layers below, the top-most first.
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
}

/// All writable layers in memory.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    by_container: RwLock<HashMap<String, Arc<SnapshotRecord>>>,
    /// Containers whose layer is being made or removed, and how often.
    changing: Mutex<HashMap<String, usize>>,
}

/// Says that a writable layer is being made or removed, while it lives.
struct Changing<'a> {
    snapshots: &'a Snapshots,
    container: &'a str,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut changing = self.snapshots.changing();
        if let Some(count) = changing.get_mut(self.container) {
            *count -= 1;
            if *count == 0 {
                changing.remove(self.container);
            }
        }
    }
}

impl Snapshots {
    pub(crate) fn new(records: Vec<SnapshotRecord>) -> Self {
        let by_container = records
            .into_iter()
            .map(|record| (record.container.clone(), Arc::new(record)))
            .collect();
        Self {
            by_container: RwLock::new(by_container),
            changing: Mutex::default(),
        }
    }

    fn changing(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<'a>(&'a self, container: &'a str) -> Changing<'a> {
        *self.changing().entry(container.to_owned()).or_default() += 1;
        Changing {
            snapshots: self,
            container,
        }
    }

    /// Whether a container's layer is there, and neither being made nor removed.
    pub(crate) fn is_settled(&self, container: &str) -> bool {
        !self.changing().contains_key(container) && self.read().contains_key(container)
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, Arc<SnapshotRecord>>> {
        self.by_container
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<String, Arc<SnapshotRecord>>> {
        self.by_container
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn all(&self) -> Vec<Arc<SnapshotRecord>> {
        self.read().values().cloned().collect()
    }

    /// A container that uses an image.
    pub(crate) fn user_of(&self, image: &Digest) -> Option<String> {
        self.users_of(image).into_iter().next()
    }

    /// The containers that use an image, the oldest first.
    pub(crate) fn users_of(&self, image: &Digest) -> Vec<String> {
        let snapshots = self.read();
        let mut users: Vec<_> = snapshots.values().filter(|s| s.image == *image).collect();
        users.sort_by_key(|s| s.created);
        users.iter().map(|s| s.container.clone()).collect()
    }
}

/// The rules of a container's id, which becomes a directory's name.
pub(crate) fn check_container(text: &str) -> Result<(), ImageError> {
    let valid = (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if valid {
        Ok(())
    } else {
        Err(ImageError::ContainerId {
            text: text.chars().take(80).collect(),
        })
    }
}

impl ImageStore {
    /// Puts a writable layer over an image. Blocks for a fraction of a
    /// millisecond, and for the disk where the layer is not ephemeral.
    pub fn prepare(
        &self,
        container: &str,
        reference: &str,
        ephemeral: bool,
    ) -> Result<(Arc<Image>, Snapshot), ImageError> {
        check_container(container)?;
        let _changing = self.shared.snapshots.change(container);
        let image = self.resolve(reference)?;
        self.check_layers(&image, reference)?;
        let record = Arc::new(SnapshotRecord {
            container: container.to_owned(),
            image: image.id().clone(),
            layers: image
                .record
                .layers
                .iter()
                .map(|layer| layer.key.clone())
                .collect(),
            created: jiff::Timestamp::now(),
            ephemeral,
        });
        {
            // In the map before on the disk: from now on nobody removes the image's layers.
            let _keep = self.shared.keep_lock();
            if self.catalogue().get(image.id()).is_none() {
                return Err(ImageError::NotFound {
                    reference: reference.to_owned(),
                });
            }
            let mut snapshots = self.shared.snapshots.write();
            if snapshots.contains_key(container) {
                return Err(ImageError::SnapshotExists {
                    container: container.to_owned(),
                });
            }
            snapshots.insert(container.to_owned(), Arc::clone(&record));
        }
        let made = self.make_snapshot(&record, root_of(&image));
        if let Err(error) = made {
            self.shared.snapshots.write().remove(container);
            self.shared
                .places
                .discard(&self.snapshot_directory(container))
                .ok();
            return Err(error);
        }
        Ok((image, self.snapshot(&record)))
    }

    fn make_snapshot(
        &self,
        record: &SnapshotRecord,
        root: Option<RootAttributes>,
    ) -> Result<(), ImageError> {
        let directory = self.snapshot_directory(&record.container);
        let make = |path: &Path, mode: u32| {
            fs::DirBuilder::new()
                .mode(mode)
                .create(path)
                .map_err(ImageError::io("make the directory", path))
        };
        make(&directory, 0o711)?;
        let upper = directory.join("upper");
        make(&upper, 0o755)?;
        make(&directory.join("work"), 0o700)?;
        // The upper directory's own attributes are what the container sees of `/`.
        let root = root.unwrap_or_default();
        fs::set_permissions(&upper, fs::Permissions::from_mode(root.mode))
            .and_then(|()| match (root.uid, root.gid) {
                (0, 0) => Ok(()),
                (uid, gid) => std::os::unix::fs::chown(&upper, Some(uid), Some(gid)),
            })
            .map_err(ImageError::io("set the owner and mode of", &upper))?;
        let json = serde_json::to_vec(record).map_err(std::io::Error::from);
        let file = directory.join(SNAPSHOT_FILE);
        json.and_then(|json| fs::write(&file, json))
            .map_err(ImageError::io("write", &file))?;
        // The file is what survives the end of this process; the index's fsync
        // takes the file system's journal, and with it the directories, along.
        let durability = if record.ephemeral {
            Durability::Later
        } else {
            Durability::Power
        };
        self.shared.records.put_snapshot(record, durability)
    }

    pub(crate) fn snapshot_directory(&self, container: &str) -> PathBuf {
        self.shared.places.writable.join(container)
    }

    fn snapshot(&self, record: &SnapshotRecord) -> Snapshot {
        let directory = self.snapshot_directory(&record.container);
        let layers = record.layers.iter().rev();
        let mut lower: Vec<PathBuf> = layers
            .map(|key| self.shared.layers.directory(key))
            .collect();
        if lower.is_empty() {
            lower.push(self.shared.places.empty.clone());
        }
        Snapshot {
            record: record.clone(),
            lower,
            upper: directory.join("upper"),
            work: directory.join("work"),
        }
    }

    /// The writable layer of a container.
    pub fn get_snapshot(&self, container: &str) -> Result<Snapshot, ImageError> {
        let record = self.shared.snapshots.read().get(container).cloned();
        match record {
            Some(record) => Ok(self.snapshot(&record)),
            None => Err(ImageError::SnapshotNotFound {
                container: container.to_owned(),
            }),
        }
    }

    /// All writable layers, the oldest first.
    #[must_use]
    pub fn list_snapshots(&self) -> Vec<Snapshot> {
        let mut records = self.shared.snapshots.all();
        records.sort_by_key(|record| record.created);
        records.iter().map(|record| self.snapshot(record)).collect()
    }

    /// Removes the writable layer of a container. False: there was none.
    pub fn delete_snapshot(&self, container: &str) -> Result<bool, ImageError> {
        check_container(container)?;
        let _changing = self.shared.snapshots.change(container);
        let record = self.shared.snapshots.read().get(container).cloned();
        let Some(record) = record else {
            return Ok(false);
        };
        self.shared
            .places
            .discard(&self.snapshot_directory(container))?;
        let durability = if record.ephemeral {
            Durability::Later
        } else {
            Durability::Power
        };
        self.shared.records.delete_snapshot(container, durability);
        self.shared.snapshots.write().remove(container);
        self.empty_trash_behind();
        // An image that was removed by force while it was used goes now.
        if self.catalogue().get(&record.image).is_none() {
            self.collect(&Candidates::layers(record.layers.iter().cloned()))?;
        }
        Ok(true)
    }
}

/// What the image's layers make of the root directory: the top-most that says anything decides.
pub(crate) fn root_of(image: &Image) -> Option<RootAttributes> {
    image
        .record
        .layers
        .iter()
        .rev()
        .find_map(|layer| layer.root)
}
