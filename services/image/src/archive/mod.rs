//! Images in tar archives: `save` and `load`.
//!
//! **What save writes** is a Docker archive and an OCI image layout in one tar,
//! so that whoever knows either reads it:
//!
//! ```text
//! oci-layout  index.json        the OCI layout's marker and its images
//! manifest.json  repositories   the same images as Docker lists them
//! blobs/<algorithm>/<hex>       manifests, configurations, layers: each once
//! ```
//!
//! Layers go in as they are in the store. Docker inflates gzip by itself, but
//! before 23 not zstd: of a zstd layer there is also a plain tar, which only
//! `manifest.json` names. The same images give the same bytes.
//!
//! **What load reads** is either of the two, as anybody writes them ([`docker`],
//! [`layout`]), plain or packed, its entries in any order. The list of images
//! may come last (Docker's own archives have it so), and nothing is read twice:
//!
//! ```text
//! pieces ─▶ thread: inflate ─▶ thread: headers, hash, write ─▶ ingest ─▶ threads: inflate, hash, make files
//! ```
//!
//! [`intake`] takes the entries in. Small ones stay in memory, up to a limit;
//! each other one becomes content without a name, and is at the same time
//! unpacked when it looks like a layer ([`ahead`]). Then the lists say what was
//! an image ([`plan`]), and [`load`] names and records those, one after the
//! other; whatever else there was goes.
//!
//! **On the disk** nothing of an image is named before it is whole and
//! verified. What a killed process was about to name is written down first
//! ([`intent`]), and undone at the next start.

mod ahead;
mod docker;
mod entries;
mod error;
mod intake;
mod intent;
mod layout;
mod load;
mod plan;
mod save;
mod write;

pub use error::ArchiveError;
pub use load::{LoadOptions, Loaded};
pub use save::Saving;
pub use write::Gone;

/// The two lists of images, and what marks an OCI layout.
const DOCKER_LIST: &str = "manifest.json";
const DOCKER_NAMES: &str = "repositories";
const LAYOUT_LIST: &str = "index.json";
const LAYOUT_MARK: &str = "oci-layout";
/// An image's whole name, in the annotations of a layout's list.
const NAME_ANNOTATION: &str = "io.containerd.image.name";
/// What the image specification gives for a name: by its writers a tag or a whole name.
const REF_NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";
