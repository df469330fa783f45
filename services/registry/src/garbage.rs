//! The garbage collection: blobs that no manifest names are removed.
//!
//! Two steps. First, in each repository, links to blobs that none of its
//! manifests names go, unless somebody claimed the blob lately (see
//! [`crate::store`]). Then content goes that no repository links to.
//!
//! It runs beside pushes. Looking around takes no lock; from the start on, all
//! that is linked is also gathered in `recent`. Taking away is done in small
//! batches under the gate's write lock, and passes over what is recent: since
//! links are only made under the read lock, nothing can be both judged unused and
//! in use by the time it goes.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use gantry_oci::content::ContentError;
use gantry_oci::{Digest, Document, RepositoryName};

use crate::durable;
use crate::error::RegistryError;
use crate::manifests::ManifestReference;
use crate::store::{Store, link_name, linked_digests};

/// How many things are taken away before pushes get their turn.
const BATCH: usize = 64;

/// What a collection did, or would do.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Collected {
    /// Blobs removed.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Ends the gathering of what is linked, however the collection ends.
struct Gathering<'a>(&'a Store);

impl Drop for Gathering<'_> {
    fn drop(&mut self) {
        *self.0.recent() = None;
    }
}

impl Store {
    /// Removes what nothing names; with `dry_run` says what would go. Blocks, possibly for long.
    pub fn collect_garbage(
        &self,
        grace: Duration,
        dry_run: bool,
    ) -> Result<Collected, RegistryError> {
        {
            let _nobody_links = self.taking_away();
            let mut recent = self.recent();
            if recent.is_some() {
                return Err(RegistryError::CollectionUnderWay);
            }
            *recent = Some(HashSet::new());
        }
        let _gathering = Gathering(self);

        let mut in_use = HashSet::new();
        for name in self.all_repositories()? {
            let named = self.named_by_manifests(&name)?;
            let (kept, unnamed): (Vec<Digest>, Vec<Digest>) =
                linked_digests(&self.layers_path(&name))?
                    .into_iter()
                    .partition(|digest| {
                        named.contains(digest) || self.is_claimed(&name, digest, grace)
                    });
            in_use.extend(named);
            in_use.extend(kept);
            if !dry_run {
                self.unlink(&name, &unnamed, grace)?;
            }
        }
        let mut sizes = HashMap::new();
        for blob in self.content().list()? {
            if !in_use.contains(&blob.digest) {
                sizes.insert(blob.digest, blob.size);
            }
        }
        let collected = self.remove_content(&sizes, dry_run)?;
        tracing::info!(
            blobs = collected.blobs,
            bytes = collected.bytes,
            dry_run,
            "garbage collected"
        );
        Ok(collected)
    }

    /// The manifests of a repository and all that they are made of.
    fn named_by_manifests(&self, name: &RepositoryName) -> Result<HashSet<Digest>, RegistryError> {
        let mut named = HashSet::new();
        for digest in linked_digests(&self.manifests_path(name))? {
            let reference = ManifestReference::Digest(digest.clone());
            match self.manifest(name, &reference) {
                Ok(stored) => {
                    let document = Document::parse(stored.raw, Some(&stored.media_type))?;
                    named.extend(document.descriptors().map(|part| part.digest.clone()));
                }
                // Deleted since the list was made. A damaged one ends the
                // collection instead: what it names can not be known, and must not go.
                Err(RegistryError::ManifestUnknown { .. }) => continue,
                Err(error) => return Err(error),
            }
            named.insert(digest);
        }
        Ok(named)
    }

    fn unlink(
        &self,
        name: &RepositoryName,
        digests: &[Digest],
        grace: Duration,
    ) -> Result<(), RegistryError> {
        for batch in digests.chunks(BATCH) {
            let _nobody_links = self.taking_away();
            for digest in batch {
                if !self.is_recent(digest) && !self.is_claimed(name, digest, grace) {
                    durable::remove(&self.layers_path(name).join(link_name(digest)))?;
                }
            }
        }
        Ok(())
    }

    fn remove_content(
        &self,
        sizes: &HashMap<Digest, u64>,
        dry_run: bool,
    ) -> Result<Collected, RegistryError> {
        let mut collected = Collected::default();
        let digests: Vec<&Digest> = sizes.keys().collect();
        for batch in digests.chunks(BATCH) {
            let _nobody_links = self.taking_away();
            for digest in batch {
                if self.is_recent(digest) {
                    continue;
                }
                let size = if dry_run {
                    sizes.get(*digest).copied().unwrap_or_default()
                } else {
                    match self.content().delete(digest) {
                        Ok(size) => size,
                        Err(ContentError::NotFound { .. }) => continue,
                        // The others can go all the same.
                        Err(error) => {
                            let error = gantry_kit::fault::chain(&error);
                            tracing::warn!(%digest, error, "a blob that nothing names stays");
                            continue;
                        }
                    }
                };
                collected.blobs += 1;
                collected.bytes += size;
            }
        }
        Ok(collected)
    }

    fn is_recent(&self, digest: &Digest) -> bool {
        self.recent()
            .as_ref()
            .is_some_and(|recent| recent.contains(digest))
    }
}
