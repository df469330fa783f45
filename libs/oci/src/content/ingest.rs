//! Content on its way in: one file for each, locked by its writer, hashed as it grows.
//!
//! The file's length is the offset. Nothing else is kept: to resume, the file
//! is hashed again from its start, which costs less than any state that could
//! disagree with it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::fs::{FallocateFlags, FlockOperation};

use super::append::Appender;
use super::{Commit, ContentError, Store, feed, hash_file, read_directory, remove_if_there};
use crate::digest::{Algorithm, Digest, Hasher};

/// The name of an ingest: a safe file name that its writer can find again.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct IngestKey(String);

impl IngestKey {
    /// A name from a caller.
    pub fn parse(text: &str) -> Result<Self, ContentError> {
        let valid = (1..=200).contains(&text.len())
            && !text.starts_with('.')
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(ContentError::InvalidKey {
                text: crate::digest::shorten(text),
            })
        }
    }

    /// The name for content whose digest is known beforehand, so that the next try finds what the last one got.
    #[must_use]
    pub fn for_digest(digest: &Digest) -> Self {
        Self(format!("{}-{}", digest.algorithm(), digest.hex()))
    }

    /// The digest that [`IngestKey::for_digest`] made this name of.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.0.replacen('-', ":", 1).parse().ok()
    }

    /// A name that nobody else has: 128 random bits.
    #[must_use]
    #[expect(
        clippy::expect_used,
        reason = "getrandom(2) does not fail on the kernels that have the rest of what is used here"
    )]
    pub fn random() -> Self {
        let mut bytes = [0_u8; 16];
        getrandom::fill(&mut bytes).expect("the kernel has random numbers");
        Self(hex::encode(bytes))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IngestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An ingest as it lies in the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IngestStatus {
    /// Its name.
    pub key: IngestKey,
    /// How many bytes are there.
    pub offset: u64,
    /// When a byte last came.
    pub modified: SystemTime,
}

/// What a commit must find. Absent parts are not checked.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The digest of the content.
    pub digest: Option<Digest>,
    /// The size of the content in bytes.
    pub size: Option<u64>,
}

impl Expected {
    /// Nothing is known beforehand.
    #[must_use]
    pub fn anything() -> Self {
        Self::default()
    }

    /// The digest is known.
    #[must_use]
    pub fn digest(digest: &Digest) -> Self {
        Self {
            digest: Some(digest.clone()),
            size: None,
        }
    }

    /// Digest and size are known.
    #[must_use]
    pub fn exactly(digest: &Digest, size: u64) -> Self {
        Self {
            digest: Some(digest.clone()),
            size: Some(size),
        }
    }
}

/// What a commit made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Committed {
    /// The content's name.
    pub digest: Digest,
    /// The content's size in bytes.
    pub size: u64,
    /// True when the store had it already.
    pub existed: bool,
}

/// Content that is whole and known by its digest, and has no name in the store
/// yet: [`Store::commit_sealed`] gives it one, [`Store::remove_ingest`] removes
/// it. Nobody has it locked; it is its holder's to know that it is in use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sealed {
    /// The name of its ingest.
    pub key: IngestKey,
    /// The content's name to be.
    pub digest: Digest,
    /// The content's size in bytes.
    pub size: u64,
}

/// Writes one ingest. Dropped without a commit, it leaves what it wrote to be resumed.
/// Of large content up to a megabyte is in memory until [`Writer::flush`], the
/// commit or the drop: what is to survive the end of the process is flushed first.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    key: IngestKey,
    path: PathBuf,
    file: Appender,
    hasher: Hasher,
    offset: u64,
    broken: bool,
    _under_way: UnderWay,
}

/// Marks an ingest as being written while it lives.
#[derive(Debug)]
struct UnderWay {
    store: Store,
    key: IngestKey,
}

impl UnderWay {
    fn begin(store: &Store, key: &IngestKey) -> Self {
        *store.under_way().entry(key.clone()).or_default() += 1;
        Self {
            store: store.clone(),
            key: key.clone(),
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut under_way = self.store.under_way();
        if let Some(count) = under_way.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&self.key);
            }
        }
    }
}

impl Store {
    /// Begins an ingest or resumes one: look at [`Writer::offset`]. Resuming reads what is there.
    pub fn writer(&self, key: &IngestKey) -> Result<Writer, ContentError> {
        self.writer_with(key, Algorithm::Sha256)
    }

    /// The same, hashing with another algorithm from the start.
    pub fn writer_with(
        &self,
        key: &IngestKey,
        algorithm: Algorithm,
    ) -> Result<Writer, ContentError> {
        let path = self.ingest_path(key);
        // Before its file is there, so that nobody takes it for an abandoned one.
        let under_way = UnderWay::begin(self, key);
        let mut file = self.lock_ingest(key, true)?;
        let mut hasher = Hasher::new(algorithm);
        let offset = feed(&mut file, &mut hasher).map_err(ContentError::io("read", &path))?;
        Ok(Writer {
            store: self.clone(),
            key: key.clone(),
            path,
            file: Appender::new(file, offset),
            hasher,
            offset,
            broken: false,
            _under_way: under_way,
        })
    }

    /// Whether a writer of this process has the ingest open. Asking does not
    /// touch its lock, which could make a writer fail.
    #[must_use]
    pub fn is_being_written(&self, key: &IngestKey) -> bool {
        self.under_way().contains_key(key)
    }

    /// All ingests: those under way and those abandoned.
    pub fn list_ingests(&self) -> Result<Vec<IngestStatus>, ContentError> {
        let directory = self.root().join("ingest");
        let mut ingests = Vec::new();
        for entry in read_directory(&directory)? {
            let entry = entry.map_err(ContentError::io("list", &directory))?;
            let key = entry
                .file_name()
                .to_str()
                .and_then(|name| IngestKey::parse(name).ok());
            let Some(key) = key else { continue };
            match self.stat_ingest(&key) {
                Ok(status) => ingests.push(status),
                Err(ContentError::IngestNotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ingests)
    }

    /// Offset and age of an ingest.
    pub fn stat_ingest(&self, key: &IngestKey) -> Result<IngestStatus, ContentError> {
        let path = self.ingest_path(key);
        match std::fs::metadata(&path) {
            Ok(metadata) => Ok(IngestStatus {
                key: key.clone(),
                offset: metadata.len(),
                modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            }),
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                Err(ContentError::IngestNotFound { key: key.clone() })
            }
            Err(source) => Err(ContentError::io("read the size of", &path)(source)),
        }
    }

    /// Opens an ingest for reading, while it grows or after.
    pub fn open_ingest(&self, key: &IngestKey) -> Result<File, ContentError> {
        let path = self.ingest_path(key);
        File::open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ContentError::IngestNotFound { key: key.clone() },
            _ => ContentError::io("open", &path)(source),
        })
    }

    /// Gives sealed content its name, as [`Writer::commit`] would have done.
    pub fn commit_sealed(
        &self,
        sealed: &Sealed,
        durability: Commit,
    ) -> Result<Committed, ContentError> {
        let existed = self.keep_existing(&sealed.digest, sealed.size, durability)?;
        if existed {
            self.remove_ingest(&sealed.key)?;
        } else {
            let path = self.ingest_path(&sealed.key);
            let file = self.open_ingest(&sealed.key)?;
            self.name_blob(&file, &path, &sealed.digest, durability)?;
        }
        Ok(Committed {
            digest: sealed.digest.clone(),
            size: sealed.size,
            existed,
        })
    }

    /// Removes an ingest that nobody is writing.
    pub fn remove_ingest(&self, key: &IngestKey) -> Result<(), ContentError> {
        let locked = self.lock_ingest(key, false)?;
        remove_if_there(&self.ingest_path(key))?;
        drop(locked);
        Ok(())
    }

    /// Opens an ingest's file and locks it.
    fn lock_ingest(&self, key: &IngestKey, create: bool) -> Result<File, ContentError> {
        let path = self.ingest_path(key);
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(create)
                .truncate(false)
                .open(&path)
                .map_err(|source| match source.kind() {
                    io::ErrorKind::NotFound => ContentError::IngestNotFound { key: key.clone() },
                    _ => ContentError::io("open", &path)(source),
                })?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(ContentError::Busy { key: key.clone() });
                }
                Err(errno) => return Err(ContentError::io("lock", &path)(errno.into())),
            }
            // Between open and lock its writer may have committed it or removed it: then the name is free again.
            let ours = file.metadata().map_err(ContentError::io("read", &path))?;
            match std::fs::metadata(&path) {
                Ok(named) if named.ino() == ours.ino() => return Ok(file),
                Ok(_) => {}
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ContentError::io("read", &path)(source)),
            }
        }
    }
}

impl Writer {
    /// The name of the ingest.
    #[must_use]
    pub const fn key(&self) -> &IngestKey {
        &self.key
    }

    /// How many bytes are there: where the next one goes.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes another reader of the file finds: less than
    /// [`Writer::offset`] while some are in memory. After [`Writer::flush`] all.
    #[must_use]
    pub const fn written(&self) -> u64 {
        self.file.written()
    }

    /// Reserves room on the disk for the whole content, so that a full disk is
    /// found out first and the file lies in one piece. Where the file system
    /// can not, nothing happens.
    pub fn reserve(&self, total: u64) -> Result<(), ContentError> {
        if total <= self.offset {
            return Ok(());
        }
        match rustix::fs::fallocate(self.file.file(), FallocateFlags::KEEP_SIZE, 0, total) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            Err(errno) => Err(ContentError::io("reserve room for", &self.path)(
                errno.into(),
            )),
        }
    }

    /// Leaves the disk to another thread from here on, for a stream that comes as
    /// fast as it is taken: it is hashed while it is written. A few megabytes more
    /// are in memory until [`Writer::flush`].
    pub const fn write_behind(&mut self) {
        self.file.write_behind();
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ContentError> {
        if self.broken {
            return Err(ContentError::Broken {
                key: self.key.clone(),
            });
        }
        if let Err(source) = self.file.append(bytes) {
            self.broken = true;
            return Err(ContentError::io("write", &self.path)(source));
        }
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Hands all bytes to the operating system, so that they survive this process.
    pub fn flush(&mut self) -> Result<(), ContentError> {
        if let Err(source) = self.file.flush() {
            self.broken = true;
            return Err(ContentError::io("write", &self.path)(source));
        }
        Ok(())
    }

    /// Throws away what is there and begins again.
    pub fn restart(&mut self) -> Result<(), ContentError> {
        self.file
            .cut_to(0)
            .and_then(|()| self.file.file().set_len(0))
            .and_then(|()| self.file.file_mut().rewind())
            .map_err(ContentError::io("truncate", &self.path))?;
        self.hasher = Hasher::new(self.hasher.algorithm());
        self.offset = 0;
        self.broken = false;
        Ok(())
    }

    /// Checks the content and gives it its name. Content that is wrong is
    /// removed; content that is merely too short stays, to be resumed.
    pub fn commit(
        self,
        expected: &Expected,
        durability: Commit,
    ) -> Result<Committed, ContentError> {
        let (mut writer, found) = self.check(expected)?;
        let size = writer.offset;
        let existed = writer.store.keep_existing(&found, size, durability)?;
        if existed {
            writer.abort()?;
        } else {
            writer.settle()?;
            writer
                .store
                .name_blob(writer.file.file(), &writer.path, &found, durability)?;
        }
        Ok(Committed {
            digest: found,
            size,
            existed,
        })
    }

    /// Checks the content and leaves it without a name, for a caller that does
    /// not know yet whether anybody will want it. As with [`Writer::commit`],
    /// content that is wrong is removed.
    pub fn seal(self, expected: &Expected) -> Result<Sealed, ContentError> {
        let (mut writer, digest) = self.check(expected)?;
        writer.settle()?;
        Ok(Sealed {
            key: writer.key.clone(),
            digest,
            size: writer.offset,
        })
    }

    /// The writer and the content's digest, if the content is what was expected.
    fn check(mut self, expected: &Expected) -> Result<(Self, Digest), ContentError> {
        if self.broken {
            return Err(ContentError::Broken {
                key: self.key.clone(),
            });
        }
        if let Some(size) = expected.size {
            if self.offset < size {
                return Err(ContentError::Truncated {
                    expected: size,
                    found: self.offset,
                });
            }
            if self.offset > size {
                let found = self.offset;
                self.abort()?;
                return Err(ContentError::TooLong {
                    expected: size,
                    found,
                });
            }
        }
        let algorithm = expected
            .digest
            .as_ref()
            .map_or(self.hasher.algorithm(), Digest::algorithm);
        let found = if algorithm == self.hasher.algorithm() {
            self.hasher.clone().finish()
        } else {
            self.flush()?;
            let file = self.file.file_mut();
            file.rewind()
                .and_then(|()| hash_file(file, algorithm))
                .map_err(ContentError::io("read", &self.path))?
        };
        if let Some(digest) = &expected.digest
            && *digest != found
        {
            let digest = digest.clone();
            self.abort()?;
            return Err(ContentError::DigestMismatch {
                expected: digest,
                found,
            });
        }
        Ok((self, found))
    }

    /// Brings the file to its final form.
    fn settle(&mut self) -> Result<(), ContentError> {
        self.flush()?;
        // What reserve() took beyond the end goes back.
        self.file
            .file()
            .set_len(self.offset)
            .map_err(ContentError::io("truncate", &self.path))
    }

    /// Removes the ingest.
    pub fn abort(mut self) -> Result<(), ContentError> {
        // Nothing of it is worth writing any more.
        self.broken = true;
        remove_if_there(&self.path)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.broken
            && let Err(error) = self.file.flush()
        {
            tracing::debug!(key = %self.key, %error, "the end of unfinished content was lost");
        }
    }
}

/// So that `std::io::copy` can write.
impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::write(self, bytes).map_err(|error| match error {
            ContentError::Io { source, .. } => source,
            other => io::Error::other(other),
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Self::flush(self).map_err(|error| match error {
            ContentError::Io { source, .. } => source,
            other => io::Error::other(other),
        })
    }
}
