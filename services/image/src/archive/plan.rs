//! What an archive turned out to hold.

use std::collections::BTreeSet;

use bytes::Bytes;
use gantry_oci::{Descriptor, Digest, Document, ImageConfig, Platform, Reference};

use super::entries::Entries;
use super::error::ArchiveError;
use super::{DOCKER_LIST, LAYOUT_LIST, LAYOUT_MARK, docker, layout};
use crate::error::ImageError;

/// An image that is to be loaded.
#[derive(Debug)]
pub(super) struct Planned {
    /// Digest of its configuration.
    pub(super) id: Digest,
    /// Names with a tag that the archive gives it.
    pub(super) names: BTreeSet<Reference>,
    /// Its manifest, where the archive has one.
    pub(super) manifest: Option<Document>,
    pub(super) config: ImageConfig,
    pub(super) config_raw: Bytes,
    pub(super) layers: Vec<PlannedLayer>,
}

/// One layer of it.
#[derive(Clone, Debug)]
pub(super) struct PlannedLayer {
    /// The entry that is the packed layer.
    pub(super) file: usize,
    pub(super) descriptor: Descriptor,
    pub(super) diff_id: Digest,
    pub(super) chain_id: Digest,
}

/// The images of an archive. Its OCI layout decides, where it has one, since
/// that has manifests too.
pub(super) fn images(
    entries: &Entries,
    platform: Option<&Platform>,
) -> Result<Vec<Planned>, ImageError> {
    let docker = entries.find(DOCKER_LIST)?.is_some();
    let layout = entries
        .find(LAYOUT_LIST)?
        .map(|_| layout::images(entries, platform));
    let images = match layout {
        Some(Err(ImageError::Archive(ArchiveError::NoImage { .. }))) if docker => {
            docker::images(entries)?
        }
        Some(images) => images?,
        None if docker => docker::images(entries)?,
        None => return Err(no_list(entries).into()),
    };
    if let Some(wanted) = platform {
        for image in &images {
            let found = image.config.platform();
            if wanted.distance(&found).is_none() {
                return Err(ImageError::NoPlatform {
                    reference: shown(&image.names, &image.id),
                    platform: wanted.to_string(),
                    available: vec![found.to_string()],
                });
            }
        }
    }
    Ok(images)
}

fn no_list(entries: &Entries) -> ArchiveError {
    if entries.is_empty() {
        ArchiveError::Empty
    } else if entries.has("repositories") {
        ArchiveError::TooOld
    } else if entries.has(LAYOUT_MARK) {
        ArchiveError::Missing {
            path: LAYOUT_LIST.to_owned(),
            wanted_by: LAYOUT_MARK.to_owned(),
        }
    } else {
        ArchiveError::NoList
    }
}

/// An image for an error line.
pub(super) fn shown(names: &BTreeSet<Reference>, id: &Digest) -> String {
    names
        .first()
        .map_or_else(|| id.to_string(), Reference::familiar)
}

/// Reads a name that an entry gives an image.
pub(super) fn name_of_entry(path: &str, text: &str) -> Result<Reference, ImageError> {
    text.parse().map_err(|error| {
        ArchiveError::entry(path, format!("has a name that is none: {error}")).into()
    })
}
