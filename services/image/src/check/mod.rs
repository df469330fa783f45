//! Whether what is on the disk is what it should be, and putting right what is not.
//!
//! | what | is wrong when | repair |
//! | --- | --- | --- |
//! | records | files, index and memory disagree | written again from memory |
//! | blobs | their digest is another, or an image's is missing | fetched again from where the image came from |
//! | packed layers | inflated, they are not the layer that an image names them for | another blob of the layer takes their place: one that is here, or is fetched for another image |
//! | images | manifest, configuration and record do not fit together | read again, where the configuration could be fetched |
//! | layers | their files are not those of their record (`tree`) | unpacked again from the packed layer, in place |
//! | writable layers | a part of the directory is missing | its record is written again |
//! | volumes | a part of the directory is missing | its record is written again; lost content is not had again |
//! | anything else | nobody owns it | what was the store's is removed; a foreign file never |
//!
//! In that order: a layer is unpacked from a blob that was looked at before. No
//! lock is held while the disk is read. What is found wrong is looked at once
//! more before it is told, since it may just have been removed.
//!
//! A layer that containers stand on is mended in place, file by file: a container
//! goes on with the files that it has open and finds the new ones by their names.

mod blobs;
mod images;
mod layers;
pub(crate) mod mend;
mod packings;
mod records;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::ImageStore;
use crate::error::ImageError;

/// Something that is not as it should be.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Finding {
    /// "layer sha256:…"
    pub object: String,
    pub problem: String,
    /// What was done about it. Empty: nothing.
    pub repaired: String,
    /// Names of images and ids of containers.
    pub needed_by: Vec<String>,
}

/// What a check tells while it looks.
#[derive(Clone, Debug)]
pub enum CheckEvent {
    Progress {
        object: String,
        current: u64,
        total: u64,
    },
    Finding(Finding),
}

/// Where events go. Called from any thread; must not block.
pub type CheckWatcher = Arc<dyn Fn(CheckEvent) + Send + Sync>;

/// What a check came to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Checked {
    /// Objects that were looked at.
    pub objects: u64,
    /// Bytes that were read.
    pub bytes: u64,
    pub findings: u64,
    pub repaired: u64,
}

impl Checked {
    /// Whether nothing is wrong any more.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.findings == self.repaired
    }
}

/// A check under way.
struct Check {
    store: ImageStore,
    repair: bool,
    watcher: CheckWatcher,
    cancel: CancellationToken,
    total: u64,
    checked: Checked,
}

impl ImageStore {
    /// Looks at everything. `repair`: puts right what can be.
    pub async fn check(
        &self,
        repair: bool,
        cancel: CancellationToken,
        watcher: CheckWatcher,
    ) -> Result<Checked, ImageError> {
        let mut check = Check {
            store: self.clone(),
            repair,
            watcher,
            cancel,
            total: 0,
            checked: Checked::default(),
        };
        check.records().await?;
        check.blobs().await?;
        check.packings().await?;
        check.images().await?;
        check.layers().await?;
        check.leftovers().await?;
        if repair {
            self.settle_layers_behind();
        }
        Ok(check.checked)
    }
}

impl Check {
    /// Begins to look at an object. An error: nobody wants to know any more.
    fn begin(&mut self, object: &str) -> Result<(), ImageError> {
        if self.cancel.is_cancelled() {
            return Err(ImageError::Cancelled {
                what: "the check".to_owned(),
            });
        }
        self.checked.objects += 1;
        (self.watcher)(CheckEvent::Progress {
            object: object.to_owned(),
            current: self.checked.objects,
            total: self.total.max(self.checked.objects),
        });
        Ok(())
    }

    fn found(&mut self, finding: Finding) {
        self.checked.findings += 1;
        if !finding.repaired.is_empty() {
            self.checked.repaired += 1;
        }
        (self.watcher)(CheckEvent::Finding(finding));
    }
}

/// An error as one line.
fn line(error: &ImageError) -> String {
    gantry_kit::fault::chain(error)
}
