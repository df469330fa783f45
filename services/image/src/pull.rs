//! Fetching an image: what its name stands for, its layers side by side, and the record at the end.
//!
//! Nothing of the image can be seen before it is whole, verified and on the
//! disk. A pull that fails for what the image is leaves nothing; one that fails
//! for what the network did leaves the packed bytes that came, for the next try.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gantry_oci::content::Commit;
use gantry_oci::{Descriptor, Digest, ImageConfig, Platform, Reference};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ImageStore;
use crate::chain::Chain;
use crate::error::ImageError;
use crate::fetch::LayerJob;
use crate::garbage::Candidates;
use crate::image::{Image, ImageRecord, LayerRecord};
use crate::layers::Layer;
use crate::push::Pushed;
use crate::registry_client::Credentials;
use crate::remote::Resolved;

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
    /// One of several images is here.
    Pulled(Box<Pulled>),
    /// One of several images is in the registry.
    Pushed(Box<Pushed>),
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

    /// Fetches every tag of a repository, one after another. All but the last
    /// are reported as they come. The first that fails ends it.
    pub async fn pull_all(
        &self,
        repository: &str,
        options: &PullOptions,
        watcher: Watcher,
    ) -> Result<Pulled, ImageError> {
        let repository = repository_name(repository)?;
        let tags = tokio::select! {
            tags = self.remote_tags(&repository, options) => tags?,
            () = options.cancel.cancelled() => return Err(cancelled(&repository)),
        };
        let mut last: Option<Pulled> = None;
        for tag in tags {
            if let Some(pulled) = last.take() {
                watcher(Event::Pulled(Box::new(pulled)));
            }
            let reference = repository.clone().with_tag(tag).canonical();
            last = Some(self.pull(&reference, options, Arc::clone(&watcher)).await?);
        }
        last.ok_or_else(|| ImageError::NotFound {
            reference: repository.familiar(),
        })
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
        let parts = resolved.parts.layers.iter().zip(&layers);
        let parts: Vec<(Descriptor, Digest)> = parts
            .map(|(descriptor, layer)| (descriptor.clone(), layer.meta.diff_id.clone()))
            .collect();
        let store = self.clone();
        let mut kept = blocking("looking for packed layers", move || {
            let kept = parts
                .iter()
                .map(|(descriptor, diff_id)| store.packing_in_place_of(descriptor, diff_id));
            Ok(kept.collect::<Vec<Option<Descriptor>>>())
        })
        .await?;
        let names = kept.iter().flatten();
        let lease = self.lease(names.map(|kept| kept.digest.to_string()).collect());
        for kept in &mut kept {
            // It may have gone between the look and the lease.
            kept.take_if(|kept| !self.shared.content.contains(&kept.digest));
        }
        let records = resolved.parts.layers.iter().zip(layers).zip(kept).map(
            |((descriptor, layer), kept_as)| LayerRecord {
                kept_as,
                descriptor: descriptor.clone(),
                diff_id: layer.meta.diff_id,
                key: layer.key,
                size: layer.meta.size,
                root: layer.meta.root,
            },
        );
        let image = Image {
            record: ImageRecord {
                id,
                manifest: resolved.manifest.digest().clone(),
                manifest_media_type: resolved.manifest.media_type().clone(),
                index: resolved.index.as_ref().map(|index| index.digest().clone()),
                layers: records.collect(),
                tags: name_of_pull(reference).into_iter().collect(),
                digests: BTreeSet::from([reference.repository().with_digest(digest.clone())]),
                parent: None,
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
            }
            store.shared.content.sync_all_pending()?;
            let recorded = store.record(image);
            store.settle_layers_behind();
            drop(lease);
            recorded
        })
        .await?;
        self.events().moved("pull", &image, reference);
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

/// Reads a name that stands for all images of a repository.
pub(crate) fn repository_name(text: &str) -> Result<Reference, ImageError> {
    let reference: Reference = text.parse()?;
    if reference.tag().is_some() || reference.digest().is_some() {
        return Err(ImageError::NotARepository {
            reference: text.to_owned(),
        });
    }
    Ok(reference)
}

fn cancelled(reference: &Reference) -> ImageError {
    ImageError::Cancelled {
        what: format!("the pull of {reference}"),
    }
}

impl ImageRecord {
    /// Whether all blobs and layers of another record are this one's too.
    fn has_parts_of(&self, other: &Self) -> bool {
        self.manifest == other.manifest
            && (other.index.is_none() || self.index == other.index)
            && self.layers == other.layers
    }
}
