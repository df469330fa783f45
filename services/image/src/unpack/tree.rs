//! Making files beneath a layer's root, and nowhere else.
//!
//! Every path is opened with `openat2(RESOLVE_IN_ROOT)`: a symlink in the layer
//! means within the layer what it will mean inside the container, and can not
//! lead out whatever it says. The last component is never followed.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::error::{UnpackError, shown};
use super::path::LayerPath;
use super::removal;

/// The xattr by which overlayfs hides everything below a directory.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// Owner and permission bits of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Ownership {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Permission, set-id and sticky bits.
    pub(super) mode: u32,
}

impl Ownership {
    pub(super) const IMPLIED_DIRECTORY: Self = Self {
        uid: 0,
        gid: 0,
        mode: 0o755,
    };
}

/// A layer's directory while it is filled.
pub(super) struct Tree {
    root: OwnedFd,
    /// The directory used last, which the next entry most likely uses too.
    /// Forgotten whenever something is removed or replaced.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Directories that were made because an entry needed them, and for which
    /// the archive had no entry of their own so far.
    implied: BTreeSet<LayerPath>,
    /// Whether any file was given an extended attribute.
    has_xattrs: bool,
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            // openat2 says EAGAIN when something was renamed while it looked at "..".
            Err(Errno::INTR | Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// Opens something beneath `root`, following symlinks as if `root` were `/`.
pub(super) fn open_in_root(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    retry(|| {
        rustix::fs::openat2(
            root,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
        )
    })
}

/// Whether this is overlayfs' mark for "nothing here".
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(crate) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Where a name is in the file system, for the calls that have no `*at` form.
fn proc_path(parent: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

impl Tree {
    /// Takes an empty directory.
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root,
            last: None,
            implied: BTreeSet::new(),
            has_xattrs: false,
        }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub(super) const fn has_xattrs(&self) -> bool {
        self.has_xattrs
    }

    /// A file was given an extended attribute in another way than through here.
    pub(super) const fn note_xattr(&mut self) {
        self.has_xattrs = true;
    }

    pub(super) fn implied(&self) -> &BTreeSet<LayerPath> {
        &self.implied
    }

    /// The directory that holds `path`, made if it is missing.
    pub(super) fn parent(&mut self, path: &LayerPath) -> Result<BorrowedFd<'_>, UnpackError> {
        let known = matches!(&self.last, Some((last, _)) if last == path.parent());
        if !known {
            let directory = self.directory(&path.parent_path(), path)?;
            self.last = Some((path.parent().to_vec(), directory));
        }
        match &self.last {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => Ok(self.root.as_fd()),
        }
    }

    /// The directory at `path`, made if it is missing; `entry` is who wants it.
    fn directory(&mut self, path: &LayerPath, entry: &LayerPath) -> Result<OwnedFd, UnpackError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match open_in_root(self.root.as_fd(), path.as_bytes(), flags) {
            Ok(directory) => return Ok(directory),
            Err(Errno::NOENT | Errno::NOTDIR) if !path.is_root() => {}
            Err(Errno::LOOP) => return Err(not_a_directory(path, entry)),
            Err(error) => return Err(write_error(entry, "opening its directory", error)),
        }
        let parent = self.directory(&path.parent_path(), entry)?;
        let name = path.name();
        let mut opaque = false;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| write_error(entry, "looking at its directory", e))?;
                if !is_whiteout(&stat) {
                    return Err(not_a_directory(path, entry));
                }
                // The layer removes what was here and then puts something new in its place.
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())
                    .and_then(|()| rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)))
                    .map_err(|e| write_error(entry, "making its directory", e))?;
                opaque = true;
            }
            Err(error) => return Err(write_error(entry, "making its directory", error)),
        }
        let made = Ownership::IMPLIED_DIRECTORY;
        own(parent.as_fd(), name, made, true)
            .map_err(|e| write_error(entry, "setting the mode of its directory", e))?;
        if opaque {
            self.has_xattrs = true;
            set_xattr(parent.as_fd(), name, OPAQUE.as_bytes(), b"y")
                .map_err(|e| write_error(entry, "marking its directory opaque", e))?;
        }
        self.implied.insert(path.clone());
        rustix::fs::openat(
            &parent,
            name,
            flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| write_error(entry, "opening its directory", e))
    }

    /// What is at `path` in this layer, if anything.
    pub(super) fn stat(&mut self, path: &LayerPath) -> Result<Option<Stat>, UnpackError> {
        let directory = match open_in_root(
            self.root.as_fd(),
            path.parent(),
            OFlags::PATH | OFlags::DIRECTORY,
        ) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(write_error(path, "opening its directory", error)),
        };
        match rustix::fs::statat(&directory, path.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(write_error(path, "looking at it", error)),
        }
    }

    /// Runs `make`, which must fail with EEXIST rather than replace; then what
    /// is in its place is removed and `make` runs again.
    fn place<T>(
        &mut self,
        path: &LayerPath,
        step: &'static str,
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        if path.is_root() {
            return Err(UnpackError::BadPath {
                path: "/".into(),
                reason: "the root of a layer is a directory",
            });
        }
        match make(self.parent(path)?, path.name()) {
            Ok(made) => return Ok(made),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(write_error(path, step, error)),
        }
        self.remove(path)?;
        make(self.parent(path)?, path.name()).map_err(|e| write_error(path, step, e))
    }

    /// Makes a regular file and opens it for writing.
    pub(super) fn make_file(&mut self, path: &LayerPath) -> Result<File, UnpackError> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.place(path, "making the file", |parent, name| {
            rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
        })
        .map(File::from)
    }

    pub(super) fn make_symlink(
        &mut self,
        path: &LayerPath,
        target: &[u8],
    ) -> Result<(), UnpackError> {
        self.place(path, "making the symlink", |parent, name| {
            rustix::fs::symlinkat(target, parent, name)
        })
    }

    /// Makes a device node or a FIFO.
    pub(super) fn make_node(
        &mut self,
        path: &LayerPath,
        kind: FileType,
        device: u64,
    ) -> Result<(), UnpackError> {
        self.place(path, "making the device node", |parent, name| {
            rustix::fs::mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, device)
        })
    }

    /// Makes a directory, or keeps the one that is there.
    pub(super) fn make_directory(&mut self, path: &LayerPath) -> Result<(), UnpackError> {
        self.implied.remove(path);
        if path.is_root() {
            return Ok(());
        }
        let make = |parent: BorrowedFd<'_>, name: &[u8]| {
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
        };
        match make(self.parent(path)?, path.name()) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(write_error(path, "making the directory", error)),
        }
        let parent = self.parent(path)?;
        let stat = rustix::fs::statat(parent, path.name(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| write_error(path, "looking at it", e))?;
        if is_directory(&stat) {
            return Ok(());
        }
        // What it replaces hid whatever the layers below have here; so must it.
        self.remove(path)?;
        make(self.parent(path)?, path.name())
            .map_err(|e| write_error(path, "making the directory", e))?;
        self.set_xattr(path, OPAQUE.as_bytes(), b"y")
    }

    /// Makes `path` one more name of the file at `target`.
    pub(super) fn make_hard_link(
        &mut self,
        path: &LayerPath,
        target: &LayerPath,
    ) -> Result<(), UnpackError> {
        if path == target {
            return Ok(());
        }
        let directory = open_in_root(
            self.root.as_fd(),
            target.parent(),
            OFlags::PATH | OFlags::DIRECTORY,
        )
        .map_err(|e| write_error(path, "opening its link target's directory", e))?;
        self.place(path, "making the hard link", |parent, name| {
            rustix::fs::linkat(&directory, target.name(), parent, name, AtFlags::empty())
        })
    }

    /// Marks that whatever the layers below have at `path` is gone.
    pub(super) fn make_whiteout(&mut self, path: &LayerPath) -> Result<(), UnpackError> {
        let parent = self.parent(path)?;
        let device = rustix::fs::makedev(0, 0);
        let kind = FileType::CharacterDevice;
        match rustix::fs::mknodat(parent, path.name(), kind, Mode::empty(), device) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                // A whiteout speaks of the layers below only, wherever it stands in
                // the archive: what this layer has itself stays, and hides them.
                let stat = rustix::fs::statat(parent, path.name(), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| write_error(path, "looking at it", e))?;
                if is_directory(&stat) {
                    self.set_xattr(path, OPAQUE.as_bytes(), b"y")?;
                }
                Ok(())
            }
            Err(error) => Err(write_error(path, "making the whiteout", error)),
        }
    }

    /// Marks that nothing the layers below have inside the directory is seen.
    pub(super) fn make_opaque(
        &mut self,
        directory: &LayerPath,
        entry: &LayerPath,
    ) -> Result<(), UnpackError> {
        if directory.is_root() {
            self.has_xattrs = true;
            return set_xattr(self.root.as_fd(), b".", OPAQUE.as_bytes(), b"y")
                .map_err(|e| write_error(entry, "marking the root opaque", e));
        }
        self.directory(directory, entry)?;
        self.set_xattr(directory, OPAQUE.as_bytes(), b"y")
    }

    /// Removes what is at `path`, with all that is in it.
    fn remove(&mut self, path: &LayerPath) -> Result<(), UnpackError> {
        let parent = rustix::io::dup(self.parent(path)?)
            .map_err(|e| write_error(path, "opening its directory", e))?;
        self.last = None;
        removal::remove_tree(parent.as_fd(), path.name())
            .map_err(|e| write_error(path, "replacing what is there", e))?;
        self.implied.remove(path);
        for gone in path.all_inside(&self.implied) {
            self.implied.remove(&gone);
        }
        Ok(())
    }

    /// Sets owner and mode of anything but an open file.
    pub(super) fn set_ownership(
        &mut self,
        path: &LayerPath,
        owner: Ownership,
        has_mode: bool,
    ) -> Result<(), UnpackError> {
        let (parent, name) = self.locate(path)?;
        own(parent, name, owner, has_mode)
            .map_err(|e| write_error(path, "setting its owner and mode", e))
    }

    pub(super) fn set_times(
        &mut self,
        path: &LayerPath,
        mtime: Timespec,
    ) -> Result<(), UnpackError> {
        let (parent, name) = self.locate(path)?;
        rustix::fs::utimensat(parent, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| write_error(path, "setting its times", e))
    }

    pub(super) fn set_xattr(
        &mut self,
        path: &LayerPath,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), UnpackError> {
        self.has_xattrs = true;
        let (parent, name) = self.locate(path)?;
        set_xattr(parent, name, key, value)
            .map_err(|e| write_error(path, "setting an extended attribute", e))
    }

    fn locate<'a>(
        &'a mut self,
        path: &'a LayerPath,
    ) -> Result<(BorrowedFd<'a>, &'a [u8]), UnpackError> {
        if path.is_root() {
            return Ok((self.root.as_fd(), b"."));
        }
        Ok((self.parent(path)?, path.name()))
    }
}

fn own(parent: BorrowedFd<'_>, name: &[u8], owner: Ownership, has_mode: bool) -> Result<(), Errno> {
    rustix::fs::chownat(
        parent,
        name,
        Some(Uid::from_raw(owner.uid)),
        Some(Gid::from_raw(owner.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    if has_mode {
        // No symlink can be here: the caller just made what the name stands for.
        rustix::fs::chmodat(
            parent,
            name,
            Mode::from_raw_mode(owner.mode),
            AtFlags::empty(),
        )?;
    }
    Ok(())
}

/// Sets an extended attribute without following a symlink.
pub(super) fn set_xattr(
    parent: BorrowedFd<'_>,
    name: &[u8],
    key: &[u8],
    value: &[u8],
) -> Result<(), Errno> {
    rustix::fs::lsetxattr(
        proc_path(parent, name).as_slice(),
        key,
        value,
        XattrFlags::empty(),
    )
}

/// Reads an extended attribute without following a symlink; absent is `None`.
pub(crate) fn get_xattr(
    parent: BorrowedFd<'_>,
    name: &[u8],
    key: &[u8],
) -> Result<Option<Vec<u8>>, Errno> {
    let path = proc_path(parent, name);
    read_xattr(|buffer| rustix::fs::lgetxattr(path.as_slice(), key, buffer))
}

/// The names of all extended attributes of a file.
pub(crate) fn list_xattrs(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
    let path = proc_path(parent, name);
    read_xattr_names(|buffer| rustix::fs::llistxattr(path.as_slice(), buffer))
}

/// Reads an extended attribute with a call that fills a buffer; absent is `None`.
pub(crate) fn read_xattr(
    read: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
) -> Result<Option<Vec<u8>>, Errno> {
    match fill(read) {
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        other => other.map(Some),
    }
}

/// Reads the names of extended attributes with a call that fills a buffer.
pub(crate) fn read_xattr_names(
    list: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
) -> Result<Vec<Vec<u8>>, Errno> {
    let names = match fill(list) {
        Err(Errno::NOTSUP) => Vec::new(),
        other => other?,
    };
    let names = names.split(|&b| b == 0).filter(|name| !name.is_empty());
    Ok(names.map(<[u8]>::to_vec).collect())
}

/// Fills a buffer that is as large as it has to be: the kernel's limit is 64 KiB.
fn fill(mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(size) => {
                buffer.truncate(size);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 8, 0),
            Err(error) => return Err(error),
        }
    }
}

/// Access time as modification time: a layer has only the latter.
pub(super) const fn times(mtime: Timespec) -> Timestamps {
    Timestamps {
        last_access: mtime,
        last_modification: mtime,
    }
}

fn not_a_directory(path: &LayerPath, entry: &LayerPath) -> UnpackError {
    UnpackError::ParentNotDirectory {
        path: shown(entry.as_bytes()),
        parent: shown(path.as_bytes()),
    }
}

pub(super) fn write_error(path: &LayerPath, step: &'static str, error: Errno) -> UnpackError {
    UnpackError::Write {
        path: shown(path.as_bytes()),
        step,
        source: error.into(),
    }
}
