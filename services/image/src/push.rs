//! Giving an image to a registry: blobs side by side, then the manifest that names them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_oci::{Descriptor, Digest, Platform, Reference};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ImageStore;
use crate::error::ImageError;
use crate::image::Image;
use crate::packed::{Login, Packed};
use crate::pull::{Event, LayerState, Watcher, blocking, repository_name};
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
        let login = credentials.clone().map(|credentials| Login {
            domain: reference.domain().to_owned(),
            credentials,
        });
        let packed = self.packed(&image, login.as_ref(), cancel).await?;
        let pushing = self.push_packed(&reference, &image, &packed, credentials, &watcher);
        let pushed = tokio::select! {
            pushed = pushing => pushed,
            () = cancel.cancelled() => Err(ImageError::Cancelled {
                what: format!("the push of {reference}"),
            }),
        };
        let pushed = match pushed {
            Ok(pushed) => pushed,
            Err(error) => {
                self.abandon(packed).await?;
                return Err(error);
            }
        };
        // From now on it is known to be there under its digest too.
        let name = reference.repository().with_digest(pushed.digest.clone());
        let store = self.clone();
        let recorded = Arc::clone(&image);
        blocking("recording a push", move || {
            store.adopt(&recorded, packed, name)
        })
        .await?;
        self.events().moved("push", &image, &reference);
        Ok(pushed)
    }

    /// Refuses to push what was built for another platform: the image of that
    /// name, or all that have a tag in the repository.
    ///
    /// # Errors
    /// There is no such image, or one is of another platform.
    pub fn check_push(
        &self,
        reference: &str,
        all_tags: bool,
        platform: &Platform,
    ) -> Result<(), ImageError> {
        if !all_tags {
            return self.resolve(reference)?.check_platform(platform, reference);
        }
        let repository = repository_name(reference)?;
        for image in &*self.images() {
            let mut tags = image.record.tags.iter();
            if let Some(tag) = tags.find(|tag| tag.repository() == repository) {
                image.check_platform(platform, &tag.familiar())?;
            }
        }
        Ok(())
    }

    /// Uploads every image that the store has a tag for in the repository, one
    /// after another. All but the last are reported as they are there.
    pub async fn push_all(
        &self,
        repository: &str,
        credentials: Option<Credentials>,
        cancel: &CancellationToken,
        watcher: Watcher,
    ) -> Result<Pushed, ImageError> {
        let repository = repository_name(repository)?;
        let images = self.images();
        let tags = images.iter().flat_map(|image| &image.record.tags);
        let mut tags: Vec<&Reference> = tags.filter(|tag| tag.repository() == repository).collect();
        tags.sort();
        let mut last: Option<Pushed> = None;
        for tag in tags {
            if let Some(pushed) = last.take() {
                watcher(Event::Pushed(Box::new(pushed)));
            }
            let reference = tag.canonical();
            let watcher = Arc::clone(&watcher);
            let pushing = self.push(&reference, credentials.clone(), cancel, watcher);
            last = Some(pushing.await?);
        }
        last.ok_or_else(|| ImageError::NotFound {
            reference: repository.familiar(),
        })
    }

    async fn push_packed(
        &self,
        reference: &Reference,
        image: &Image,
        packed: &Packed,
        credentials: Option<Credentials>,
        watcher: &Watcher,
    ) -> Result<Pushed, ImageError> {
        let repository = self
            .shared
            .client
            .repository(reference, Access::Push, credentials)
            .await?
            .mounting_from(mountable_from(reference, image));
        let bytes = Arc::new(AtomicU64::new(0));
        let slots = Arc::new(Semaphore::new(self.shared.config.parallel_layers.max(1)));
        // Dropped with this future, it ends the uploads with it.
        let mut tasks = JoinSet::new();
        let document = &packed.document;
        let mut seen = Vec::new();
        for (descriptor, path) in packed.blobs(self) {
            if seen.contains(&descriptor.digest) {
                continue;
            }
            seen.push(descriptor.digest.clone());
            let job = BlobJob {
                repository: repository.clone(),
                source: BlobSource::File(path),
                is_layer: descriptor.digest != image.record.id,
                descriptor,
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
