//! What a load is about to name, written down before.
//!
//! Between the naming of an image's blobs and its record lies a flush to the
//! disk. A process that is killed there leaves blobs that belong to nobody; the
//! next one finds them listed here, and removes those that no image has.
//!
//! `<root>/loads/<random>` has a digest in each line.

use std::fs;
use std::path::{Path, PathBuf};

use gantry_oci::Digest;
use gantry_oci::content::IngestKey;

use crate::ImageStore;
use crate::disk::{closed, names_in, remove_file};
use crate::error::ImageError;
use crate::garbage::Candidates;

/// One load's list.
#[derive(Debug)]
pub(super) struct Intent {
    path: PathBuf,
}

impl Intent {
    /// Everything listed has an owner or is gone.
    pub(super) fn settled(self) -> Result<(), ImageError> {
        remove_file(&self.path)
    }
}

impl ImageStore {
    fn loads(&self) -> PathBuf {
        self.shared.places.root.join("loads")
    }

    /// Writes down what is about to be named.
    pub(super) fn intend(&self, blobs: &[Digest]) -> Result<Intent, ImageError> {
        let directory = self.loads();
        closed(&directory)?;
        let path = directory.join(IngestKey::random().as_str());
        let lines: String = blobs.iter().map(|blob| format!("{blob}\n")).collect();
        self.shared
            .places
            .write_file(&path, lines.as_bytes(), true)?;
        Ok(Intent { path })
    }

    /// Removes what killed loads named and did not record, and the content that
    /// never got a name.
    pub(crate) fn undo_loads(&self) -> Result<(), ImageError> {
        let directory = self.loads();
        if directory.is_dir() {
            for name in names_in(&directory)? {
                let path = directory.join(name);
                // One that cannot be undone does not stop the others, nor the start.
                if let Err(error) = self.undo_load(&path) {
                    let error = gantry_kit::fault::chain(&error);
                    tracing::error!(path = %path.display(), error, "what a killed load left cannot be removed; check the store");
                }
            }
        }
        Ok(())
    }

    fn undo_load(&self, path: &Path) -> Result<(), ImageError> {
        let lines = fs::read_to_string(path).map_err(ImageError::io("read", path))?;
        let blobs = lines.lines().filter_map(|line| line.parse().ok()).collect();
        self.collect(&Candidates {
            blobs,
            layers: Vec::new(),
        })?;
        self.shared.places.discard(path).map(drop)
    }
}
