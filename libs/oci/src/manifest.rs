//! Manifests and indexes, as received: the raw bytes are kept beside what was read from them.
//!
//! A digest names bytes, not a meaning, so a [`Document`] never writes JSON
//! again. Reading is strict where a lie could do harm (media type against
//! content, sizes, digests) and lenient where the world differs
//! (unknown fields and media types, and all that [`crate::lenient`] tells of).

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::lenient::{self, Shape};
use crate::media_type::MediaType;
use crate::platform::Platform;

/// The longest manifest or index, in bytes: the limit that the distribution specification suggests.
pub const MANIFEST_MAX: usize = 4 << 20;

/// Why a manifest, an index or a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Too long to be read.
    #[error("it has {size} bytes, more than the {limit} that are allowed")]
    TooLarge { size: u64, limit: u64 },
    /// Not JSON, or not of the required form.
    #[error("it is not a valid document")]
    Json {
        #[source]
        source: serde_json::Error,
    },
    /// Only version 2 exists for these media types.
    #[error("its schema version is {found}, not 2")]
    SchemaVersion { found: u64 },
    /// Docker's schema 1.
    #[error(
        "it is a Docker schema 1 manifest, which is no longer supported: push the image again with a newer client"
    )]
    Schema1,
    /// Neither a manifest nor an index.
    #[error("its media type {media_type:?} is neither that of a manifest nor that of an index")]
    NotAManifest { media_type: String },
    /// The document says another type than what carried it.
    #[error("it was declared as {declared} and says of itself that it is {found}")]
    MediaType {
        declared: MediaType,
        found: MediaType,
    },
    /// A document that could be read both as a manifest and as an index.
    #[error("it has fields of a manifest and of an index, and could be taken for either")]
    Ambiguous,
    /// The bytes are not those that were asked for.
    #[error("its digest is {found} where {expected} was expected")]
    Digest { expected: Digest, found: Digest },
    /// The number of bytes is not that of the descriptor.
    #[error("it has {found} bytes where {expected} were expected")]
    Size { expected: u64, found: u64 },
    /// The configuration's layers are of a type nobody knows.
    #[error("its rootfs type is {kind:?}, not \"layers\"")]
    RootFsType { kind: String },
    /// Sizes that can not be.
    #[error("the descriptor of {digest} has the impossible size {size}")]
    ImpossibleSize { digest: Digest, size: u64 },
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Names, types and measures some content (image specification, "content descriptors").
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The content's type.
    pub media_type: MediaType,
    /// The content's digest.
    pub digest: Digest,
    /// The content's size in bytes.
    pub size: u64,
    /// Where else the content can be had.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub urls: Vec<String>,
    /// Remarks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// The content itself, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The type of the artifact the content is the manifest of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// In an index: what the content runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// A descriptor with the three fields every one has.
    #[must_use]
    pub const fn new(media_type: MediaType, digest: Digest, size: u64) -> Self {
        Self {
            media_type,
            digest,
            size,
            urls: Vec::new(),
            annotations: None,
            data: None,
            artifact_type: None,
            platform: None,
        }
    }

    /// Describes some bytes.
    #[must_use]
    pub fn of(media_type: MediaType, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::sha256_of(bytes), bytes.len() as u64)
    }

    /// Whether these bytes are what is described.
    pub fn verify(&self, bytes: &[u8]) -> Result<(), ManifestError> {
        if bytes.len() as u64 != self.size {
            return Err(ManifestError::Size {
                expected: self.size,
                found: bytes.len() as u64,
            });
        }
        let found = Digest::of(self.digest.algorithm(), bytes);
        if found != self.digest {
            return Err(ManifestError::Digest {
                expected: self.digest.clone(),
                found,
            });
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ManifestError> {
        if i64::try_from(self.size).is_err() {
            return Err(ManifestError::ImpossibleSize {
                digest: self.digest.clone(),
                size: self.size,
            });
        }
        Ok(())
    }
}

/// The manifest of one image or artifact; OCI's and Docker's have the same fields.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u64,
    /// The document's own type; OCI allows it to be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// What kind of artifact this is, when it is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, the lowest first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub layers: Vec<Descriptor>,
    /// The manifest this one is about: a signature's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Remarks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// A list of manifests; OCI's and Docker's have the same fields.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u64,
    /// The document's own type; OCI allows it to be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// What kind of artifact this is, when it is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifests.
    #[serde(default, deserialize_with = "null_is_default")]
    pub manifests: Vec<Descriptor>,
    /// The manifest this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Remarks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Index {
    /// The manifest that suits a platform best.
    #[must_use]
    pub fn choose(&self, wanted: &Platform) -> Option<&Descriptor> {
        wanted
            .choose(self.manifests.iter().map(|entry| entry.platform.as_ref()))
            .and_then(|position| self.manifests.get(position))
    }
}

/// One of the two.
#[derive(Clone, Debug, PartialEq)]
pub enum DocumentKind {
    /// The manifest of one image or artifact.
    Manifest(Box<Manifest>),
    /// A list of manifests.
    Index(Box<Index>),
}

/// A manifest or an index with the bytes it came in.
#[derive(Clone, Debug)]
pub struct Document {
    raw: Bytes,
    digest: Digest,
    media_type: MediaType,
    kind: DocumentKind,
}

const ANNOTATIONS: Shape = Shape::Map(&Shape::Text);
const PLATFORM: Shape = Shape::Record(&[
    ("architecture", &Shape::Text),
    ("os", &Shape::Text),
    ("variant", &Shape::Text),
    ("os.version", &Shape::Text),
    ("os.features", &Shape::Texts),
]);
const DESCRIPTOR: Shape = Shape::Record(&[
    ("mediaType", &Shape::Text),
    ("digest", &Shape::Text),
    ("size", &Shape::Any),
    ("urls", &Shape::Texts),
    ("annotations", &ANNOTATIONS),
    ("data", &Shape::Text),
    ("artifactType", &Shape::Text),
    ("platform", &PLATFORM),
]);
/// Both kinds of documents, and what tells an old one.
const DOCUMENT: Shape = Shape::Record(&[
    ("schemaVersion", &Shape::Any),
    ("mediaType", &Shape::Text),
    ("artifactType", &Shape::Text),
    ("config", &DESCRIPTOR),
    ("layers", &Shape::List(&DESCRIPTOR)),
    ("manifests", &Shape::List(&DESCRIPTOR)),
    ("subject", &DESCRIPTOR),
    ("annotations", &ANNOTATIONS),
    ("fsLayers", &Shape::Any),
]);

/// The fields that tell what a document is, before it is read as that.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<MediaType>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a document. `declared` is the type given by what carried it (a header, a descriptor);
    /// types that say nothing, such as `application/json`, count as absent.
    pub fn parse(
        raw: impl Into<Bytes>,
        declared: Option<&MediaType>,
    ) -> Result<Self, ManifestError> {
        let raw = raw.into();
        if raw.len() > MANIFEST_MAX {
            return Err(ManifestError::TooLarge {
                size: raw.len() as u64,
                limit: MANIFEST_MAX as u64,
            });
        }
        let json = |source| ManifestError::Json { source };
        let outline: Outline = lenient::read(&raw, &DOCUMENT).map_err(json)?;
        let media_type = outline.media_type(declared)?;
        let kind = if media_type.is_index() {
            DocumentKind::Index(Box::new(lenient::read(&raw, &DOCUMENT).map_err(json)?))
        } else {
            DocumentKind::Manifest(Box::new(lenient::read(&raw, &DOCUMENT).map_err(json)?))
        };
        let document = Self {
            digest: Digest::sha256_of(&raw),
            raw,
            media_type,
            kind,
        };
        for descriptor in document.descriptors().chain(document.subject()) {
            descriptor.check()?;
        }
        Ok(document)
    }

    /// Reads a document that must have a certain digest and, where known, a certain size.
    pub fn parse_verified(
        raw: impl Into<Bytes>,
        declared: Option<&MediaType>,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<Self, ManifestError> {
        let raw = raw.into();
        if let Some(expected) = size
            && expected != raw.len() as u64
        {
            return Err(ManifestError::Size {
                expected,
                found: raw.len() as u64,
            });
        }
        let found = Digest::of(digest.algorithm(), &raw);
        if found != *digest {
            return Err(ManifestError::Digest {
                expected: digest.clone(),
                found,
            });
        }
        let mut document = Self::parse(raw, declared)?;
        document.digest = found;
        Ok(document)
    }

    /// The bytes as received.
    #[must_use]
    pub const fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The digest of the bytes: SHA-256, unless another was asked for.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The type of the document; never [`MediaType::Other`].
    #[must_use]
    pub const fn media_type(&self) -> &MediaType {
        &self.media_type
    }

    /// What was read.
    #[must_use]
    pub const fn kind(&self) -> &DocumentKind {
        &self.kind
    }

    /// What was read, without the bytes.
    #[must_use]
    pub fn into_kind(self) -> DocumentKind {
        self.kind
    }

    /// A descriptor of this document.
    #[must_use]
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(
            self.media_type.clone(),
            self.digest.clone(),
            self.raw.len() as u64,
        )
    }

    /// Everything it is made of: configuration and layers, or manifests. Not its subject.
    pub fn descriptors(&self) -> impl Iterator<Item = &Descriptor> {
        let (config, list) = match &self.kind {
            DocumentKind::Manifest(manifest) => (Some(&manifest.config), &manifest.layers),
            DocumentKind::Index(index) => (None, &index.manifests),
        };
        config.into_iter().chain(list)
    }

    /// What it is about.
    #[must_use]
    pub const fn subject(&self) -> Option<&Descriptor> {
        match &self.kind {
            DocumentKind::Manifest(manifest) => manifest.subject.as_ref(),
            DocumentKind::Index(index) => index.subject.as_ref(),
        }
    }

    /// Its annotations.
    #[must_use]
    pub const fn annotations(&self) -> Option<&BTreeMap<String, String>> {
        match &self.kind {
            DocumentKind::Manifest(manifest) => manifest.annotations.as_ref(),
            DocumentKind::Index(index) => index.annotations.as_ref(),
        }
    }

    /// The artifact's type as a list of referrers shows it: its own, else its configuration's media type.
    #[must_use]
    pub fn artifact_type(&self) -> Option<&str> {
        match &self.kind {
            DocumentKind::Manifest(manifest) => Some(
                manifest
                    .artifact_type
                    .as_deref()
                    .filter(|text| !text.is_empty())
                    .unwrap_or_else(|| manifest.config.media_type.as_str()),
            ),
            DocumentKind::Index(index) => index
                .artifact_type
                .as_deref()
                .filter(|text| !text.is_empty()),
        }
    }
}

impl Outline {
    fn media_type(&self, declared: Option<&MediaType>) -> Result<MediaType, ManifestError> {
        let declared = declared.filter(|declared| match declared {
            MediaType::Other(text) => !matches!(
                text.as_str(),
                "" | "application/json" | "application/octet-stream" | "text/plain"
            ),
            _ => true,
        });
        let media_type = match (declared, &self.media_type) {
            (Some(declared), Some(found)) if declared != found => {
                return Err(ManifestError::MediaType {
                    declared: declared.clone(),
                    found: found.clone(),
                });
            }
            (Some(known), _) | (None, Some(known)) => known.clone(),
            (None, None) if self.fs_layers.is_some() || self.schema_version == Some(1) => {
                return Err(ManifestError::Schema1);
            }
            (None, None) if self.manifests.is_some() => MediaType::OciIndex,
            (None, None) => MediaType::OciManifest,
        };
        if media_type.is_schema1() {
            return Err(ManifestError::Schema1);
        }
        if !media_type.is_index() && !media_type.is_manifest() {
            return Err(ManifestError::NotAManifest {
                media_type: crate::digest::shorten(media_type.as_str()),
            });
        }
        if self.schema_version != Some(2) {
            return Err(ManifestError::SchemaVersion {
                found: self.schema_version.unwrap_or(0),
            });
        }
        let foreign = if media_type.is_index() {
            self.config.is_some() || self.layers.is_some()
        } else {
            self.manifests.is_some()
        };
        if foreign {
            return Err(ManifestError::Ambiguous);
        }
        Ok(media_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(extra: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{D}","size":0}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{D}","size":7}}]{extra}}}"#
        )
    }

    #[test]
    fn a_manifest_that_only_go_would_read_is_read_the_same() {
        let text = format!(
            r#"{{"SchemaVersion":1,"schemaVersion":2,"Config":{{"MediaType":"application/vnd.oci.image.config.v1+json","digest":"{D}","size":0,"platform":null}},"LAYERS":[{{"mediatype":"application/vnd.oci.image.layer.v1.tar+gzip","Digest":"{D}","Size":7,"urls":null,"annotations":{{"A":null,"a":"1"}}}}],"annotations":null,"mediaType":null,"subject":null}}"#
        );
        let document = Document::parse(text.clone(), None).unwrap();
        assert_eq!(document.raw(), text.as_bytes());
        assert_eq!(document.media_type(), &MediaType::OciManifest);
        let DocumentKind::Manifest(parts) = document.kind() else {
            panic!("{document:?}");
        };
        assert_eq!(parts.layers[0].size, 7);
        let annotations = parts.layers[0].annotations.as_ref().unwrap();
        assert_eq!(
            (annotations["A"].as_str(), annotations["a"].as_str()),
            ("", "1")
        );
        let text = format!(
            r#"{{"schemaVersion":2,"Manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{D}","size":7,"Platform":{{"Architecture":"amd64","OS":"linux","variant":null}}}}]}}"#
        );
        let document = Document::parse(text, None).unwrap();
        assert_eq!(document.media_type(), &MediaType::OciIndex);
        let platform = document.descriptors().next().unwrap().platform.clone();
        assert_eq!(platform.unwrap().to_string(), "linux/amd64");
        // Who spells it otherwise cannot hide it.
        let error = Document::parse(manifest(r#","MANIFESTS":[]"#), None);
        assert!(matches!(error, Err(ManifestError::Ambiguous)));
    }

    #[test]
    fn a_manifest_keeps_its_bytes_and_names_its_parts() {
        let text = manifest(r#","x":1"#);
        let document = Document::parse(text.clone(), Some(&MediaType::OciManifest)).unwrap();
        assert_eq!(document.raw(), text.as_bytes());
        assert_eq!(document.digest(), &Digest::sha256_of(text.as_bytes()));
        let sizes: Vec<u64> = document.descriptors().map(|d| d.size).collect();
        assert_eq!(sizes, [0, 7]);
        assert_eq!(
            document.artifact_type(),
            Some("application/vnd.oci.image.config.v1+json")
        );
    }

    #[test]
    fn an_index_is_known_by_its_fields_when_nothing_declares_it() {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{D}","size":1,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}}]}}"#
        );
        let json = MediaType::from("application/json");
        let document = Document::parse(text, Some(&json)).unwrap();
        assert_eq!(document.media_type(), &MediaType::OciIndex);
        let DocumentKind::Index(index) = document.kind() else {
            panic!("not an index");
        };
        assert!(index.choose(&"linux/arm64".parse().unwrap()).is_some());
        assert!(index.choose(&"linux/amd64".parse().unwrap()).is_none());
    }

    #[test]
    fn documents_that_lie_are_refused() {
        let parse = |text: &str, declared: Option<MediaType>| {
            Document::parse(text.to_owned(), declared.as_ref()).unwrap_err()
        };
        let error = parse(&manifest(""), Some(MediaType::OciIndex));
        assert!(matches!(error, ManifestError::Ambiguous));
        let error = parse(
            &manifest(r#","mediaType":"application/vnd.oci.image.manifest.v1+json""#),
            Some(MediaType::DockerManifest),
        );
        assert!(matches!(error, ManifestError::MediaType { .. }));
        let error = parse(&manifest(r#","manifests":[]"#), None);
        assert!(matches!(error, ManifestError::Ambiguous));
        assert!(matches!(parse("{", None), ManifestError::Json { .. }));
        assert!(matches!(
            parse("{}", None),
            ManifestError::SchemaVersion { .. }
        ));
        let error = parse(r#"{"schemaVersion":1,"fsLayers":[]}"#, None);
        assert!(matches!(error, ManifestError::Schema1));
        let negative = manifest("").replace(":7", ":-7");
        assert!(matches!(parse(&negative, None), ManifestError::Json { .. }));
        let huge = manifest("").replace(":7", ":18446744073709551615");
        assert!(matches!(
            parse(&huge, None),
            ManifestError::ImpossibleSize { .. }
        ));
        let error = parse(&manifest(""), Some("application/vnd.other+json".into()));
        assert!(matches!(error, ManifestError::NotAManifest { .. }));
    }

    #[test]
    fn a_document_with_another_digest_or_size_than_asked_for_is_refused() {
        let text = manifest("");
        let (digest, size) = (Digest::sha256_of(text.as_bytes()), text.len() as u64);
        let read = |digest: &Digest, size| {
            Document::parse_verified(text.clone(), None, digest, Some(size))
        };
        assert!(read(&digest, size).is_ok());
        assert!(matches!(
            read(&digest, size + 1),
            Err(ManifestError::Size { .. })
        ));
        let other: Digest = D.parse().unwrap();
        assert!(matches!(
            read(&other, size),
            Err(ManifestError::Digest { .. })
        ));
        let long = Digest::of(crate::Algorithm::Sha512, text.as_bytes());
        assert_eq!(read(&long, size).unwrap().digest(), &long);
    }
}
