//! Makes files of an archive's entries, one after another.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{FileType, Gid, Mode, Timespec, Uid, XattrFlags};
use rustix::io::Errno;

use super::entry::{Entry, Kind};
use super::lower::{EPOCH, LowerLayers};
use super::path::{LayerPath, PathFault};
use super::tree::{self, Ownership, Tree, write_error};
use super::{
    Header, Headers, Limits, Lower, Passing, RootAttributes, TarStream, UnpackError, Unpacked,
    shown, sparse,
};
use crate::tree_record::{ContentFormat, ContentHash, ContentHasher, KnownContent};

/// The prefix of a whiteout's name.
const WHITEOUT: &[u8] = b".wh.";
/// The name that makes its directory opaque.
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// The prefix of other marks of aufs, which mean nothing to anybody else.
const AUFS_MARKER: &[u8] = b".wh..wh.";

pub(super) struct Unpacker<'a, H> {
    stream: TarStream<H>,
    tree: Tree,
    lower: LowerLayers<'a>,
    limits: Limits,
    directory_times: BTreeMap<LayerPath, Timespec>,
    directory_table: u64,
    entries: u64,
    content_bytes: u64,
    root: Option<RootAttributes>,
    dropped_xattrs: u64,
    known: KnownContent,
}

impl<'a, H: Passing> Unpacker<'a, H> {
    pub(super) fn new(
        stream: TarStream<H>,
        directory: OwnedFd,
        limits: &Limits,
        lower: &'a mut dyn Lower,
    ) -> Self {
        Self {
            stream,
            tree: Tree::new(directory),
            lower: LowerLayers::new(lower),
            limits: limits.clone(),
            directory_times: BTreeMap::new(),
            directory_table: 0,
            entries: 0,
            content_bytes: 0,
            root: None,
            dropped_xattrs: 0,
            known: KnownContent::default(),
        }
    }

    /// Takes the whole archive.
    pub(super) fn run(&mut self) -> Result<(), UnpackError> {
        let own = Ownership::IMPLIED_DIRECTORY;
        self.tree.set_ownership(&LayerPath::default(), own, true)?;
        let mut headers = Headers::new(self.limits.path_bytes);
        let limits = self.limits.clone();
        loop {
            let header = headers.next(&mut self.stream, |parsed, sparse| {
                Entry::read(parsed, sparse, &limits)
            })?;
            match header {
                Header::Entry(entry) => {
                    self.entries += 1;
                    if self.entries > self.limits.entries {
                        return Err(UnpackError::Limit {
                            what: "entries",
                            limit: self.limits.entries,
                        });
                    }
                    self.make(entry)?;
                }
                Header::Other => {}
                Header::End => return self.stream.drain(),
            }
        }
    }

    fn make(&mut self, entry: Entry) -> Result<(), UnpackError> {
        if self.make_whiteout(&entry)? {
            return self.skip(&entry.path, padded(entry.size));
        }
        match entry.kind {
            Kind::File => return self.make_file(&entry),
            Kind::HardLink => return self.make_hard_link(&entry),
            Kind::Directory => return self.make_directory(&entry),
            Kind::Symlink => {
                if entry.link_target.is_empty() || entry.link_target.contains(&0) {
                    return Err(UnpackError::BadValue {
                        path: shown(entry.path.as_bytes()),
                        field: "link target",
                        value: shown(&entry.link_target),
                    });
                }
                self.tree.make_symlink(&entry.path, &entry.link_target)?;
            }
            Kind::CharacterDevice => {
                self.tree
                    .make_node(&entry.path, FileType::CharacterDevice, entry.device)?;
            }
            Kind::BlockDevice => {
                self.tree
                    .make_node(&entry.path, FileType::BlockDevice, entry.device)?;
            }
            Kind::Fifo => self.tree.make_node(&entry.path, FileType::Fifo, 0)?,
        }
        self.forget_directory(&entry.path);
        let has_mode = entry.kind != Kind::Symlink;
        self.tree
            .set_ownership(&entry.path, entry.owner, has_mode)?;
        for (key, value) in &entry.xattrs {
            let done = self.tree.set_xattr(&entry.path, key, value);
            self.tolerate(key, done)?;
        }
        self.tree.set_times(&entry.path, entry.mtime)
    }

    /// Handles the names that mean the absence of something. False: it is none of them.
    fn make_whiteout(&mut self, entry: &Entry) -> Result<bool, UnpackError> {
        let name = entry.path.name();
        if !name.starts_with(WHITEOUT) {
            return Ok(false);
        }
        if name == OPAQUE_MARKER {
            self.tree
                .make_opaque(&entry.path.parent_path(), &entry.path)?;
        } else if !name.starts_with(AUFS_MARKER) {
            let hidden = &name[WHITEOUT.len()..];
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(UnpackError::BadPath {
                    path: shown(entry.path.as_bytes()),
                    reason: "a whiteout must name what it removes",
                });
            }
            self.tree.make_whiteout(&entry.path.with_name(hidden))?;
        }
        Ok(true)
    }

    fn make_directory(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        let path = &entry.path;
        self.tree.make_directory(path)?;
        self.tree.set_ownership(path, entry.owner, true)?;
        for (key, value) in &entry.xattrs {
            let done = self.tree.set_xattr(path, key, value);
            self.tolerate(key, done)?;
        }
        if path.is_root() {
            self.root = Some(RootAttributes {
                uid: entry.owner.uid,
                gid: entry.owner.gid,
                mode: entry.owner.mode,
            });
        }
        // Roughly what an entry of the table costs.
        self.directory_table += path.as_bytes().len() as u64 + 64;
        if self.directory_table > self.limits.directory_table_bytes {
            return Err(UnpackError::Limit {
                what: "bytes of directory names",
                limit: self.limits.directory_table_bytes,
            });
        }
        self.directory_times.insert(path.clone(), entry.mtime);
        Ok(())
    }

    fn make_file(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        let path = &entry.path;
        let mut file = self.tree.make_file(path)?;
        let failed = |step| move |e: Errno| write_error(path, step, e);
        let made = rustix::fs::fstat(&file).map_err(failed("looking at it"))?;
        match &entry.sparse {
            Some((map, real_size)) => {
                self.count(*real_size)?;
                let hash = sparse::write(&mut self.stream, &mut file, path, map, *real_size)?;
                self.known.add(made.st_ino, hash);
            }
            None => {
                self.count(entry.size)?;
                let hash = self.copy_content(&mut file, path, entry.size)?;
                self.known.add(made.st_ino, hash);
            }
        }
        self.skip(path, padded(entry.size) - entry.size)?;
        self.forget_directory(path);
        // In this order: writing takes capabilities away, changing the owner takes the set-id bits away.
        let owner = entry.owner;
        if (owner.uid, owner.gid) != (made.st_uid, made.st_gid) {
            rustix::fs::fchown(
                &file,
                Some(Uid::from_raw(owner.uid)),
                Some(Gid::from_raw(owner.gid)),
            )
            .map_err(failed("setting its owner"))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(owner.mode))
            .map_err(failed("setting its mode"))?;
        for (key, value) in &entry.xattrs {
            let set = rustix::fs::fsetxattr(&file, key.as_slice(), value, XattrFlags::empty());
            self.tree.note_xattr();
            self.tolerate(key, set.map_err(failed("setting an extended attribute")))?;
        }
        rustix::fs::futimens(&file, &tree::times(entry.mtime)).map_err(failed("setting its times"))
    }

    /// Counts bytes of files, which need not be those of the archive.
    fn count(&mut self, bytes: u64) -> Result<(), UnpackError> {
        self.content_bytes = self.content_bytes.saturating_add(bytes);
        if self.content_bytes > self.limits.unpacked_bytes {
            return Err(UnpackError::holes(&self.limits));
        }
        Ok(())
    }

    fn make_hard_link(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        let path = &entry.path;
        let name = &entry.link_target;
        let target = LayerPath::parse(name, &self.limits).map_err(|fault| match fault {
            PathFault::Escapes => UnpackError::LinkEscapes {
                path: shown(path.as_bytes()),
                target: shown(name),
            },
            PathFault::Bad(_) => UnpackError::BadValue {
                path: shown(path.as_bytes()),
                field: "link target",
                value: shown(name),
            },
        })?;
        let missing = || UnpackError::LinkTargetMissing {
            path: shown(path.as_bytes()),
            target: shown(name),
        };
        if target.is_root() {
            return Err(UnpackError::LinkToDirectory {
                path: shown(path.as_bytes()),
                target: shown(name),
            });
        }
        match self.tree.stat(&target)? {
            Some(stat) if tree::is_whiteout(&stat) => return Err(missing()),
            Some(stat) if tree::is_directory(&stat) => {
                return Err(UnpackError::LinkToDirectory {
                    path: shown(path.as_bytes()),
                    target: shown(name),
                });
            }
            Some(_) => {}
            None => {
                let Some(size) = self.lower.size_of(&target)? else {
                    return Err(missing());
                };
                self.count(size)?;
                if !self.lower.copy_up(&mut self.tree, &target)? {
                    return Err(missing());
                }
                if let Some(stat) = self.tree.stat(&target)? {
                    self.known.forget(stat.st_ino);
                }
            }
        }
        self.tree.make_hard_link(path, &target)?;
        self.forget_directory(path);
        Ok(())
    }

    /// Copies the next `size` bytes of the archive into a file, and hashes them.
    fn copy_content(
        &mut self,
        file: &mut File,
        path: &LayerPath,
        size: u64,
    ) -> Result<ContentHash, UnpackError> {
        let mut hasher = ContentHasher::new(ContentFormat::Blocks);
        let mut left = size;
        while left > 0 {
            let bytes = self.stream.peek()?;
            if bytes.is_empty() {
                return Err(truncated(path));
            }
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            file.write_all(&bytes[..count])
                .map_err(|source| UnpackError::Write {
                    path: shown(path.as_bytes()),
                    step: "writing its content",
                    source,
                })?;
            hasher.update(&bytes[..count]);
            self.stream.advance(count);
            left -= count as u64;
        }
        Ok(hasher.finish())
    }

    fn skip(&mut self, path: &LayerPath, count: u64) -> Result<(), UnpackError> {
        let mut left = count;
        while left > 0 {
            let available = self.stream.peek()?.len();
            if available == 0 {
                return Err(truncated(path));
            }
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(available);
            self.stream.advance(count);
            left -= count as u64;
        }
        Ok(())
    }

    /// A directory that something else has replaced has no times to set.
    fn forget_directory(&mut self, path: &LayerPath) {
        if self.directory_times.is_empty() {
            return;
        }
        self.directory_times.remove(path);
    }

    /// A file system without an attribute's name space, or a kernel without its
    /// security module, does not make an image unusable; anything else does.
    /// Capabilities are no decoration: without them programs fail.
    fn tolerate(&mut self, key: &[u8], done: Result<(), UnpackError>) -> Result<(), UnpackError> {
        match done {
            Err(UnpackError::Write { source, .. })
                if key != b"security.capability"
                    && source.raw_os_error() == Some(Errno::NOTSUP.raw_os_error()) =>
            {
                self.dropped_xattrs += 1;
                Ok(())
            }
            other => other,
        }
    }

    /// What has to be done last.
    pub(super) fn finish(mut self) -> Result<Unpacked<H>, UnpackError> {
        if !self.tree.implied().is_empty() {
            self.lower.inherit_directories(&mut self.tree)?;
        }
        for (path, mtime) in std::mem::take(&mut self.directory_times) {
            match self.tree.stat(&path)? {
                Some(stat) if tree::is_directory(&stat) => self.tree.set_times(&path, mtime)?,
                // It was replaced by way of another directory above it.
                _ => {}
            }
        }
        if self.root.is_none() {
            rustix::fs::utimensat(
                self.tree.root().as_fd(),
                ".",
                &tree::times(EPOCH),
                rustix::fs::AtFlags::empty(),
            )
            .map_err(|e| write_error(&LayerPath::default(), "setting its times", e))?;
        }
        self.known.settle(!self.tree.has_xattrs());
        let (hasher, tar_bytes) = self.stream.finish();
        Ok(Unpacked {
            diff_id: hasher,
            tar_bytes,
            content_bytes: self.content_bytes,
            entries: self.entries,
            root: self.root,
            depends_on_lower: self.lower.used,
            dropped_xattrs: self.dropped_xattrs,
            known: self.known,
        })
    }
}

/// Content in an archive fills whole blocks.
const fn padded(size: u64) -> u64 {
    size.next_multiple_of(tar_core::HEADER_SIZE as u64)
}

pub(super) fn truncated(path: &LayerPath) -> UnpackError {
    UnpackError::Truncated {
        during: format!("entry {:?}", shown(path.as_bytes())),
    }
}
