//! Unpacked layers: directories that many images and containers share.
//!
//! **Durability.** An unpacked layer can be made again of its packed one, which
//! is on the disk before an image's record names both. So nobody waits for its
//! files: a layer is named with the file `unsynced` in it, which holds the id of
//! the machine's boot, and [`Layers::settle`] takes that away once all is on the
//! disk. A layer that has it from another boot went through a power cut: what is
//! in its files is in doubt, and it is unpacked again (`restore`).

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_oci::{Algorithm, Digest};
use serde::{Deserialize, Serialize};

use crate::check::mend;
use crate::disk::{Places, Syncer, names_in, remove_file};
use crate::error::ImageError;
use crate::image::{ImageRecord, LayerRecord};
use crate::measure;
use crate::store::read_file;
use crate::tree_record::{self, ContentFormat};
use crate::unpack::{RootAttributes, Unpacked};

/// What `layer.json` says of a layer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct LayerMeta {
    pub(crate) diff_id: Digest,
    /// The layers from the lowest to this one, where they had a say in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) chain_id: Option<Digest>,
    /// Bytes of its files.
    pub(crate) size: u64,
    pub(crate) entries: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) root: Option<RootAttributes>,
    /// Digest of the file `tree` (see [`tree_record`]). Absent: the layer was
    /// made by a version that kept none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tree_digest: Option<Digest>,
    /// What the file `tree` has of the files' content.
    #[serde(default, skip_serializing_if = "ContentFormat::is_whole")]
    pub(crate) tree_content: ContentFormat,
}

/// Whether a directory can be a layer's: the others are none of the store's.
pub(crate) fn is_layer_name(name: &str) -> bool {
    let named_by = |algorithm| Digest::from_hex(algorithm, name).is_ok();
    Algorithm::ALL.into_iter().any(named_by)
}

impl LayerMeta {
    /// What an image's record knows of a layer.
    pub(crate) fn of_record(layer: &LayerRecord) -> Self {
        let depends = layer.key != layer.diff_id.hex();
        let chain_id = depends
            .then(|| Digest::from_hex(layer.diff_id.algorithm(), &layer.key).ok())
            .flatten();
        Self {
            diff_id: layer.diff_id.clone(),
            chain_id,
            size: layer.size,
            entries: 0,
            root: layer.root,
            tree_digest: None,
            tree_content: ContentFormat::default(),
        }
    }
}

/// A layer that is there.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) key: String,
    pub(crate) meta: LayerMeta,
}

/// All unpacked layers.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    places: Places,
    known: Arc<Mutex<HashMap<String, LayerMeta>>>,
    /// Bytes on the disk, of those that were measured: a layer never changes.
    measured: Arc<Mutex<HashMap<String, u64>>>,
    /// Layers that may not be on the disk, by their directories' names.
    unsynced: Arc<Mutex<HashSet<String>>>,
    /// Id of this boot.
    boot: Arc<str>,
}

/// The file that says that a layer may not be on the disk.
const UNSYNCED: &str = "unsynced";
/// The record of a layer's files.
pub(crate) const TREE: &str = "tree";
pub(crate) const META: &str = "layer.json";

/// A directory that is being filled. Dropped before it was named, it is removed.
#[derive(Debug)]
pub(crate) struct NewLayer {
    layers: Layers,
    path: PathBuf,
    named: bool,
}

impl Layers {
    /// Reads what is there. A directory that a power cut left in doubt is
    /// discarded, and one without a readable `layer.json`, unless an image has
    /// the layer: its record says what it is.
    pub(crate) fn open(places: &Places, records: &[ImageRecord]) -> Result<Self, ImageError> {
        let boot_id = Path::new("/proc/sys/kernel/random/boot_id");
        let boot = fs::read_to_string(boot_id).map_err(ImageError::io("read", boot_id))?;
        let mut known = HashMap::new();
        let mut unsynced = HashSet::new();
        for key in names_in(&places.layers)? {
            if !is_layer_name(&key) {
                tracing::warn!(name = key, "a foreign file among the layers");
                continue;
            }
            let directory = places.layers.join(&key);
            match fs::read_to_string(directory.join(UNSYNCED)) {
                Ok(then) if then == boot => _ = unsynced.insert(key.clone()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(_) | Err(_) => {
                    tracing::warn!(
                        layer = key,
                        "the machine stopped before a layer was on the disk: it is unpacked again"
                    );
                    places.discard_or_leave(&directory);
                    continue;
                }
            }
            let meta = read_file::<LayerMeta>(&directory.join(META)).or_else(|| {
                let mut layers = records.iter().flat_map(|record| &record.layers);
                let layer = layers.find(|layer| layer.key == key)?;
                tracing::error!(
                    layer = key,
                    "a layer's record is damaged; what its image says of it is used"
                );
                Some(LayerMeta::of_record(layer))
            });
            match meta {
                Some(meta) => {
                    known.insert(key, meta);
                }
                None => {
                    tracing::warn!(layer = key, "an unfinished layer is removed");
                    places.discard_or_leave(&directory);
                }
            }
        }
        Ok(Self {
            places: places.clone(),
            known: Arc::new(Mutex::new(known)),
            measured: Arc::default(),
            unsynced: Arc::new(Mutex::new(unsynced)),
            boot: boot.into(),
        })
    }

    fn unsynced(&self) -> MutexGuard<'_, HashSet<String>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings all layers that have a name by now to the disk, and notes that
    /// they are there. Blocks for as long as the disk takes.
    pub(crate) fn settle(&self, syncer: &Syncer) -> Result<(), ImageError> {
        let named: Vec<String> = self.unsynced().iter().cloned().collect();
        if named.is_empty() {
            return Ok(());
        }
        syncer.sync()?;
        for key in named {
            // It may be gone by now, or be another of the same name: that one has its own.
            if self.unsynced().remove(&key) {
                remove_file(&self.places.layers.join(&key).join(UNSYNCED))?;
            }
        }
        Ok(())
    }

    fn measured(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes on the disk of a layer and its record; remembered once it is there.
    pub(crate) fn disk_bytes(&self, key: &str) -> Result<u64, ImageError> {
        if let Some(bytes) = self.measured().get(key) {
            return Ok(*bytes);
        }
        let directory = self.places.layers.join(key);
        let settled = !self.unsynced().contains(key) && !directory.join(UNSYNCED).exists();
        let size = measure::tree(&directory).map_err(ImageError::io("measure", &directory))?;
        if settled && self.contains(key) {
            self.measured().insert(key.to_owned(), size.disk);
        }
        Ok(size.disk)
    }

    /// What `layer.json` says of a layer.
    pub(crate) fn meta(&self, key: &str) -> Option<LayerMeta> {
        self.known().get(key).cloned()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, LayerMeta>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory that overlayfs mounts.
    pub(crate) fn directory(&self, key: &str) -> PathBuf {
        self.places.layers.join(key).join("fs")
    }

    /// The directories that overlayfs mounts for a stack of layers, given the
    /// lowest first; the top-most first. A layer that is there more than once
    /// counts where it is top-most: what it shows or hides further down, it shows
    /// or hides there already, and overlayfs refuses a directory given twice.
    pub(crate) fn stack<'a>(
        &self,
        keys: impl DoubleEndedIterator<Item = &'a String>,
    ) -> Vec<PathBuf> {
        let mut seen = HashSet::new();
        keys.rev()
            .filter(|key| seen.insert(*key))
            .map(|key| self.directory(key))
            .collect()
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        self.known().contains_key(key)
    }

    /// The layer with this content, if it is there.
    pub(crate) fn find(&self, diff_id: &Digest, chain_id: &Digest) -> Option<Layer> {
        let known = self.known();
        [diff_id, chain_id].into_iter().find_map(|digest| {
            let meta = known.get(digest.hex())?;
            // A lowest layer's chain ID is its diff ID; no other pair can be equal.
            (meta.diff_id == *diff_id).then(|| Layer {
                key: digest.hex().to_owned(),
                meta: meta.clone(),
            })
        })
    }

    /// Begins a layer.
    pub(crate) fn begin(&self) -> Result<NewLayer, ImageError> {
        let path = self.places.new_directory(&self.places.layers)?;
        let new = NewLayer {
            layers: self.clone(),
            path,
            named: false,
        };
        let fs = new.path.join("fs");
        // The root of a container, unless the layer says otherwise.
        fs::create_dir(&fs)
            .and_then(|()| fs::set_permissions(&fs, fs::Permissions::from_mode(0o755)))
            .map_err(ImageError::io("make the directory", &fs))?;
        Ok(new)
    }

    /// The keys of all layers.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.known().keys().cloned().collect()
    }

    /// Takes a layer away. Its diff ID, if it was there.
    pub(crate) fn discard(&self, key: &str) -> Result<Option<Digest>, ImageError> {
        let Some(meta) = self.known().remove(key) else {
            return Ok(None);
        };
        self.measured().remove(key);
        self.unsynced().remove(key);
        self.places.discard(&self.places.layers.join(key))?;
        Ok(Some(meta.diff_id))
    }
}

impl NewLayer {
    /// The directory to unpack into.
    pub(crate) fn open(&self) -> Result<OwnedFd, ImageError> {
        let path = self.path.join("fs");
        let directory = fs::File::open(&path).map_err(ImageError::io("open", &path))?;
        Ok(directory.into())
    }

    /// Gives the finished layer its name. Another may have been faster: then this one goes.
    pub(crate) fn finish(
        mut self,
        unpacked: &Unpacked,
        chain_id: &Digest,
    ) -> Result<Layer, ImageError> {
        let (key, meta) = self.describe(unpacked, chain_id)?;
        let to = self.layers.places.layers.join(&key);
        let mut known = self.layers.known();
        if !known.contains_key(&key) {
            fs::rename(&self.path, &to).map_err(ImageError::io("rename", &self.path))?;
            known.insert(key.clone(), meta.clone());
            self.layers.unsynced().insert(key.clone());
            drop(known);
            self.named = true;
        } else {
            drop(known);
        }
        Ok(Layer { key, meta })
    }

    /// Writes down what is in the directory. The layer's key, and what it is.
    fn describe(
        &self,
        unpacked: &Unpacked,
        chain_id: &Digest,
    ) -> Result<(String, LayerMeta), ImageError> {
        let depends = unpacked.depends_on_lower;
        let meta = LayerMeta {
            diff_id: unpacked.diff_id.clone(),
            chain_id: depends.then(|| chain_id.clone()),
            size: unpacked.content_bytes,
            entries: unpacked.entries,
            root: unpacked.root,
            tree_digest: Some(self.write_tree(unpacked)?),
            tree_content: ContentFormat::Blocks,
        };
        let name = if depends { chain_id } else { &unpacked.diff_id };
        let json = serde_json::to_vec(&meta).map_err(std::io::Error::from);
        let file = self.path.join(META);
        json.and_then(|json| fs::write(&file, json))
            .map_err(ImageError::io("write", &file))?;
        let mark = self.path.join(UNSYNCED);
        fs::write(&mark, &*self.layers.boot).map_err(ImageError::io("write", &mark))?;
        Ok((name.hex().to_owned(), meta))
    }

    /// Puts what was unpacked into the place of a layer that is damaged, which
    /// containers may have mounted. Cut short, it leaves it damaged.
    pub(crate) fn mend(
        self,
        unpacked: &Unpacked,
        chain_id: &Digest,
        wanted: &str,
    ) -> Result<(), ImageError> {
        let (key, meta) = self.describe(unpacked, chain_id)?;
        let directory = self.layers.places.layers.join(wanted);
        if key != wanted {
            return Err(ImageError::Unusable {
                reference: wanted.to_owned(),
                reason: "the layers below it are not those that it was unpacked over".to_owned(),
            });
        }
        let failed = |error| ImageError::io("repair", &directory)(error);
        // In doubt from now on until it is on the disk.
        let bring = |name: &str| fs::rename(self.path.join(name), directory.join(name));
        self.layers.unsynced().insert(key.clone());
        bring(UNSYNCED).map_err(failed)?;
        let old = File::open(directory.join("fs")).map_err(failed)?;
        mend::make_the_same(self.open()?.as_fd(), old.as_fd()).map_err(|e| failed(e.into()))?;
        bring(TREE).and_then(|()| bring(META)).map_err(failed)?;
        self.layers.measured().remove(&key);
        self.layers.known().insert(key, meta);
        Ok(())
    }

    /// Records what is in the layer.
    fn write_tree(&self, unpacked: &Unpacked) -> Result<Digest, ImageError> {
        let file = self.path.join(TREE);
        let failed = |source| ImageError::io("write", &file)(source);
        let mut out = BufWriter::new(File::create(&file).map_err(failed)?);
        let root = self.open()?;
        let digest = tree_record::write(root.as_fd(), &unpacked.known, &mut out)
            .map_err(|error| failed(io::Error::other(error)))?;
        out.flush().map_err(failed)?;
        Ok(digest)
    }
}

impl Drop for NewLayer {
    fn drop(&mut self) {
        if !self.named {
            remove_now(&self.layers.places, &self.path);
        }
    }
}

/// Removes a directory that nobody knows of, and is not stopped by failure.
fn remove_now(places: &Places, path: &Path) {
    if let Err(error) = crate::unpack::removal::remove_path(path) {
        tracing::warn!(path = %path.display(), %error, "a failed layer cannot be removed; it goes at the next start");
        places.discard(path).ok();
    }
}
