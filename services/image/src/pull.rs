//! Fetching an image: what its name stands for, its layers side by side, and the record at the end.
//!
//! Nothing of the image can be seen before it is whole, verified and on the
//! disk. A pull that fails for what the image is leaves nothing; one that fails
//! for what the network did leaves the packed bytes that came, for the next try.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use gantry_oci::config::CONFIG_MAX;
use gantry_oci::content::Commit;
use gantry_oci::manifest::MANIFEST_MAX;
use gantry_oci::{
    Descriptor, Digest, Document, DocumentKind, ImageConfig, Index, Manifest, Platform, Reference,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ImageStore;
use crate::error::ImageError;
use crate::fetch::{Chain, LayerJob};
use crate::garbage::Candidates;
use crate::image::{Image, ImageRecord, LayerRecord};
use crate::layers::Layer;
use crate::registry_client::{Credentials, RegistryError, Repository};

/// Packed bytes from which on a pull is written to the disk while it runs.
const FLOW_FROM: u64 = 32 << 20;

/// What a pull or a push tells while it runs.
#[derive(Clone, Debug)]
pub enum Event {
    /// What the reference stands for.
    Resolved {
        reference: Reference,
        digest: Digest,
        layers: Vec<Descriptor>,
    },
    /// One layer moved on.
    Layer {
        digest: Digest,
        state: LayerState,
        /// Bytes of `total`.
        current: u64,
        total: u64,
    },
}

/// Where a layer is on its way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LayerState {
    Waiting,
    Downloading,
    Unpacking,
    Complete,
    Exists,
    Mounted,
    Uploading,
}

/// Where events go. Called from any thread; must not block.
pub type Watcher = Arc<dyn Fn(Event) + Send + Sync>;

/// What to pull.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// Which platform of an index. Absent: this machine's.
    pub platform: Option<Platform>,
    /// Absent: those of the configuration.
    pub credentials: Option<Credentials>,
    /// Cancelled when nobody wants the image any more.
    pub cancel: CancellationToken,
}

/// A pull that succeeded.
#[derive(Clone, Debug)]
pub struct Pulled {
    pub image: Arc<Image>,
    /// The digest of what the reference stands for: an index's, where there is one.
    pub digest: Digest,
    /// False: the reference stood for this image before.
    pub updated: bool,
    /// Bytes that came over the wire for layers and configuration.
    pub bytes: u64,
}

/// What a reference stands for.
struct Resolved {
    /// Where it was found; the other sources are asked for what this one has not.
    sources: Vec<Repository>,
    index: Option<Document>,
    manifest: Document,
    parts: Manifest,
    config: ImageConfig,
    config_raw: Bytes,
    config_bytes: u64,
}

impl Resolved {
    fn digest(&self) -> &Digest {
        self.index.as_ref().unwrap_or(&self.manifest).digest()
    }
}

/// Reads a configuration; `reference` is whose it is.
pub(crate) fn parse_config(raw: &[u8], reference: &str) -> Result<ImageConfig, ImageError> {
    ImageConfig::parse(raw).map_err(|source| ImageError::Config {
        reference: reference.to_owned(),
        source,
    })
}

/// Runs something that blocks, away from the threads that must not.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ImageError::TaskLost { what })?
}

impl ImageStore {
    /// Fetches an image and gives it the reference as a name.
    pub async fn pull(
        &self,
        reference: &str,
        options: &PullOptions,
        watcher: Watcher,
    ) -> Result<Pulled, ImageError> {
        let reference = reference.parse::<Reference>()?.with_default_tag();
        let resolving = self.resolve_remote(&reference, options);
        let resolved = tokio::select! {
            resolved = resolving => resolved?,
            () = options.cancel.cancelled() => return Err(cancelled(&reference)),
        };
        let names: Vec<String> = resolved
            .manifest
            .descriptors()
            .map(|part| part.digest.to_string())
            .chain([resolved.manifest.digest(), resolved.digest()].map(ToString::to_string))
            .chain(
                resolved
                    .config
                    .rootfs
                    .diff_ids
                    .iter()
                    .map(|id| id.hex().to_owned()),
            )
            .chain(
                resolved
                    .config
                    .chain_ids()
                    .iter()
                    .map(|id| id.hex().to_owned()),
            )
            .collect();
        let lease = self.lease(names);
        watcher(Event::Resolved {
            reference: reference.clone(),
            digest: resolved.digest().clone(),
            layers: resolved.parts.layers.clone(),
        });
        let bytes = Arc::new(AtomicU64::new(resolved.config_bytes));
        let resolved = Arc::new(resolved);
        let pulled = match self.pull_layers(&resolved, options, &watcher, &bytes).await {
            Ok(layers) => {
                self.finish_pull(&reference, &resolved, layers, &bytes)
                    .await
            }
            Err(error) => Err(error),
        };
        drop(lease);
        if let Err(error) = &pulled {
            let keep_packed = error.is_transient();
            let store = self.clone();
            blocking("removing what a failed pull left", move || {
                store.clean_up(&resolved, keep_packed)
            })
            .await?;
        }
        pulled
    }

    /// Asks the registry, and its mirrors first, what a reference stands for.
    async fn resolve_remote(
        &self,
        reference: &Reference,
        options: &PullOptions,
    ) -> Result<Resolved, ImageError> {
        let mut sources = self
            .shared
            .client
            .sources(reference, options.credentials.clone())?;
        let mut last = None;
        for position in 0..sources.len() {
            match self
                .resolve_at(&sources[position], reference, options)
                .await
            {
                Ok(mut resolved) => {
                    sources.rotate_left(position);
                    resolved.sources = sources;
                    return Ok(resolved);
                }
                Err(error) => {
                    let text = gantry_kit::fault::chain(&error);
                    tracing::debug!(
                        host = sources[position].host(),
                        error = text,
                        "no answer to use"
                    );
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or(ImageError::NotFound {
            reference: reference.familiar(),
        }))
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

    /// Gets all layers, some at a time, the lowest first. Returns when every
    /// task has ended, so that nothing is still written when an error is reported.
    async fn pull_layers(
        &self,
        resolved: &Arc<Resolved>,
        options: &PullOptions,
        watcher: &Watcher,
        bytes: &Arc<AtomicU64>,
    ) -> Result<Vec<Layer>, ImageError> {
        let count = resolved.parts.layers.len();
        let slots = Arc::new(Semaphore::new(self.shared.config.parallel_layers.max(1)));
        let cancel = options.cancel.child_token();
        let chain = Arc::new(Chain::new(count));
        let sources = Arc::new(resolved.sources.clone());
        let chain_ids = resolved.config.chain_ids();
        let packed: u64 = resolved.parts.layers.iter().map(|layer| layer.size).sum();
        let _flow = (packed > FLOW_FROM).then(|| self.shared.syncer.flow());
        let mut tasks = JoinSet::new();
        for (position, descriptor) in resolved.parts.layers.iter().enumerate() {
            // In this order: a layer that waits for one below must not hold the place that one needs.
            let slot = tokio::select! {
                slot = Arc::clone(&slots).acquire_owned() => slot.ok(),
                () = cancel.cancelled() => break,
            };
            let job = LayerJob {
                store: self.clone(),
                sources: Arc::clone(&sources),
                descriptor: descriptor.clone(),
                diff_id: resolved.config.rootfs.diff_ids[position].clone(),
                chain_id: chain_ids[position].clone(),
                position,
                chain: Arc::clone(&chain),
                cancel: cancel.clone(),
                watcher: Arc::clone(watcher),
                bytes: Arc::clone(bytes),
            };
            tasks.spawn(async move {
                let outcome = job.run().await;
                drop(slot);
                (job.position, outcome)
            });
        }
        let mut layers: Vec<Option<Layer>> = vec![None; count];
        let mut failure: Option<ImageError> = None;
        while let Some(joined) = tasks.join_next().await {
            match joined {
                Ok((position, Ok(layer))) => layers[position] = Some(layer),
                Ok((_, Err(error))) => {
                    if failure
                        .as_ref()
                        .is_none_or(|first| first.is_consequence() && !error.is_consequence())
                    {
                        failure = Some(error);
                    }
                }
                Err(_) => {
                    cancel.cancel();
                    chain.give_up();
                    failure.get_or_insert(ImageError::TaskLost {
                        what: "a layer's task",
                    });
                }
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        let layers: Option<Vec<Layer>> = layers.into_iter().collect();
        layers.ok_or_else(|| ImageError::Cancelled {
            what: "the pull".into(),
        })
    }

    /// Brings everything to the disk, and only then names it.
    async fn finish_pull(
        &self,
        reference: &Reference,
        resolved: &Arc<Resolved>,
        layers: Vec<Layer>,
        bytes: &AtomicU64,
    ) -> Result<Pulled, ImageError> {
        let digest = resolved.digest().clone();
        let id = resolved.parts.config.digest.clone();
        let records = resolved
            .parts
            .layers
            .iter()
            .zip(layers)
            .map(|(descriptor, layer)| LayerRecord {
                descriptor: descriptor.clone(),
                diff_id: layer.meta.diff_id,
                key: layer.key,
                size: layer.meta.size,
                root: layer.meta.root,
            });
        let image = Image {
            record: ImageRecord {
                id,
                manifest: resolved.manifest.digest().clone(),
                manifest_media_type: resolved.manifest.media_type().clone(),
                index: resolved.index.as_ref().map(|index| index.digest().clone()),
                layers: records.collect(),
                tags: name_of_pull(reference).into_iter().collect(),
                digests: BTreeSet::from([reference.repository().with_digest(digest.clone())]),
            },
            config: resolved.config.clone(),
            config_raw: resolved.config_raw.clone(),
        };
        let store = self.clone();
        let parts = Arc::clone(resolved);
        let (image, updated) = blocking("recording an image", move || {
            let known = store.catalogue().get(image.id()).cloned();
            if known.is_none_or(|known| !known.record.has_parts_of(&image.record)) {
                store.keep_documents(&parts)?;
                store.shared.syncer.sync()?;
                store.shared.content.sync_all_pending()?;
            }
            store.record(image)
        })
        .await?;
        Ok(Pulled {
            image,
            digest,
            updated,
            bytes: bytes.load(Ordering::Relaxed),
        })
    }

    fn keep_documents(&self, resolved: &Resolved) -> Result<(), ImageError> {
        let content = &self.shared.content;
        let config = &resolved.parts.config.digest;
        content.put_known(config, &resolved.config_raw, Commit::Deferred)?;
        for document in [Some(&resolved.manifest), resolved.index.as_ref()]
            .into_iter()
            .flatten()
        {
            content.put_known(document.digest(), document.raw(), Commit::Deferred)?;
        }
        Ok(())
    }

    /// Removes what a failed pull brought. `keep_packed`: the bytes that came
    /// are worth keeping for the next try.
    fn clean_up(&self, resolved: &Resolved, keep_packed: bool) -> Result<(), ImageError> {
        let ids = resolved.config.rootfs.diff_ids.iter();
        let chain_ids = resolved.config.chain_ids();
        let mut candidates =
            Candidates::layers(ids.chain(&chain_ids).map(|id| id.hex().to_owned()));
        if !keep_packed {
            let documents = [
                resolved.manifest.digest().clone(),
                resolved.digest().clone(),
            ];
            let parts = resolved
                .manifest
                .descriptors()
                .map(|part| part.digest.clone());
            candidates.blobs = parts.chain(documents).collect();
            for digest in &candidates.blobs {
                self.forget_ingest(digest);
            }
        }
        self.collect(&candidates).map(drop)
    }
}

impl ImageError {
    /// Whether it only says that something else went wrong first.
    fn is_consequence(&self) -> bool {
        matches!(
            self,
            Self::Cancelled { .. }
                | Self::Layer {
                    source: crate::unpack::UnpackError::LowerMissing { .. },
                    ..
                }
        )
    }
}

/// A reference with a digest gives no tag, even if it has one: who pulls a
/// digest wants that image, and not to move a name.
fn name_of_pull(reference: &Reference) -> Option<Reference> {
    match reference.digest() {
        Some(_) => None,
        None => Some(reference.clone()),
    }
}

fn cancelled(reference: &Reference) -> ImageError {
    ImageError::Cancelled {
        what: format!("the pull of {reference}"),
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
fn check_parts(parts: &Manifest, config: &ImageConfig, name: &str) -> Result<(), ImageError> {
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

impl ImageRecord {
    /// Whether all blobs and layers of another record are this one's too.
    fn has_parts_of(&self, other: &Self) -> bool {
        self.manifest == other.manifest
            && (other.index.is_none() || self.index == other.index)
            && self.layers == other.layers
    }
}
