//! What happens to images and volumes, in Docker's words.
//!
//! An event is noted when its change is on the disk, and before anybody is
//! answered: whoever was answered finds it told. What was noted is in memory
//! only, so that no change waits for it; a life of the service has a name of its
//! own, by which a follower knows that it begins anew.
//!
//! | kind | action | id | attributes |
//! | --- | --- | --- | --- |
//! | image | `pull`, `push` | the name with its tag or digest | `name` (without), labels |
//! | image | `tag` | the image's | `name` (the new one), labels |
//! | image | `import`, `load`, `save`, `untag` | the image's | `name` (the id), labels |
//! | image | `delete` | the image's | `name` (the id) |
//! | volume | `create`, `destroy` | its name | `driver` |
//! | both | `prune` | none | `reclaimed`, in bytes |

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_kit::journal::{Event, Journal, Kind};
use gantry_oci::content::IngestKey;
use gantry_oci::{Digest, Reference};

use crate::ImageStore;
use crate::image::{Image, ImageRecord};
use crate::volumes::LOCAL;

/// Events that are remembered, for a follower that was away.
const KEPT: usize = 1024;

/// The events of one life of the service.
#[derive(Debug)]
pub struct Events {
    /// Made up for this life.
    pub life: String,
    pub journal: Arc<Journal>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            life: IngestKey::random().to_string(),
            journal: Arc::new(Journal::new(KEPT)),
        }
    }
}

impl Events {
    fn note(
        &self,
        kind: Kind,
        action: &'static str,
        id: String,
        attributes: BTreeMap<String, String>,
    ) {
        self.journal.note(Event {
            kind,
            action: action.into(),
            id,
            attributes,
        });
    }

    fn image(&self, action: &'static str, image: &Image, id: String, name: String) {
        let mut attributes = image.config.config.labels.clone();
        attributes.insert("name".to_owned(), name);
        self.note(Kind::Image, action, id, attributes);
    }

    /// "import", "load", "save", "untag".
    pub(crate) fn of_image(&self, action: &'static str, image: &Image) {
        let id = image.id().to_string();
        self.image(action, image, id.clone(), id);
    }

    pub(crate) fn tagged(&self, image: &Image, name: &Reference) {
        self.image("tag", image, image.id().to_string(), name.familiar());
    }

    /// "pull", "push".
    pub(crate) fn moved(&self, action: &'static str, image: &Image, name: &Reference) {
        self.image(action, image, name.familiar(), name.familiar_name());
    }

    /// An image lost names, which was all that happened to it.
    pub(crate) fn untagged(&self, image: &Image, left: &ImageRecord) {
        let tags = image.record.tags.difference(&left.tags).count();
        let digests = image.record.digests.difference(&left.digests).count();
        // A digest goes silently with the last tag of its repository.
        for _ in 0..if tags > 0 { tags } else { digests } {
            self.of_image("untag", image);
        }
    }

    /// An image is gone, with its names.
    pub(crate) fn deleted(&self, image: &Image) {
        let record = &image.record;
        let names = match record.tags.len() {
            0 => record.digests.len(),
            tags => tags,
        };
        for _ in 0..names {
            self.of_image("untag", image);
        }
        self.deleted_id(image.id());
    }

    /// An image of which nothing but its record was left is gone.
    pub(crate) fn deleted_id(&self, id: &Digest) {
        // Nobody has its labels any more.
        let attributes = BTreeMap::from([("name".to_owned(), id.to_string())]);
        self.note(Kind::Image, "delete", id.to_string(), attributes);
    }

    /// "create", "destroy".
    pub(crate) fn of_volume(&self, action: &'static str, name: &str) {
        let attributes = BTreeMap::from([("driver".to_owned(), LOCAL.to_owned())]);
        self.note(Kind::Volume, action, name.to_owned(), attributes);
    }

    pub(crate) fn pruned(&self, kind: Kind, reclaimed: u64) {
        let attributes = BTreeMap::from([("reclaimed".to_owned(), reclaimed.to_string())]);
        self.note(kind, "prune", String::new(), attributes);
    }
}

impl ImageStore {
    /// What happens to images and volumes.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.shared.events
    }
}
