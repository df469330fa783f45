//! The index a service keeps its records in: named trees of keys and values.
//!
//! [`Index`] is what services use; [`Sled`] keeps it on disk and [`Memory`] in
//! tests. All trees are small (records, not content), and calls take
//! microseconds except where a [`Durability`] says otherwise: call those from
//! `spawn_blocking` or accept the wait.
//!
//! # Durability
//! sled buffers writes in the process, and its `flush` hands them to the kernel
//! without an fsync. So a [`Batch`] applied with [`Durability::Process`] is
//! flushed (it survives `kill -9` of the service), and one with
//! [`Durability::Power`] is flushed and its file fsynced (it survives a power
//! cut). [`Durability::Later`] leaves both to sled's own timer.
//!
//! # Damage
//! An index that cannot be opened is moved aside to `<path>.damaged-<n>` and a
//! new one begins: [`Sled::open`] says so, and the service rebuilds what it can
//! from its files. Damage never keeps a service from starting.
//!
//! # Locking
//! None held across calls. One process at a time may open a path; sled's own
//! file lock holds that.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::directories;

/// sled reserves its cache in full as it is used; an index is small.
const CACHE_BYTES: u64 = 4 << 20;

/// Largest number of damaged indexes that are kept for a look.
const QUARANTINE_MAX: u32 = 16;

/// What a batch must survive once it was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Nothing in particular: it is on disk half a second later.
    Later,
    /// The end of this process, however it comes.
    Process,
    /// A power cut.
    Power,
}

/// An index that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the index {path:?}")]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot read or write the index")]
    Access { source: io::Error },
}

/// A key and its value.
pub type Record = (Vec<u8>, Vec<u8>);

/// Changes that happen together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
struct Change {
    tree: &'static str,
    key: Vec<u8>,
    /// None: the key is removed.
    value: Option<Vec<u8>>,
}

impl Batch {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key` of `tree`.
    #[must_use]
    pub fn put(
        mut self,
        tree: &'static str,
        key: impl Into<Vec<u8>>,
        value: impl Into<Vec<u8>>,
    ) -> Self {
        self.changes.push(Change {
            tree,
            key: key.into(),
            value: Some(value.into()),
        });
        self
    }

    /// Removes `key` of `tree`.
    #[must_use]
    pub fn delete(mut self, tree: &'static str, key: impl Into<Vec<u8>>) -> Self {
        self.changes.push(Change {
            tree,
            key: key.into(),
            value: None,
        });
        self
    }
}

/// Named trees of keys and values, ordered by key.
pub trait Index: Send + Sync + std::fmt::Debug {
    /// The value of `key`, if any.
    ///
    /// # Errors
    /// The index cannot be read.
    fn get(&self, tree: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// All keys and values of `tree`, in order.
    ///
    /// # Errors
    /// The index cannot be read.
    fn scan(&self, tree: &'static str) -> Result<Vec<Record>, StoreError>;

    /// Applies a batch: each tree's changes together.
    ///
    /// # Errors
    /// The index cannot be written.
    fn apply(&self, batch: Batch, durability: Durability) -> Result<(), StoreError>;
}

/// An index on disk.
#[derive(Debug)]
pub struct Sled {
    database: sled::Db,
    file: File,
}

/// What [`Sled::open`] found.
#[derive(Debug)]
pub struct Opened {
    pub index: Sled,
    /// Where the damaged index is now, if there was one.
    pub quarantined: Option<PathBuf>,
}

impl Sled {
    /// Opens the index at `path`, or begins one.
    ///
    /// # Errors
    /// Another process has it open, or the directory cannot be used.
    pub fn open(path: &Path) -> Result<Opened, StoreError> {
        let failed = |source| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        if let Some(parent) = path.parent() {
            directories::make(parent).map_err(|error| failed(error.into()))?;
        }
        match Self::open_once(path) {
            Ok(index) => Ok(Opened {
                index,
                quarantined: None,
            }),
            // A lock that is held, or a disk that fails, is not damage.
            Err(sled::Error::Io(source)) if !is_damage(&source) => Err(failed(source)),
            Err(_) => {
                let aside = quarantine(path).map_err(failed)?;
                let index = Self::open_once(path).map_err(|error| failed(into_io(error)))?;
                Ok(Opened {
                    index,
                    quarantined: Some(aside),
                })
            }
        }
    }

    fn open_once(path: &Path) -> Result<Self, sled::Error> {
        let database = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .open()?;
        let file = File::open(path.join("db"))?;
        let index = Self { database, file };
        // Damage in a page shows only when it is read.
        for name in index.database.tree_names() {
            for record in index.database.open_tree(name)?.iter() {
                record?;
            }
        }
        Ok(index)
    }

    fn tree(&self, name: &str) -> Result<sled::Tree, StoreError> {
        self.database.open_tree(name).map_err(access)
    }
}

impl Index for Sled {
    fn get(&self, tree: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.tree(tree)?.get(key).map_err(access)?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, tree: &'static str) -> Result<Vec<Record>, StoreError> {
        self.tree(tree)?
            .iter()
            .map(|record| record.map(|(key, value)| (key.to_vec(), value.to_vec())))
            .collect::<Result<_, _>>()
            .map_err(access)
    }

    fn apply(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        let mut trees: BTreeMap<&'static str, sled::Batch> = BTreeMap::new();
        for Change { tree, key, value } in batch.changes {
            let changes = trees.entry(tree).or_default();
            match value {
                Some(value) => changes.insert(key, value),
                None => changes.remove(key),
            }
        }
        for (tree, changes) in trees {
            self.tree(tree)?.apply_batch(changes).map_err(access)?;
        }
        if durability != Durability::Later {
            self.database.flush().map_err(access)?;
        }
        if durability == Durability::Power {
            self.file
                .sync_data()
                .map_err(|source| StoreError::Access { source })?;
        }
        Ok(())
    }
}

/// Whether opening failed for what is in the files, not for the disk or a lock.
fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidInput
            // Something that is no directory lies in its place.
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory
    )
}

/// Moves a damaged index out of the way.
fn quarantine(path: &Path) -> io::Result<PathBuf> {
    for number in 1..=QUARANTINE_MAX {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{number}"));
        let aside = PathBuf::from(name);
        if number == QUARANTINE_MAX && aside.exists() {
            fs::remove_dir_all(&aside).or_else(|_| directories::remove_or_set_aside(&aside))?;
        }
        if !aside.exists() {
            fs::rename(path, &aside)?;
            return Ok(aside);
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn into_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(source) => source,
        other => io::Error::other(other),
    }
}

fn access(error: sled::Error) -> StoreError {
    StoreError::Access {
        source: into_io(error),
    }
}

type Tree = BTreeMap<Vec<u8>, Vec<u8>>;

/// An index in memory, for tests.
#[derive(Debug, Default)]
pub struct Memory {
    trees: Mutex<BTreeMap<&'static str, Tree>>,
}

impl Index for Memory {
    fn get(&self, tree: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(trees.get(tree).and_then(|tree| tree.get(key)).cloned())
    }

    fn scan(&self, tree: &'static str) -> Result<Vec<Record>, StoreError> {
        let trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(trees
            .get(tree)
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    fn apply(&self, batch: Batch, _durability: Durability) -> Result<(), StoreError> {
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        for Change { tree, key, value } in batch.changes {
            let tree = trees.entry(tree).or_default();
            match value {
                Some(value) => tree.insert(key, value),
                None => tree.remove(&key),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every index does.
    fn conforms(index: &dyn Index) {
        let batch = Batch::new()
            .put("a", "2", "two")
            .put("a", "1", "one")
            .put("b", "1", "other");
        index.apply(batch, Durability::Power).unwrap();
        assert_eq!(index.get("a", b"1").unwrap().unwrap(), b"one");
        assert_eq!(index.get("a", b"3").unwrap(), None);
        let keys: Vec<_> = index
            .scan("a")
            .unwrap()
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        assert_eq!(keys, [b"1", b"2"]);
        let batch = Batch::new().delete("a", "1").put("a", "2", "new");
        index.apply(batch, Durability::Process).unwrap();
        assert_eq!(index.scan("a").unwrap(), [(b"2".to_vec(), b"new".to_vec())]);
        assert_eq!(index.get("b", b"1").unwrap().unwrap(), b"other");
    }

    #[test]
    fn memory_conforms() {
        conforms(&Memory::default());
    }

    #[test]
    fn sled_conforms_and_remembers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        conforms(&Sled::open(&path).unwrap().index);
        let opened = Sled::open(&path).unwrap();
        assert_eq!(opened.quarantined, None);
        assert_eq!(opened.index.get("a", b"2").unwrap().unwrap(), b"new");
    }

    #[test]
    fn a_damaged_index_is_set_aside_and_a_new_one_begins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        conforms(&Sled::open(&path).unwrap().index);
        fs::write(path.join("conf"), b"not what sled wrote").unwrap();
        let opened = Sled::open(&path).unwrap();
        assert!(opened.quarantined.unwrap().join("db").exists());
        assert_eq!(opened.index.scan("a").unwrap(), []);
    }

    #[test]
    fn an_index_in_use_is_an_error_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        let first = Sled::open(&path).unwrap();
        assert!(Sled::open(&path).is_err());
        conforms(&first.index);
    }
}
