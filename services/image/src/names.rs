//! Names of images: giving them, taking them away, and the image with the last one.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use gantry_oci::{Digest, Reference};

use crate::ImageStore;
use crate::catalogue::lookup_name;
use crate::error::ImageError;
use crate::garbage::Candidates;
use crate::image::{Image, ImageRecord};

/// What [`ImageStore::remove`] did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Removed {
    /// Names that are no more, as a person writes them.
    pub untagged: Vec<String>,
    /// Ids of images and diff IDs of layers that are no more.
    pub deleted: Vec<String>,
}

impl ImageStore {
    /// Puts an image in, or gives one that is there more names. A tag that
    /// stood for another image moves. All that the image consists of must be on
    /// the disk. True: something changed.
    pub(crate) fn record(&self, new: Image) -> Result<(Arc<Image>, bool), ImageError> {
        let _changes = self.shared.changes_lock();
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
            if record == existing.record {
                return Ok((Arc::clone(existing), false));
            }
        }
        let image = Arc::new(Image {
            record,
            config: new.config,
            config_raw: new.config_raw,
        });
        changed.push(Arc::clone(&image));
        self.write_changes(&changed, &[])?;
        if let Some(existing) = existing {
            // Another manifest for the same configuration: what only the old one named may go.
            self.collect(&Candidates::of_image(&existing))?;
        }
        Ok((image, true))
    }

    fn write_changes(&self, changed: &[Arc<Image>], gone: &[&Digest]) -> Result<(), ImageError> {
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
        for image in changed {
            catalogue.insert(Arc::clone(image));
        }
        Ok(())
    }

    /// Gives an image one more name. Blocks for the disk.
    pub fn tag(&self, source: &str, target: &str) -> Result<Reference, ImageError> {
        let target = self.new_name(target)?;
        let image = self.resolve(source)?;
        let mut named = Image::clone(&image);
        named.record.tags = BTreeSet::from([target.clone()]);
        self.record(named)?;
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

    /// Removes a name, and the image with its last one; given an id, the image
    /// with all its names. Docker's rules. Blocks for the disk.
    pub fn remove(&self, reference: &str, force: bool) -> Result<Removed, ImageError> {
        let _changes = self.shared.changes_lock();
        let image = self.resolve(reference)?;
        let name = reference.parse::<Reference>().ok().map(lookup_name);
        let record = &image.record;
        let name = name.filter(|name| record.tags.contains(name) || record.digests.contains(name));
        let mut rest = record.clone();
        let Some(name) = name else {
            // By its id: all names go, but not silently when they are several.
            if rest.tags.len() > 1 && !force {
                return Err(ImageError::SeveralNames {
                    id: record.id.short().to_owned(),
                    names: image.familiar_tags(),
                });
            }
            return self.remove_image(&image, force, reference);
        };
        rest.tags.remove(&name);
        rest.digests.remove(&name);
        let repository = name.repository();
        let repository_is_named = rest.tags.iter().any(|tag| tag.repository() == repository);
        if name.tag().is_some() && !repository_is_named {
            rest.digests
                .retain(|digest| digest.repository() != repository);
        }
        if rest.tags.is_empty() && rest.digests.is_empty() {
            return self.remove_image(&image, force, reference);
        }
        let untagged = names_only_in(record, &rest);
        let left = Image {
            record: rest,
            config: image.config.clone(),
            config_raw: image.config_raw.clone(),
        };
        self.write_changes(&[Arc::new(left)], &[])?;
        Ok(Removed {
            untagged,
            deleted: Vec::new(),
        })
    }

    fn remove_image(
        &self,
        image: &Arc<Image>,
        force: bool,
        reference: &str,
    ) -> Result<Removed, ImageError> {
        if !force && let Some(container) = self.shared.snapshots.user_of(image.id()) {
            return Err(ImageError::InUse {
                reference: reference.to_owned(),
                container,
            });
        }
        self.write_changes(&[], &[image.id()])?;
        let layers = self.collect(&Candidates::of_image(image))?;
        let names = image.record.tags.iter().chain(&image.record.digests);
        Ok(Removed {
            untagged: names.map(Reference::familiar).collect(),
            deleted: std::iter::once(image.id())
                .chain(&layers)
                .map(ToString::to_string)
                .collect(),
        })
    }
}

/// Names that one record has and another has not.
fn names_only_in(before: &ImageRecord, after: &ImageRecord) -> Vec<String> {
    let tags = before.tags.difference(&after.tags);
    let digests = before.digests.difference(&after.digests);
    tags.chain(digests).map(Reference::familiar).collect()
}
