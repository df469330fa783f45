//! The OCI vocabulary that the image service and the registry share.
//!
//! Two halves. The first is words: [`Digest`], [`Reference`], [`MediaType`],
//! [`Manifest`], [`Index`], [`Platform`] and [`ImageConfig`]. Each can only be
//! made valid, so that code which holds one never checks it again. The second
//! is [`content::Store`], the content-addressed files on disk.
//!
//! Nothing here knows of HTTP, gRPC or an async runtime. What touches the disk
//! blocks and says so; an async caller wraps it in `spawn_blocking`.
#![forbid(unsafe_code)]

pub mod config;
pub mod content;
pub mod digest;
pub mod lenient;
pub mod manifest;
pub mod media_type;
pub mod name;
pub mod platform;
pub mod reference;

pub use config::{ContainerConfig, Healthcheck, History, ImageConfig, RootFs};
pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use manifest::{Descriptor, Document, DocumentKind, Index, Manifest, ManifestError};
pub use media_type::{Compression, MediaType};
pub use name::{NameError, RepositoryName, Tag, TagError};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
