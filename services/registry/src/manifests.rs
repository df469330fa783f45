//! Manifests, tags and referrers of a repository.

use std::fs;
use std::io;
use std::str::FromStr;

use bytes::Bytes;
use gantry_oci::content::{Commit, ContentError};
use gantry_oci::manifest::MANIFEST_MAX;
use gantry_oci::{Descriptor, Digest, Document, MediaType, RepositoryName, Tag};

use crate::durable;
use crate::error::RegistryError;
use crate::store::{Store, link_name, linked_digests};

/// What comes after `manifests/` in a URL.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ManifestReference {
    /// Whatever the tag stands for at the time.
    Tag(Tag),
    /// This very manifest.
    Digest(Digest),
}

impl FromStr for ManifestReference {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A tag can not have a colon in it, and a digest must.
        if text.contains(':') {
            Ok(Self::Digest(text.parse()?))
        } else {
            Ok(Self::Tag(text.parse()?))
        }
    }
}

impl std::fmt::Display for ManifestReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A manifest as a repository has it.
#[derive(Clone, Debug)]
pub struct StoredManifest {
    /// Its name.
    pub digest: Digest,
    /// Its type, as it was pushed.
    pub media_type: MediaType,
    /// Its bytes, as they were pushed.
    pub raw: Bytes,
}

/// Who pushes, which says what becomes of tags.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Authority {
    /// The engine: its tags are kept from guests.
    Owner,
    /// Somebody who may replace every tag.
    Trusted,
    /// Anybody: may replace what was not pushed by the owner.
    Guest,
}

impl Store {
    /// The digest that a tag stands for.
    pub fn resolve_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<Digest, RegistryError> {
        let path = self.tag_path(name, tag);
        match fs::read_to_string(&path) {
            Ok(text) => text.trim_end().parse().map_err(|_| RegistryError::Damaged {
                path,
                wanted: "a digest",
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(RegistryError::ManifestUnknown {
                    name: name.clone(),
                    reference: tag.to_string(),
                })
            }
            Err(error) => Err(RegistryError::io("read", &path)(error)),
        }
    }

    /// Whether the repository has the manifest.
    #[must_use]
    pub fn has_manifest(&self, name: &RepositoryName, digest: &Digest) -> bool {
        self.manifests_path(name).join(link_name(digest)).exists()
    }

    /// A manifest, by tag or digest.
    pub fn manifest(
        &self,
        name: &RepositoryName,
        reference: &ManifestReference,
    ) -> Result<StoredManifest, RegistryError> {
        let digest = match reference {
            ManifestReference::Tag(tag) => self.resolve_tag(name, tag)?,
            ManifestReference::Digest(digest) => digest.clone(),
        };
        let unknown = || RegistryError::ManifestUnknown {
            name: name.clone(),
            reference: reference.to_string(),
        };
        let link = self.manifests_path(name).join(link_name(&digest));
        let media_type = match fs::read_to_string(&link) {
            Ok(text) => MediaType::from(text.trim_end()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown()),
            Err(error) => return Err(RegistryError::io("read", &link)(error)),
        };
        match self.content().read(&digest, MANIFEST_MAX as u64) {
            Ok(raw) => Ok(StoredManifest {
                digest,
                media_type,
                raw: raw.into(),
            }),
            Err(ContentError::NotFound { .. }) => Err(unknown()),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores a manifest and makes the tags stand for it. Everything it is made
    /// of must be in the repository already; its subject need not.
    pub fn put_manifest(
        &self,
        name: &RepositoryName,
        document: &Document,
        tags: &[Tag],
        authority: Authority,
    ) -> Result<(), RegistryError> {
        if authority == Authority::Guest {
            self.check_kept(name, document, tags)?;
        }
        let linking = self.linking();
        self.check_references(name, document)?;
        let digest = document.digest();
        let parts = || document.descriptors().map(|part| &part.digest);
        linking.linked(parts().chain([digest]));

        self.content()
            .put_known(digest, document.raw(), Commit::Durable)?;
        if let Some(subject) = document.subject() {
            let directory = self.referrers_path(name, &subject.digest);
            durable::directory(&directory)?;
            let entry = serde_json::to_vec(&referrer(document))
                .map_err(|source| RegistryError::Serialise { source })?;
            let link = directory.join(link_name(digest));
            durable::write(&self.aside_path(), &link, &entry)?;
        }
        durable::directory(&self.manifests_path(name))?;
        durable::write(
            &self.aside_path(),
            &self.manifests_path(name).join(link_name(digest)),
            document.media_type().as_str().as_bytes(),
        )?;
        linking.settle_claims(name, parts());
        if !tags.is_empty() {
            durable::directory(&self.tags_path(name))?;
            let _nobody_else_tags = self.tagging();
            match authority {
                Authority::Owner => {
                    durable::directory(&self.kept_path(name))?;
                    for tag in tags {
                        durable::mark(&self.kept_path(name).join(tag.as_str()))?;
                    }
                }
                Authority::Trusted => {}
                Authority::Guest => self.check_kept(name, document, tags)?,
            }
            for tag in tags {
                let path = self.tag_path(name, tag);
                durable::write(&self.aside_path(), &path, digest.as_str().as_bytes())?;
            }
        }
        let tags: Vec<&str> = tags.iter().map(Tag::as_str).collect();
        tracing::info!(repository = %name, %digest, tags = tags.join(","), "manifest stored");
        Ok(())
    }

    /// Refuses to let tags of the owner's stand for something else. A mark alone,
    /// of a push that broke off before its tag, keeps nothing.
    fn check_kept(
        &self,
        name: &RepositoryName,
        document: &Document,
        tags: &[Tag],
    ) -> Result<(), RegistryError> {
        for tag in tags {
            let is_kept = self.kept_path(name).join(tag.as_str()).exists();
            let replaces = match self.resolve_tag(name, tag) {
                Ok(digest) => digest != *document.digest(),
                Err(RegistryError::ManifestUnknown { .. }) => false,
                Err(_) => true,
            };
            if is_kept && replaces {
                return Err(RegistryError::TagKept {
                    name: name.clone(),
                    tag: tag.clone(),
                });
            }
        }
        Ok(())
    }

    /// Removes a tag and its mark; says whether it was there.
    fn remove_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<bool, RegistryError> {
        let _nobody_else_tags = self.tagging();
        let removed = durable::remove(&self.tag_path(name, tag))?;
        durable::remove(&self.kept_path(name).join(tag.as_str()))?;
        Ok(removed)
    }

    fn check_references(
        &self,
        name: &RepositoryName,
        document: &Document,
    ) -> Result<(), RegistryError> {
        let mut missing = Vec::new();
        for part in document.descriptors() {
            let here = if document.media_type().is_index() {
                self.has_manifest(name, &part.digest) || self.has_layer(name, &part.digest)
            } else {
                self.has_layer(name, &part.digest)
            };
            if !here {
                // Foreign layers live where their URLs say.
                let foreign = part.media_type.is_foreign_layer() && !part.urls.is_empty();
                if !foreign {
                    missing.push(part.digest.clone());
                }
                continue;
            }
            match self.content().stat(&part.digest) {
                Ok(status) if status.size == part.size => {}
                Ok(status) => {
                    return Err(RegistryError::ReferenceSize {
                        digest: part.digest.clone(),
                        declared: part.size,
                        found: status.size,
                    });
                }
                Err(ContentError::NotFound { .. }) => missing.push(part.digest.clone()),
                Err(error) => return Err(error.into()),
            }
        }
        if missing.is_empty() {
            Ok(())
        } else {
            Err(RegistryError::References {
                name: name.clone(),
                missing,
            })
        }
    }

    /// Removes a tag. What it stood for stays.
    pub fn delete_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<(), RegistryError> {
        if self.remove_tag(name, tag)? {
            tracing::info!(repository = %name, %tag, "tag removed");
            Ok(())
        } else {
            Err(RegistryError::ManifestUnknown {
                name: name.clone(),
                reference: tag.to_string(),
            })
        }
    }

    /// Removes a manifest with all its tags. Its content goes with the next collection.
    pub fn delete_manifest(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        let stored = self.manifest(name, &ManifestReference::Digest(digest.clone()));
        let _nobody_links = self.taking_away();
        for tag in self.tags(name)? {
            if self.resolve_tag(name, &tag).is_ok_and(|to| to == *digest) {
                self.remove_tag(name, &tag)?;
            }
        }
        let link = self.manifests_path(name).join(link_name(digest));
        if !durable::remove(&link)? {
            return Err(RegistryError::ManifestUnknown {
                name: name.clone(),
                reference: digest.to_string(),
            });
        }
        // A manifest whose content is damaged can still be removed; its entry
        // among the referrers then stays, and is passed over when they are listed.
        if let Ok(stored) = stored
            && let Ok(document) = Document::parse(stored.raw, Some(&stored.media_type))
            && let Some(subject) = document.subject()
        {
            let directory = self.referrers_path(name, &subject.digest);
            durable::remove(&directory.join(link_name(digest)))?;
            // Fails while others are in it, and that is well.
            fs::remove_dir(&directory).ok();
        }
        tracing::info!(repository = %name, %digest, "manifest removed");
        Ok(())
    }

    /// The tags of a repository, sorted by their bytes.
    pub fn tags(&self, name: &RepositoryName) -> Result<Vec<Tag>, RegistryError> {
        if !self.has_repository(name) {
            return Err(RegistryError::NameUnknown { name: name.clone() });
        }
        let names = durable::names(&self.tags_path(name))?;
        Ok(names
            .into_iter()
            .filter_map(|tag| tag.parse().ok())
            .collect())
    }

    /// Descriptors of the manifests that are about a subject, sorted by digest.
    pub fn referrers(
        &self,
        name: &RepositoryName,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let directory = self.referrers_path(name, subject);
        let mut found = Vec::new();
        for digest in linked_digests(&directory)? {
            let path = directory.join(link_name(&digest));
            let Ok(entry) = fs::read(&path) else { continue };
            match serde_json::from_slice::<Descriptor>(&entry) {
                Ok(descriptor) if self.has_manifest(name, &digest) => found.push(descriptor),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a referrer's entry is damaged: passed over");
                }
            }
        }
        Ok(found)
    }
}

/// What the list of referrers says of a manifest.
fn referrer(document: &Document) -> Descriptor {
    let mut descriptor = document.descriptor();
    descriptor.artifact_type = document.artifact_type().map(str::to_owned);
    descriptor.annotations = document.annotations().cloned();
    descriptor
}
