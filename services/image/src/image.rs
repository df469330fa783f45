//! What an image is to the store: a record that names its parts, and the configuration it runs with.

use std::collections::BTreeSet;

use bytes::Bytes;
use gantry_oci::{Descriptor, Digest, ImageConfig, MediaType, Platform, Reference};
use serde::{Deserialize, Serialize};

use crate::error::ImageError;
use crate::unpack::RootAttributes;

/// What the index keeps of an image. All else is in its blobs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ImageRecord {
    /// Digest of the configuration: the image's id.
    pub id: Digest,
    /// The manifest it was made from.
    pub manifest: Digest,
    pub manifest_media_type: MediaType,
    /// The index that named the manifest, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Digest>,
    /// The layers, the lowest first.
    pub layers: Vec<LayerRecord>,
    /// Names with a tag, canonical ("docker.io/library/debian:12").
    pub tags: BTreeSet<Reference>,
    /// Names with a digest, canonical ("docker.io/library/debian@sha256:…").
    pub digests: BTreeSet<Reference>,
    /// The image that this one was made from on this machine, by a commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
}

impl ImageRecord {
    /// Whether it has no name at all.
    #[must_use]
    pub fn is_nameless(&self) -> bool {
        self.tags.is_empty() && self.digests.is_empty()
    }

    /// How to call it: its first name, or the beginning of its id.
    #[must_use]
    pub fn display_name(&self) -> String {
        match self.names().next() {
            Some(name) => name.familiar(),
            None => self.id.short().to_owned(),
        }
    }

    /// Blobs that must be in the store while the image is.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        let layers = self.layers.iter().flat_map(|layer| {
            let kept = layer.kept_as.as_ref().map(|kept| &kept.digest);
            std::iter::once(&layer.descriptor.digest).chain(kept)
        });
        [&self.id, &self.manifest]
            .into_iter()
            .chain(self.index.as_ref())
            .chain(layers)
    }

    /// All names, those with a tag first.
    pub fn names(&self) -> impl Iterator<Item = &Reference> {
        self.tags.iter().chain(&self.digests)
    }
}

/// One layer of an image.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct LayerRecord {
    /// The packed layer, as the manifest has it.
    pub descriptor: Descriptor,
    /// Another packing of the layer, which was here already: the manifest's own
    /// was never fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_as: Option<Descriptor>,
    /// Digest of the layer's tar.
    pub diff_id: Digest,
    /// The name of its directory in the store.
    pub key: String,
    /// Bytes of its files.
    pub size: u64,
    /// Owner and mode it gives the root directory, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<RootAttributes>,
}

/// An image in memory. Never changes: a change is a new one.
#[derive(Clone, Debug)]
pub struct Image {
    pub record: ImageRecord,
    /// The configuration, read.
    pub config: ImageConfig,
    /// The configuration, byte for byte.
    pub config_raw: Bytes,
}

impl Image {
    #[must_use]
    pub fn id(&self) -> &Digest {
        &self.record.id
    }

    /// Bytes of all layers, unpacked.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.record.layers.iter().map(|layer| layer.size).sum()
    }

    /// What it was built for.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform::new(
            &self.config.os,
            &self.config.architecture,
            self.config.variant.as_deref(),
        )
    }

    /// Refuses a platform that is not its own; `reference` is what it was called.
    ///
    /// # Errors
    /// It was built for another one.
    pub fn check_platform(&self, wanted: &Platform, reference: &str) -> Result<(), ImageError> {
        let found = self.platform();
        match wanted.distance(&found) {
            Some(_) => Ok(()),
            None => Err(ImageError::OtherPlatform {
                reference: reference.to_owned(),
                wanted: wanted.to_string(),
                found: found.to_string(),
            }),
        }
    }

    /// Names with a tag, as a person writes them.
    #[must_use]
    pub fn familiar_tags(&self) -> Vec<String> {
        self.record.tags.iter().map(Reference::familiar).collect()
    }

    /// How to call it: its first name, or the beginning of its id.
    #[must_use]
    pub fn display_name(&self) -> String {
        self.record.display_name()
    }

    /// When it was built.
    #[must_use]
    pub fn created(&self) -> Option<jiff::Timestamp> {
        self.config.created.as_deref()?.parse().ok()
    }

    /// Blobs that must be in the store while the image is.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        self.record.blobs()
    }
}
