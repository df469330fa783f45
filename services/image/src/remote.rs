//! What a reference stands for in its registry: from a name to a manifest and a configuration that fit together.

use bytes::Bytes;
use gantry_oci::config::CONFIG_MAX;
use gantry_oci::manifest::MANIFEST_MAX;
use gantry_oci::{
    Descriptor, Digest, Document, DocumentKind, ImageConfig, Index, Manifest, Platform, Reference,
    Tag,
};

use crate::ImageStore;
use crate::error::ImageError;
use crate::pull::{PullOptions, parse_config};
use crate::registry_client::{RegistryError, Repository};

/// What a reference stands for.
pub(crate) struct Resolved {
    /// Where it was found; the other sources are asked for what this one has not.
    pub(crate) sources: Vec<Repository>,
    pub(crate) index: Option<Document>,
    pub(crate) manifest: Document,
    pub(crate) parts: Manifest,
    pub(crate) config: ImageConfig,
    pub(crate) config_raw: Bytes,
    pub(crate) config_bytes: u64,
}

impl Resolved {
    pub(crate) fn digest(&self) -> &Digest {
        self.index.as_ref().unwrap_or(&self.manifest).digest()
    }
}

impl ImageStore {
    /// Asks the registry, and its mirrors first, what a reference stands for.
    pub(crate) async fn resolve_remote(
        &self,
        reference: &Reference,
        options: &PullOptions,
    ) -> Result<Resolved, ImageError> {
        let mut sources = self
            .shared
            .client
            .sources(reference, options.credentials.clone())
            .await?;
        let (mut last, mut asked) = (None, Vec::new());
        for position in 0..sources.len() {
            if reference.digest().is_none() && !sources[position].resolves_tags() {
                continue;
            }
            match self
                .resolve_at(&sources[position], reference, options)
                .await
            {
                Ok(mut resolved) => {
                    // Those that were asked in vain are asked for layers last.
                    let answered = sources.split_off(position);
                    let (silent, unasked): (Vec<_>, Vec<_>) = sources
                        .into_iter()
                        .partition(|source| asked.contains(&source.host().to_owned()));
                    let all = unasked.into_iter().chain(answered).chain(silent);
                    resolved.sources = all.filter(Repository::gives_content).collect();
                    return Ok(resolved);
                }
                Err(error) => {
                    let text = gantry_kit::fault::chain(&error);
                    let host = sources[position].host();
                    let refused = matches!(
                        error,
                        ImageError::Registry(
                            RegistryError::InClear { .. } | RegistryError::Downgrade { .. }
                        )
                    );
                    if refused && position + 1 < sources.len() {
                        // Without this line nobody learns that the mirror is not used.
                        tracing::warn!(host, error = text, "the mirror is passed over");
                    } else {
                        tracing::debug!(host, error = text, "no answer to use");
                    }
                    asked.push(sources[position].host().to_owned());
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| nobody_knows(reference)))
    }

    /// The tags of a repository, from the first that knows them.
    pub(crate) async fn remote_tags(
        &self,
        repository: &Reference,
        options: &PullOptions,
    ) -> Result<Vec<Tag>, ImageError> {
        let client = &self.shared.client;
        let sources = client
            .sources(repository, options.credentials.clone())
            .await?;
        let mut last = None;
        for source in sources.iter().filter(|source| source.resolves_tags()) {
            match source.tags().await {
                Ok(tags) => return Ok(tags),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| nobody_knows(repository), ImageError::from))
    }

    async fn resolve_at(
        &self,
        source: &Repository,
        reference: &Reference,
        options: &PullOptions,
    ) -> Result<Resolved, ImageError> {
        let name = reference.familiar();
        let what = format!("image {name}");
        let top = source
            .manifest(reference.manifest_reference(), &what)
            .await?;
        let wanted = options.platform.clone().unwrap_or_else(Platform::host);
        let (index, manifest) = match top.kind() {
            DocumentKind::Manifest(_) => (None, top),
            DocumentKind::Index(index) => {
                let chosen = choose(index, &wanted, &name)?;
                let manifest = self.manifest_of(source, chosen, &what).await?;
                (Some(top), manifest)
            }
        };
        let DocumentKind::Manifest(parts) = manifest.kind().clone() else {
            return Err(ImageError::Unusable {
                reference: name,
                reason: "an index of its index is not supported".into(),
            });
        };
        if !parts.config.media_type.is_image_config() {
            let kind = parts.config.media_type.clone();
            return Err(RegistryError::NotAnImage { what, kind }.into());
        }
        let (config_raw, config_bytes) = self.config_of(source, &parts.config).await?;
        let config = parse_config(&config_raw, &name)?;
        check_parts(&parts, &config, &name)?;
        if options.platform.is_some()
            && index.is_none()
            && wanted.distance(&config.platform()).is_none()
        {
            return Err(ImageError::NoPlatform {
                reference: name,
                platform: wanted.to_string(),
                available: vec![config.platform().to_string()],
            });
        }
        Ok(Resolved {
            sources: Vec::new(),
            index,
            manifest,
            parts: *parts,
            config,
            config_raw,
            config_bytes,
        })
    }

    /// A manifest that an index names: from the store if it is there.
    async fn manifest_of(
        &self,
        source: &Repository,
        chosen: &Descriptor,
        what: &str,
    ) -> Result<Document, ImageError> {
        let kept = self
            .shared
            .content
            .read(&chosen.digest, MANIFEST_MAX as u64);
        if let Ok(raw) = kept
            && let Ok(document) = Document::parse_verified(
                raw,
                Some(&chosen.media_type),
                &chosen.digest,
                Some(chosen.size),
            )
        {
            return Ok(document);
        }
        let document = source.manifest(chosen.digest.as_str(), what).await?;
        let found = document.raw().len() as u64;
        if found != chosen.size {
            return Err(RegistryError::Size {
                host: source.host().to_owned(),
                what: what.to_owned(),
                expected: chosen.size,
                found,
            }
            .into());
        }
        Ok(document)
    }

    /// A configuration, from the store if it is there, and the bytes it took to get it.
    async fn config_of(
        &self,
        source: &Repository,
        descriptor: &Descriptor,
    ) -> Result<(Bytes, u64), ImageError> {
        if let Ok(raw) = self
            .shared
            .content
            .read(&descriptor.digest, CONFIG_MAX as u64)
            && descriptor.verify(&raw).is_ok()
        {
            return Ok((raw.into(), 0));
        }
        let raw = source.small_blob(descriptor, CONFIG_MAX).await?;
        let size = raw.len() as u64;
        Ok((raw, size))
    }
}

fn nobody_knows(reference: &Reference) -> ImageError {
    ImageError::NotFound {
        reference: reference.familiar(),
    }
}

fn choose<'a>(
    index: &'a Index,
    wanted: &Platform,
    name: &str,
) -> Result<&'a Descriptor, ImageError> {
    index.choose(wanted).ok_or_else(|| ImageError::NoPlatform {
        reference: name.to_owned(),
        platform: wanted.to_string(),
        available: index
            .manifests
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            // Attestations stand in an index as "unknown/unknown".
            .filter(|platform| platform.os != "unknown")
            .map(ToString::to_string)
            .collect(),
    })
}

/// What manifest and configuration say must fit together.
pub(crate) fn check_parts(
    parts: &Manifest,
    config: &ImageConfig,
    name: &str,
) -> Result<(), ImageError> {
    let unusable = |reason: String| ImageError::Unusable {
        reference: name.to_owned(),
        reason,
    };
    let (layers, diff_ids) = (parts.layers.len(), config.rootfs.diff_ids.len());
    if layers != diff_ids {
        return Err(unusable(format!(
            "its manifest has {layers} layers, its configuration {diff_ids}"
        )));
    }
    for layer in &parts.layers {
        if layer.media_type.layer_compression().is_none() {
            return Err(unusable(format!(
                "its layer {} is of the unknown type {}",
                layer.digest, layer.media_type
            )));
        }
    }
    Ok(())
}
