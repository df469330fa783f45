//! Taking names away, and the image with its last one: Docker's rules.
//!
//! | given | what happens |
//! | --- | --- |
//! | one of several names | only the name goes |
//! | the last name | the image goes too; where a container was made from it, that must be forced |
//! | the last name, by force, of an image that a running container or another image needs | only the name goes |
//! | an id | all names and the image go; several names, or a container that does not run, must be forced |
//! | an id of what a running container or another image needs | refused |
//!
//! Whether a container runs is not known here: the caller says which do.
//!
//! An image leaves the memory before it leaves the disk. So nobody can begin to
//! use one that is going, and one that cannot be taken from the disk comes back.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, MutexGuard, PoisonError};

use gantry_oci::{Digest, Reference};

use crate::ImageStore;
use crate::catalogue::lookup_name;
use crate::error::{ImageError, Use};
use crate::garbage::{Candidates, Collected};
use crate::image::{Image, ImageRecord};

/// How [`ImageStore::remove`] is to go about it.
#[derive(Clone, Debug, Default)]
pub struct RemoveOptions {
    pub force: bool,
    /// Keep parents that have no name and that only this image has.
    pub no_prune: bool,
    /// The containers that run, by their ids.
    pub running: HashSet<String>,
}

/// What [`ImageStore::remove`] did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Removed {
    /// Names that are no more, as a person writes them.
    pub untagged: Vec<String>,
    /// Ids of images and diff IDs of layers that are no more.
    pub deleted: Vec<String>,
    /// Blobs and layers that are no more.
    pub(crate) collected: Collected,
}

/// The right to change records.
type Changes<'a> = MutexGuard<'a, ()>;

impl ImageStore {
    /// Removes a name, and the image with its last one; given an id, the image
    /// with all its names. Blocks for the disk.
    pub fn remove(&self, reference: &str, options: &RemoveOptions) -> Result<Removed, ImageError> {
        let changes = self.shared.changes_lock();
        let image = match self.resolve(reference) {
            Err(error @ ImageError::NotFound { .. }) => {
                return self.remove_unreadable(reference)?.ok_or(error);
            }
            outcome => outcome?,
        };
        let name = reference.parse::<Reference>().ok().map(lookup_name);
        let name = name.filter(|name| image.record.names().any(|known| known == name));
        match name {
            Some(name) => self.remove_name(&image, &name, options, &changes),
            None => self.remove_by_id(&image, options, &changes),
        }
    }

    /// Removes an image whose configuration was lost, by its id or any of its
    /// names: there is nothing of it to keep another name for.
    fn remove_unreadable(&self, reference: &str) -> Result<Option<Removed>, ImageError> {
        let name = reference.parse::<Reference>().ok().map(lookup_name);
        let digits = reference.strip_prefix("sha256:").unwrap_or(reference);
        let is_it = |record: &ImageRecord| {
            let named = record.names().any(|known| Some(known) == name.as_ref());
            named || (digits.len() >= 12 && record.id.hex().starts_with(digits))
        };
        let found = self.shared.unreadable().iter().find(|r| is_it(r)).cloned();
        let Some(record) = found else {
            return Ok(None);
        };
        self.write_changes(&[], &[&record.id])?;
        self.events().deleted_id(&record.id);
        let collected = self.collect(&Candidates::of_record(&record))?;
        let deleted = std::iter::once(&record.id).chain(&collected.layers);
        Ok(Some(Removed {
            untagged: record.names().map(Reference::familiar).collect(),
            deleted: deleted.map(ToString::to_string).collect(),
            collected,
        }))
    }

    fn remove_name(
        &self,
        image: &Arc<Image>,
        name: &Reference,
        options: &RemoveOptions,
        changes: &Changes<'_>,
    ) -> Result<Removed, ImageError> {
        let record = &image.record;
        if !options.force
            && has_one_name(record)
            && let Some(container) = self.shared.snapshots.user_of(image.id())
        {
            return Err(ImageError::InUse {
                reference: name.familiar(),
                container,
                by: Use::Name {
                    name: name.familiar(),
                    id: image.id().short().to_owned(),
                },
            });
        }
        let rest = without(record, name);
        if rest.is_nameless() {
            match self.conflict(&rest, options) {
                Ok(()) => return self.remove_image(image, options, changes),
                // A container came since.
                Err(error @ ImageError::InUse { .. }) if !options.force => return Err(error),
                Err(_) => {}
            }
        }
        let removed = Removed {
            untagged: names_only_in(record, &rest),
            ..Removed::default()
        };
        let left = Image {
            record: rest,
            config: image.config.clone(),
            config_raw: image.config_raw.clone(),
        };
        let left = Arc::new(left);
        self.write_changes(&[Arc::clone(&left)], &[])?;
        self.events().untagged(image, &left.record);
        Ok(removed)
    }

    fn remove_by_id(
        &self,
        image: &Arc<Image>,
        options: &RemoveOptions,
        changes: &Changes<'_>,
    ) -> Result<Removed, ImageError> {
        self.conflict(&image.record, options)?;
        self.remove_image(image, options, changes)
    }

    /// Why an image must stay.
    fn conflict(&self, record: &ImageRecord, options: &RemoveOptions) -> Result<(), ImageError> {
        let id = record.id.short().to_owned();
        let children: Vec<String> = self
            .catalogue()
            .children(&record.id)
            .map(|child| child.display_name())
            .collect();
        if !children.is_empty() {
            return Err(ImageError::HasChildren { id, children });
        }
        let in_use = |container: String, by: Use| ImageError::InUse {
            reference: id.clone(),
            container,
            by,
        };
        let users = self.shared.snapshots.users_of(&record.id);
        let runs = |container: &&String| options.running.contains(*container);
        if let Some(container) = users.iter().find(runs) {
            return Err(in_use(container.clone(), Use::Running { id: id.clone() }));
        }
        if options.force {
            return Ok(());
        }
        if !has_one_name(record) {
            let names = record.names().map(Reference::familiar).collect();
            return Err(ImageError::SeveralNames { id, names });
        }
        match users.first() {
            Some(container) => Err(in_use(container.clone(), Use::Stopped { id: id.clone() })),
            None => Ok(()),
        }
    }

    fn remove_image(
        &self,
        image: &Arc<Image>,
        options: &RemoveOptions,
        changes: &Changes<'_>,
    ) -> Result<Removed, ImageError> {
        let mut removed = self.delete_image(image, options, changes)?;
        let mut parent = image.record.parent.clone();
        while let Some(id) = parent.take().filter(|_| !options.no_prune) {
            let found = self.catalogue().get(&id).cloned();
            let Some(image) = found.filter(|image| image.record.is_nameless()) else {
                break;
            };
            // A parent that something needs stays, and with it its own.
            let gently = RemoveOptions {
                force: false,
                ..options.clone()
            };
            if self.conflict(&image.record, &gently).is_err() {
                break;
            }
            let also = match self.delete_image(&image, &gently, changes) {
                Err(ImageError::InUse { .. }) => break,
                outcome => outcome?,
            };
            removed.deleted.extend(also.deleted);
            removed.collected.add(also.collected);
            parent.clone_from(&image.record.parent);
        }
        Ok(removed)
    }

    /// Removes the image whatever its names are; nothing else is asked but
    /// whether somebody began to use it.
    fn delete_image(
        &self,
        image: &Arc<Image>,
        options: &RemoveOptions,
        _changes: &Changes<'_>,
    ) -> Result<Removed, ImageError> {
        {
            let _keep = self.shared.keep_lock();
            if !options.force
                && let Some(container) = self.shared.snapshots.user_of(image.id())
            {
                let id = image.id().short().to_owned();
                return Err(ImageError::InUse {
                    reference: id.clone(),
                    container,
                    by: Use::Stopped { id },
                });
            }
            self.change_catalogue(|catalogue| _ = catalogue.remove(image.id()));
        }
        if let Err(error) = self.write_changes(&[], &[image.id()]) {
            self.change_catalogue(|catalogue| catalogue.insert(Arc::clone(image)));
            return Err(error);
        }
        self.events().deleted(image);
        let collected = self.collect(&Candidates::of_image(image))?;
        Ok(Removed {
            untagged: image.record.names().map(Reference::familiar).collect(),
            deleted: std::iter::once(image.id())
                .chain(&collected.layers)
                .map(ToString::to_string)
                .collect(),
            collected,
        })
    }

    /// Removes an image for a prune, with all its names, unless it has changed
    /// or somebody uses it by now. None: it stays.
    pub(crate) fn remove_unused(&self, image: &Arc<Image>) -> Result<Option<Removed>, ImageError> {
        let changes = self.shared.changes_lock();
        let current = self.catalogue().get(image.id()).cloned();
        let unchanged = current.is_some_and(|current| current.record == image.record);
        let has_children = self.catalogue().children(image.id()).next().is_some();
        if !unchanged || has_children {
            return Ok(None);
        }
        match self.delete_image(image, &RemoveOptions::default(), &changes) {
            Ok(removed) => Ok(Some(removed)),
            Err(ImageError::InUse { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn change_catalogue(&self, change: impl FnOnce(&mut crate::catalogue::Catalogue)) {
        let catalogue = &self.shared.catalogue;
        let mut catalogue = catalogue.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut catalogue);
    }
}

/// Whether all names stand for one thing in one repository: at most one tag, and
/// digests of the same repository.
fn has_one_name(record: &ImageRecord) -> bool {
    let repositories: BTreeSet<String> = record
        .names()
        .map(|name| name.repository().canonical())
        .collect();
    record.tags.len() <= 1 && repositories.len() <= 1
}

/// The record without a name; a digest goes with the last tag of its repository.
fn without(record: &ImageRecord, name: &Reference) -> ImageRecord {
    let mut rest = record.clone();
    rest.tags.remove(name);
    rest.digests.remove(name);
    let repository = name.repository();
    let is_named = rest.tags.iter().any(|tag| tag.repository() == repository);
    if name.tag().is_some() && !is_named {
        rest.digests
            .retain(|digest| digest.repository() != repository);
    }
    rest
}

/// Names that one record has and another has not.
fn names_only_in(before: &ImageRecord, after: &ImageRecord) -> Vec<String> {
    let tags = before.tags.difference(&after.tags);
    let digests = before.digests.difference(&after.digests);
    tags.chain(digests).map(Reference::familiar).collect()
}

/// Ids of images, for a set.
pub(crate) fn ids<'a>(images: impl IntoIterator<Item = &'a Arc<Image>>) -> HashSet<Digest> {
    images.into_iter().map(|image| image.id().clone()).collect()
}
