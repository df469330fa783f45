//! The OCI image layout's list, `index.json` (image specification, "image layout").
//!
//! Each entry names a manifest, or an index of manifests for several platforms,
//! that `blobs/` has. containerd, Docker from 25 on and Podman put an image's
//! whole name beside it; others put there what the specification gives, which
//! may be no more than a tag.

use std::collections::{BTreeMap, BTreeSet};

use gantry_oci::config::CONFIG_MAX;
use gantry_oci::manifest::MANIFEST_MAX;
use gantry_oci::{
    Descriptor, Digest, Document, DocumentKind, ImageConfig, Index, Manifest, Platform, Reference,
};

use super::entries::Entries;
use super::error::ArchiveError;
use super::plan::{Planned, PlannedLayer, name_of_entry, shown};
use super::{DOCKER_LIST, LAYOUT_LIST, NAME_ANNOTATION, REF_NAME_ANNOTATION};
use crate::error::ImageError;
use crate::remote::check_parts;

/// Indexes within indexes.
const DEPTH_MAX: usize = 8;

/// Where a layout has a blob.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// The digest that a path of `blobs/` promises.
pub(super) fn promised(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    Digest::from_hex(algorithm.parse().ok()?, hex).ok()
}

/// The images of the list, with what they consist of.
pub(super) fn images(
    entries: &Entries,
    platform: Option<&Platform>,
) -> Result<Vec<Planned>, ImageError> {
    let file = entries
        .find(LAYOUT_LIST)?
        .ok_or_else(|| missing(LAYOUT_LIST, "every OCI image layout"))?;
    let raw = entries.document(file, LAYOUT_LIST, MANIFEST_MAX as u64)?;
    let unreadable = |source| ArchiveError::Document {
        path: LAYOUT_LIST.to_owned(),
        source,
    };
    let list = Document::parse(raw, None).map_err(unreadable)?;
    let DocumentKind::Index(list) = list.into_kind() else {
        let reason = "is a manifest where an index was expected";
        return Err(ArchiveError::entry(LAYOUT_LIST, reason).into());
    };
    if list.manifests.is_empty() {
        return Err(ArchiveError::NoImage { path: LAYOUT_LIST }.into());
    }
    let reader = Reader { entries, platform };
    let mut images: Vec<Planned> = Vec::new();
    for (names, index) in grouped(&list, entries)? {
        let Some(image) = reader.image(names, &index)? else {
            continue;
        };
        match images.iter_mut().find(|known| known.id == image.id) {
            Some(known) => known.names.extend(image.names),
            None => images.push(image),
        }
    }
    if images.is_empty() {
        return Err(ArchiveError::NoImage { path: LAYOUT_LIST }.into());
    }
    Ok(images)
}

/// Entries of the list that are one image: those of one name, for several
/// platforms. Those without a name are one image each, unless the list is
/// plainly one image's index: each for another platform, and nothing else says
/// that they are several.
fn grouped(
    list: &Index,
    entries: &Entries,
) -> Result<Vec<(BTreeSet<Reference>, Index)>, ImageError> {
    let of = |manifests: Vec<Descriptor>| Index {
        manifests,
        ..list.clone()
    };
    let mut named: BTreeMap<Reference, Vec<Descriptor>> = BTreeMap::new();
    let mut unnamed: Vec<Descriptor> = Vec::new();
    for entry in &list.manifests {
        let same = match name(entry)? {
            Some(name) => named.entry(name).or_default(),
            None => &mut unnamed,
        };
        if !same.iter().any(|known| known.digest == entry.digest) {
            same.push(entry.clone());
        }
    }
    let mut groups: Vec<_> = named
        .into_iter()
        .map(|(name, manifests)| (BTreeSet::from([name]), of(manifests)))
        .collect();
    let platforms: Vec<Platform> = unnamed
        .iter()
        .filter_map(|entry| Some(entry.platform.as_ref()?.normalised()))
        .collect();
    let all_differ = platforms.len() == unnamed.len()
        && (1..platforms.len()).all(|n| !platforms[..n].contains(&platforms[n]));
    if unnamed.len() > 1 && all_differ && !entries.has(DOCKER_LIST) {
        groups.push((BTreeSet::new(), of(unnamed)));
    } else {
        groups.extend(
            unnamed
                .into_iter()
                .map(|entry| (BTreeSet::new(), of(vec![entry]))),
        );
    }
    Ok(groups)
}

/// The name that an entry has, if it has one that names an image.
fn name(entry: &Descriptor) -> Result<Option<Reference>, ImageError> {
    let annotation = |key: &str| entry.annotations.as_ref()?.get(key).map(String::as_str);
    let text = match annotation(NAME_ANNOTATION) {
        Some(name) => name,
        // A bare word is a tag, or a remark: it names no image by itself.
        None => match annotation(REF_NAME_ANNOTATION) {
            Some(name) if name.contains([':', '/']) => name,
            _ => return Ok(None),
        },
    };
    let reference = name_of_entry(LAYOUT_LIST, text)?;
    match reference.digest() {
        Some(_) => Ok(None),
        None => Ok(Some(reference.with_default_tag())),
    }
}

fn missing(path: &str, wanted_by: &str) -> ArchiveError {
    ArchiveError::Missing {
        path: path.to_owned(),
        wanted_by: wanted_by.to_owned(),
    }
}

struct Reader<'a> {
    entries: &'a Entries,
    platform: Option<&'a Platform>,
}

impl Reader<'_> {
    /// The image of a name. None: it is something else, such as a signature.
    fn image(
        &self,
        names: BTreeSet<Reference>,
        list: &Index,
    ) -> Result<Option<Planned>, ImageError> {
        let called = names
            .first()
            .map_or_else(|| format!("an image of {LAYOUT_LIST}"), Reference::familiar);
        // One entry is the image, whatever platform stands beside it.
        let mut chosen = match list.manifests.as_slice() {
            [only] => only.clone(),
            _ => self.choose(list, &called)?.clone(),
        };
        for _ in 0..DEPTH_MAX {
            if !chosen.media_type.is_index() && !chosen.media_type.is_manifest() {
                return Ok(None);
            }
            let document = self.read_document(&chosen, &called)?;
            chosen = match document.kind() {
                DocumentKind::Manifest(parts) => {
                    if !parts.config.media_type.is_image_config() {
                        return Ok(None);
                    }
                    let parts = Manifest::clone(parts);
                    return self.planned(names, document, &parts).map(Some);
                }
                DocumentKind::Index(index) => self.choose(index, &called)?.clone(),
            };
        }
        let reason = format!("has indexes within indexes more than {DEPTH_MAX} deep");
        Err(ArchiveError::entry(LAYOUT_LIST, reason).into())
    }

    /// The manifest of an index that suits: of those that the archive has, since
    /// an archive of an image for many platforms may have one of them only.
    fn choose<'a>(&self, index: &'a Index, called: &str) -> Result<&'a Descriptor, ImageError> {
        let host = Platform::host();
        let wanted = self.platform.unwrap_or(&host);
        let mut here = index.clone();
        here.manifests.retain(|entry| {
            matches!(self.entries.find(&blob_path(&entry.digest)), Ok(Some(_)))
                && entry.platform.as_ref().is_none_or(|p| p.os != "unknown")
        });
        let chosen = match (here.choose(wanted), here.manifests.as_slice()) {
            (Some(chosen), _) => Some(chosen),
            // What was asked for by nobody may be for another machine, as with Docker.
            (None, [only]) if self.platform.is_none() => Some(only),
            _ => None,
        };
        let found = chosen.and_then(|chosen| {
            let mut entries = index.manifests.iter();
            entries.find(|entry| entry.digest == chosen.digest)
        });
        found.ok_or_else(|| ImageError::NoPlatform {
            reference: called.to_owned(),
            platform: wanted.to_string(),
            available: here
                .manifests
                .iter()
                .filter_map(|entry| entry.platform.as_ref())
                .map(ToString::to_string)
                .collect(),
        })
    }

    fn blob(&self, descriptor: &Descriptor, wanted_by: &str) -> Result<usize, ArchiveError> {
        let path = blob_path(&descriptor.digest);
        let file = self
            .entries
            .find(&path)?
            .ok_or_else(|| missing(&path, wanted_by))?;
        let found = self.entries.arrived(file).size;
        if found != descriptor.size {
            let expected = descriptor.size;
            let reason = format!("has {found} bytes, and {wanted_by} promises {expected}");
            return Err(ArchiveError::entry(&path, reason));
        }
        Ok(file)
    }

    fn read_document(
        &self,
        descriptor: &Descriptor,
        wanted_by: &str,
    ) -> Result<Document, ImageError> {
        let file = self.blob(descriptor, wanted_by)?;
        let path = blob_path(&descriptor.digest);
        let raw = self.entries.document(file, &path, MANIFEST_MAX as u64)?;
        let size = Some(descriptor.size);
        Document::parse_verified(raw, Some(&descriptor.media_type), &descriptor.digest, size)
            .map_err(|source| ArchiveError::Document { path, source }.into())
    }

    fn planned(
        &self,
        names: BTreeSet<Reference>,
        manifest: Document,
        parts: &Manifest,
    ) -> Result<Planned, ImageError> {
        let manifest_path = blob_path(manifest.digest());
        let file = self.blob(&parts.config, &manifest_path)?;
        let path = blob_path(&parts.config.digest);
        let raw = self.entries.document(file, &path, CONFIG_MAX as u64)?;
        let unreadable = |source| ArchiveError::Document {
            path: path.clone(),
            source,
        };
        parts.config.verify(&raw).map_err(unreadable)?;
        let config = ImageConfig::parse(&raw).map_err(unreadable)?;
        let id = parts.config.digest.clone();
        check_parts(parts, &config, &shown(&names, &id))?;
        let mut layers = Vec::with_capacity(parts.layers.len());
        let ids = config.rootfs.diff_ids.iter().zip(config.chain_ids());
        for (descriptor, (diff_id, chain_id)) in parts.layers.iter().zip(ids) {
            layers.push(PlannedLayer {
                file: self.blob(descriptor, &manifest_path)?,
                descriptor: descriptor.clone(),
                diff_id: diff_id.clone(),
                chain_id,
            });
        }
        Ok(Planned {
            id,
            names,
            manifest: Some(manifest),
            config,
            config_raw: raw,
            layers,
        })
    }
}
