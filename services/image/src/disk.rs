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
//! <root>/images/<config hex>.json       an image's record, for when the index is lost
//! <root>/trash/                         on its way out
//! <root>/empty/                         below the writable layer of an image without layers
//! <root>/index/                         the index
//! ```
//!
//! **Durability.** Packed content and records are on the disk before an image
//! has its name. Unpacked layers follow behind (see [`crate::layers`]): they can
//! be made again of the packed ones. A layer that no record names is removed at
//! startup.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_oci::content::IngestKey;
use rustix::fs::{IFlags, Mode, OFlags};

use crate::error::ImageError;
use crate::unpack::removal;

/// Where everything is.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) root: PathBuf,
    pub(crate) layers: PathBuf,
    pub(crate) writable: PathBuf,
    pub(crate) images: PathBuf,
    pub(crate) trash: PathBuf,
    /// What is below the writable layer of an image without layers.
    pub(crate) empty: PathBuf,
}

/// The prefix of directories that are being filled.
const NEW: &str = ".new-";

impl Places {
    /// Makes what is missing.
    pub(crate) fn prepare(root: &Path) -> Result<Self, ImageError> {
        let places = Self {
            root: root.to_owned(),
            layers: root.join("layers"),
            writable: root.join("writable"),
            images: root.join("images"),
            trash: root.join("trash"),
            empty: root.join("empty"),
        };
        for directory in [
            &places.layers,
            &places.writable,
            &places.images,
            &places.trash,
            &places.empty,
        ] {
            fs::create_dir_all(directory)
                .map_err(ImageError::io("make the directory", directory))?;
        }
        spread(&places.layers);
        Ok(places)
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
        let to = self.trash.join(IngestKey::random().as_str());
        match fs::rename(path, &to) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(ImageError::io("remove", path)(error)),
        }
    }

    /// Removes what was discarded. One failure does not keep the rest.
    pub(crate) fn empty_trash(&self) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let trash = match rustix::fs::open(&self.trash, flags, Mode::empty()) {
            Ok(trash) => trash,
            Err(error) => {
                tracing::warn!(path = %self.trash.display(), %error, "the trash cannot be opened");
                return;
            }
        };
        // Trees too deep for one go leave parts of themselves behind: until nothing moves.
        loop {
            let mut removed = false;
            for name in names_in(&self.trash).unwrap_or_default() {
                match removal::remove_deep_tree(trash.as_fd(), name.as_bytes()) {
                    Ok(()) => removed = true,
                    Err(error) => {
                        tracing::warn!(name, %error, "the trash cannot be emptied");
                    }
                }
            }
            if !removed {
                return;
            }
        }
    }

    /// Discards what a killed process was filling.
    pub(crate) fn discard_unfinished(&self) -> Result<(), ImageError> {
        for directory in [&self.layers, &self.writable, &self.images] {
            for name in names_in(directory)? {
                if name.starts_with(NEW) {
                    self.discard(&directory.join(name))?;
                }
            }
        }
        Ok(())
    }

    /// Writes a file whole or not at all. `durable`: it is on the disk when this returns.
    pub(crate) fn write_file(
        &self,
        path: &Path,
        bytes: &[u8],
        durable: bool,
    ) -> Result<(), ImageError> {
        let parent = path.parent().unwrap_or(&self.root);
        let new = parent.join(format!("{NEW}{}", IngestKey::random()));
        let written = (|| {
            let mut file = File::create(&new)?;
            file.write_all(bytes)?;
            if durable {
                file.sync_data()?;
            }
            fs::rename(&new, path)?;
            if durable {
                File::open(parent)?.sync_all()?;
            }
            Ok(())
        })();
        written.map_err(|error| {
            // It may not even have come to be.
            fs::remove_file(&new).ok();
            ImageError::io("write", path)(error)
        })
    }
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
