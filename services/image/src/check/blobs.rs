//! Blobs: each one's digest, and those that are missing.

use std::collections::{BTreeSet, HashMap, HashSet};

use gantry_oci::config::CONFIG_MAX;
use gantry_oci::content::{Commit, ContentError, Expected, IngestKey};
use gantry_oci::manifest::MANIFEST_MAX;
use gantry_oci::{Digest, Document, DocumentKind, Reference};

use super::{Check, Finding, line};
use crate::ImageStore;
use crate::error::ImageError;
use crate::image::ImageRecord;
use crate::pull::blocking;
use crate::registry_client::Repository;

impl Check {
    pub(super) async fn blobs(&mut self) -> Result<(), ImageError> {
        let store = self.store.clone();
        let listed = blocking("listing content", move || {
            Ok(store.shared.content.list()?)
        })
        .await?;
        let mut digests: BTreeSet<Digest> = listed.into_iter().map(|blob| blob.digest).collect();
        // A manifest says how large the configuration is: it has to be whole before.
        let mut order: Vec<Digest> = Vec::new();
        for record in self.store.all_records() {
            order.push(record.manifest.clone());
            order.extend(record.blobs().cloned());
        }
        let mut seen = HashSet::new();
        order.retain(|digest| seen.insert(digest.clone()));
        for digest in &order {
            digests.remove(digest);
        }
        order.extend(digests);
        self.total = self.checked.objects + order.len() as u64;
        for digest in order {
            self.blob(&digest).await?;
        }
        Ok(())
    }

    async fn blob(&mut self, digest: &Digest) -> Result<(), ImageError> {
        let object = format!("blob {digest}");
        self.begin(&object)?;
        let (store, looked) = (self.store.clone(), digest.clone());
        let outcome = blocking("checking content", move || {
            let content = &store.shared.content;
            let size = content.stat(&looked).map_or(0, |blob| blob.size);
            Ok((content.verify(&looked), size))
        });
        let (outcome, size) = outcome.await?;
        let problem = match outcome {
            Ok(()) => {
                self.checked.bytes += size;
                return Ok(());
            }
            Err(ContentError::NotFound { .. }) => {
                if self.store.is_dispensable(digest) {
                    return Ok(());
                }
                "it is missing".to_owned()
            }
            Err(ContentError::Damaged { found, .. }) => {
                self.checked.bytes += size;
                format!("it is damaged: its digest is now {found}")
            }
            Err(error) => line(&error.into()),
        };
        let needing = self.store.records_with(digest);
        if needing.is_empty() && !self.store.shared.content.contains(digest) {
            return Ok(());
        }
        let mut finding = Finding {
            object,
            problem,
            needed_by: needing.iter().map(ImageRecord::display_name).collect(),
            ..Finding::default()
        };
        if self.repair {
            match self.repair_blob(digest, &needing).await {
                Ok(done) => done.clone_into(&mut finding.repaired),
                Err(error) => {
                    let advice = "repair again when the registry can be reached, or remove the image and pull it";
                    finding.problem = format!("{}; {}: {advice}", finding.problem, line(&error));
                }
            }
        }
        self.found(finding);
        Ok(())
    }

    async fn repair_blob(
        &self,
        digest: &Digest,
        needing: &[ImageRecord],
    ) -> Result<&'static str, ImageError> {
        let store = self.store.clone();
        let wanted = digest.clone();
        if needing.is_empty() {
            return blocking("removing content", move || {
                match store.shared.content.delete(&wanted) {
                    Ok(_) | Err(ContentError::NotFound { .. }) => Ok("removed"),
                    Err(error) => Err(error.into()),
                }
            })
            .await;
        }
        let _lease = self.store.lease(vec![digest.to_string()]);
        let known = self.store.catalogue().get(digest).cloned();
        if let Some(image) = known {
            let raw = image.config_raw.to_vec();
            store.replace_blob(&wanted, raw).await?;
            return Ok("written again from memory");
        }
        let mut last = None;
        for record in needing {
            // A name with a tag may never have been pushed anywhere.
            for name in &record.digests {
                match self.fetch(digest, record, name).await {
                    Ok(()) => return Ok("fetched again"),
                    Err(error) => last = Some(error),
                }
            }
        }
        Err(last.unwrap_or_else(|| ImageError::Unusable {
            reference: needing[0].display_name(),
            reason: "it did not come from a registry".to_owned(),
        }))
    }

    /// Fetches a blob from the repository that a name is of.
    pub(super) async fn fetch(
        &self,
        digest: &Digest,
        record: &ImageRecord,
        name: &Reference,
    ) -> Result<(), ImageError> {
        let sources = self.store.shared.client.sources(name, None).await?;
        let mut last = None;
        for source in sources.into_iter().filter(Repository::gives_content) {
            match self.fetch_from(digest, record, &source).await {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or(ImageError::NotFound {
            reference: name.familiar(),
        }))
    }

    async fn fetch_from(
        &self,
        digest: &Digest,
        record: &ImageRecord,
        source: &Repository,
    ) -> Result<(), ImageError> {
        let what = format!("image {}", record.display_name());
        if *digest == record.manifest || record.index.as_ref() == Some(digest) {
            let document = source.manifest(digest.as_str(), &what).await?;
            return self
                .store
                .replace_blob(digest, document.raw().to_vec())
                .await;
        }
        if *digest == record.id {
            let store = self.store.clone();
            let (manifest, media_type) =
                (record.manifest.clone(), record.manifest_media_type.clone());
            let raw = blocking("reading a manifest", move || {
                Ok(store.shared.content.read(&manifest, MANIFEST_MAX as u64)?)
            })
            .await?;
            let unusable = |source| ImageError::Config {
                reference: record.display_name(),
                source,
            };
            let document = Document::parse_verified(raw, Some(&media_type), &record.manifest, None)
                .map_err(unusable)?;
            let DocumentKind::Manifest(parts) = document.kind() else {
                return Err(ImageError::Unusable {
                    reference: record.display_name(),
                    reason: "its manifest is an index".to_owned(),
                });
            };
            let raw = source.small_blob(&parts.config, CONFIG_MAX).await?;
            return self.store.replace_blob(digest, raw.to_vec()).await;
        }
        let mut layers = record.layers.iter();
        let layer = layers.find(|layer| layer.descriptor.digest == *digest);
        let Some(layer) = layer else {
            return Err(ContentError::NotFound {
                digest: digest.clone(),
            }
            .into());
        };
        self.fetch_layer(digest, layer.descriptor.size, source)
            .await
    }

    async fn fetch_layer(
        &self,
        digest: &Digest,
        size: u64,
        source: &Repository,
    ) -> Result<(), ImageError> {
        let mut stream = source.blob(digest, size, 0).await?;
        let (store, wanted) = (self.store.clone(), digest.clone());
        let (sender, mut pieces) = tokio::sync::mpsc::channel::<bytes::Bytes>(16);
        let writing = blocking("writing content", move || {
            let content = &store.shared.content;
            let mut writer = content.writer_with(&IngestKey::random(), wanted.algorithm())?;
            while let Some(piece) = pieces.blocking_recv() {
                if let Err(error) = writer.write(&piece) {
                    writer.abort()?;
                    return Err(error.into());
                }
            }
            if writer.offset() != size {
                let found = writer.offset();
                writer.abort()?;
                return Err(ContentError::Truncated {
                    expected: size,
                    found,
                }
                .into());
            }
            // The new one would be dropped where one of the same size is there.
            store.shared.places.discard(&content.blob_path(&wanted))?;
            store.empty_trash_behind();
            writer.commit(&Expected::exactly(&wanted, size), Commit::Durable)?;
            Ok(())
        });
        let receiving = async move {
            loop {
                let piece = tokio::select! {
                    piece = stream.next() => piece?,
                    () = self.cancel.cancelled() => None,
                };
                let Some(piece) = piece else { return Ok(()) };
                if sender.send(piece).await.is_err() {
                    // The writer has failed, and says why.
                    return Ok::<_, ImageError>(());
                }
            }
        };
        let (written, received) = tokio::join!(writing, receiving);
        received.and(written)
    }
}

impl ImageStore {
    /// The records of all images, also of those that cannot be read.
    pub(crate) fn all_records(&self) -> Vec<ImageRecord> {
        let mut records: Vec<ImageRecord> = self
            .images()
            .iter()
            .map(|image| image.record.clone())
            .collect();
        records.extend(self.shared.unreadable().iter().cloned());
        records
    }

    fn records_with(&self, digest: &Digest) -> Vec<ImageRecord> {
        let mut records = self.all_records();
        records.retain(|record| record.blobs().any(|blob| blob == digest));
        records
    }

    /// Whether a blob need not be there: nobody names it, or it is a packed layer
    /// that is there in another packing.
    fn is_dispensable(&self, digest: &Digest) -> bool {
        let mut packings: HashMap<Digest, Vec<Digest>> = HashMap::new();
        let records = self.all_records();
        for layer in records.iter().flat_map(|record| &record.layers) {
            let known = packings.entry(layer.diff_id.clone()).or_default();
            known.push(layer.descriptor.digest.clone());
            known.extend(layer.kept_as.iter().map(|kept| kept.digest.clone()));
        }
        let named = self.records_with(digest);
        named.iter().all(|record| {
            let mut layers = record.layers.iter();
            let layer = layers.find(|layer| layer.descriptor.digest == *digest);
            layer.is_some_and(|layer| {
                let others = &packings[&layer.diff_id];
                others
                    .iter()
                    .any(|other| self.shared.content.contains(other))
            })
        })
    }

    /// Puts a small blob in the place of a damaged or missing one.
    async fn replace_blob(&self, digest: &Digest, bytes: Vec<u8>) -> Result<(), ImageError> {
        let (store, digest) = (self.clone(), digest.clone());
        blocking("writing content", move || {
            let content = &store.shared.content;
            store.shared.places.discard(&content.blob_path(&digest))?;
            store.empty_trash_behind();
            Ok(content.put_known(&digest, &bytes, Commit::Durable)?)
        })
        .await
    }
}
