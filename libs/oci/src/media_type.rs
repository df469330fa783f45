//! Media types of the OCI image specification 1.1 and of Docker's image manifest version 2, schema 2.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How the bytes of a layer are packed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Compression {
    /// A plain tar.
    None,
    /// RFC 1952, possibly of several members.
    Gzip,
    /// RFC 8878, possibly of several frames.
    Zstd,
}

impl Compression {
    /// What the first bytes of a stream say. Four bytes are enough; with fewer the answer may be `None`.
    ///
    /// Registries hold layers whose media type is wrong, so unpacking trusts this and not the name.
    #[must_use]
    pub fn detect(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A zstd skippable frame, with which zstd:chunked and seekable files may begin.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

macro_rules! media_types {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A media type; those that mean something to a container engine by name.
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum MediaType {
            $($(#[$doc])* $name,)*
            /// Anything else: attestations, charts, artifacts.
            Other(String),
        }

        impl MediaType {
            /// The text that goes over the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Other(text) => text,
                }
            }
        }

        impl From<&str> for MediaType {
            fn from(text: &str) -> Self {
                match text {
                    $($text => Self::$name,)*
                    other => Self::Other(other.to_owned()),
                }
            }
        }

        #[cfg(test)]
        const KNOWN: &[MediaType] = &[$(MediaType::$name),*];
    };
}

media_types! {
    /// An OCI image manifest.
    OciManifest = "application/vnd.oci.image.manifest.v1+json",
    /// An OCI image index.
    OciIndex = "application/vnd.oci.image.index.v1+json",
    /// An OCI image configuration.
    OciConfig = "application/vnd.oci.image.config.v1+json",
    /// A plain tar layer.
    OciLayer = "application/vnd.oci.image.layer.v1.tar",
    /// A gzip layer.
    OciLayerGzip = "application/vnd.oci.image.layer.v1.tar+gzip",
    /// A zstd layer.
    OciLayerZstd = "application/vnd.oci.image.layer.v1.tar+zstd",
    /// A plain layer that some registries may not hold (deprecated).
    OciForeignLayer = "application/vnd.oci.image.layer.nondistributable.v1.tar",
    /// A gzip layer that some registries may not hold (deprecated).
    OciForeignLayerGzip = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    /// A zstd layer that some registries may not hold (deprecated).
    OciForeignLayerZstd = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    /// The two bytes `{}`, for artifacts without a configuration.
    OciEmpty = "application/vnd.oci.empty.v1+json",
    /// Docker's image manifest, schema 2.
    DockerManifest = "application/vnd.docker.distribution.manifest.v2+json",
    /// Docker's manifest list.
    DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json",
    /// Docker's image configuration.
    DockerConfig = "application/vnd.docker.container.image.v1+json",
    /// Docker's plain layer.
    DockerLayer = "application/vnd.docker.image.rootfs.diff.tar",
    /// Docker's gzip layer, which is what `docker push` sends.
    DockerLayerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip",
    /// Docker's zstd layer, as BuildKit makes it.
    DockerLayerZstd = "application/vnd.docker.image.rootfs.diff.tar.zstd",
    /// Docker's foreign layer: fetched from the URLs in its descriptor.
    DockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar",
    /// Docker's foreign gzip layer.
    DockerForeignLayerGzip = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    /// Docker's manifest, schema 1: recognised in order to be refused by name.
    DockerSchema1 = "application/vnd.docker.distribution.manifest.v1+json",
    /// Docker's signed manifest, schema 1: likewise.
    DockerSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws",
}

impl MediaType {
    /// What a client that wants a manifest accepts, best first: the value of an `Accept` header.
    pub const MANIFEST_ACCEPT: &'static str = "application/vnd.oci.image.index.v1+json, \
        application/vnd.oci.image.manifest.v1+json, \
        application/vnd.docker.distribution.manifest.list.v2+json, \
        application/vnd.docker.distribution.manifest.v2+json";

    /// Reads a `Content-Type` header: parameters are dropped, case does not count.
    #[must_use]
    pub fn from_header(value: &str) -> Self {
        let essence = value.split(';').next().unwrap_or_default().trim();
        Self::from(essence.to_ascii_lowercase().as_str())
    }

    /// Whether this is a list of manifests.
    #[must_use]
    pub const fn is_index(&self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerManifestList)
    }

    /// Whether this is the manifest of one image or artifact.
    #[must_use]
    pub const fn is_manifest(&self) -> bool {
        matches!(self, Self::OciManifest | Self::DockerManifest)
    }

    /// Whether this is Docker's first manifest format, which is not supported.
    #[must_use]
    pub const fn is_schema1(&self) -> bool {
        matches!(self, Self::DockerSchema1 | Self::DockerSchema1Signed)
    }

    /// Whether this is the configuration of a container image.
    #[must_use]
    pub const fn is_image_config(&self) -> bool {
        matches!(self, Self::OciConfig | Self::DockerConfig)
    }

    /// Whether a registry may be without the bytes, which then come from the descriptor's URLs.
    #[must_use]
    pub const fn is_foreign_layer(&self) -> bool {
        matches!(
            self,
            Self::OciForeignLayer
                | Self::OciForeignLayerGzip
                | Self::OciForeignLayerZstd
                | Self::DockerForeignLayer
                | Self::DockerForeignLayerGzip
        )
    }

    /// How a file-system layer of this type is packed; absent when this is no file-system layer.
    #[must_use]
    pub const fn layer_compression(&self) -> Option<Compression> {
        match self {
            Self::OciLayer
            | Self::OciForeignLayer
            | Self::DockerLayer
            | Self::DockerForeignLayer => Some(Compression::None),
            Self::OciLayerGzip
            | Self::OciForeignLayerGzip
            | Self::DockerLayerGzip
            | Self::DockerForeignLayerGzip => Some(Compression::Gzip),
            Self::OciLayerZstd | Self::OciForeignLayerZstd | Self::DockerLayerZstd => {
                Some(Compression::Zstd)
            }
            _ => None,
        }
    }
}

impl From<String> for MediaType {
    fn from(text: String) -> Self {
        match Self::from(text.as_str()) {
            Self::Other(_) => Self::Other(text),
            known => known,
        }
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for MediaType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for MediaType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_type_is_read_back_from_its_text() {
        for known in KNOWN {
            assert_eq!(&MediaType::from(known.as_str()), known);
        }
    }

    #[test]
    fn a_header_is_read_without_parameters_and_case() {
        assert_eq!(
            MediaType::from_header("Application/vnd.OCI.image.index.v1+json; charset=utf-8"),
            MediaType::OciIndex
        );
    }

    #[test]
    fn only_layers_have_a_compression() {
        let gzip = Some(Compression::Gzip);
        assert_eq!(MediaType::DockerLayerGzip.layer_compression(), gzip);
        assert_eq!(
            MediaType::OciLayerZstd.layer_compression(),
            Some(Compression::Zstd)
        );
        assert_eq!(MediaType::OciConfig.layer_compression(), None);
        assert_eq!(MediaType::from("text/plain").layer_compression(), None);
    }

    #[test]
    fn compression_is_seen_in_the_first_bytes() {
        assert_eq!(Compression::detect(&[0x1f, 0x8b, 8, 0]), Compression::Gzip);
        assert_eq!(
            Compression::detect(&[0x28, 0xb5, 0x2f, 0xfd]),
            Compression::Zstd
        );
        assert_eq!(Compression::detect(b"etc/"), Compression::None);
        assert_eq!(Compression::detect(b""), Compression::None);
    }
}
