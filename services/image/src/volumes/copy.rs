//! What an image has at a path, copied into a volume.
//!
//! All that a file is comes along: owner, mode, times, extended attributes, other
//! names, holes. Sockets do not: they mean nothing without their process. The
//! place itself gets the owner and the mode that the image's directory has.
//!
//! Of the volume only the directory that is being filled is open: trees may be
//! deeper than there are file descriptors.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::union::{Node, Union, UnionError, Xattrs};
use crate::unpack::shown;
use crate::unpack::sparse::copy_content;
use crate::unpack::tree::{get_xattr, list_xattrs};

/// Why a volume could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The image's files could not be read.
    #[error(transparent)]
    Union(#[from] UnionError),
    /// The volume's could not be written.
    #[error("{path:?}: {step} failed")]
    Write {
        path: String,
        step: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Copies what is in a directory of a union, and its own attributes. False: it
/// was next to nothing. `from` is where the directory is in the union.
pub(super) fn copy(
    union: &Union,
    directory: &Node,
    from: &[u8],
    to: &File,
) -> Result<bool, CopyError> {
    let mut copier = Copier {
        union,
        from,
        to: to.as_fd(),
        first_names: HashMap::new(),
        directories: vec![(Vec::new(), directory.clone())],
        entries: 0,
    };
    let mut next = 0;
    // Each comes after the one that it is in.
    while let Some((path, directory)) = copier.directories.get(next).cloned() {
        copier.fill(&path, &directory)?;
        next += 1;
    }
    copier.finish()?;
    Ok(copier.entries > 0)
}

/// Gives one directory the attributes of another; `stat` may be from before that
/// was emptied.
pub(super) fn attributes_of_root(from: &File, stat: &Stat, to: &File) -> Result<(), Errno> {
    let mut xattrs = Xattrs::new();
    for key in list_xattrs(from.as_fd(), b".")? {
        if let Some(value) = get_xattr(from.as_fd(), b".", &key)? {
            xattrs.insert(key, value);
        }
    }
    set_attributes(to.as_fd(), stat, &xattrs)
}

struct Copier<'a> {
    union: &'a Union,
    from: &'a [u8],
    to: BorrowedFd<'a>,
    /// Files with several names, by device and inode: the first of their names.
    first_names: HashMap<(u64, u64), Vec<u8>>,
    /// By their paths in the volume.
    directories: Vec<(Vec<u8>, Node)>,
    entries: u64,
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match (directory, name) {
        (b"", name) => name.to_vec(),
        (directory, b"") => directory.to_vec(),
        (directory, name) => [directory, b"/", name].concat(),
    }
}

fn failed(path: &[u8], step: &'static str) -> impl FnOnce(Errno) -> CopyError {
    let path = shown(path);
    move |error| CopyError::Write {
        path,
        step,
        source: error.into(),
    }
}

/// Owner first: a change of it takes set-id bits and capabilities away.
fn set_attributes(file: BorrowedFd<'_>, stat: &Stat, xattrs: &Xattrs) -> Result<(), Errno> {
    let (uid, gid) = owner(stat);
    rustix::fs::fchown(file, Some(uid), Some(gid))?;
    for (key, value) in xattrs {
        match rustix::fs::fsetxattr(file, key.as_slice(), value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(error) => return Err(error),
        }
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    rustix::fs::futimens(file, &times(stat))
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanos| Timespec {
        tv_sec: seconds,
        tv_nsec: nanos,
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec.cast_signed()),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
    }
}

impl Copier<'_> {
    /// Opens something that was made here.
    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path: &[u8] = if path.is_empty() { b"." } else { path };
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            match rustix::fs::openat2(self.to, path, flags, Mode::empty(), beneath) {
                Err(Errno::INTR | Errno::AGAIN) => {}
                other => return other,
            }
        }
    }

    /// Makes what is in one directory; those in it come later.
    fn fill(&mut self, path: &[u8], directory: &Node) -> Result<(), CopyError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let to = self
            .open(path, flags)
            .map_err(failed(path, "opening the directory"))?;
        let union = self.union;
        let seen = joined(self.from, path);
        union.each_entry(directory, &seen, |name, node| {
            self.make(to.as_fd(), joined(path, name), name, node)
        })
    }

    fn make(
        &mut self,
        to: BorrowedFd<'_>,
        path: Vec<u8>,
        name: &[u8],
        node: Node,
    ) -> Result<(), CopyError> {
        let kind = node.kind();
        if kind == FileType::Directory {
            rustix::fs::mkdirat(to, name, Mode::RWXU)
                .map_err(failed(&path, "making the directory"))?;
            self.directories.push((path, node));
            self.entries += 1;
            return Ok(());
        }
        if kind == FileType::Socket {
            return Ok(());
        }
        self.entries += 1;
        let key = (node.stat.st_dev, node.stat.st_ino);
        if node.stat.st_nlink > 1 {
            if let Some(first) = self.first_names.get(&key) {
                let flags = AtFlags::empty();
                return rustix::fs::linkat(self.to, first.as_slice(), to, name, flags)
                    .map_err(failed(&path, "making the hard link"));
            }
            self.first_names.insert(key, path.clone());
        }
        match kind {
            FileType::RegularFile => self.file(to, &path, name, &node),
            FileType::Symlink => self.symlink(to, &path, name, &node),
            _ => {
                let mode = Mode::from_raw_mode(node.stat.st_mode & 0o7777);
                rustix::fs::mknodat(to, name, kind, mode, node.stat.st_rdev)
                    .map_err(failed(&path, "making the special file"))?;
                self.attributes_by_name(to, &path, name, &node, true)
            }
        }
    }

    fn xattrs(&self, path: &[u8], node: &Node) -> Result<Xattrs, CopyError> {
        let seen = joined(self.from, path);
        Ok(self.union.xattrs(node, &seen)?.unwrap_or_default())
    }

    fn file(
        &self,
        to: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        node: &Node,
    ) -> Result<(), CopyError> {
        let seen = joined(self.from, path);
        let gone = || UnionError::NoContent { path: shown(&seen) };
        let content = self.union.content(node, &seen)?.ok_or_else(gone)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let made = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed(path, "making the file"))?;
        let made = File::from(made);
        copy_content(&content, &made).map_err(|source| CopyError::Write {
            path: shown(path),
            step: "copying its content",
            source,
        })?;
        set_attributes(made.as_fd(), &node.stat, &self.xattrs(path, node)?)
            .map_err(failed(path, "setting its attributes"))
    }

    fn symlink(
        &self,
        to: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        node: &Node,
    ) -> Result<(), CopyError> {
        let seen = joined(self.from, path);
        let gone = || UnionError::NoContent { path: shown(&seen) };
        let target = self.union.link_target(node, &seen)?.ok_or_else(gone)?;
        rustix::fs::symlinkat(target.as_slice(), to, name)
            .map_err(failed(path, "making the symlink"))?;
        self.attributes_by_name(to, path, name, node, false)
    }

    /// The attributes of what is not to be opened. Nobody else is here yet who
    /// could put something else under the name.
    fn attributes_by_name(
        &self,
        to: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        node: &Node,
        has_mode: bool,
    ) -> Result<(), CopyError> {
        let xattrs = self.xattrs(path, node)?;
        let itself = [
            format!("/proc/self/fd/{}/", to.as_raw_fd()).as_bytes(),
            name,
        ]
        .concat();
        (|| {
            let (uid, gid) = owner(&node.stat);
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(to, name, Some(uid), Some(gid), flags)?;
            for (key, value) in &xattrs {
                let key = key.as_slice();
                match rustix::fs::lsetxattr(itself.as_slice(), key, value, XattrFlags::empty()) {
                    Ok(()) | Err(Errno::NOTSUP) => {}
                    Err(error) => return Err(error),
                }
            }
            if has_mode {
                let mode = Mode::from_raw_mode(node.stat.st_mode & 0o7777);
                rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
            }
            rustix::fs::utimensat(to, name, &times(&node.stat), flags)
        })()
        .map_err(failed(path, "setting its attributes"))
    }

    /// The attributes of directories, once nothing more changes their times.
    fn finish(&self) -> Result<(), CopyError> {
        for (path, node) in self.directories.iter().rev() {
            let xattrs = self.xattrs(path, node)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            self.open(path, flags)
                .and_then(|directory| set_attributes(directory.as_fd(), &node.stat, &xattrs))
                .map_err(failed(path, "setting its attributes"))?;
        }
        Ok(())
    }
}
