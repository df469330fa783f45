//! Directories and small files of the store: made whole, brought to the disk, thrown away.
//!
//! ```text
//! <root>/blobs/ ingest/ pending/        packed content (gantry_oci::content)
//! <root>/layers/<hex>/fs/               an unpacked layer; <hex> is its diff ID, or its
//!                                       chain ID where layers below had a say in it
//! <root>/layers/<hex>/layer.json        what it is
//! <root>/layers/<hex>/tree              the record of its files (see [`crate::tree_record`])
//! <root>/layers/<hex>/unsynced          while it may not be on the disk (see [`crate::layers`])
//! <root>/layers/.new-<random>/          being unpacked
//! <root>/writable/<container>/upper work snapshot.json
//! <root>/volumes/<name>/                a volume (see [`crate::volumes`])
//! <root>/images/<config hex>.json       an image's record, for when the index is lost
//! <root>/loads/<random>                 blobs that a load is about to name
//! <root>/trash/                         on its way out
//! <root>/damaged/                       records that could not be read, for a look
//! <root>/reserve                        room for the small records of a full disk
//! <root>/empty/                         below the writable layer of an image without layers
//! <root>/index/                         the index
//! ```
//!
//! **Durability.** Packed content and records are on the disk before an image
//! has its name. Unpacked layers follow behind (see [`crate::layers`]): they can
//! be made again of the packed ones. A layer that no record names is removed at
//! startup.
//!
//! **What cannot be removed** (a file that is immutable, a directory that
//! something is mounted in) stays where it is, and keeps nothing from starting or
//! from going on: it is reported in the log and by a check ([`Places::stuck`]).
//! Nothing is ever removed beyond a mount.
//!
//! **A full disk.** Removing takes renames and unlinks. The few records that
//! have to be written while something goes (an image that loses one of its
//! names) take the room of `reserve`, which is given back when there is some.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_kit::directories;
use gantry_kit::durable::{self, Draft, Reserve, is_full};
use gantry_oci::content::IngestKey;
use rustix::fs::{IFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::error::ImageError;
use crate::unpack::removal;

/// Where everything is.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) root: PathBuf,
    pub(crate) layers: PathBuf,
    pub(crate) writable: PathBuf,
    pub(crate) volumes: PathBuf,
    pub(crate) images: PathBuf,
    pub(crate) trash: PathBuf,
    /// What is below the writable layer of an image without layers.
    pub(crate) empty: PathBuf,
    /// Records that could not be read.
    pub(crate) damaged: PathBuf,
    reserve: Reserve,
    /// Held while the trash is emptied.
    emptying: Arc<Mutex<()>>,
    /// What could not be thrown away, and why.
    stuck: Arc<Mutex<BTreeMap<PathBuf, String>>>,
}

/// Bytes of the reserve: a few dozen records.
const RESERVE_BYTES: u64 = 256 << 10;

/// Mode of records, before the umask.
const MODE: u32 = 0o666;

/// The prefix of directories that are being filled.
pub(crate) const NEW: &str = ".new-";

impl Places {
    /// Makes what is missing.
    pub(crate) fn prepare(root: &Path) -> Result<Self, ImageError> {
        let places = Self {
            root: root.to_owned(),
            layers: root.join("layers"),
            writable: root.join("writable"),
            volumes: root.join("volumes"),
            images: root.join("images"),
            trash: root.join("trash"),
            empty: root.join("empty"),
            damaged: root.join("damaged"),
            reserve: Reserve::at(root.join("reserve"), RESERVE_BYTES),
            emptying: Arc::default(),
            stuck: Arc::default(),
        };
        for directory in [
            &places.root,
            &places.layers,
            &places.writable,
            &places.volumes,
            &places.images,
            &places.trash,
            &places.empty,
        ] {
            closed(directory)?;
        }
        spread(&places.layers);
        places.refill_reserve();
        Ok(places)
    }

    /// Takes room for the records of a full disk, if there is any.
    pub(crate) fn refill_reserve(&self) {
        self.reserve.refill();
    }

    /// Puts a record that cannot be understood where a person finds it, under its
    /// own name and that of its owner where that does not say it.
    pub(crate) fn set_aside(
        &self,
        path: &Path,
        owner: Option<&str>,
    ) -> Result<PathBuf, ImageError> {
        closed(&self.damaged)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let owner = owner.map(|owner| format!("{owner}.")).unwrap_or_default();
        let to = self
            .damaged
            .join(format!("{owner}{name}.{}", IngestKey::random()));
        fs::rename(path, &to).map_err(ImageError::io("set aside", path))?;
        durable::sync_directory(&self.damaged)?;
        if let Some(parent) = path.parent() {
            durable::sync_directory(parent)?;
        }
        Ok(to)
    }

    /// Names of the files with records of images that were set aside and are not
    /// known otherwise. While there are any, what no image has may be theirs.
    pub(crate) fn damaged_images(&self) -> Result<Vec<String>, ImageError> {
        let mut names = match fs::read_dir(&self.damaged) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            _ => names_in(&self.damaged)?,
        };
        let is_known = |hex: &str| self.images.join(format!("{hex}.json")).exists();
        names.retain(|name| damaged_image(name).is_some_and(|hex| !is_known(hex)));
        Ok(names)
    }

    /// A new directory beside `parent`'s others, with a name nobody has.
    pub(crate) fn new_directory(&self, parent: &Path) -> Result<PathBuf, ImageError> {
        let path = parent.join(format!("{NEW}{}", IngestKey::random()));
        fs::create_dir(&path).map_err(ImageError::io("make the directory", &path))?;
        Ok(path)
    }

    /// Takes a file or directory out of sight at once; [`Places::empty_trash`]
    /// removes it. What is gone already is fine.
    pub(crate) fn discard(&self, path: &Path) -> Result<bool, ImageError> {
        let outcome = self.try_discard(path);
        let mut stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        match &outcome {
            Ok(_) => _ = stuck.remove(path),
            Err(error) => _ = stuck.insert(path.to_owned(), gantry_kit::fault::chain(error)),
        }
        outcome
    }

    /// The same, for what must keep nothing else waiting: a failure is logged,
    /// and told by [`Places::stuck`].
    pub(crate) fn discard_or_leave(&self, path: &Path) {
        if let Err(error) = self.discard(path) {
            let error = gantry_kit::fault::chain(&error);
            tracing::error!(path = %path.display(), error, "a leftover cannot be removed and stays; see whether it is immutable (lsattr) or something is mounted there");
        }
    }

    /// What could not be thrown away and is still there, and why.
    pub(crate) fn stuck(&self) -> Vec<(PathBuf, String)> {
        let mut stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        stuck.retain(|path, _| fs::symlink_metadata(path).is_ok());
        stuck
            .iter()
            .map(|(path, why)| (path.clone(), why.clone()))
            .collect()
    }

    fn try_discard(&self, path: &Path) -> Result<bool, ImageError> {
        let to = self.trash.join(IngestKey::random().as_str());
        match fs::rename(path, &to) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            // No room for one more name: then it goes at once.
            Err(error) if is_full(&error) => match removal::remove_path(path) {
                Ok(()) => Ok(true),
                Err(error) => Err(ImageError::io("remove", path)(error)),
            },
            Err(error) => Err(ImageError::io("remove", path)(error)),
        }
    }

    /// Keeps others from emptying the trash while the guard lives.
    pub(crate) fn hold_trash(&self) -> MutexGuard<'_, ()> {
        self.emptying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what was discarded. One failure does not keep the rest: the names
    /// of what stays, and why.
    pub(crate) fn empty_trash(&self) -> Vec<(String, Errno)> {
        let held = self.hold_trash();
        let left = self.empty_held_trash(&held);
        drop(held);
        self.refill_reserve();
        left
    }

    /// The same, for who keeps others from it.
    pub(crate) fn empty_held_trash(&self, _held: &MutexGuard<'_, ()>) -> Vec<(String, Errno)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let trash = match rustix::fs::open(&self.trash, flags, Mode::empty()) {
            Ok(trash) => trash,
            Err(error) => {
                tracing::warn!(path = %self.trash.display(), %error, "the trash cannot be opened");
                return Vec::new();
            }
        };
        // Trees too deep for one go leave parts of themselves behind: until nothing moves.
        loop {
            let mut removed = false;
            let mut left = Vec::new();
            for name in names_in(&self.trash).unwrap_or_default() {
                match removal::remove_deep_tree(trash.as_fd(), name.as_bytes()) {
                    Ok(()) => removed = true,
                    Err(error) => {
                        tracing::warn!(name, %error, "the trash cannot be emptied");
                        left.push((name, error));
                    }
                }
            }
            if !removed {
                return left;
            }
        }
    }

    /// Discards what a killed process was filling.
    pub(crate) fn discard_unfinished(&self) -> Result<(), ImageError> {
        for directory in [&self.layers, &self.writable, &self.volumes, &self.images] {
            for name in names_in(directory)? {
                if name.starts_with(NEW) {
                    self.discard_or_leave(&directory.join(name));
                }
            }
        }
        Ok(())
    }

    /// Writes a file whole or not at all. `durable`: it is on the disk when this
    /// returns; a file that was must be so again.
    pub(crate) fn write_file(
        &self,
        path: &Path,
        bytes: &[u8],
        durable: bool,
    ) -> Result<(), ImageError> {
        let parent = path.parent().unwrap_or(&self.root);
        let draft = parent.join(format!("{NEW}{}", IngestKey::random()));
        let write = || {
            if durable {
                durable::replace_with(&draft, path, MODE, bytes)
            } else {
                Draft::write_volatile(draft.clone(), MODE, bytes)?.rename(path)
            }
        };
        let written = self.reserve.spend(write, |error| is_full(&error.source));
        Ok(written?)
    }
}

/// Makes a directory for root alone, or closes it.
pub(crate) fn closed(directory: &Path) -> Result<(), ImageError> {
    directories::close(directory)
        .map_err(|error| ImageError::io("make the directory", directory)(error.into()))
}

/// The hex digits of the image whose record was set aside under this name.
pub(crate) fn damaged_image(name: &str) -> Option<&str> {
    let (record, _) = name.rsplit_once('.')?;
    crate::store::image_of_file(record)
}

/// Asks the file system to put what is in each of the directory's directories
/// into another part of the disk. ext4 otherwise puts a new layer where one was
/// just removed, and passes over each inode that was freed in the last minutes,
/// again for each file: a pull after an `rmi` took twice its time.
fn spread(directory: &Path) {
    let set = || -> rustix::io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty())?;
        let flags = rustix::fs::ioctl_getflags(&directory)?;
        rustix::fs::ioctl_setflags(&directory, flags | IFlags::TOPDIR)
    };
    if let Err(error) = set() {
        // Most file systems know nothing of it, and need not.
        tracing::debug!(path = %directory.display(), %error, "layers are not spread");
    }
}

/// The names in a directory that are text; the others are nobody's of ours.
pub(crate) fn names_in(directory: &Path) -> Result<Vec<String>, ImageError> {
    let failed = |error| ImageError::io("list", directory)(error);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        match entry.file_name().into_string() {
            Ok(name) => names.push(name),
            Err(_) => tracing::warn!(path = %entry.path().display(), "a foreign file in the store"),
        }
    }
    Ok(names)
}

/// Removes a file. What is gone already is fine.
pub(crate) fn remove_file(path: &Path) -> Result<(), ImageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ImageError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Brings the store's file system to the disk.
#[derive(Clone, Debug)]
pub(crate) struct Syncer {
    directory: Arc<File>,
    path: PathBuf,
}

impl Syncer {
    pub(crate) fn new(path: &Path) -> Result<Self, ImageError> {
        let directory = File::open(path).map_err(ImageError::io("open", path))?;
        Ok(Self {
            directory: Arc::new(directory),
            path: path.to_owned(),
        })
    }

    /// Returns when everything written so far is on the disk.
    pub(crate) fn sync(&self) -> Result<(), ImageError> {
        rustix::fs::syncfs(self.directory.as_fd())
            .map_err(|error| ImageError::io("bring to the disk", &self.path)(error.into()))
    }
}
