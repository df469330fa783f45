//! The files of a container, and of two images beside each other: `diff` and `export`.
//!
//! A container may run meanwhile. What it changes while it is looked at may be
//! seen or not; whoever wants it at rest pauses it. Its writable layer may even
//! be removed: [`ContainerFiles::still_there`] tells.

use bytes::Bytes;
use gantry_archive::write::WriteError;

use crate::ImageStore;
use crate::error::ImageError;
use crate::image::Image;
use crate::pack::{PackError, Packer};
use crate::snapshots::Snapshot;
use crate::union::compare::{self, Detail, Difference, Visitor};
use crate::union::{Node, Union, UnionError};
use crate::unpack::RootAttributes;

/// One path that differs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// Absolute.
    pub path: Vec<u8>,
    pub kind: ChangeKind,
}

/// How a path differs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChangeKind {
    Modified,
    Added,
    Deleted,
}

/// Changes that are handed on at once.
const BATCH: usize = 1_000;

/// Takes changes, some at a time. False: they are not wanted any more.
pub type TakeChanges<'a> = &'a mut dyn FnMut(Vec<Change>) -> bool;

/// What a container sees, and what its image has.
pub(crate) struct ContainerFiles {
    pub(crate) snapshot: Snapshot,
    /// The image's layers.
    pub(crate) image: Union,
    /// The writable layer over them.
    pub(crate) whole: Union,
}

impl ContainerFiles {
    pub(crate) fn open(snapshot: Snapshot) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Files {
            of: format!("container {}", snapshot.record.container),
            source,
        };
        let lower = || snapshot.lower.iter().map(std::path::PathBuf::as_path);
        let image = Union::open(lower()).map_err(failed)?;
        let upper = std::iter::once(snapshot.upper.as_path());
        let whole = Union::open(upper.chain(lower())).map_err(failed)?;
        Ok(Self {
            snapshot,
            image,
            whole,
        })
    }

    /// The root directory of what the container sees.
    pub(crate) fn root(&self) -> Result<Node, ImageError> {
        let root = self.whole.root().map_err(|error| self.failed(error))?;
        root.ok_or_else(|| self.gone())
    }

    /// Fails if the writable layer was removed: what was read of it may be a part.
    pub(crate) fn still_there(&self) -> Result<(), ImageError> {
        use std::os::unix::fs::MetadataExt as _;
        let read = self.root()?.stat;
        match std::fs::metadata(&self.snapshot.upper) {
            Ok(now) if (now.dev(), now.ino()) == (read.st_dev, read.st_ino) => Ok(()),
            _ => Err(self.gone()),
        }
    }

    fn gone(&self) -> ImageError {
        ImageError::SnapshotNotFound {
            container: self.snapshot.record.container.clone(),
        }
    }

    pub(crate) fn failed(&self, source: UnionError) -> ImageError {
        ImageError::Files {
            of: format!("container {}", self.snapshot.record.container),
            source,
        }
    }

    /// The error of packing these files. `None`: nobody wants them any more.
    pub(crate) fn not_packed(&self, error: PackError) -> Option<ImageError> {
        match error {
            PackError::Write(WriteError::Unwanted) => None,
            PackError::Union(source) => Some(self.failed(source)),
            source => Some(ImageError::Pack {
                of: format!("container {}", self.snapshot.record.container),
                source,
            }),
        }
    }
}

impl ImageStore {
    /// What a container changed. Blocks.
    pub fn diff(&self, container: &str, take: TakeChanges<'_>) -> Result<(), ImageError> {
        let files = ContainerFiles::open(self.get_snapshot(container)?)?;
        let listed = Lister::run(take, |lister| {
            let detail = Detail::Listing;
            compare::compare_container(&files.image, &files.whole, detail, lister)
        });
        listed.map_err(|error| files.failed(error))?;
        files.still_there()
    }

    /// What one image's files have other than another's. Blocks.
    pub fn compare_images(
        &self,
        from: &str,
        to: &str,
        take: TakeChanges<'_>,
    ) -> Result<(), ImageError> {
        let (from, to) = (self.resolve(from)?, self.resolve(to)?);
        // Neither goes while it is looked at.
        let _lease = self.lease(
            [&from, &to]
                .into_iter()
                .flat_map(|i| layers_of(i))
                .collect(),
        );
        for image in [&from, &to] {
            if self.catalogue().get(image.id()).is_none() {
                return Err(ImageError::NotFound {
                    reference: image.id().to_string(),
                });
            }
        }
        let failed = |source| ImageError::Files {
            of: format!("images {} and {}", from.id(), to.id()),
            source,
        };
        let listed = self.image_files(&from).and_then(|from| {
            let to = self.image_files(&to)?;
            Lister::run(take, |lister| {
                compare::compare(Some(&from), &to, Detail::Listing, lister)
            })
        });
        listed.map_err(failed)
    }

    pub(crate) fn image_files(&self, image: &Image) -> Result<Union, UnionError> {
        let keys = image.record.layers.iter().map(|layer| &layer.key);
        let mut layers = self.shared.layers.stack(keys);
        if layers.is_empty() {
            layers.push(self.shared.places.empty.clone());
        }
        Union::open(layers.iter().map(std::path::PathBuf::as_path))
    }

    /// Writes a container's whole file system as a tar, in pieces. Blocks.
    /// False from `take`: it is not wanted any more.
    pub fn export(
        &self,
        container: &str,
        mut take: impl FnMut(Bytes) -> bool,
    ) -> Result<(), ImageError> {
        let files = ContainerFiles::open(self.get_snapshot(container)?)?;
        let root = files.root()?;
        let mut packer = Packer::new(&files.whole, &mut take);
        let unusual = RootAttributes::of(&root.stat) != RootAttributes::default();
        let packed = match unusual {
            true => packer.root(&root),
            false => Ok(()),
        };
        let packed =
            packed.and_then(|()| compare::compare(None, &files.whole, Detail::Layer, &mut packer));
        let ended = match packed {
            // Before its end is written, so that a part does not look like the whole.
            Ok(()) => files.still_there().map(|()| packer.finish().map(drop))?,
            Err(error) => Err(error),
        };
        match ended.map_err(|error| files.not_packed(error)) {
            Err(Some(error)) => Err(error),
            Err(None) | Ok(()) => Ok(()),
        }
    }
}

/// The layers of an image, by the names that a lease takes.
fn layers_of(image: &Image) -> Vec<String> {
    let layers = image.record.layers.iter();
    layers.map(|layer| layer.key.clone()).collect()
}

struct Lister<'a> {
    batch: Vec<Change>,
    take: TakeChanges<'a>,
}

enum ListError {
    Union(UnionError),
    Unwanted,
}

impl From<UnionError> for ListError {
    fn from(error: UnionError) -> Self {
        Self::Union(error)
    }
}

impl<'a> Lister<'a> {
    /// Lists what a walk tells.
    fn run(
        take: TakeChanges<'a>,
        walk: impl FnOnce(&mut Self) -> Result<(), ListError>,
    ) -> Result<(), UnionError> {
        let mut lister = Self {
            batch: Vec::new(),
            take,
        };
        match walk(&mut lister).and_then(|()| lister.hand_on()) {
            Ok(()) | Err(ListError::Unwanted) => Ok(()),
            Err(ListError::Union(error)) => Err(error),
        }
    }

    fn hand_on(&mut self) -> Result<(), ListError> {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() || (self.take)(batch) {
            Ok(())
        } else {
            Err(ListError::Unwanted)
        }
    }
}

impl Visitor for Lister<'_> {
    type Error = ListError;

    fn visit(&mut self, path: &[u8], difference: Difference<'_>) -> Result<(), ListError> {
        let kind = match difference {
            Difference::Added(_) => ChangeKind::Added,
            Difference::Modified(_) => ChangeKind::Modified,
            Difference::Deleted => ChangeKind::Deleted,
            Difference::Emptied => return Ok(()),
        };
        let path = [b"/", path].concat();
        self.batch.push(Change { path, kind });
        if self.batch.len() >= BATCH {
            self.hand_on()?;
        }
        Ok(())
    }
}
