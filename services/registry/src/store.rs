//! The registry's state: content, and links from repositories to it.
//!
//! ```text
//! <state>/registry/
//!   content/                                  the content store (gantry_oci::content)
//!   repositories/<name>/_layers/<digest>      empty: the repository has this blob
//!   repositories/<name>/_manifests/<digest>   the media type: the repository has this manifest
//!   repositories/<name>/_tags/<tag>           the digest the tag stands for
//!   repositories/<name>/_kept/<tag>           empty: the tag was pushed over the Unix socket
//!   repositories/<name>/_referrers/<subject>/<digest>
//!                                             a descriptor (JSON) of a manifest about the subject
//!   uploads/<id>                              repository and algorithm (JSON) of an upload
//!   aside/                                    files on their way to their names
//!   aside-1/ …                                the same, where the one before cannot be used
//! ```
//! A `<digest>` in a path is `sha256-<hex>`. No component of a repository's name
//! begins with `_`, so nested names and the directories above can not collide.
//!
//! **Why files and no database.** Links are one small file each, made durable
//! one by one before the client is answered; there is no index that could
//! disagree with them, and a person can read and mend them.
//!
//! **Order.** What is named is durable before what names it: blob, referrers,
//! manifest link, tag. Removal goes the other way. A crash in between leaves
//! content without a link, which the garbage collection removes.
//!
//! **Locking.** `gate` is held for reading while a request looks at what is there
//! and makes links to it, and for writing while the collection, or the removal of
//! a repository, takes things away. Requests that only read content take no lock.
//! `tags` is held while tags are written, so that what the network may not replace
//! is judged by what is there.
//! While a collection runs, `recent` gathers all that was linked since its start.
//!
//! **Claims.** A blob that was uploaded, mounted or asked for by HEAD may be
//! about to be named by a manifest. Its link's time is then now, and the
//! collection spares it for a grace period. Once a manifest names it, the time is
//! set to zero: from then on only manifests count.
//!
//! All functions block on the disk.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use gantry_kit::directories;
use gantry_oci::content::Store as Content;
use gantry_oci::{Algorithm, Digest, RepositoryName, Tag};

use crate::durable;
use crate::error::RegistryError;

/// The registry's files.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    aside: PathBuf,
    tags: Mutex<()>,
    content: Content,
    gate: RwLock<()>,
    recent: Mutex<Option<HashSet<Digest>>>,
}

/// Leave to make links: while it is held, nothing is collected.
#[derive(Debug)]
pub struct Linking<'a> {
    store: &'a Store,
    _gate: RwLockReadGuard<'a, ()>,
}

impl Store {
    /// Opens the registry's directory, which is made if it is not there.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, RegistryError> {
        let root = root.into();
        directories::close(&root)
            .map_err(|error| RegistryError::io("create the directory", &root)(error.into()))?;
        for directory in ["repositories", "uploads"] {
            durable::directory(&root.join(directory))?;
        }
        Ok(Self {
            content: Content::open(root.join("content"))?,
            aside: prepare_aside(&root)?,
            root,
            tags: Mutex::default(),
            gate: RwLock::default(),
            recent: Mutex::default(),
        })
    }

    /// The content store.
    #[must_use]
    pub const fn content(&self) -> &Content {
        &self.content
    }

    /// Leave to make links.
    pub fn linking(&self) -> Linking<'_> {
        Linking {
            store: self,
            // The lock guards nothing in memory, so a panic under it spoils nothing.
            _gate: self.gate.read().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Leave to take things away.
    pub(crate) fn taking_away(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave to write tags.
    pub(crate) fn tagging(&self) -> MutexGuard<'_, ()> {
        self.tags.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn recent(&self) -> MutexGuard<'_, Option<HashSet<Digest>>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn repositories_path(&self) -> PathBuf {
        self.root.join("repositories")
    }

    pub(crate) fn repository_path(&self, name: &RepositoryName) -> PathBuf {
        self.repositories_path().join(name.as_str())
    }

    pub(crate) fn layers_path(&self, name: &RepositoryName) -> PathBuf {
        self.repository_path(name).join("_layers")
    }

    pub(crate) fn manifests_path(&self, name: &RepositoryName) -> PathBuf {
        self.repository_path(name).join("_manifests")
    }

    pub(crate) fn tags_path(&self, name: &RepositoryName) -> PathBuf {
        self.repository_path(name).join("_tags")
    }

    /// The marks of tags that clients on the network may not replace.
    pub(crate) fn kept_path(&self, name: &RepositoryName) -> PathBuf {
        self.repository_path(name).join("_kept")
    }

    pub(crate) fn tag_path(&self, name: &RepositoryName, tag: &Tag) -> PathBuf {
        self.tags_path(name).join(tag.as_str())
    }

    pub(crate) fn referrers_path(&self, name: &RepositoryName, subject: &Digest) -> PathBuf {
        self.repository_path(name)
            .join("_referrers")
            .join(link_name(subject))
    }

    pub(crate) fn uploads_path(&self) -> PathBuf {
        self.root.join("uploads")
    }

    pub(crate) fn aside_path(&self) -> PathBuf {
        self.aside.clone()
    }

    /// Whether anything was ever put into the repository.
    #[must_use]
    pub fn has_repository(&self, name: &RepositoryName) -> bool {
        self.manifests_path(name).is_dir() || self.layers_path(name).is_dir()
    }

    /// Whether the repository has the blob.
    #[must_use]
    pub fn has_layer(&self, name: &RepositoryName, digest: &Digest) -> bool {
        self.layers_path(name).join(link_name(digest)).exists()
    }

    /// The size of a blob that the repository has.
    pub fn layer_size(&self, name: &RepositoryName, digest: &Digest) -> Result<u64, RegistryError> {
        let unknown = || RegistryError::BlobUnknown {
            name: name.clone(),
            digest: digest.clone(),
        };
        if !self.has_layer(name, digest) {
            return Err(unknown());
        }
        self.content
            .stat(digest)
            .map(|status| status.size)
            .map_err(|_| unknown())
    }

    /// A blob that the repository has, open for reading, with its size.
    pub fn open_layer(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<(File, u64), RegistryError> {
        let unknown = || RegistryError::BlobUnknown {
            name: name.clone(),
            digest: digest.clone(),
        };
        if !self.has_layer(name, digest) {
            return Err(unknown());
        }
        match self.content.open_blob(digest) {
            Err(gantry_oci::content::ContentError::NotFound { .. }) => Err(unknown()),
            other => Ok(other?),
        }
    }

    /// Somebody may be about to name the blob in a manifest: the collection spares it for a while.
    pub fn claim_layer(&self, name: &RepositoryName, digest: &Digest) {
        self.set_layer_time(name, digest, SystemTime::now());
    }

    /// Takes the blob out of the repository.
    pub fn delete_layer(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        if durable::remove(&self.layers_path(name).join(link_name(digest)))? {
            Ok(())
        } else {
            Err(RegistryError::BlobUnknown {
                name: name.clone(),
                digest: digest.clone(),
            })
        }
    }

    /// Whether a claim on the blob has not run out.
    pub(crate) fn is_claimed(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        grace: Duration,
    ) -> bool {
        let link = self.layers_path(name).join(link_name(digest));
        let age = fs::metadata(link)
            .and_then(|metadata| metadata.modified())
            .map(|modified| modified.elapsed().unwrap_or_default());
        age.is_ok_and(|age| age < grace)
    }

    fn set_layer_time(&self, name: &RepositoryName, digest: &Digest, time: SystemTime) {
        let link = self.layers_path(name).join(link_name(digest));
        // Without the claim the worst is that the client has to send the blob again.
        if let Err(error) = File::open(&link).and_then(|file| file.set_modified(time)) {
            tracing::debug!(%name, %digest, %error, "cannot set the time of a link");
        }
    }
}

impl Linking<'_> {
    /// Puts a blob, which is in the content store, into the repository.
    pub fn link_layer(&self, name: &RepositoryName, digest: &Digest) -> Result<(), RegistryError> {
        let directory = self.store.layers_path(name);
        durable::directory(&directory)?;
        self.linked([digest]);
        durable::mark(&directory.join(link_name(digest)))?;
        self.store.claim_layer(name, digest);
        Ok(())
    }

    /// A manifest names these blobs now.
    pub fn settle_claims<'a>(
        &self,
        name: &RepositoryName,
        digests: impl IntoIterator<Item = &'a Digest>,
    ) {
        for digest in digests {
            if self.store.has_layer(name, digest) {
                self.store
                    .set_layer_time(name, digest, SystemTime::UNIX_EPOCH);
            }
        }
    }

    /// Tells a collection under way that these are in use.
    pub fn linked<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) {
        if let Some(recent) = self.store.recent().as_mut() {
            recent.extend(digests.into_iter().cloned());
        }
    }
}

/// An empty directory for files on their way. What was on its way when the last
/// process ended has no name, and is removed. Where that cannot be done (an
/// immutable file, a mount) it stays, is reported, and another directory is used.
fn prepare_aside(root: &Path) -> Result<PathBuf, RegistryError> {
    const ATTEMPTS: usize = 16;
    let names = (0..ATTEMPTS).map(|n| match n {
        0 => "aside".to_owned(),
        n => format!("aside-{n}"),
    });
    let mut last = None;
    for path in names.map(|name| root.join(name)) {
        let prepared = durable::clear(&path).and_then(|()| Ok(durable::directory(&path)?));
        match prepared {
            Ok(()) => return Ok(path),
            Err(error) => {
                let text = gantry_kit::fault::chain(&error);
                tracing::warn!(
                    path = %path.display(),
                    error = text,
                    "a leftover cannot be removed and is left alone; remove it by hand"
                );
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or(RegistryError::Stopping))
}

/// A digest as a file name.
pub(crate) fn link_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm(), digest.hex())
}

/// The digest that a file name stands for.
pub(crate) fn linked_digest(name: &str) -> Option<Digest> {
    let (algorithm, hex) = name.split_once('-')?;
    Digest::from_hex(algorithm.parse::<Algorithm>().ok()?, hex).ok()
}

/// The digests that the links in a directory stand for, in order.
pub(crate) fn linked_digests(directory: &Path) -> Result<Vec<Digest>, RegistryError> {
    let names = durable::names(directory)?;
    Ok(names
        .iter()
        .filter_map(|name| linked_digest(name))
        .collect())
}
