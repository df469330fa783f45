//! What came of an archive, by the paths it has there.

use std::collections::HashMap;
use std::io::{Cursor, Read};

use bytes::Bytes;
use gantry_oci::content::{Commit, ContentError, Sealed, Store};
use gantry_oci::{Compression, Digest, ManifestError};

use super::ahead::Early;
use super::error::ArchiveError;
use crate::error::ImageError;
use crate::garbage::Lease;

/// Entries of an archive. An image has a handful, and one for each layer; Docker's old format three.
const ENTRIES_MAX: usize = 200_000;
/// Bytes of all paths together.
const PATH_BYTES_MAX: usize = 8 << 20;
/// Bytes of one path.
pub(super) const PATH_MAX: usize = 4_096;
/// Links from one path to the next.
const LINKS_MAX: usize = 16;

/// All entries that came.
#[derive(Debug)]
pub(super) struct Entries {
    content: Store,
    nodes: HashMap<String, Node>,
    files: Vec<Arrived>,
    /// Layers that were begun of files that were there already.
    orphans: Vec<Early>,
    path_bytes: usize,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Node {
    File(usize),
    /// Where a link leads, as a path of the archive.
    Link(String),
    Directory,
}

/// A file of the archive.
#[derive(Debug)]
pub(super) struct Arrived {
    /// In the algorithm that its path names, else SHA-256.
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) format: Compression,
    pub(super) place: Place,
    /// Under which digest its progress is told.
    pub(super) label: Digest,
    /// The layer that is made of it, begun before it was known to be one.
    pub(super) early: Option<Early>,
}

/// Where a file is.
#[derive(Debug)]
pub(super) enum Place {
    Memory(Bytes),
    Sealed(Unnamed),
    /// In the content store under its digest.
    Stored,
}

/// Content without a name, which goes with this unless it gets one.
#[derive(Debug)]
pub(super) struct Unnamed {
    content: Store,
    sealed: Option<Sealed>,
    _lease: Lease,
}

impl Unnamed {
    pub(super) fn new(content: &Store, sealed: Sealed, lease: Lease) -> Self {
        Self {
            content: content.clone(),
            sealed: Some(sealed),
            _lease: lease,
        }
    }

    /// Gives it its name.
    pub(super) fn commit(mut self) -> Result<(), ContentError> {
        if let Some(sealed) = &self.sealed {
            self.content.commit_sealed(sealed, Commit::Deferred)?;
            self.sealed = None;
        }
        Ok(())
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        let Some(sealed) = &self.sealed else { return };
        if let Err(error) = self.content.remove_ingest(&sealed.key) {
            tracing::warn!(key = %sealed.key, %error, "unwanted content cannot be removed; it goes at the next start");
        }
    }
}

impl Entries {
    pub(super) fn new(content: &Store) -> Self {
        Self {
            content: content.clone(),
            nodes: HashMap::new(),
            files: Vec::new(),
            orphans: Vec::new(),
            path_bytes: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    pub(super) fn add_file(&mut self, path: String, file: Arrived) -> Result<(), ArchiveError> {
        if let Some(Node::File(known)) = self.nodes.get(&path) {
            let known = &self.files[*known];
            if known.digest == file.digest && known.size == file.size {
                self.orphans.extend(file.early);
                return Ok(());
            }
        }
        self.files.push(file);
        self.add(path, Node::File(self.files.len() - 1))
    }

    pub(super) fn add_directory(&mut self, path: String) -> Result<(), ArchiveError> {
        self.add(path, Node::Directory)
    }

    /// Adds a link. A symlink's target is seen from where the link is, a hard
    /// link's from the archive's root.
    pub(super) fn add_link(
        &mut self,
        path: String,
        target: &[u8],
        symbolic: bool,
    ) -> Result<(), ArchiveError> {
        let base = if symbolic { parent(&path) } else { "" };
        let target = normal(base, target).map_err(|reason| {
            ArchiveError::entry(&path, format!("is a link to something that {reason}"))
        })?;
        self.add(path, Node::Link(target))
    }

    fn add(&mut self, path: String, node: Node) -> Result<(), ArchiveError> {
        self.path_bytes += path.len();
        if let Node::Link(target) = &node {
            self.path_bytes += target.len();
        }
        if self.path_bytes > PATH_BYTES_MAX {
            return Err(ArchiveError::Limit {
                what: "bytes of paths",
                limit: PATH_BYTES_MAX as u64,
            });
        }
        if self.nodes.len() >= ENTRIES_MAX {
            return Err(ArchiveError::Limit {
                what: "entries",
                limit: ENTRIES_MAX as u64,
            });
        }
        match self.nodes.get(&path) {
            Some(known) if *known != node => Err(ArchiveError::entry(
                &path,
                "is there more than once, with different content",
            )),
            _ => {
                self.nodes.insert(path, node);
                Ok(())
            }
        }
    }

    /// The file at a path that a document names, links followed.
    pub(super) fn find(&self, path: &str) -> Result<Option<usize>, ArchiveError> {
        let mut at =
            normal("", path.as_bytes()).map_err(|reason| ArchiveError::entry(path, reason))?;
        for _ in 0..LINKS_MAX {
            match self.nodes.get(&at) {
                Some(Node::File(file)) => return Ok(Some(*file)),
                Some(Node::Link(target)) => at.clone_from(target),
                Some(Node::Directory) => {
                    return Err(ArchiveError::entry(&at, "is a directory, not a file"));
                }
                None => return Ok(None),
            }
        }
        Err(ArchiveError::entry(path, "is a link that leads to no file"))
    }

    pub(super) fn arrived(&self, file: usize) -> &Arrived {
        &self.files[file]
    }

    pub(super) fn arrived_mut(&mut self, file: usize) -> &mut Arrived {
        &mut self.files[file]
    }

    /// The files that are being unpacked.
    pub(super) fn take_early(&mut self) -> Vec<Early> {
        let files = self.files.iter_mut();
        let early = files.filter_map(|file| file.early.take());
        early.chain(self.orphans.drain(..)).collect()
    }

    /// Opens a file for reading from its start.
    pub(super) fn open(&self, file: usize) -> Result<Box<dyn Read + Send>, ImageError> {
        let arrived = self.arrived(file);
        Ok(match &arrived.place {
            Place::Memory(bytes) => Box::new(Cursor::new(bytes.clone())),
            Place::Sealed(Unnamed {
                sealed: Some(sealed),
                ..
            }) => Box::new(self.content.open_ingest(&sealed.key)?),
            Place::Sealed(_) | Place::Stored => {
                Box::new(self.content.open_blob(&arrived.digest)?.0)
            }
        })
    }

    /// Reads a document; `path` is for an error.
    pub(super) fn document(
        &self,
        file: usize,
        path: &str,
        limit: u64,
    ) -> Result<Bytes, ImageError> {
        let arrived = self.arrived(file);
        if arrived.size > limit {
            return Err(ArchiveError::Document {
                path: path.to_owned(),
                source: ManifestError::TooLarge {
                    size: arrived.size,
                    limit,
                },
            }
            .into());
        }
        if let Place::Memory(bytes) = &arrived.place {
            return Ok(bytes.clone());
        }
        let mut raw = Vec::new();
        self.open(file)?
            .take(limit)
            .read_to_end(&mut raw)
            .map_err(|error| ImageError::Stream {
                reason: format!("{path:?} cannot be read again: {error}"),
            })?;
        Ok(raw.into())
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// A path of an archive in its one spelling, or what is wrong with it.
pub(super) fn normal(base: &str, path: &[u8]) -> Result<String, &'static str> {
    let path = std::str::from_utf8(path).map_err(|_| "has a path that is not UTF-8")?;
    if path.len() > PATH_MAX {
        return Err("has a path that is too long");
    }
    let base = if path.starts_with('/') { "" } else { base };
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop().ok_or("leads out of the archive")?;
            }
            plain => parts.push(plain),
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file(text: &str) -> Arrived {
        Arrived {
            digest: Digest::sha256_of(text.as_bytes()),
            size: text.len() as u64,
            format: Compression::None,
            place: Place::Memory(text.to_owned().into()),
            label: Digest::sha256_of(text.as_bytes()),
            early: None,
        }
    }

    fn entries() -> (tempfile::TempDir, Entries) {
        let root = tempfile::tempdir().unwrap();
        let content = Store::open(root.path()).unwrap();
        (root, Entries::new(&content))
    }

    #[test]
    fn links_are_followed_within_the_archive_and_not_for_ever() {
        let (_root, mut entries) = entries();
        entries.add_file("a/layer.tar".into(), file("x")).unwrap();
        let link = |entries: &mut Entries, path: &str, target: &str| {
            entries.add_link(path.into(), target.as_bytes(), true)
        };
        link(&mut entries, "b/layer.tar", "../a/layer.tar").unwrap();
        link(&mut entries, "c/layer.tar", "../b/layer.tar").unwrap();
        entries
            .add_link("d.tar".into(), b"a/layer.tar", false)
            .unwrap();
        for path in ["a/layer.tar", "./b/layer.tar", "c//layer.tar", "/d.tar"] {
            assert_eq!(entries.find(path).unwrap(), Some(0), "{path}");
        }
        assert_eq!(entries.find("e").unwrap(), None);
        link(&mut entries, "x", "y").unwrap();
        link(&mut entries, "y", "x").unwrap();
        assert!(entries.find("x").is_err());
        assert!(entries.find("../x").is_err());
        assert!(link(&mut entries, "z/z", "../../etc/passwd").is_err());
        entries.add_directory("dir".into()).unwrap();
        assert!(entries.find("dir").is_err());
    }

    #[test]
    fn one_path_has_one_content() {
        let (_root, mut entries) = entries();
        entries.add_file("a".into(), file("x")).unwrap();
        entries.add_file("a".into(), file("x")).unwrap();
        assert!(entries.add_file("a".into(), file("y")).is_err());
        assert!(entries.add_link("a".into(), b"b", true).is_err());
        entries.add_directory("d".into()).unwrap();
        entries.add_directory("d".into()).unwrap();
    }

    #[test]
    fn a_table_that_grows_without_end_is_refused() {
        let (_root, mut entries) = entries();
        let long = "n".repeat(4_000);
        let outcome = (0..3_000).try_for_each(|n| entries.add_directory(format!("{long}{n}")));
        assert!(matches!(outcome, Err(ArchiveError::Limit { .. })));
    }
}
