//! Writable layers: one for each container, above an image's layers.
//!
//! Preparing one is on the way of every `run`, so it is two directories, one
//! small file and an entry in memory; the index hears of it without waiting,
//! except where the layer must survive a power cut. Removing one is a rename
//! into the trash, which is emptied behind the caller's back.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Write as _;
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
use crate::volumes::attach::{ImageFiles, Plan, VolumeUse};
use crate::volumes::{Mounted, Wishes};

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
    /// Volumes that the container uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeUse>,
    /// Images whose files it sees, beside its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ImageFiles>,
}

impl SnapshotRecord {
    /// Everything unpacked that the container needs, by the directories' names.
    pub(crate) fn all_layers(&self) -> impl Iterator<Item = &String> {
        let others = self.images.iter().flat_map(|files| &files.layers);
        self.layers.iter().chain(others)
    }

    /// All images that the container needs.
    pub(crate) fn all_images(&self) -> impl Iterator<Item = &Digest> {
        std::iter::once(&self.image).chain(self.images.iter().map(|files| &files.image))
    }
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
    /// Containers whose layer has a record that cannot be read.
    damaged: Mutex<BTreeSet<String>>,
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
    pub(crate) fn new(records: Vec<SnapshotRecord>, damaged: Vec<String>) -> Self {
        let by_container = records
            .into_iter()
            .map(|record| (record.container.clone(), Arc::new(record)))
            .collect();
        Self {
            by_container: RwLock::new(by_container),
            damaged: Mutex::new(damaged.into_iter().collect()),
            changing: Mutex::default(),
        }
    }

    /// Containers whose layer has a record that cannot be read. While there are
    /// any, nobody knows all that is in use: of layers, images and volumes.
    pub(crate) fn damaged(&self) -> BTreeSet<String> {
        self.lock_damaged().clone()
    }

    fn lock_damaged(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
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
        let uses = |s: &&Arc<SnapshotRecord>| s.all_images().any(|used| used == image);
        oldest_first(snapshots.values().filter(uses).collect())
    }

    /// The containers that use a volume, the oldest first.
    pub(crate) fn users_of_volume(&self, volume: &str) -> Vec<String> {
        let snapshots = self.read();
        let uses = |s: &&Arc<SnapshotRecord>| s.volumes.iter().any(|used| used.volume == volume);
        oldest_first(snapshots.values().filter(uses).collect())
    }
}

/// What is held while a container's volumes are made or removed: no volume's name.
fn volumes_of(container: &str) -> String {
    format!("/{container}")
}

fn oldest_first(mut records: Vec<&Arc<SnapshotRecord>>) -> Vec<String> {
    records.sort_by_key(|record| record.created);
    let containers = records.iter().map(|record| record.container.clone());
    containers.collect()
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
        let wishes = Wishes::default();
        let (image, snapshot, _) = self.prepare_with(container, reference, ephemeral, &wishes)?;
        Ok((image, snapshot))
    }

    /// The same, with volumes and the files of other images: what is to be
    /// mounted for each. Then it blocks for the disk, and as long as filling
    /// fresh volumes takes.
    pub fn prepare_with(
        &self,
        container: &str,
        reference: &str,
        ephemeral: bool,
        wishes: &Wishes,
    ) -> Result<(Arc<Image>, Snapshot, Vec<Mounted>), ImageError> {
        check_container(container)?;
        let _changing = self.shared.snapshots.change(container);
        let image = self.resolve(reference)?;
        self.check_layers(&image, reference)?;
        let plan = self.plan(&image, wishes)?;
        // Whoever removes the container meanwhile would not see what comes yet.
        let key = volumes_of(container);
        let _held = (!plan.is_empty()).then(|| self.shared.volumes.hold(&key));
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
            volumes: plan.uses(),
            images: plan.images().to_vec(),
        });
        {
            // In the map before on the disk: from now on nobody removes the image's layers.
            let _keep = self.shared.keep_lock();
            let gone = |id: &&Digest| self.catalogue().get(id).is_none();
            if let Some(gone) = record.all_images().find(gone) {
                let its_own = gone == image.id();
                let reference = if its_own { reference } else { gone.as_str() };
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
        match self.make_all(&image, &record, &plan) {
            Ok(mounted) => Ok((image, self.snapshot(&record), mounted)),
            Err(error) => {
                self.shared
                    .places
                    .discard(&self.snapshot_directory(container))
                    .ok();
                self.shared
                    .records
                    .delete_snapshot(container, Durability::Later);
                self.shared.snapshots.write().remove(container);
                self.empty_trash_behind();
                Err(error)
            }
        }
    }

    fn make_all(
        &self,
        image: &Image,
        record: &SnapshotRecord,
        plan: &Plan,
    ) -> Result<Vec<Mounted>, ImageError> {
        self.make_snapshot(record, root_of(image))?;
        if plan.is_empty() {
            return Ok(Vec::new());
        }
        self.fulfil(image, plan, record)?;
        self.mounted(record)
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
        make(&directory, 0o700)?;
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
        let path = directory.join(SNAPSHOT_FILE);
        let write = |json: Vec<u8>| {
            let mut file = File::create_new(&path)?;
            file.write_all(&json)?;
            if record.ephemeral {
                return Ok(());
            }
            // The file is what counts. It is the last that is made here, and file
            // systems write their journals in order: the sync of a new file brings
            // the directories that were made before it to the disk as well. One
            // wait for the disk, which is on the way of every run.
            file.sync_all()
        };
        json.and_then(write)
            .map_err(ImageError::io("write", &path))?;
        self.shared.records.put_snapshot(record, Durability::Later)
    }

    pub(crate) fn snapshot_directory(&self, container: &str) -> PathBuf {
        self.shared.places.writable.join(container)
    }

    fn snapshot(&self, record: &SnapshotRecord) -> Snapshot {
        let directory = self.snapshot_directory(&record.container);
        let mut lower = self.shared.layers.stack(record.layers.iter());
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

    /// Containers whose writable layer has a record that cannot be read. It can
    /// only be removed.
    #[must_use]
    pub fn damaged_snapshots(&self) -> BTreeSet<String> {
        self.shared.snapshots.damaged()
    }

    /// Removes the anonymous volumes of a container that goes. They go before its
    /// record, which knows them; from here on it uses none of them.
    fn remove_volumes_of(&self, record: &Arc<SnapshotRecord>) -> Result<(), ImageError> {
        let volumes = record.volumes.iter().filter(|used| used.anonymous);
        let volumes: Vec<String> = volumes.map(|used| used.volume.clone()).collect();
        if volumes.is_empty() {
            return Ok(());
        }
        let mut without = SnapshotRecord::clone(record);
        without.volumes.retain(|used| !used.anonymous);
        {
            let _keep = self.shared.keep_lock();
            let mut snapshots = self.shared.snapshots.write();
            snapshots.insert(record.container.clone(), Arc::new(without));
        }
        let removed = self.remove_unused_volumes(&volumes);
        if removed.is_err() {
            let mut snapshots = self.shared.snapshots.write();
            snapshots.insert(record.container.clone(), Arc::clone(record));
        }
        removed
    }

    /// Removes a writable layer whose record cannot be read. Which volumes were
    /// its own is not known: they stay.
    fn delete_damaged(&self, container: &str) -> Result<bool, ImageError> {
        if !self.shared.snapshots.lock_damaged().contains(container) {
            return Ok(false);
        }
        self.shared
            .places
            .discard(&self.snapshot_directory(container))?;
        self.shared.snapshots.lock_damaged().remove(container);
        self.empty_trash_behind();
        Ok(true)
    }

    /// Removes the writable layer of a container. False: there was none.
    pub fn delete_snapshot(&self, container: &str) -> Result<bool, ImageError> {
        self.delete_snapshot_with(container, false)
    }

    /// The same, with the anonymous volumes that no other container uses: by
    /// `volumes`, or where the container was to end with its layer.
    pub fn delete_snapshot_with(&self, container: &str, volumes: bool) -> Result<bool, ImageError> {
        check_container(container)?;
        let key = volumes_of(container);
        let _held = self.shared.volumes.hold(&key);
        let _changing = self.shared.snapshots.change(container);
        let record = self.shared.snapshots.read().get(container).cloned();
        let Some(record) = record else {
            return self.delete_damaged(container);
        };
        if volumes || record.ephemeral {
            self.remove_volumes_of(&record)?;
        }
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
        let gone = |id: &Digest| self.catalogue().get(id).is_none();
        if record.all_images().any(gone) {
            self.collect(&Candidates::layers(record.all_layers().cloned()))?;
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
