//! Containers' records on disk: a JSON file for each, and no database.
//!
//! ```text
//! <state>/gateway/containers/<id>.json   containers made to stay: synced
//! <run>/gateway/<id>.json                containers with --rm: written, not synced
//! …/<id>.json.<revision>                 a record being written
//! <state>/gateway/damaged/<name>         a file that could not be read
//! ```
//!
//! # Why files
//! All records are read once, when the service starts, and kept in memory after
//! that: nothing is ever looked up on disk, so that an index over the files
//! would only be one more thing to lose. A file is replaced by rename, so that
//! it is the old record or the new one whenever the process or the machine ends.
//!
//! # Durability
//! A record of a container that stays is synced (file, then directory) before
//! what it says is acknowledged. One with `--rm` ends with the machine anyway:
//! its file is in the run directory, which is a tmpfs on most machines, and
//! costs some microseconds.
//!
//! # Locking
//! Writers of one record may overlap: each writes a file of its own, and the
//! rename, under a lock of that record held for that rename only, is left out
//! where a newer revision is there already, or the record was removed. What is
//! there is remembered by the record itself ([`Written`]), as long as anybody
//! has it to write.
//!
//! # Damage
//! A file that does not parse is moved aside and reported; all others are used.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use gantry_kit::directories;
use gantry_kit::paths::Paths;

use crate::container::{ContainerId, Record};

const SERVICE: &str = "gateway";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {action} {path:?}")]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot write a record as JSON")]
    Json(#[from] serde_json::Error),
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| StoreError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

/// What [`Store::load`] found.
#[derive(Debug, Default)]
pub struct Loaded {
    pub records: Vec<Record>,
    /// Files that could not be read, where they are now.
    pub damaged: Vec<PathBuf>,
}

/// Which revision of a record is on the disk; shared by all copies of it.
#[derive(Clone, Debug, Default)]
pub struct Written(Arc<Mutex<u64>>);

/// A removed record: newer than any.
const REMOVED: u64 = u64::MAX;

/// The records on disk.
#[derive(Debug)]
pub struct Store {
    lasting: PathBuf,
    ephemeral: PathBuf,
    damaged: PathBuf,
}

impl Store {
    /// Opens the store of the engine at `paths`, making its directories.
    ///
    /// # Errors
    /// A directory cannot be made.
    pub fn open(paths: &Paths) -> Result<Self, StoreError> {
        let state = paths.state_of(SERVICE);
        let store = Self {
            lasting: state.join("containers"),
            ephemeral: paths.run.join(SERVICE),
            damaged: state.join("damaged"),
        };
        for directory in [&state, &store.lasting, &store.ephemeral] {
            directories::close(directory)
                .map_err(|error| failed("make", directory)(error.into()))?;
        }
        Ok(store)
    }

    /// Reads all records. Half-written files are removed.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let mut loaded = Loaded::default();
        for directory in [&self.lasting, &self.ephemeral] {
            for entry in fs::read_dir(directory).map_err(failed("read", directory))? {
                let path = entry.map_err(failed("read", directory))?.path();
                if path.extension().is_none_or(|extension| extension != "json") {
                    if let Err(error) = directories::remove_or_set_aside(&path) {
                        tracing::warn!(path = %path.display(), %error, "a half-written record cannot be removed");
                    }
                    continue;
                }
                match read(&path) {
                    Some(record) => loaded.records.push(record),
                    None => loaded
                        .damaged
                        .push(self.set_aside(&path).unwrap_or_else(|error| {
                            let error = gantry_kit::fault::chain(&error);
                            tracing::error!(error, "a damaged record stays where it is");
                            path
                        })),
                }
            }
        }
        Ok(loaded)
    }

    fn set_aside(&self, path: &Path) -> Result<PathBuf, StoreError> {
        directories::make(&self.damaged)
            .map_err(|error| failed("make", &self.damaged)(error.into()))?;
        let aside = self.damaged.join(path.file_name().unwrap_or_default());
        fs::rename(path, &aside).map_err(failed("move aside", path))?;
        Ok(aside)
    }

    fn path(&self, id: &ContainerId, ephemeral: bool) -> PathBuf {
        let directory = if ephemeral {
            &self.ephemeral
        } else {
            &self.lasting
        };
        directory.join(format!("{id}.json"))
    }

    /// Writes a record, unless a newer one is there. Blocks for the disk where
    /// `synced` and the container is one that stays.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, record: &Record, synced: bool) -> Result<(), StoreError> {
        let ephemeral = record.wanted.auto_remove;
        let synced = synced && !ephemeral;
        let path = self.path(&record.id, ephemeral);
        let draft = path.with_extension(format!("json.{}", record.revision));
        let json = serde_json::to_vec(record)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .map_err(failed("make", &draft))?;
        file.write_all(&json).map_err(failed("write", &draft))?;
        if synced {
            file.sync_data().map_err(failed("sync", &draft))?;
        }
        {
            let mut written = record.written.lock();
            if *written > record.revision {
                drop(written);
                fs::remove_file(&draft).map_err(failed("remove", &draft))?;
                return if synced { self.sync(&path) } else { Ok(()) };
            }
            fs::rename(&draft, &path).map_err(failed("rename", &draft))?;
            *written = record.revision;
        }
        if synced {
            sync_directory(&self.lasting)?;
        }
        Ok(())
    }

    /// Syncs the newer record that is there in place of an older one, which it
    /// includes. One that was removed needs no sync.
    fn sync(&self, path: &Path) -> Result<(), StoreError> {
        match File::open(path).and_then(|file| file.sync_data()) {
            Ok(()) => sync_directory(&self.lasting),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("sync", path)(error)),
        }
    }

    /// Removes a record. Blocks for the disk where the container is one that
    /// stays. Removing what is not there succeeds.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, record: &Record) -> Result<(), StoreError> {
        let ephemeral = record.wanted.auto_remove;
        let path = self.path(&record.id, ephemeral);
        {
            let mut written = record.written.lock();
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &path)(error));
                }
                _ => *written = REMOVED,
            }
        }
        if !ephemeral {
            sync_directory(&self.lasting)?;
        }
        Ok(())
    }
}

impl Written {
    fn lock(&self) -> std::sync::MutexGuard<'_, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync", directory))
}

/// The record in a file; None where it is not one, or not the file's own.
fn read(path: &Path) -> Option<Record> {
    let record: Record = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (path.file_stem()?.to_str()? == record.id.as_str()).then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wanted::Wanted;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&Paths::under(directory.path()).unwrap()).unwrap();
        (directory, store)
    }

    fn record(auto_remove: bool) -> Record {
        let wanted = Wanted {
            image: "debian".to_owned(),
            auto_remove,
            ..Wanted::default()
        };
        Record::new(ContainerId::random().unwrap(), "one".to_owned(), wanted)
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for auto_remove in [false, true] {
            let (_directory, store) = store();
            let record = record(auto_remove);
            store.save(&record, true).unwrap();
            let loaded = store.load().unwrap();
            assert_eq!(loaded.records.len(), 1);
            assert_eq!(loaded.records[0].id, record.id);
            assert_eq!(loaded.records[0].wanted, record.wanted);
            assert_eq!(loaded.records[0].created, record.created);
            store.remove(&record).unwrap();
            assert!(store.load().unwrap().records.is_empty());
        }
    }

    #[test]
    fn an_older_revision_never_replaces_a_newer_one() {
        let (_directory, store) = store();
        let mut record = record(false);
        record.revision = 2;
        store.save(&record, true).unwrap();
        let mut older = record.clone();
        older.revision = 1;
        older.name = "stale".to_owned();
        store.save(&older, true).unwrap();
        assert_eq!(store.load().unwrap().records[0].name, "one");
        store.remove(&record).unwrap();
        store.save(&record, true).unwrap();
        assert!(store.load().unwrap().records.is_empty());
    }

    #[test]
    fn a_damaged_record_is_set_aside_and_the_others_are_read() {
        let (_directory, store) = store();
        store.save(&record(false), true).unwrap();
        let bad = store.lasting.join(format!("{}.json", "a".repeat(64)));
        fs::write(&bad, b"{\"id\":").unwrap();
        let loaded = store.load().unwrap();
        assert_eq!(loaded.records.len(), 1);
        assert_eq!(loaded.damaged.len(), 1);
        assert!(loaded.damaged[0].exists() && !bad.exists());
    }

    #[test]
    fn what_cannot_be_removed_or_read_keeps_no_record_from_being_read() {
        let (_directory, store) = store();
        store.save(&record(false), true).unwrap();
        // Neither is a file: they can be neither unlinked nor read.
        fs::create_dir_all(store.lasting.join("left/inside")).unwrap();
        let bad = store.lasting.join(format!("{}.json", "b".repeat(64)));
        fs::create_dir(&bad).unwrap();
        // And there is no room for the damaged one to go to.
        fs::write(&store.damaged, b"a file").unwrap();
        let loaded = store.load().unwrap();
        assert_eq!(loaded.records.len(), 1);
        assert_eq!(loaded.damaged, [bad]);
        assert!(store.lasting.join("left.aside-1/inside").exists());
        assert_eq!(store.load().unwrap().records.len(), 1);
    }

    #[test]
    fn a_half_written_record_leaves_the_old_one() {
        let (_directory, store) = store();
        let record = record(false);
        store.save(&record, true).unwrap();
        let draft = store.lasting.join(format!("{}.json.7", record.id));
        fs::write(&draft, b"{").unwrap();
        assert_eq!(store.load().unwrap().records.len(), 1);
        assert!(!draft.exists());
    }
}
