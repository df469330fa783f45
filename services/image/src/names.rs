//! Names of images: giving them. Taking them away is in [`crate::remove`].

use std::sync::{Arc, MutexGuard, PoisonError};

use gantry_oci::{Digest, Reference};

use crate::ImageStore;
use crate::error::ImageError;
use crate::garbage::Candidates;
use crate::image::{Image, ImageRecord};

impl ImageStore {
    /// Puts an image in, or gives one that is there more names. A tag that
    /// stood for another image moves. All that the image consists of must be on
    /// the disk. True: something changed.
    pub(crate) fn record(&self, new: Image) -> Result<(Arc<Image>, bool), ImageError> {
        let changes = self.shared.changes_lock();
        self.record_locked(new, &changes)
    }

    /// Changes the record of an image that is there; its names stay, and those
    /// that `amend` puts in come in addition. The image may have been removed
    /// since it was found, and is then not brought back.
    pub(crate) fn amend(
        &self,
        id: &Digest,
        amend: impl FnOnce(&mut ImageRecord),
    ) -> Result<Arc<Image>, ImageError> {
        let changes = self.shared.changes_lock();
        let image = self.catalogue().get(id).cloned();
        let image = image.ok_or_else(|| ImageError::NotFound {
            reference: id.to_string(),
        })?;
        let mut amended = Image::clone(&image);
        amended.record.tags.clear();
        amended.record.digests.clear();
        amend(&mut amended.record);
        Ok(self.record_locked(amended, &changes)?.0)
    }

    fn record_locked(
        &self,
        new: Image,
        _changes: &MutexGuard<'_, ()>,
    ) -> Result<(Arc<Image>, bool), ImageError> {
        let mut changed = Vec::new();
        let mut record = new.record;
        for tag in &record.tags {
            if let Some(other) = self.catalogue().named(tag).cloned()
                && other.record.id != record.id
            {
                let mut without = Image::clone(&other);
                without.record.tags.remove(tag);
                changed.push(Arc::new(without));
            }
        }
        let existing = self.catalogue().get(&record.id).cloned();
        if let Some(existing) = &existing {
            record.tags.extend(existing.record.tags.iter().cloned());
            record
                .digests
                .extend(existing.record.digests.iter().cloned());
            record.parent = record.parent.or_else(|| existing.record.parent.clone());
            if record == existing.record {
                return Ok((Arc::clone(existing), false));
            }
        }
        let image = Arc::new(Image {
            record,
            config: new.config,
            config_raw: new.config_raw,
        });
        // The one that gains a name first: whoever reads the files of a change that was
        // cut short finds a name twice, and never not at all.
        changed.insert(0, Arc::clone(&image));
        self.write_changes(&changed, &[])?;
        if let Some(existing) = existing {
            // Another manifest for the same configuration: what only the old one named may go.
            self.collect(&Candidates::of_image(&existing))?;
        }
        Ok((image, true))
    }

    pub(crate) fn write_changes(
        &self,
        changed: &[Arc<Image>],
        gone: &[&Digest],
    ) -> Result<(), ImageError> {
        let records: Vec<&ImageRecord> = changed.iter().map(|image| &image.record).collect();
        self.shared.records.change_images(&records, gone)?;
        let mut catalogue = self
            .shared
            .catalogue
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        for id in gone {
            catalogue.remove(id);
        }
        // The other way round: a name that several have is found for the one that gained one.
        for image in changed.iter().rev() {
            catalogue.insert(Arc::clone(image));
        }
        drop(catalogue);
        // Of an image that came anew, or is gone, nothing has to be kept for a repair.
        let settled =
            |id: &Digest| gone.contains(&id) || changed.iter().any(|image| image.id() == id);
        self.shared
            .unreadable()
            .retain(|record| !settled(&record.id));
        Ok(())
    }

    /// Gives an image one more name. Blocks for the disk.
    pub fn tag(&self, source: &str, target: &str) -> Result<Reference, ImageError> {
        let target = self.new_name(target)?;
        let image = self.resolve(source)?;
        let image = self.amend(image.id(), |record| {
            record.tags.insert(target.clone());
        })?;
        self.events().tagged(&image, &target);
        Ok(target)
    }

    /// Reads a name that an image is going to have.
    pub(crate) fn new_name(&self, text: &str) -> Result<Reference, ImageError> {
        let reference: Reference = text.parse()?;
        if reference.digest().is_some() {
            return Err(ImageError::DigestAsName {
                reference: text.to_owned(),
            });
        }
        Ok(reference.with_default_tag())
    }
}
