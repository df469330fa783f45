//! Uploads of blobs: sessions that outlive connections, requests and this process.
//!
//! An upload is an ingest of the content store and a record in `uploads/` that
//! says which repository it belongs to. Both are plain files, so that an upload
//! goes on after a restart. They are not brought to the disk: a power cut may
//! cost an upload under way, which the client then begins again; what was
//! answered with 201 is durable.
//!
//! Between two chunks the open writer, which has the hash of what came so far,
//! is kept in memory. If it is not there (a restart, or too many uploads), the
//! content is hashed again from the file.
//!
//! One request at a time writes an upload. Receiving runs in a task of its own,
//! so that a client that goes away leaves a whole upload and not half a write.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use gantry_oci::content::{Commit, Committed, ContentError, Expected, IngestKey, Writer};
use gantry_oci::{Algorithm, Digest, RepositoryName};
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;

use crate::durable;
use crate::error::RegistryError;
use crate::receive::{discard, receive};
use crate::store::Store;

/// How long a request waits for another that writes the same upload.
const BUSY: Duration = Duration::from_secs(10);
/// How many writers are kept open between chunks.
const OPEN_MAX: usize = 256;

/// Which bytes a chunk has, both ends included: `Content-Range: 0-1023`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChunkRange {
    /// The first byte.
    pub first: u64,
    /// The last byte.
    pub last: u64,
}

/// What a chunk's headers say of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chunk {
    /// `Content-Range`, where given.
    pub range: Option<ChunkRange>,
    /// `Content-Length`, where given.
    pub length: Option<u64>,
}

/// All uploads.
#[derive(Debug)]
pub struct Uploads {
    store: Arc<Store>,
    sessions: Mutex<HashMap<String, Slot>>,
}

/// The writer of an upload while no request has it.
type Slot = Arc<tokio::sync::Mutex<Option<Writer>>>;

#[derive(Debug, Deserialize, Serialize)]
struct Record {
    repository: RepositoryName,
    algorithm: String,
}

/// An upload that a request has to itself.
struct Session {
    id: String,
    key: IngestKey,
    algorithm: Algorithm,
    slot: OwnedMutexGuard<Option<Writer>>,
}

impl Uploads {
    /// The uploads of a store.
    #[must_use]
    pub fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            sessions: Mutex::default(),
        }
    }

    /// Begins an upload and returns its id.
    pub async fn begin(
        &self,
        name: &RepositoryName,
        algorithm: Algorithm,
    ) -> Result<String, RegistryError> {
        let id = uuid();
        let record = Record {
            repository: name.clone(),
            algorithm: algorithm.to_string(),
        };
        let (store, named) = (Arc::clone(&self.store), id.clone());
        let writer = blocking(move || {
            let path = store.uploads_path().join(&named);
            let text = serde_json::to_vec(&record)
                .map_err(|source| RegistryError::Serialise { source })?;
            fs::write(&path, text).map_err(RegistryError::io("write", &path))?;
            Ok(store
                .content()
                .writer_with(&IngestKey::parse(&named)?, algorithm)?)
        })
        .await?;
        let mut sessions = self.sessions();
        make_room(&mut sessions);
        sessions.insert(id.clone(), Arc::new(tokio::sync::Mutex::new(Some(writer))));
        Ok(id)
    }

    /// How many bytes have come.
    pub async fn offset(&self, name: &RepositoryName, id: &str) -> Result<u64, RegistryError> {
        let (key, _) = self.find(name, id).await?;
        let store = Arc::clone(&self.store);
        blocking(move || match store.content().stat_ingest(&key) {
            Ok(status) => Ok(status.offset),
            Err(ContentError::IngestNotFound { .. }) => Ok(0),
            Err(error) => Err(error.into()),
        })
        .await
    }

    /// Appends a chunk and returns how many bytes have come in all.
    pub async fn append(
        self: &Arc<Self>,
        name: &RepositoryName,
        id: &str,
        chunk: Chunk,
        body: Body,
    ) -> Result<u64, RegistryError> {
        let mut session = self.enter(name, id).await?;
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let writer = this.fill(&mut session, chunk, body).await?;
            let offset = writer.offset();
            *session.slot = Some(writer);
            Ok(offset)
        })
        .await?
    }

    /// Appends what the body has, checks the digest, and puts the blob into the repository.
    pub async fn finish(
        self: &Arc<Self>,
        name: &RepositoryName,
        id: &str,
        digest: &Digest,
        chunk: Chunk,
        body: Body,
    ) -> Result<Committed, RegistryError> {
        let mut session = self.enter(name, id).await?;
        let (this, name, digest) = (Arc::clone(self), name.clone(), digest.clone());
        tokio::spawn(async move {
            let writer = this.fill(&mut session, chunk, body).await?;
            let store = Arc::clone(&this.store);
            let committed = blocking(move || {
                let linking = store.linking();
                let committed = writer.commit(&Expected::digest(&digest), Commit::Durable)?;
                linking.link_layer(&name, &committed.digest)?;
                Ok(committed)
            })
            .await;
            // After a wrong digest there is nothing left to go on with.
            if matches!(committed, Ok(_) | Err(RegistryError::DigestMismatch { .. })) {
                this.forget(&session.id).await?;
            }
            committed
        })
        .await?
    }

    /// Throws an upload away.
    pub async fn cancel(
        self: &Arc<Self>,
        name: &RepositoryName,
        id: &str,
    ) -> Result<(), RegistryError> {
        let mut session = self.enter(name, id).await?;
        let this = Arc::clone(self);
        tokio::spawn(async move {
            session.slot.take();
            let (store, key) = (Arc::clone(&this.store), session.key.clone());
            blocking(move || match store.content().remove_ingest(&key) {
                Ok(()) | Err(ContentError::IngestNotFound { .. }) => Ok(()),
                Err(error) => Err(error.into()),
            })
            .await?;
            this.forget(&session.id).await
        })
        .await?
    }

    /// How many uploads are under way or were abandoned. Blocks.
    pub fn count(&self) -> Result<usize, RegistryError> {
        Ok(durable::names(&self.store.uploads_path())?.len())
    }

    /// Throws away the uploads that nothing came for in this time; returns how many.
    pub async fn expire(self: &Arc<Self>, after: Duration) -> Result<usize, RegistryError> {
        let store = Arc::clone(&self.store);
        let old = blocking(move || abandoned(&store, after)).await?;
        let mut gone = 0;
        for (id, repository) in old {
            let removed = match repository {
                Some(name) => self.cancel(&name, &id).await,
                None => {
                    let (store, id) = (Arc::clone(&self.store), id.clone());
                    blocking(move || Ok(store.content().remove_ingest(&IngestKey::parse(&id)?)?))
                        .await
                }
            };
            match removed {
                Ok(()) => gone += 1,
                Err(error) => {
                    let error = gantry_kit::fault::chain(&error);
                    tracing::warn!(id, error, "an abandoned upload cannot be removed yet");
                }
            }
        }
        Ok(gone)
    }

    /// Writes a body to the upload. On an error the session keeps what came.
    async fn fill(
        &self,
        session: &mut Session,
        chunk: Chunk,
        body: Body,
    ) -> Result<Writer, RegistryError> {
        let writer = match session.slot.take() {
            Some(writer) => writer,
            None => {
                let (store, key) = (Arc::clone(&self.store), session.key.clone());
                let algorithm = session.algorithm;
                blocking(move || Ok(store.content().writer_with(&key, algorithm)?)).await?
            }
        };
        let before = writer.offset();
        if let Some(range) = chunk.range
            && range.first != before
        {
            *session.slot = Some(writer);
            discard(body).await;
            return Err(RegistryError::UploadRange {
                id: session.id.clone(),
                offset: before,
                start: range.first,
            });
        }
        let announced = chunk
            .range
            .map(|range| (range.last - range.first).saturating_add(1))
            .or(chunk.length);
        if let (Some(expected), Some(found)) = (announced, chunk.length)
            && expected != found
        {
            *session.slot = Some(writer);
            discard(body).await;
            return Err(RegistryError::SizeMismatch { expected, found });
        }
        let (writer, received) = receive(writer, body).await;
        let Some(writer) = writer else {
            return Err(received.err().unwrap_or(RegistryError::Stopping));
        };
        let found = writer.offset() - before;
        let received = received.and_then(|()| match announced {
            Some(expected) if expected != found => {
                Err(RegistryError::SizeMismatch { expected, found })
            }
            _ => Ok(()),
        });
        match received {
            Ok(()) => Ok(writer),
            Err(error) => {
                *session.slot = Some(writer);
                Err(error)
            }
        }
    }

    /// Finds an upload by its record.
    async fn find(
        &self,
        name: &RepositoryName,
        id: &str,
    ) -> Result<(IngestKey, Algorithm), RegistryError> {
        let unknown = || RegistryError::UploadUnknown {
            name: name.clone(),
            id: id.to_owned(),
        };
        // An id is a file name: only what could be one of ours is looked for.
        let key = IngestKey::parse(id).map_err(|_| unknown())?;
        let path = self.store.uploads_path().join(key.as_str());
        let read = blocking(move || match fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice::<Record>(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RegistryError::io("read", &path)(error)),
        });
        let record = read.await?.ok_or_else(unknown)?;
        if record.repository != *name {
            return Err(unknown());
        }
        Ok((key, record.algorithm.parse().unwrap_or_default()))
    }

    /// Finds an upload and takes it for this request.
    async fn enter(&self, name: &RepositoryName, id: &str) -> Result<Session, RegistryError> {
        self.find(name, id).await?;
        let slot = {
            let mut sessions = self.sessions();
            make_room(&mut sessions);
            Arc::clone(sessions.entry(id.to_owned()).or_default())
        };
        let slot = tokio::time::timeout(BUSY, slot.lock_owned())
            .await
            .map_err(|_| RegistryError::UploadBusy { id: id.to_owned() })?;
        // Who had it before may have finished it.
        let (key, algorithm) = self.find(name, id).await?;
        Ok(Session {
            id: id.to_owned(),
            key,
            algorithm,
            slot,
        })
    }

    async fn forget(&self, id: &str) -> Result<(), RegistryError> {
        let path = self.store.uploads_path().join(id);
        let gone = blocking(move || match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RegistryError::io("remove", &path)(error))
            }
            _ => Ok(()),
        })
        .await;
        self.sessions().remove(id);
        gone
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes writers that no request has, when there are too many.
fn make_room(sessions: &mut HashMap<String, Slot>) {
    if sessions.len() >= OPEN_MAX {
        sessions.retain(|_, slot| Arc::strong_count(slot) > 1);
    }
}

/// Uploads and ingests that nothing came for, with the repository of those that have a record.
fn abandoned(
    store: &Store,
    after: Duration,
) -> Result<Vec<(String, Option<RepositoryName>)>, RegistryError> {
    let is_old = |modified: SystemTime| modified.elapsed().is_ok_and(|age| age >= after);
    let mut old = Vec::new();
    for id in durable::names(&store.uploads_path())? {
        let path = store.uploads_path().join(&id);
        let begun = fs::metadata(&path).and_then(|metadata| metadata.modified());
        let last = IngestKey::parse(&id)
            .and_then(|key| store.content().stat_ingest(&key))
            .map(|status| status.modified);
        let Ok(modified) = last.or(begun) else {
            continue;
        };
        if !is_old(modified) {
            continue;
        }
        match fs::read(&path).map(|text| serde_json::from_slice::<Record>(&text)) {
            Ok(Ok(record)) => old.push((id, Some(record.repository))),
            // A record that a power cut emptied belongs to no upload any more.
            _ => {
                if let Err(error) = durable::clear(&path) {
                    let error = gantry_kit::fault::chain(&error);
                    tracing::warn!(
                        path = %path.display(),
                        error,
                        "a leftover cannot be removed and is left alone; remove it by hand"
                    );
                }
            }
        }
    }
    for ingest in store.content().list_ingests()? {
        let id = ingest.key.as_str().to_owned();
        if is_old(ingest.modified) && !store.uploads_path().join(&id).exists() {
            old.push((id, None));
        }
    }
    Ok(old)
}

/// A random UUID (RFC 9562, version 4): the specification wants one in an upload's location.
fn uuid() -> String {
    let random = IngestKey::random();
    let hex = random.as_str();
    format!(
        "{}-{}-4{}-a{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[13..16],
        &hex[17..20],
        &hex[20..32]
    )
}

/// Runs what blocks on the disk where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work)).await?
}
