//! Docker's list of images, `manifest.json`, and its older one, `repositories`.
//!
//! Each image is the path of its configuration, its names, and the paths of its
//! layers, the lowest first. There is no OCI manifest: the image gets one.
//!
//! Docker 1.10 to 24 write `<hex>.json` and `<id>/layer.tar`, the latter often a
//! symlink to another image's; Podman and skopeo `<diff id>.tar`; Docker from 25
//! on `blobs/sha256/<hex>`. To a reader they are all just paths.

use std::collections::BTreeMap;

use gantry_oci::config::CONFIG_MAX;
use gantry_oci::lenient::{self, Shape};
use gantry_oci::manifest::MANIFEST_MAX;
use gantry_oci::{
    Algorithm, Compression, Descriptor, Digest, ImageConfig, ManifestError, MediaType, Reference,
};
use serde::{Deserialize, Serialize};

use super::DOCKER_LIST;
use super::entries::Entries;
use super::error::ArchiveError;
use super::plan::{Planned, PlannedLayer, name_of_entry};
use crate::error::ImageError;

/// Images in one list.
const IMAGES_MAX: usize = 10_000;

/// One image of the list.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    /// Path of the configuration.
    pub(super) config: String,
    /// Names with a tag, in familiar form. Absent: it has none.
    pub(super) repo_tags: Option<Vec<String>>,
    /// Paths of the layers.
    pub(super) layers: Option<Vec<String>>,
}

/// The form of the list.
const LIST: Shape = Shape::List(&Shape::Record(&[
    ("Config", &Shape::Text),
    ("RepoTags", &Shape::Texts),
    ("Layers", &Shape::Texts),
]));

/// `repositories`: for Docker before 1.10, which knew images by repository and tag.
pub(super) type Repositories = BTreeMap<String, BTreeMap<String, String>>;

/// The images of the list, with what they consist of.
pub(super) fn images(entries: &Entries) -> Result<Vec<Planned>, ImageError> {
    let document = |source| ArchiveError::Document {
        path: DOCKER_LIST.to_owned(),
        source,
    };
    let list = entries
        .find(DOCKER_LIST)?
        .ok_or_else(|| missing(DOCKER_LIST, "every Docker archive"))?;
    let raw = entries.document(list, DOCKER_LIST, MANIFEST_MAX as u64)?;
    let listed: Vec<Listed> =
        lenient::read(&raw, &LIST).map_err(|source| document(ManifestError::Json { source }))?;
    if listed.len() > IMAGES_MAX {
        let reason = format!(
            "lists {} images; at most {IMAGES_MAX} are loaded",
            listed.len()
        );
        return Err(ArchiveError::entry(DOCKER_LIST, reason).into());
    }
    if listed.is_empty() {
        return Err(ArchiveError::NoImage { path: DOCKER_LIST }.into());
    }
    listed.iter().map(|image| planned(entries, image)).collect()
}

fn missing(path: &str, wanted_by: &str) -> ArchiveError {
    ArchiveError::Missing {
        path: path.to_owned(),
        wanted_by: wanted_by.to_owned(),
    }
}

fn planned(entries: &Entries, image: &Listed) -> Result<Planned, ImageError> {
    let path = &image.config;
    let config = entries
        .find(path)?
        .ok_or_else(|| missing(path, DOCKER_LIST))?;
    let raw = entries.document(config, path, CONFIG_MAX as u64)?;
    let id = Digest::sha256_of(&raw);
    // Docker names it by what is in it; others need not.
    let promised = path
        .strip_suffix(".json")
        .and_then(|hex| Digest::from_hex(Algorithm::Sha256, hex).ok());
    if promised.is_some_and(|promised| promised != id) {
        return Err(ArchiveError::Digest {
            path: path.clone(),
            found: id,
        }
        .into());
    }
    let config = ImageConfig::parse(&raw).map_err(|source| ArchiveError::Document {
        path: path.clone(),
        source,
    })?;
    let tags = image.repo_tags.iter().flatten();
    let names = tags
        .map(|text| tagged(text))
        .collect::<Result<_, ImageError>>()?;
    let paths = image.layers.as_deref().unwrap_or_default();
    let diff_ids = &config.rootfs.diff_ids;
    if paths.len() != diff_ids.len() {
        return Err(ArchiveError::entry(
            DOCKER_LIST,
            format!(
                "gives the image of {path} {} layers, and its configuration has {}",
                paths.len(),
                diff_ids.len()
            ),
        )
        .into());
    }
    let mut layers = Vec::with_capacity(paths.len());
    for ((path, diff_id), chain_id) in paths.iter().zip(diff_ids).zip(config.chain_ids()) {
        let file = entries
            .find(path)?
            .ok_or_else(|| missing(path, DOCKER_LIST))?;
        let arrived = entries.arrived(file);
        let media_type = match arrived.format {
            Compression::None => MediaType::OciLayer,
            Compression::Gzip => MediaType::OciLayerGzip,
            Compression::Zstd => MediaType::OciLayerZstd,
        };
        layers.push(PlannedLayer {
            file,
            descriptor: Descriptor::new(media_type, arrived.digest.clone(), arrived.size),
            diff_id: diff_id.clone(),
            chain_id,
        });
    }
    Ok(Planned {
        id,
        names,
        manifest: None,
        config,
        config_raw: raw,
        layers,
    })
}

fn tagged(text: &str) -> Result<Reference, ImageError> {
    let reference = name_of_entry(DOCKER_LIST, text)?;
    if reference.tag().is_none() || reference.digest().is_some() {
        let reason = format!("has the name {text:?}, which is not of the form NAME:TAG");
        return Err(ArchiveError::entry(DOCKER_LIST, reason).into());
    }
    Ok(reference)
}
