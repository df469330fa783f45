//! Packed layers: that each blob holds the layer that images name it for.
//!
//! A blob's digest says that its bytes are those of the manifest. That they are
//! the layer of the configuration is another promise, and it is looked at here
//! by inflating and hashing, whatever is remembered of the blob.

use std::collections::BTreeMap;

use gantry_oci::content::{Commit, ContentError};
use gantry_oci::{Descriptor, Digest};

use super::{Check, Finding, line};
use crate::ImageStore;
use crate::error::ImageError;
use crate::image::ImageRecord;
use crate::pull::blocking;

impl Check {
    pub(super) async fn packings(&mut self) -> Result<(), ImageError> {
        let mut pairs: BTreeMap<(Digest, Digest), u64> = BTreeMap::new();
        for layer in self.store.all_records().iter().flat_map(|r| &r.layers) {
            for blob in [Some(&layer.descriptor), layer.kept_as.as_ref()] {
                let Some(blob) = blob else { continue };
                // The digest of a plain tar is its diff ID, and was compared with the blob's.
                if blob.digest != layer.diff_id && self.store.has(blob) {
                    let pair = (blob.digest.clone(), layer.diff_id.clone());
                    pairs.insert(pair, blob.size);
                }
            }
        }
        self.total = self.checked.objects + pairs.len() as u64;
        for ((blob, diff_id), size) in pairs {
            self.packing(&blob, &diff_id, size).await?;
        }
        Ok(())
    }

    async fn packing(
        &mut self,
        blob: &Digest,
        diff_id: &Digest,
        size: u64,
    ) -> Result<(), ImageError> {
        let object = format!("packed layer {blob}");
        self.begin(&object)?;
        let (store, cancel) = (self.store.clone(), self.cancel.clone());
        let (looked, expected) = (blob.clone(), diff_id.clone());
        let outcome = blocking("checking a packed layer", move || {
            Ok(store.inflated_digest(&looked, &expected, &cancel))
        });
        let problem = match outcome.await? {
            Ok(found) => {
                self.checked.bytes += size;
                if found == *diff_id {
                    self.store.note_packing(blob, diff_id);
                    return Ok(());
                }
                format!("it holds {found}, not layer {diff_id}")
            }
            Err(error @ ImageError::Cancelled { .. }) => return Err(error),
            Err(ImageError::Content(ContentError::NotFound { .. })) => return Ok(()),
            Err(error) => format!("it does not hold layer {diff_id}: {}", line(&error)),
        };
        self.store.forget_packings([blob]);
        let needing = self.store.records_that_pair(blob, diff_id);
        if needing.is_empty() {
            // The images were removed, or have another packing by now.
            return Ok(());
        }
        let mut finding = Finding {
            object,
            problem,
            needed_by: needing.iter().map(ImageRecord::display_name).collect(),
            ..Finding::default()
        };
        if self.repair {
            match self.replace_packing(blob, diff_id, &needing).await {
                Ok(Some(instead)) => {
                    finding.repaired = format!("replaced by {}", instead.digest);
                }
                Ok(None) => finding.problem.push_str(
                    "; no other blob of the layer is here or in a registry: remove the image and pull or load it again",
                ),
                Err(error) => {
                    finding.problem = format!(
                        "{}; {}: repair again when the registry can be reached, or remove the image and pull or load it again",
                        finding.problem,
                        line(&error)
                    );
                }
            }
        }
        self.found(finding);
        Ok(())
    }

    /// Gives the images that name a wrong blob for a layer a right one: one that
    /// is here, or one that another image's registry has. `None`: there is none.
    async fn replace_packing(
        &self,
        wrong: &Digest,
        diff_id: &Digest,
        needing: &[ImageRecord],
    ) -> Result<Option<Descriptor>, ImageError> {
        let others = self.store.other_packings(diff_id, wrong);
        let names = others.iter().map(|other| other.digest.to_string());
        let _lease = self.store.lease(names.collect());
        let mut right = self.verified(diff_id, &others).await?;
        let mut failure = None;
        if right.is_none() {
            for (record, other) in self.store.records_with_layer(diff_id, wrong) {
                for name in &record.digests {
                    match self.fetch(&other.digest, &record, name).await {
                        Ok(()) => break,
                        Err(error) => failure = Some(error),
                    }
                }
                right = self.verified(diff_id, &[other]).await?;
                if right.is_some() {
                    break;
                }
            }
        }
        let Some(right) = right else {
            return failure.map_or(Ok(None), Err);
        };
        let (store, instead) = (self.store.clone(), right.clone());
        let (wrong, diff_id) = (wrong.clone(), diff_id.clone());
        let ids: Vec<Digest> = needing.iter().map(|record| record.id.clone()).collect();
        blocking("replacing a packed layer", move || {
            for id in &ids {
                store.repack(id, &wrong, &diff_id, &instead)?;
            }
            Ok(())
        })
        .await?;
        Ok(Some(right))
    }

    async fn verified(
        &self,
        diff_id: &Digest,
        candidates: &[Descriptor],
    ) -> Result<Option<Descriptor>, ImageError> {
        let (store, diff_id) = (self.store.clone(), diff_id.clone());
        let (candidates, cancel) = (candidates.to_vec(), self.cancel.clone());
        blocking("verifying packed layers", move || {
            match store.first_verified(&diff_id, &candidates, &cancel) {
                // Those that are wrong themselves are found in their turn.
                Err(ImageError::Layer { .. }) => Ok(None),
                outcome => outcome,
            }
        })
        .await
    }
}

impl ImageStore {
    /// Images that name a blob for a layer.
    fn records_that_pair(&self, blob: &Digest, diff_id: &Digest) -> Vec<ImageRecord> {
        let mut records = self.all_records();
        records.retain(|record| {
            record.layers.iter().any(|layer| {
                let kept = layer.kept_as.as_ref();
                layer.diff_id == *diff_id
                    && (layer.descriptor.digest == *blob
                        || kept.is_some_and(|kept| kept.digest == *blob))
            })
        });
        records
    }

    /// Images from registries that have a layer in another blob, which is not here.
    fn records_with_layer(
        &self,
        diff_id: &Digest,
        other_than: &Digest,
    ) -> Vec<(ImageRecord, Descriptor)> {
        let mut found = Vec::new();
        for record in self.all_records() {
            let mut layers = record.layers.iter();
            let layer = layers
                .find(|layer| layer.diff_id == *diff_id && layer.descriptor.digest != *other_than);
            let descriptor = layer.map(|layer| layer.descriptor.clone());
            if let Some(descriptor) = descriptor.filter(|blob| !self.has(blob)) {
                found.push((record, descriptor));
            }
        }
        found
    }

    /// Puts a right blob in the place of a wrong one in an image's record, and
    /// in its manifest where that names the wrong one.
    fn repack(
        &self,
        id: &Digest,
        wrong: &Digest,
        diff_id: &Digest,
        right: &Descriptor,
    ) -> Result<(), ImageError> {
        let Some(image) = self.catalogue().get(id).cloned() else {
            return Ok(());
        };
        let mut layers = image.record.layers.clone();
        let mut in_manifest = false;
        for layer in layers.iter_mut().filter(|layer| layer.diff_id == *diff_id) {
            if layer.descriptor.digest == *wrong {
                in_manifest = true;
            }
            let kept = layer.kept_as.as_ref();
            if kept.is_some_and(|kept| kept.digest == *wrong) {
                let own = self.has(&layer.descriptor);
                layer.kept_as = (!own).then(|| right.clone());
            }
        }
        let _lease = self.lease(vec![right.digest.to_string()]);
        let document = if in_manifest {
            let found = self.document_with(&image, wrong, right)?;
            let content = &self.shared.content;
            content.put_known(found.digest(), found.raw(), Commit::Deferred)?;
            let listed = found.descriptors().skip(1).cloned();
            for (layer, descriptor) in layers.iter_mut().zip(listed) {
                layer.descriptor = descriptor;
            }
            Some(found)
        } else {
            None
        };
        let held = document
            .as_ref()
            .map(|document| self.lease(vec![document.digest().to_string()]));
        self.shared.content.sync_all_pending()?;
        // What only the old record named goes with it.
        self.amend(id, |record| {
            record.layers = layers;
            if let Some(document) = &document {
                record.manifest = document.digest().clone();
                record.manifest_media_type = document.media_type().clone();
                // The index does not name this manifest.
                record.index = None;
            }
        })?;
        drop(held);
        Ok(())
    }
}
