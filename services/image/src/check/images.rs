//! Images: that record, manifest and configuration fit together.

use std::sync::{Arc, PoisonError};

use gantry_oci::manifest::MANIFEST_MAX;
use gantry_oci::{Document, DocumentKind};

use super::{Check, Finding, line};
use crate::ImageStore;
use crate::error::ImageError;
use crate::image::Image;
use crate::pull::blocking;
use crate::read_image;

impl Check {
    pub(super) async fn images(&mut self) -> Result<(), ImageError> {
        let unreadable = self.store.shared.unreadable().clone();
        for record in unreadable {
            let object = format!("image {}", record.display_name());
            self.begin(&object)?;
            let mut finding = Finding {
                object,
                problem: "its configuration cannot be read, so it is not listed".to_owned(),
                needed_by: vec![record.id.to_string()],
                ..Finding::default()
            };
            if self.repair {
                let store = self.store.clone();
                let read = blocking("reading an image", move || {
                    let image = read_image(&store.shared.content, record)?;
                    store.take_in(image);
                    Ok(())
                });
                match read.await {
                    Ok(()) => finding.repaired = "it is listed again".to_owned(),
                    Err(error) => {
                        finding.problem = format!("{}; {}", finding.problem, line(&error))
                    }
                }
            }
            self.found(finding);
        }
        for image in self.store.images() {
            let object = format!("image {}", image.display_name());
            self.begin(&object)?;
            let (store, looked) = (self.store.clone(), Arc::clone(&image));
            let problem = blocking("checking an image", move || Ok(store.misfit(&looked))).await?;
            let Some(problem) = problem else { continue };
            // It may have been removed, or been given another manifest.
            let current = self.store.catalogue().get(image.id()).cloned();
            if current.is_none_or(|current| current.record.manifest != image.record.manifest) {
                continue;
            }
            self.found(Finding {
                object,
                problem: format!("{problem}; remove the image and pull it again"),
                needed_by: vec![image.id().to_string()],
                ..Finding::default()
            });
        }
        Ok(())
    }
}

impl ImageStore {
    /// Puts an image that can be read again back in its place.
    fn take_in(&self, image: Image) {
        let id = image.id().clone();
        let catalogue = &self.shared.catalogue;
        let mut catalogue = catalogue.write().unwrap_or_else(PoisonError::into_inner);
        catalogue.insert(Arc::new(image));
        drop(catalogue);
        self.shared.unreadable().retain(|record| record.id != id);
    }

    /// What of an image does not fit together. A manifest that cannot be read
    /// was found when the blobs were looked at.
    fn misfit(&self, image: &Image) -> Option<String> {
        let record = &image.record;
        let content = &self.shared.content;
        let raw = content.read(&record.manifest, MANIFEST_MAX as u64).ok()?;
        let media_type = &record.manifest_media_type;
        let document = match Document::parse_verified(raw, Some(media_type), &record.manifest, None)
        {
            Ok(document) => document,
            Err(error) => return Some(format!("its manifest is not usable: {error}")),
        };
        let DocumentKind::Manifest(parts) = document.kind() else {
            return Some("its manifest is an index".to_owned());
        };
        if parts.config.digest != record.id {
            return Some(format!(
                "its manifest has the configuration {}",
                parts.config.digest
            ));
        }
        let listed = parts.layers.iter().map(|layer| &layer.digest);
        let recorded = record.layers.iter().map(|layer| &layer.descriptor.digest);
        if !listed.eq(recorded) {
            return Some("its manifest lists other layers than its record".to_owned());
        }
        let configured = image.config.rootfs.diff_ids.iter();
        if !configured.eq(record.layers.iter().map(|layer| &layer.diff_id)) {
            return Some("its configuration lists other layers than its record".to_owned());
        }
        None
    }
}
