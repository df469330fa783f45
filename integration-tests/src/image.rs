//! Makes images: blobs, manifests and indexes, as bytes in memory, for the
//! tests to push into a registry, or to serve altered.

use std::io::Write;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::tar::{Member, archive};

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Which media types the manifest uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Oci,
    /// Docker's "schema 2".
    Docker,
}

/// A piece of content with its name.
#[derive(Clone, Debug)]
pub struct Blob {
    pub digest: String,
    pub media_type: String,
    pub bytes: Vec<u8>,
}

impl Blob {
    #[must_use]
    pub fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        Self {
            digest: digest(&bytes),
            media_type: media_type.to_owned(),
            bytes,
        }
    }

    #[must_use]
    pub fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// An image: what its manifest names, and the manifest itself.
#[derive(Clone, Debug)]
pub struct Image {
    pub blobs: Vec<Blob>,
    pub manifest: Blob,
}

#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// An image in the making.
#[derive(Clone, Debug)]
pub struct Builder {
    dialect: Dialect,
    layers: Vec<(Vec<u8>, Packing)>,
    config: Value,
    platform: (String, String),
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            dialect: Dialect::Oci,
            layers: Vec::new(),
            config: json!({}),
            platform: ("linux".to_owned(), host_architecture().to_owned()),
        }
    }
}

impl Builder {
    #[must_use]
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// A gzip layer of `members`.
    #[must_use]
    pub fn layer(self, members: &[Member]) -> Self {
        self.packed_layer(archive(members), Packing::Gzip)
    }

    /// A layer of a finished archive.
    #[must_use]
    pub fn packed_layer(mut self, tar: Vec<u8>, packing: Packing) -> Self {
        self.layers.push((tar, packing));
        self
    }

    /// Sets a key of the image configuration's "config" ("Cmd", "Env", …).
    #[must_use]
    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    #[must_use]
    pub fn command(self, words: &[&str]) -> Self {
        self.set("Cmd", json!(words))
    }

    #[must_use]
    pub fn entrypoint(self, words: &[&str]) -> Self {
        self.set("Entrypoint", json!(words))
    }

    #[must_use]
    pub fn architecture(mut self, architecture: &str) -> Self {
        architecture.clone_into(&mut self.platform.1);
        self
    }

    /// # Errors
    /// A layer cannot be packed.
    pub fn build(self) -> std::io::Result<Image> {
        let mut layers = Vec::new();
        for (tar, packing) in &self.layers {
            layers.push(Blob::new(
                layer_type(self.dialect, *packing),
                pack(tar, *packing)?,
            ));
        }
        let diff_ids: Vec<String> = self.layers.iter().map(|(tar, _)| digest(tar)).collect();
        let config = json!({
            "architecture": self.platform.1,
            "os": self.platform.0,
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": diff_ids.iter().map(|_| json!({ "created_by": "gantry's tests" })).collect::<Vec<_>>(),
        });
        let (config_type, manifest_type) = match self.dialect {
            Dialect::Oci => (
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.manifest.v1+json",
            ),
            Dialect::Docker => (
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.distribution.manifest.v2+json",
            ),
        };
        let config = Blob::new(config_type, serde_json::to_vec(&config)?);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": config.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        let manifest = Blob::new(manifest_type, serde_json::to_vec(&manifest)?);
        layers.push(config);
        Ok(Image {
            blobs: layers,
            manifest,
        })
    }
}

/// An index over images for several platforms: (os, architecture, image).
#[must_use]
pub fn index(entries: &[(&str, &str, &Image)]) -> Blob {
    let manifests: Vec<Value> = entries
        .iter()
        .map(|(os, architecture, image)| {
            let mut descriptor = image.manifest.descriptor();
            descriptor["platform"] = json!({ "os": os, "architecture": architecture });
            descriptor
        })
        .collect();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
    Blob::new(media_type, index.to_string().into_bytes())
}

/// The architecture of this machine, as an image names it.
#[must_use]
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// # Errors
/// The compressor fails.
pub fn pack(tar: &[u8], packing: Packing) -> std::io::Result<Vec<u8>> {
    match packing {
        Packing::Plain => Ok(tar.to_owned()),
        Packing::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(tar)?;
            encoder.finish()
        }
        Packing::Zstd => zstd::encode_all(tar, 3),
    }
}

fn layer_type(dialect: Dialect, packing: Packing) -> &'static str {
    match (dialect, packing) {
        (Dialect::Oci, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
        (Dialect::Oci, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (Dialect::Oci, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        (Dialect::Docker, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
        (Dialect::Docker, Packing::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        (Dialect::Docker, Packing::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
}
