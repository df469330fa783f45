//! Saving: images as a Docker archive and an OCI layout in one tar.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use gantry_oci::{
    Algorithm, Compression, Descriptor, Digest, Document, DocumentKind, Hasher, Index, Manifest,
    MediaType, Platform, Reference,
};

use super::docker::{Listed, Repositories};
use super::error::ArchiveError;
use super::layout::blob_path;
use super::write::{Gone, Sink, TarWriter, WriteFailed};
use super::{
    DOCKER_LIST, DOCKER_NAMES, LAYOUT_LIST, LAYOUT_MARK, NAME_ANNOTATION, REF_NAME_ANNOTATION,
};
use crate::ImageStore;
use crate::catalogue::lookup_name;
use crate::error::ImageError;
use crate::garbage::Lease;
use crate::image::Image;
use crate::unpack::inflated;

/// An image, and the name it was asked for by.
type Meant = (Arc<Image>, Option<Reference>);

/// Images that are about to be saved: all of them are there, and stay.
#[derive(Debug)]
pub struct Saving {
    store: ImageStore,
    images: Vec<Saved>,
    _lease: Lease,
}

#[derive(Debug)]
struct Saved {
    image: Arc<Image>,
    names: BTreeSet<Reference>,
    document: Document,
    parts: Manifest,
}

impl ImageStore {
    /// Finds images and all they consist of. What is not there is said before a
    /// byte is written. Blocks.
    pub fn saving(
        &self,
        references: &[String],
        platform: Option<&Platform>,
    ) -> Result<Saving, ImageError> {
        if references.is_empty() {
            return Err(ImageError::Missing {
                field: "the image's name",
            });
        }
        let mut wanted: BTreeMap<Digest, (Arc<Image>, BTreeSet<Reference>)> = BTreeMap::new();
        for text in references {
            for (image, name) in self.meant(text)? {
                if let Some(platform) = platform {
                    image.check_platform(platform, text)?;
                }
                let (_, names) = wanted
                    .entry(image.id().clone())
                    .or_insert_with(|| (image, BTreeSet::new()));
                names.extend(name);
            }
        }
        // Another blob may stand for one of the image's own.
        let mut names = Vec::new();
        for (image, _) in wanted.values() {
            names.extend(image.blobs().map(ToString::to_string));
            let layers = image.record.layers.iter();
            let packings = layers.flat_map(|layer| self.packings_of_layer(layer));
            names.extend(packings.map(|blob| blob.digest.to_string()));
        }
        let lease = self.lease(names);
        let mut images = wanted
            .into_values()
            .map(|(image, names)| self.saved(image, names))
            .collect::<Result<Vec<_>, _>>()?;
        // Whatever order they were asked for in.
        images.sort_by(|a, b| {
            let key = |saved: &Saved| (saved.names.is_empty(), saved.names.first().cloned());
            key(a).cmp(&key(b))
        });
        Ok(Saving {
            store: self.clone(),
            images,
            _lease: lease,
        })
    }

    /// What a text means to `save`: an image, and the name it is saved under if
    /// it was asked for by one. A repository stands for all its tags.
    fn meant(&self, text: &str) -> Result<Vec<Meant>, ImageError> {
        let parsed = text.parse::<Reference>().ok();
        if let Some(reference) = &parsed
            && reference.tag().is_none()
            && reference.digest().is_none()
        {
            let tagged: Vec<_> = self
                .images()
                .iter()
                .flat_map(|image| {
                    let tags = image.record.tags.iter();
                    tags.filter(|tag| tag.repository() == *reference)
                        .map(|tag| (Arc::clone(image), Some(tag.clone())))
                        .collect::<Vec<_>>()
                })
                .collect();
            if !tagged.is_empty() {
                return Ok(tagged);
            }
        }
        let image = self.resolve(text)?;
        let name = parsed.map(lookup_name);
        let name = name.filter(|name| image.record.tags.contains(name));
        Ok(vec![(image, name)])
    }

    /// Reads the manifest of an image, and makes sure of its layers.
    fn saved(&self, image: Arc<Image>, names: BTreeSet<Reference>) -> Result<Saved, ImageError> {
        let shown = super::plan::shown(&names, image.id());
        let content = &self.shared.content;
        let document = self.document_of_what_is_here(&image)?;
        let DocumentKind::Manifest(parts) = document.kind() else {
            return Err(ImageError::Unusable {
                reference: shown,
                reason: "its manifest is an index".into(),
            });
        };
        let parts = Manifest::clone(parts);
        for layer in &parts.layers {
            if !content.contains(&layer.digest) {
                return Err(ArchiveError::NotPacked {
                    reference: shown,
                    digest: layer.digest.clone(),
                }
                .into());
            }
        }
        Ok(Saved {
            image,
            names,
            document,
            parts,
        })
    }
}

/// A layer as the archive has it.
#[derive(Debug)]
struct SavedLayer {
    descriptor: Descriptor,
    /// For Docker, where it cannot read the layer as it is: the tar's digest and size.
    inflated: Option<(Digest, u64)>,
}

impl SavedLayer {
    fn docker_path(&self) -> String {
        let digest = self.inflated.as_ref().map(|(digest, _)| digest);
        blob_path(digest.unwrap_or(&self.descriptor.digest))
    }
}

impl Saving {
    /// Writes the archive. Blocks, at the pace of `sink`, which says when nobody
    /// wants more of it.
    pub fn write(
        &self,
        mut sink: impl FnMut(Bytes) -> Result<(), Gone> + Send,
    ) -> Result<(), ImageError> {
        let mut layers = Vec::with_capacity(self.images.len());
        for saved in &self.images {
            layers.push(self.layers_of(saved)?);
        }
        let sink: &mut Sink<'_> = &mut sink;
        let mut tar = TarWriter::new(sink);
        let out = |error| failed(error, None);
        tar.bytes(LAYOUT_MARK, br#"{"imageLayoutVersion":"1.0.0"}"#)
            .map_err(out)?;
        tar.bytes(LAYOUT_LIST, &json(&self.layout_list())?)
            .map_err(out)?;
        tar.bytes(DOCKER_LIST, &json(&self.docker_list(&layers))?)
            .map_err(out)?;
        let names = self.docker_names(&layers);
        if !names.is_empty() {
            tar.bytes(DOCKER_NAMES, &json(&names)?).map_err(out)?;
        }
        let mut blobs = Blobs {
            store: &self.store,
            tar,
            written: BTreeSet::new(),
            directories: BTreeSet::new(),
        };
        for (saved, layers) in self.images.iter().zip(&layers) {
            blobs.bytes(saved.document.digest(), saved.document.raw())?;
            blobs.bytes(saved.image.id(), &saved.image.config_raw)?;
            for layer in layers {
                blobs.packed(&layer.descriptor.digest)?;
                if let Some((digest, size)) = &layer.inflated {
                    blobs.inflated(&layer.descriptor.digest, digest, *size)?;
                }
            }
        }
        blobs.tar.finish().map_err(out)?;
        for saved in &self.images {
            self.store.events().of_image("save", &saved.image);
        }
        Ok(())
    }

    fn layers_of(&self, saved: &Saved) -> Result<Vec<SavedLayer>, ImageError> {
        let diff_ids = &saved.image.config.rootfs.diff_ids;
        let layers = saved.parts.layers.iter().zip(diff_ids);
        layers
            .map(|(descriptor, diff_id)| {
                let digest = &descriptor.digest;
                let (mut file, _) = self.store.shared.content.open_blob(digest)?;
                let mut head = Vec::with_capacity(4);
                let cannot = |error| ImageError::io("read", &self.path(digest))(error);
                (&mut file).take(4).read_to_end(&mut head).map_err(cannot)?;
                let inflated = match Compression::detect(&head) {
                    Compression::None | Compression::Gzip => None,
                    Compression::Zstd => {
                        let mut tar = self.open_inflated(digest)?;
                        let size = io::copy(&mut tar, &mut io::sink()).map_err(cannot)?;
                        Some((diff_id.clone(), size))
                    }
                };
                Ok(SavedLayer {
                    descriptor: descriptor.clone(),
                    inflated,
                })
            })
            .collect()
    }

    fn path(&self, digest: &Digest) -> std::path::PathBuf {
        self.store.shared.content.blob_path(digest)
    }

    fn open_inflated(&self, digest: &Digest) -> Result<Box<dyn Read + Send>, ImageError> {
        let (file, _) = self.store.shared.content.open_blob(digest)?;
        inflated(file).map_err(|error| ImageError::io("inflate", &self.path(digest))(error))
    }

    fn layout_list(&self) -> Index {
        let mut manifests = Vec::new();
        for saved in &self.images {
            let mut descriptor = saved.document.descriptor();
            let mut platform = saved.image.platform();
            platform
                .os_version
                .clone_from(&saved.image.config.os_version);
            descriptor.platform = Some(platform);
            if saved.names.is_empty() {
                manifests.push(descriptor.clone());
            }
            manifests.extend(saved.names.iter().map(|name| Descriptor {
                annotations: Some(annotations(name)),
                ..descriptor.clone()
            }));
        }
        Index {
            schema_version: 2,
            media_type: Some(MediaType::OciIndex),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: None,
        }
    }

    fn docker_list(&self, layers: &[Vec<SavedLayer>]) -> Vec<Listed> {
        let listed = self.images.iter().zip(layers).map(|(saved, layers)| {
            let names = saved.names.iter().map(Reference::familiar);
            Listed {
                config: blob_path(saved.image.id()),
                repo_tags: (!saved.names.is_empty()).then(|| names.collect()),
                layers: Some(layers.iter().map(SavedLayer::docker_path).collect()),
            }
        });
        listed.collect()
    }

    fn docker_names(&self, layers: &[Vec<SavedLayer>]) -> Repositories {
        let mut repositories = Repositories::new();
        for (saved, layers) in self.images.iter().zip(layers) {
            let top = layers.last().map(|layer| &layer.descriptor.digest);
            for name in &saved.names {
                if let Some(tag) = name.tag() {
                    repositories
                        .entry(name.familiar_name())
                        .or_default()
                        .insert(
                            tag.to_string(),
                            top.unwrap_or(saved.image.id()).hex().to_owned(),
                        );
                }
            }
        }
        repositories
    }
}

fn annotations(name: &Reference) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from([(NAME_ANNOTATION.to_owned(), name.canonical())]);
    if let Some(tag) = name.tag() {
        annotations.insert(REF_NAME_ANNOTATION.to_owned(), tag.to_string());
    }
    annotations
}

/// The blobs of an archive that is being written, each once.
struct Blobs<'a> {
    store: &'a ImageStore,
    tar: TarWriter<'a>,
    written: BTreeSet<Digest>,
    directories: BTreeSet<Algorithm>,
}

impl Blobs<'_> {
    /// True: it is to be written now.
    fn begin(&mut self, digest: &Digest) -> Result<bool, ImageError> {
        if !self.written.insert(digest.clone()) {
            return Ok(false);
        }
        let out = |error| failed(error, None);
        if self.directories.is_empty() {
            self.tar.directory("blobs/").map_err(out)?;
        }
        let algorithm = digest.algorithm();
        if self.directories.insert(algorithm) {
            let path = format!("blobs/{algorithm}/");
            self.tar.directory(&path).map_err(out)?;
        }
        Ok(true)
    }

    fn bytes(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        if self.begin(digest)? {
            let written = self.tar.bytes(&blob_path(digest), bytes);
            written.map_err(|error| failed(error, None))?;
        }
        Ok(())
    }

    /// A blob as it is in the store.
    fn packed(&mut self, digest: &Digest) -> Result<(), ImageError> {
        if !self.begin(digest)? {
            return Ok(());
        }
        let (file, size): (File, u64) = self.store.shared.content.open_blob(digest)?;
        self.stream(digest, file, size)
    }

    /// The tar that is packed in a blob.
    fn inflated(&mut self, packed: &Digest, tar: &Digest, size: u64) -> Result<(), ImageError> {
        if !self.begin(tar)? {
            return Ok(());
        }
        let (file, _) = self.store.shared.content.open_blob(packed)?;
        let path = self.store.shared.content.blob_path(packed);
        let source = inflated(file).map_err(ImageError::io("inflate", &path))?;
        self.stream(tar, source, size)
    }

    fn stream(
        &mut self,
        digest: &Digest,
        mut source: impl Read,
        size: u64,
    ) -> Result<(), ImageError> {
        let mut hasher = Hasher::new(digest.algorithm());
        let path = self.store.shared.content.blob_path(digest);
        let written = self
            .tar
            .stream(&blob_path(digest), &mut source, size, &mut hasher);
        written.map_err(|error| failed(error, Some(&path)))?;
        let found = hasher.finish();
        if found != *digest {
            let digest = digest.clone();
            return Err(gantry_oci::content::ContentError::Damaged { digest, found }.into());
        }
        Ok(())
    }
}

fn failed(error: WriteFailed, path: Option<&std::path::Path>) -> ImageError {
    match (error, path) {
        (WriteFailed::Gone, _) => ImageError::Cancelled {
            what: "the save".into(),
        },
        (WriteFailed::Read(source), Some(path)) => ImageError::io("read", path)(source),
        (WriteFailed::Read(source), None) => ImageError::Stream {
            reason: source.to_string(),
        },
    }
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(value).map_err(|error| ImageError::Stream {
        reason: format!("a list cannot be written: {error}"),
    })
}
