//! Giving an image to a registry: blobs side by side, then the manifest that names them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_oci::manifest::MANIFEST_MAX;
use gantry_oci::{Descriptor, Digest, Document, DocumentKind, Reference};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ImageStore;
use crate::error::ImageError;
use crate::image::Image;
use crate::pull::{Event, LayerState, Watcher, blocking};
use crate::registry_client::{Access, BlobSource, Credentials, Repository, Upload};

/// How often an upload reports.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// A push that succeeded.
#[derive(Clone, Debug)]
pub struct Pushed {
    pub reference: Reference,
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest's size in bytes.
    pub size: u64,
    /// Bytes that went over the wire for layers and configuration.
    pub bytes: u64,
}

impl ImageStore {
    /// Uploads the image of that name to the registry in the name.
    pub async fn push(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
        cancel: &CancellationToken,
        watcher: Watcher,
    ) -> Result<Pushed, ImageError> {
        let reference = self.new_name(reference)?;
        let image = self.resolve(&reference.canonical())?;
        let lease = self.lease(image.blobs().map(ToString::to_string).collect());
        let raw = self
            .shared
            .content
            .read(&image.record.manifest, MANIFEST_MAX as u64)?;
        let media_type = &image.record.manifest_media_type;
        let unusable = |source| ImageError::Config {
            reference: reference.familiar(),
            source,
        };
        let document =
            Document::parse_verified(raw, Some(media_type), &image.record.manifest, None)
                .map_err(unusable)?;
        let pushing = self.push_document(&reference, &image, &document, credentials, &watcher);
        let pushed = tokio::select! {
            pushed = pushing => pushed,
            () = cancel.cancelled() => Err(ImageError::Cancelled {
                what: format!("the push of {reference}"),
            }),
        };
        if let Ok(pushed) = &pushed {
            // From now on it is known to be there under its digest too.
            let known = reference.repository().with_digest(pushed.digest.clone());
            let (store, id) = (self.clone(), image.id().clone());
            blocking("recording a push", move || {
                // Removed meanwhile: there is nothing to know any more.
                match store.add_names(&id, BTreeSet::new(), [known].into()) {
                    Ok(_) | Err(ImageError::NotFound { .. }) => Ok(()),
                    Err(error) => Err(error),
                }
            })
            .await?;
        }
        drop(lease);
        pushed
    }

    async fn push_document(
        &self,
        reference: &Reference,
        image: &Image,
        document: &Document,
        credentials: Option<Credentials>,
        watcher: &Watcher,
    ) -> Result<Pushed, ImageError> {
        let repository = self
            .shared
            .client
            .repository(reference, Access::Push, credentials)?
            .mounting_from(mountable_from(reference, image));
        let bytes = Arc::new(AtomicU64::new(0));
        let slots = Arc::new(Semaphore::new(self.shared.config.parallel_layers.max(1)));
        // Dropped with this future, it ends the uploads with it.
        let mut tasks = JoinSet::new();
        let mut seen = Vec::new();
        for descriptor in document.descriptors() {
            if seen.contains(&&descriptor.digest) {
                continue;
            }
            seen.push(&descriptor.digest);
            let job = BlobJob {
                repository: repository.clone(),
                descriptor: descriptor.clone(),
                source: BlobSource::File(self.shared.content.blob_path(&descriptor.digest)),
                is_layer: !is_config(document, descriptor),
                watcher: Arc::clone(watcher),
                bytes: Arc::clone(&bytes),
            };
            let slots = Arc::clone(&slots);
            tasks.spawn(async move {
                let _slot = slots.acquire_owned().await;
                job.run().await
            });
        }
        while let Some(joined) = tasks.join_next().await {
            joined.map_err(|_| ImageError::TaskLost {
                what: "an upload's task",
            })??;
        }
        repository
            .upload_manifest(document, reference.manifest_reference())
            .await?;
        Ok(Pushed {
            reference: reference.clone(),
            digest: document.digest().clone(),
            size: document.raw().len() as u64,
            bytes: bytes.load(Ordering::Relaxed),
        })
    }
}

fn is_config(document: &Document, descriptor: &Descriptor) -> bool {
    match document.kind() {
        DocumentKind::Manifest(manifest) => manifest.config.digest == descriptor.digest,
        DocumentKind::Index(_) => false,
    }
}

/// Another repository of the same registry that the image is known to be in.
fn mountable_from(target: &Reference, image: &Image) -> Option<String> {
    let names = image.record.digests.iter();
    let mut others =
        names.filter(|name| name.domain() == target.domain() && name.name() != target.name());
    others.next().map(|name| name.name().as_str().to_owned())
}

/// One blob to upload.
struct BlobJob {
    repository: Repository,
    descriptor: Descriptor,
    source: BlobSource,
    is_layer: bool,
    watcher: Watcher,
    bytes: Arc<AtomicU64>,
}

impl BlobJob {
    async fn run(self) -> Result<(), ImageError> {
        let total = self.descriptor.size;
        let report = {
            let (watcher, digest, is_layer) =
                (self.watcher, self.descriptor.digest.clone(), self.is_layer);
            Arc::new(move |state: LayerState, current: u64| {
                // A configuration is no layer, and too small to watch.
                if is_layer {
                    watcher(Event::Layer {
                        digest: digest.clone(),
                        state,
                        current,
                        total,
                    });
                }
            })
        };
        report(LayerState::Waiting, 0);
        let progress = {
            let report = Arc::clone(&report);
            let last = Mutex::new(Instant::now());
            move |sent: u64| {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if sent == total || last.elapsed() >= REPORT_EVERY {
                    *last = Instant::now();
                    report(LayerState::Uploading, sent);
                }
            }
        };
        let uploaded = self
            .repository
            .upload_blob(&self.descriptor, &self.source, Arc::new(progress))
            .await?;
        match uploaded {
            Upload::Existed => report(LayerState::Exists, total),
            Upload::Mounted => report(LayerState::Mounted, total),
            Upload::Sent => {
                self.bytes.fetch_add(total, Ordering::Relaxed);
                report(LayerState::Complete, total);
            }
        }
        Ok(())
    }
}
