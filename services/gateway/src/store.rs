//! Containers' records on disk: JSON files, and no database.
//!
//! ```text
//! <state>/gateway/containers/<id>.json   the durable record of a container that stays
//! <run>/gateway/<id>.json                a volatile record (see below)
//! <state>/gateway/damaged/<name>         a file that could not be read
//! <state>/gateway/boot                   the machine's boot that the service last ran in
//! <state>/gateway/reserve                room for the records of a full disk
//! …/<id>.json.draft-…                    a record being written
//! ```
//!
//! # Why files
//! All records are read once, when the service starts, and kept in memory after
//! that: nothing is ever looked up on disk, so that an index over the files
//! would only be one more thing to lose.
//!
//! # Durability
//! A record of a container that stays is durable ([`gantry_kit::durable`]) before
//! what it says is acknowledged. What need not survive the machine is written to
//! the volatile record instead, which costs some microseconds: everything of a
//! container with `--rm`, which ends with the machine, and of the others the
//! intents and states that are void after a power cut (being created, being
//! started, frozen). A volatile record never replaces a durable one. It is
//! removed when a durable record of its revision or a later one is written.
//!
//! When the service starts, the later revision of the two counts. Volatile
//! records from before a power cut do not: `boot` tells, since the run directory
//! of an engine with a root of its own is on the disk.
//!
//! # Locking
//! Writers of one record may overlap: each writes a draft of its own, and the
//! rename, under a lock of that record held for that rename only, is left out
//! where a newer revision was written already, or the record was removed. What
//! was written is remembered by the record itself ([`Written`]), as long as
//! anybody has it to write.
//!
//! # Damage
//! See [`load`].

pub mod load;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use gantry_kit::directories;
use gantry_kit::durable::{self, Draft, FileError, Reserve};
use gantry_kit::paths::Paths;

use crate::container::{ContainerId, Record};

const SERVICE: &str = "gateway";

/// Mode of a record: it has the container's environment in it.
const MODE: u32 = 0o600;

/// Bytes of the reserve: some dozen records.
const RESERVE_BYTES: u64 = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot write a record as JSON")]
    Json(#[from] serde_json::Error),
}

impl StoreError {
    /// Whether the disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::File(error) if durable::is_full(&error.source))
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| {
        StoreError::File(FileError {
            action,
            path: path.to_owned(),
            source,
        })
    }
}

/// Which revisions of a record are on the disk; shared by all copies of it.
#[derive(Clone, Debug, Default)]
pub struct Written(Arc<Mutex<Revisions>>);

#[derive(Debug, Default)]
struct Revisions {
    durable: Option<u64>,
    volatile: Option<u64>,
    removed: bool,
}

impl Written {
    fn lock(&self) -> std::sync::MutexGuard<'_, Revisions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The records on disk.
#[derive(Debug)]
pub struct Store {
    durable: PathBuf,
    volatile: PathBuf,
    damaged: PathBuf,
    boot: PathBuf,
    reserve: Reserve,
    /// The directory of the durable records did not exist when it was opened.
    pub(crate) is_new: bool,
    /// Files that could not be read now and are where they were.
    unreadable: Mutex<Vec<PathBuf>>,
}

impl Store {
    /// Opens the store of the engine at `paths`, making its directories.
    ///
    /// # Errors
    /// A directory cannot be made.
    pub fn open(paths: &Paths) -> Result<Self, StoreError> {
        let state = paths.state_of(SERVICE);
        let durable = state.join("containers");
        let store = Self {
            is_new: !durable.is_dir(),
            durable,
            volatile: paths.run.join(SERVICE),
            damaged: state.join("damaged"),
            boot: state.join("boot"),
            reserve: Reserve::at(state.join("reserve"), RESERVE_BYTES),
            unreadable: Mutex::default(),
        };
        for directory in [&state, &store.durable, &store.volatile] {
            directories::close(directory)
                .map_err(|error| failed("make", directory)(error.into()))?;
        }
        store.reserve.refill();
        Ok(store)
    }

    /// Writes a record, unless a newer one was written. With `durable`, of a
    /// container that stays, it blocks for the disk.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, record: &Record, durable: bool) -> Result<(), StoreError> {
        if record.damaged.is_some() {
            // It is made up: the file that was set aside is all that is known.
            return Ok(());
        }
        let json = serde_json::to_vec(record)?;
        self.reserve.spend(
            || {
                if durable && !record.wanted.auto_remove {
                    self.save_durable(record, &json)
                } else {
                    self.save_volatile(record, &json)
                }
            },
            StoreError::is_full,
        )
    }

    fn save_durable(&self, record: &Record, json: &[u8]) -> Result<(), StoreError> {
        let path = file_of(&self.durable, &record.id);
        let draft = Draft::write(durable::draft_of(&path), MODE, json)?;
        {
            let mut written = record.written.lock();
            if written.removed {
                return Ok(());
            }
            if written.durable.is_none_or(|there| there <= record.revision) {
                draft.rename(&path)?;
                written.durable = Some(record.revision);
            }
            let superseded = |there| Some(there) <= written.durable;
            if written.volatile.is_some_and(superseded) {
                written.volatile = None;
                // Where it stays, its revision says that it is old.
                let _left = fs::remove_file(file_of(&self.volatile, &record.id));
            }
        }
        // Also where a newer one is there, which may not be synced yet.
        durable::sync_directory(&self.durable)?;
        Ok(())
    }

    fn save_volatile(&self, record: &Record, json: &[u8]) -> Result<(), StoreError> {
        let path = file_of(&self.volatile, &record.id);
        let draft = Draft::write_volatile(durable::draft_of(&path), MODE, json)?;
        let mut written = record.written.lock();
        let newest = written.durable.max(written.volatile);
        if !written.removed && newest.is_none_or(|there| there <= record.revision) {
            draft.rename(&path)?;
            written.volatile = Some(record.revision);
        }
        Ok(())
    }

    /// Removes a record. Blocks for the disk where the container is one that
    /// stays. Removing what is not there succeeds.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, record: &Record) -> Result<(), StoreError> {
        if record.damaged.is_some() {
            self.remove_damaged(&record.id)?;
        }
        let remove = |path: PathBuf| match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(()),
        };
        {
            let mut written = record.written.lock();
            if !record.wanted.auto_remove {
                remove(file_of(&self.durable, &record.id))?;
            }
            remove(file_of(&self.volatile, &record.id))?;
            written.removed = true;
        }
        if !record.wanted.auto_remove {
            durable::sync_directory(&self.durable)?;
            self.reserve.refill();
        }
        Ok(())
    }
}

fn file_of(directory: &Path, id: &ContainerId) -> PathBuf {
    directory.join(format!("{id}.json"))
}

#[cfg(test)]
mod tests;
