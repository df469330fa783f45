//! The content store: files named by the digest of what is in them.
//!
//! ```text
//! <root>/blobs/sha256/<hex>     finished content, never changed
//! <root>/blobs/sha512/<hex>
//! <root>/ingest/<key>           content on its way in; may be resumed after a crash
//! <root>/pending/<alg>-<hex>    this blob is finished but not yet known to be on the disk
//! ```
//!
//! **Why files and no database.** A blob is written once, read whole, and named
//! by what is in it: the file system is the index, nothing can disagree with it,
//! and there is nothing to rebuild.
//!
//! **Writing.** A [`Writer`] hashes as it writes, so nothing is read twice.
//! [`Writer::commit`] checks digest and size and only then gives the file its
//! name, by a rename. Writers of the same content may run at once: the later
//! one finds the blob there and drops its own copy.
//!
//! [`Writer::seal`] checks too, and leaves the naming to a later
//! [`Store::commit_sealed`]: for an archive whose table of contents comes last.
//!
//! **Durability.** [`Commit::Durable`] returns when file and name are on the
//! disk (fsync, rename, fsync of the directory). [`Commit::Deferred`] leaves
//! that to a later [`Store::sync_all_pending`], so that a pull of many layers
//! pays once, at its end, just before the record that names them is written.
//! In between a marker in `pending/` stands for the doubt: the file system may
//! keep a rename and lose the bytes. The next [`Store::open`] hashes every
//! blob that has a marker, and removes those that did not survive.
//!
//! **Locking.** A writer holds an exclusive `flock` on its ingest file, which
//! keeps out a second writer, in this process or another, and goes away with
//! the process. Readers need no lock. [`Store::delete`] takes none either:
//! whoever deletes must make sure that nobody is about to refer to the blob.
//! The one mutex guards the set of pending blobs, and is held for a rename and
//! never for an fsync.
//!
//! **Blocking.** Every function here blocks on the disk. Async callers use
//! `spawn_blocking`; for a long stream they give a whole writer to one blocking
//! task and feed it through a channel, instead of a task for each chunk.
//! [`Writer::write`] costs SHA-256 plus the write: give it 64 KiB or more. Large
//! content goes past the page cache (`content/append.rs`), so that writing it
//! costs little processor time and leaves little for the commit to wait for.
//!
//! Limits at present: one directory per algorithm without fan-out (ext4 and XFS
//! index directories); no quota.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::digest::{Algorithm, Digest, Hasher};

mod append;
mod ingest;

pub use ingest::{Committed, Expected, IngestKey, IngestStatus, Sealed, Writer};

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// There is no such blob.
    #[error("content {digest} is not in the store")]
    NotFound { digest: Digest },
    /// There is no such ingest.
    #[error("there is no unfinished content {key}")]
    IngestNotFound { key: IngestKey },
    /// Somebody else is writing it.
    #[error("content {key} is being written by somebody else")]
    Busy { key: IngestKey },
    /// A text can not be the name of an ingest.
    #[error(
        "{text:?} is not a valid name for unfinished content (1 to 200 of a-z A-Z 0-9 . _ - and not beginning with a dot)"
    )]
    InvalidKey { text: String },
    /// Fewer bytes came than were promised. What came is kept, and can be resumed.
    #[error("content ended after {found} of {expected} bytes")]
    Truncated { expected: u64, found: u64 },
    /// More bytes came than were promised. What came is gone.
    #[error("content has {found} bytes where {expected} were promised")]
    TooLong { expected: u64, found: u64 },
    /// Other bytes came than were promised. What came is gone.
    #[error("content has the digest {found} where {expected} was promised")]
    DigestMismatch { expected: Digest, found: Digest },
    /// A blob on the disk is not what its name says.
    #[error(
        "content {digest} is damaged on the disk (its digest is now {found}); remove it and fetch it again"
    )]
    Damaged { digest: Digest, found: Digest },
    /// A blob is too large to be read into memory.
    #[error("content {digest} has {size} bytes, more than the {limit} that may be read at once")]
    TooLarge {
        digest: Digest,
        size: u64,
        limit: u64,
    },
    /// An earlier write failed, and the writer no longer knows what is in the file.
    #[error("content {key} can not be continued after a failed write: begin again where it ended")]
    Broken { key: IngestKey },
}

impl ContentError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// Whether the disk is full or a quota used up, so that a caller can say so.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ))
    }
}

/// When a commit counts as done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Commit {
    /// When it would survive a power cut.
    Durable,
    /// When it would survive the end of this process; [`Store::sync_all_pending`] does the rest.
    Deferred,
}

/// A blob as it lies in the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BlobStatus {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// When it was committed, or last touched by [`Store::touch`].
    pub modified: SystemTime,
}

/// A content store in one directory. Cheap to clone; clones are the same store.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    pending: Mutex<Pending>,
    /// Ingests that writers of this process have open, and how many.
    under_way: Mutex<HashMap<IngestKey, usize>>,
}

/// Blobs that have a name but may not be on the disk, each with the number of the commit that named it.
#[derive(Debug, Default)]
struct Pending {
    commits: u64,
    blobs: HashMap<Digest, u64>,
}

impl Store {
    /// Opens the store in a directory, which is made if it is not there, and
    /// settles what an earlier process left in doubt.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, ContentError> {
        let root = root.into();
        let mut directories = vec![root.join("ingest"), root.join("pending")];
        directories.extend(Algorithm::ALL.map(|a| root.join("blobs").join(a.as_str())));
        let mut made = false;
        for directory in &directories {
            made |= !directory.is_dir();
            fs::create_dir_all(directory)
                .map_err(ContentError::io("create the directory", directory))?;
        }
        if made {
            sync_directory(&root.join("blobs"))?;
            sync_directory(&root)?;
        }
        let store = Self {
            shared: Arc::new(Shared {
                root,
                pending: Mutex::default(),
                under_way: Mutex::default(),
            }),
        };
        store.settle()?;
        Ok(store)
    }

    /// The directory of the store.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.shared.root
    }

    /// Where a blob is, or would be.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blob_directory(digest.algorithm()).join(digest.hex())
    }

    /// Whether a blob is there.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// Size and age of a blob.
    pub fn stat(&self, digest: &Digest) -> Result<BlobStatus, ContentError> {
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(BlobStatus {
                digest: digest.clone(),
                size: metadata.len(),
                modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            }),
            Err(source) => Err(missing_or_io(digest, &path, source)),
        }
    }

    /// Opens a blob for reading, with its size. It stays readable when it is deleted meanwhile.
    pub fn open_blob(&self, digest: &Digest) -> Result<(File, u64), ContentError> {
        let path = self.blob_path(digest);
        let file = File::open(&path).map_err(|source| missing_or_io(digest, &path, source))?;
        let size = file
            .metadata()
            .map_err(ContentError::io("read the size of", &path))?
            .len();
        Ok((file, size))
    }

    /// Reads a small blob whole (a manifest, a configuration) and checks its digest.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ContentError> {
        let (mut file, size) = self.open_blob(digest)?;
        if size > limit {
            return Err(ContentError::TooLarge {
                digest: digest.clone(),
                size,
                limit,
            });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
        file.read_to_end(&mut bytes)
            .map_err(ContentError::io("read", &self.blob_path(digest)))?;
        let found = Digest::of(digest.algorithm(), &bytes);
        if found != *digest {
            return Err(ContentError::Damaged {
                digest: digest.clone(),
                found,
            });
        }
        Ok(bytes)
    }

    /// Hashes a blob on the disk and says whether it still is what its name says.
    pub fn verify(&self, digest: &Digest) -> Result<(), ContentError> {
        let (mut file, _) = self.open_blob(digest)?;
        let found = hash_file(&mut file, digest.algorithm())
            .map_err(ContentError::io("read", &self.blob_path(digest)))?;
        if found == *digest {
            Ok(())
        } else {
            Err(ContentError::Damaged {
                digest: digest.clone(),
                found,
            })
        }
    }

    /// Stores some bytes under their SHA-256 digest.
    pub fn put(&self, bytes: &[u8], durability: Commit) -> Result<Digest, ContentError> {
        let digest = Digest::sha256_of(bytes);
        self.put_known(&digest, bytes, durability)?;
        Ok(digest)
    }

    /// Stores some bytes under a digest that the caller has computed of them.
    pub fn put_known(
        &self,
        digest: &Digest,
        bytes: &[u8],
        durability: Commit,
    ) -> Result<(), ContentError> {
        let size = bytes.len() as u64;
        if self.keep_existing(digest, size, durability)? {
            // It is small, and here is another to put in the place of a damaged one.
            match self.verify(digest) {
                Ok(()) => return Ok(()),
                Err(ContentError::NotFound { .. }) => {}
                Err(ContentError::Damaged { .. }) => remove_if_there(&self.blob_path(digest))?,
                Err(error) => return Err(error),
            }
        }
        let mut writer = self.writer_with(&IngestKey::random(), digest.algorithm())?;
        let written = writer.write(bytes);
        if let Err(error) = written {
            // The write's error is the one to report; what is left is listed as an ingest.
            writer.abort().ok();
            return Err(error);
        }
        writer.commit(&Expected::exactly(digest, size), durability)?;
        Ok(())
    }

    /// Sets a blob's time to now, which protects it from a collector that spares what is young.
    pub fn touch(&self, digest: &Digest) -> Result<(), ContentError> {
        let path = self.blob_path(digest);
        let file = File::open(&path).map_err(|source| missing_or_io(digest, &path, source))?;
        file.set_modified(SystemTime::now())
            .map_err(ContentError::io("set the time of", &path))
    }

    /// Removes a blob and returns its size. Those who have it open keep it.
    pub fn delete(&self, digest: &Digest) -> Result<u64, ContentError> {
        let size = self.stat(digest)?.size;
        let path = self.blob_path(digest);
        fs::remove_file(&path).map_err(|source| missing_or_io(digest, &path, source))?;
        let mut pending = self.pending();
        if pending.blobs.remove(digest).is_some() {
            remove_if_there(&self.marker_path(digest))?;
        }
        Ok(size)
    }

    /// All blobs, in no particular order. Files with foreign names are passed over.
    pub fn list(&self) -> Result<Vec<BlobStatus>, ContentError> {
        let mut blobs = Vec::new();
        for algorithm in Algorithm::ALL {
            let directory = self.blob_directory(algorithm);
            for entry in read_directory(&directory)? {
                let entry = entry.map_err(ContentError::io("list", &directory))?;
                let name = entry.file_name();
                let digest = name
                    .to_str()
                    .and_then(|hex| Digest::from_hex(algorithm, hex).ok());
                let Some(digest) = digest else {
                    tracing::warn!(file = ?entry.path(), "a file in the content store is not named by a digest");
                    continue;
                };
                match self.stat(&digest) {
                    Ok(status) => blobs.push(status),
                    Err(ContentError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(blobs)
    }

    /// Brings everything committed as [`Commit::Deferred`] to the disk.
    pub fn sync_all_pending(&self) -> Result<(), ContentError> {
        let todo: Vec<(Digest, u64)> = self
            .pending()
            .blobs
            .iter()
            .map(|(digest, commit)| (digest.clone(), *commit))
            .collect();
        if todo.is_empty() {
            return Ok(());
        }
        for (digest, _) in &todo {
            self.sync_blob(digest)?;
        }
        for algorithm in Algorithm::ALL {
            if todo
                .iter()
                .any(|(digest, _)| digest.algorithm() == algorithm)
            {
                sync_directory(&self.blob_directory(algorithm))?;
            }
        }
        let mut pending = self.pending();
        for (digest, commit) in &todo {
            if pending.blobs.get(digest) == Some(commit) {
                remove_if_there(&self.marker_path(digest))?;
                pending.blobs.remove(digest);
            }
        }
        Ok(())
    }

    /// Looks at the blobs that were in doubt when the last process ended.
    fn settle(&self) -> Result<(), ContentError> {
        let directory = self.root().join("pending");
        for entry in read_directory(&directory)? {
            let entry = entry.map_err(ContentError::io("list", &directory))?;
            let name = entry.file_name();
            let digest = name
                .to_str()
                .and_then(|name| name.replacen('-', ":", 1).parse::<Digest>().ok());
            if let Some(digest) = digest {
                match self.verify(&digest) {
                    Ok(()) => {
                        self.sync_blob(&digest)?;
                        sync_directory(&self.blob_directory(digest.algorithm()))?;
                    }
                    Err(ContentError::NotFound { .. }) => {}
                    Err(ContentError::Damaged { .. }) => {
                        tracing::warn!(%digest, "content did not reach the disk before the last stop: removed");
                        // What cannot be removed is found by a check, and must not stop the others.
                        if let Err(error) = remove_if_there(&self.blob_path(&digest)) {
                            tracing::error!(%digest, %error, "damaged content cannot be removed");
                            continue;
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            if let Err(error) = remove_if_there(&entry.path()) {
                tracing::error!(%error, "a mark of unsettled content cannot be removed");
            }
        }
        Ok(())
    }

    /// When the blob is there already: makes it as durable as asked, and says so.
    fn keep_existing(
        &self,
        digest: &Digest,
        size: u64,
        durability: Commit,
    ) -> Result<bool, ContentError> {
        match self.stat(digest) {
            Ok(status) if status.size == size => {}
            Ok(_) | Err(ContentError::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        if durability == Commit::Durable {
            let in_doubt = self.pending().blobs.contains_key(digest);
            if in_doubt {
                self.sync_blob(digest)?;
            }
            sync_directory(&self.blob_directory(digest.algorithm()))?;
        }
        Ok(true)
    }

    /// Gives a finished file its name.
    fn name_blob(
        &self,
        file: &File,
        from: &Path,
        digest: &Digest,
        durability: Commit,
    ) -> Result<(), ContentError> {
        let to = self.blob_path(digest);
        let rename = || fs::rename(from, &to).map_err(ContentError::io("rename", from));
        match durability {
            Commit::Durable => {
                file.sync_data()
                    .map_err(ContentError::io("bring to the disk", from))?;
                rename()?;
                sync_directory(&self.blob_directory(digest.algorithm()))
            }
            Commit::Deferred => {
                // The marker comes first: journals keep the order, so that no blob is in doubt without one.
                let mut pending = self.pending();
                let marker = self.marker_path(digest);
                File::create(&marker).map_err(ContentError::io("create", &marker))?;
                rename()?;
                pending.commits += 1;
                let commit = pending.commits;
                pending.blobs.insert(digest.clone(), commit);
                Ok(())
            }
        }
    }

    fn sync_blob(&self, digest: &Digest) -> Result<(), ContentError> {
        match self.open_blob(digest) {
            Ok((file, _)) => file.sync_data().map_err(ContentError::io(
                "bring to the disk",
                &self.blob_path(digest),
            )),
            Err(ContentError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn blob_directory(&self, algorithm: Algorithm) -> PathBuf {
        self.root().join("blobs").join(algorithm.as_str())
    }

    fn marker_path(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}", digest.algorithm(), digest.hex());
        self.root().join("pending").join(name)
    }

    fn ingest_path(&self, key: &IngestKey) -> PathBuf {
        self.root().join("ingest").join(key.as_str())
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Pending> {
        // The set is consistent after every statement, so a panic elsewhere does not spoil it.
        self.shared
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn under_way(&self) -> std::sync::MutexGuard<'_, HashMap<IngestKey, usize>> {
        self.shared
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hashes a file from where it stands to its end.
fn hash_file(file: &mut File, algorithm: Algorithm) -> io::Result<Digest> {
    let mut hasher = Hasher::new(algorithm);
    feed(file, &mut hasher)?;
    Ok(hasher.finish())
}

/// Hashes a file from where it stands to its end, into a hasher that goes on after it.
fn feed(file: &mut File, hasher: &mut Hasher) -> io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                total += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn missing_or_io(digest: &Digest, path: &Path, source: io::Error) -> ContentError {
    if source.kind() == io::ErrorKind::NotFound {
        ContentError::NotFound {
            digest: digest.clone(),
        }
    } else {
        ContentError::io("open", path)(source)
    }
}

fn read_directory(directory: &Path) -> Result<fs::ReadDir, ContentError> {
    fs::read_dir(directory).map_err(ContentError::io("list", directory))
}

fn remove_if_there(path: &Path) -> Result<(), ContentError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ContentError::io("remove", path)(source))
        }
        _ => Ok(()),
    }
}

/// Brings the names in a directory to the disk.
fn sync_directory(directory: &Path) -> Result<(), ContentError> {
    OpenOptions::new()
        .read(true)
        .open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(ContentError::io("bring to the disk", directory))
}

#[cfg(test)]
#[path = "content_tests.rs"]
mod tests;
