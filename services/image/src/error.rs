//! Why the image store could not do something.

use std::io;
use std::path::{Path, PathBuf};

use gantry_kit::store::StoreError;
use gantry_oci::content::ContentError;
use gantry_oci::{Digest, ManifestError, ReferenceError};

use crate::archive::ArchiveError;
use crate::pack::PackError;
use crate::registry_client::{RegistryError, SourceError};
use crate::union::UnionError;
use crate::unpack::UnpackError;
use crate::volumes::CopyError;
use gantry_kit::durable::{FileError, is_full};

/// Why the image store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A name that is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A name for something that needs a tag, and has a digest.
    #[error("{reference:?} has a digest; a new name may have a tag only")]
    DigestAsName { reference: String },
    /// No image of that name or id is here.
    #[error("no such image: {reference}")]
    NotFound { reference: String },
    /// An id's prefix that is no id's alone.
    #[error("{reference:?} is the beginning of more than one image id; give more of it")]
    Ambiguous { reference: String },
    /// The image has no manifest for the machine.
    #[error("image {reference} is not available for {platform}; it has {}", listed(.available))]
    NoPlatform {
        reference: String,
        platform: String,
        available: Vec<String>,
    },
    /// The image that is here is for another machine.
    #[error("image {reference} is here for {found}, not for {wanted}; pull it for that platform")]
    OtherPlatform {
        reference: String,
        wanted: String,
        found: String,
    },
    /// A manifest or a configuration that contradicts itself.
    #[error("image {reference} is not usable: {reason}")]
    Unusable { reference: String, reason: String },
    /// An image's configuration that is none.
    #[error("the configuration of image {reference} is not usable")]
    Config {
        reference: String,
        #[source]
        source: ManifestError,
    },
    /// A registry did not give or take something.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A layer could not be unpacked.
    #[error("layer {digest} cannot be unpacked")]
    Layer {
        digest: String,
        #[source]
        source: UnpackError,
    },
    /// A layer's bytes are not what its descriptor promises, or could not be kept.
    #[error("layer {digest} is not usable")]
    LayerContent {
        digest: Digest,
        #[source]
        source: ContentError,
    },
    /// A layer of an image is not in the store, though its record says so.
    #[error("a layer of image {reference} is not in the store; pull the image again")]
    LayerMissing {
        reference: String,
        #[source]
        source: ContentError,
    },
    /// The content store refused.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The index refused.
    #[error(transparent)]
    Index(#[from] StoreError),
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The image is needed by a container. The words are Docker's.
    #[error(
        "conflict: unable to {by} container {}{}",
        short(container),
        advice(by)
    )]
    InUse {
        reference: String,
        container: String,
        by: Use,
    },
    /// An id that has several names.
    #[error(
        "conflict: unable to delete {id} (must be forced) - image is referenced in multiple repositories ({})",
        .names.join(", ")
    )]
    SeveralNames { id: String, names: Vec<String> },
    /// Other images were made from it.
    #[error(
        "conflict: unable to delete {id} (cannot be forced) - image has dependent child images ({})",
        .children.join(", ")
    )]
    HasChildren { id: String, children: Vec<String> },
    /// A container's writable layer is there already.
    #[error("container {container} has a writable layer already")]
    SnapshotExists { container: String },
    /// A container without a writable layer.
    #[error("container {container} has no writable layer")]
    SnapshotNotFound { container: String },
    /// What its container uses is not known.
    #[error(
        "the record of the writable layer of container {container} cannot be read, so that it is not known which volumes are in use; remove that container first"
    )]
    DamagedSnapshot { container: String },
    /// Files of a container or an image cannot be read.
    #[error("the files of {of} cannot be read")]
    Files {
        of: String,
        #[source]
        source: UnionError,
    },
    /// Files of a container cannot be in an archive.
    #[error("the files of {of} cannot be archived")]
    Pack {
        of: String,
        #[source]
        source: PackError,
    },
    /// A configuration for a new image that is none.
    #[error("the configuration for the new image is not usable")]
    NewConfig {
        #[source]
        source: serde_json::Error,
    },
    /// No volume of that name is here. The words are Docker's.
    #[error("no such volume: {name}")]
    VolumeNotFound { name: String },
    /// A name that can not be a volume's.
    #[error(
        "{text:?} cannot be the name of a volume (2 to 255 of a-z A-Z 0-9 _ . -, beginning with a letter or a digit); for a directory of the host give its absolute path"
    )]
    VolumeName { text: String },
    /// A volume that containers use.
    #[error(
        "volume {name} is in use by {}; remove {} first",
        listed_containers(containers),
        if containers.len() == 1 { "that container" } else { "these containers" }
    )]
    VolumeInUse {
        name: String,
        containers: Vec<String>,
    },
    /// A volume that is there already, and another one.
    #[error(
        "volume {name} is there already, with other options; remove it first, or choose another name"
    )]
    VolumeExists { name: String },
    /// A driver that there is not.
    #[error("there is no volume driver {driver:?}; there is local")]
    VolumeDriver { driver: String },
    /// Options of a volume that mean nothing.
    #[error("the options of the volume are not usable: {reason}")]
    VolumeOptions { reason: String },
    /// A volume or an image that cannot be mounted where it is wanted.
    #[error("the mount on {target:?} is not usable: {reason}")]
    VolumeMount { target: String, reason: String },
    /// A volume could not be filled from an image.
    #[error("volume {volume} cannot be filled with what the image has")]
    VolumeCopy {
        volume: String,
        #[source]
        source: CopyError,
    },
    /// A field with a value that means nothing.
    #[error("{field} is not usable: {reason}")]
    Field { field: &'static str, reason: String },
    /// An archive to be imported cannot be fetched.
    #[error("cannot fetch {url}")]
    Source {
        url: String,
        #[source]
        source: Box<SourceError>,
    },
    /// A text that can not be the id of a container.
    #[error(
        "{text:?} cannot be the id of a container (1 to 64 of a-z A-Z 0-9 _ . -, beginning with a letter or a digit)"
    )]
    ContainerId { text: String },
    /// A `--change` that is not understood.
    #[error("change {instruction:?} is not usable: {reason}")]
    Change { instruction: String, reason: String },
    /// A stream whose messages come in the wrong order, or a field that must not be empty.
    #[error("{field} is missing")]
    Missing { field: &'static str },
    /// A filter that is not understood.
    #[error("filter {key}={value} is not usable: {reason}")]
    Filter {
        key: String,
        value: String,
        reason: &'static str,
    },
    /// A name with a tag or a digest where all tags are meant.
    #[error("{reference:?} names one image; with all tags, name the repository alone")]
    NotARepository { reference: String },
    /// A layer's packed bytes are not here, and nobody has them.
    #[error(
        "layer {layer} of image {reference} is here unpacked only, and no registry that the image is known to be in has it; pull the image again"
    )]
    PackedMissing { reference: String, layer: Digest },
    /// A blob that an image names for a layer holds something else.
    #[error(
        "blob {blob} does not hold the layer that image {reference} names it for; repair the store (gantry system check --repair), or remove the image and pull or load it again"
    )]
    WrongPacking {
        reference: String,
        blob: String,
        #[source]
        source: UnpackError,
    },
    /// More results than a registry gives.
    #[error("{limit} results cannot be asked for; at most {most} can")]
    SearchLimit { limit: u32, most: u32 },
    /// A stream that should have begun otherwise, or broke.
    #[error("the stream of the archive is not usable: {reason}")]
    Stream { reason: String },
    /// An archive of images is wrong, or cannot be written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Whoever asked is gone.
    #[error("{what} was cancelled")]
    Cancelled { what: String },
    /// A task ended without an answer, which is a mistake of this program.
    #[error("{what} ended unexpectedly")]
    TaskLost { what: &'static str },
}

/// How a container needs an image that is to be removed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Use {
    /// Its last name would go, and a container was made from it.
    Name { name: String, id: String },
    /// A container that does not run was made from it.
    Stopped { id: String },
    /// A container that runs was made from it.
    Running { id: String },
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name { name, .. } => {
                write!(f, "remove repository reference {name:?} (must force) -")
            }
            Self::Stopped { id } => write!(
                f,
                "delete {id} (must be forced) - image is being used by stopped"
            ),
            Self::Running { id } => write!(
                f,
                "delete {id} (cannot be forced) - image is being used by running"
            ),
        }
    }
}

/// An engine's own ids are long, and known by their beginning.
fn short(container: &str) -> &str {
    let is_id = container.len() == 64 && container.bytes().all(|b| b.is_ascii_hexdigit());
    if is_id { &container[..12] } else { container }
}

fn advice(by: &Use) -> String {
    match by {
        Use::Name { id, .. } => format!(" is using its referenced image {id}"),
        Use::Stopped { .. } | Use::Running { .. } => String::new(),
    }
}

/// Containers by what people see of their ids.
fn listed_containers(containers: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<&str> = containers.iter().take(SHOWN).map(|id| short(id)).collect();
    let kind = if containers.len() == 1 {
        "container"
    } else {
        "containers"
    };
    match containers.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        Some(more) => format!("{kind} {} and {more} more", shown.join(", ")),
        None => format!("{kind} {}", shown.join(", ")),
    }
}

fn listed(platforms: &[String]) -> String {
    if platforms.is_empty() {
        "none".to_owned()
    } else {
        platforms.join(", ")
    }
}

impl From<FileError> for ImageError {
    fn from(error: FileError) -> Self {
        let FileError {
            action,
            path,
            source,
        } = error;
        Self::Io {
            action,
            path,
            source,
        }
    }
}

impl ImageError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// Whether the same pull may succeed later, so that what came so far is worth keeping.
    pub(crate) const fn is_transient(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_transient(),
            Self::Cancelled { .. } => true,
            _ => false,
        }
    }

    /// Whether the disk is full.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::Content(source) | Self::LayerContent { source, .. } => source.is_out_of_space(),
            Self::Io { source, .. }
            | Self::Index(StoreError::Access { source } | StoreError::Open { source, .. })
            | Self::Layer {
                source: UnpackError::Write { source, .. },
                ..
            }
            | Self::VolumeCopy {
                source: CopyError::Write { source, .. },
                ..
            } => is_full(source),
            _ => false,
        }
    }
}
