//! A file or a directory that is there becomes an archive.
//!
//! The tree may be changed meanwhile, by a program that is hostile: each thing is
//! opened once, as a place, without following a link, and everything is asked of
//! that descriptor. What vanishes under the reader's hand is left out. Only a
//! regular file is ever opened for reading: a device or a FIFO could do, or wait
//! for, anything.
//!
//! Sockets are left out, as every archiver does. Mounts below the directory are
//! part of it, but for those that show no files but the kernel (proc, sysfs,
//! cgroups): of these there is the empty directory, unless they are what is
//! copied. Memory: the names of one directory on each level.
//!
//! Limits: a path beneath the directory is at most 4,095 bytes long, a directory
//! has at most a million entries.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use tar_core::EntryType;

use crate::beneath::{self, is_gone};
use crate::ids::Ids;
use crate::shown;
use crate::write::{Head, WriteError, Writer, Xattrs};

/// The most entries of one directory.
const ENTRIES_MAX: usize = 1_000_000;

/// Why an archive could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The kernel refused.
    #[error("{path:?}: {step} failed")]
    Look {
        path: String,
        step: &'static str,
        source: std::io::Error,
    },
    #[error("{path:?}: the directory has more than {limit} entries")]
    TooManyEntries { path: String, limit: usize },
    #[error(transparent)]
    Write(#[from] WriteError),
}

fn failed(path: &[u8], step: &'static str) -> impl FnOnce(Errno) -> PackError {
    let path = shown(path);
    move |error| PackError::Look {
        path,
        step,
        source: error.into(),
    }
}

/// Writes what `object` (open as a place) is, with all that is in it, under `name`.
///
/// # Errors
/// Something cannot be read, or the archive is not wanted any more.
pub fn pack<T: FnMut(Bytes) -> bool>(
    object: BorrowedFd<'_>,
    name: &[u8],
    ids: &Ids,
    writer: &mut Writer<T>,
) -> Result<(), PackError> {
    let mut packer = Packer {
        writer,
        ids,
        first_names: HashMap::new(),
    };
    let stat = rustix::fs::fstat(object).map_err(failed(name, "looking at it"))?;
    packer.entry(object, &stat, name)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(());
    }
    let top = beneath::is_kernels(object).map_err(failed(name, "looking at it"))?;
    // Directories that are not done: where they are beneath the top, and the
    // names in them that are left.
    let mut levels = vec![(Vec::new(), names(object, name)?.into_iter())];
    while let Some((directory, rest)) = levels.last_mut() {
        let Some(next) = rest.next() else {
            levels.pop();
            continue;
        };
        let path = joined(directory, &next);
        let seen = joined(name, &path);
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let found = match beneath::open(object, &path, flags, ResolveFlags::NO_SYMLINKS) {
            Ok(found) => found,
            Err(error) if is_gone(error) => continue,
            Err(error) => return Err(failed(&seen, "opening it")(error)),
        };
        let stat = rustix::fs::fstat(&found).map_err(failed(&seen, "looking at it"))?;
        packer.entry(found.as_fd(), &stat, &seen)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let kernels = beneath::is_kernels(&found).map_err(failed(&seen, "looking at it"))?;
            if kernels && !top {
                continue;
            }
            levels.push((path.clone(), names(found.as_fd(), &seen)?.into_iter()));
        }
    }
    Ok(())
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match directory {
        b"" => name.to_vec(),
        _ => [directory, name].join(&b'/'),
    }
}

/// The names in a directory, sorted; none where it has vanished.
fn names(directory: BorrowedFd<'_>, seen: &[u8]) -> Result<Vec<Vec<u8>>, PackError> {
    let opened = beneath::open(
        directory,
        b".",
        OFlags::RDONLY | OFlags::DIRECTORY,
        ResolveFlags::empty(),
    );
    let failed = || failed(seen, "listing the directory");
    let directory: OwnedFd = match opened {
        Ok(directory) => directory,
        Err(error) if is_gone(error) => return Ok(Vec::new()),
        Err(error) => return Err(failed()(error)),
    };
    let mut names = Vec::new();
    for entry in Dir::new(directory).map_err(failed())? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if is_gone(error) => break,
            Err(error) => return Err(failed()(error)),
        };
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        if names.len() >= ENTRIES_MAX {
            return Err(PackError::TooManyEntries {
                path: shown(seen),
                limit: ENTRIES_MAX,
            });
        }
        names.push(name.to_vec());
    }
    names.sort_unstable();
    Ok(names)
}

struct Packer<'a, T> {
    writer: &'a mut Writer<T>,
    ids: &'a Ids,
    /// Files with several names, by device and inode: the first of their names.
    first_names: HashMap<(u64, u64), Vec<u8>>,
}

impl<T: FnMut(Bytes) -> bool> Packer<'_, T> {
    fn entry(&mut self, object: BorrowedFd<'_>, stat: &Stat, name: &[u8]) -> Result<(), PackError> {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => EntryType::Regular,
            FileType::Directory => EntryType::Directory,
            FileType::Symlink => EntryType::Symlink,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Fifo => EntryType::Fifo,
            _ => return Ok(()),
        };
        let stat = &self.ids.inside(stat);
        let mut head = Head {
            kind,
            name,
            size: 0,
            link: b"",
            xattrs: Xattrs::new(),
        };
        let several = stat.st_nlink > 1 && kind != EntryType::Directory;
        if several {
            let key = (stat.st_dev, stat.st_ino);
            match self.first_names.entry(key) {
                Entry::Occupied(first) => {
                    head.kind = EntryType::Link;
                    head.link = first.get();
                    return Ok(self.writer.header(stat, &head)?);
                }
                Entry::Vacant(free) => free.insert(name.to_vec()),
            };
        }
        head.xattrs = xattrs(object, name)?;
        match kind {
            EntryType::Regular => {
                let content = match beneath::content(object) {
                    // Somebody has taken it away, or the process that it told of ended.
                    Err(error) if is_gone(error) => return Ok(()),
                    content => content.map_err(failed(name, "opening it"))?,
                };
                let now = rustix::fs::fstat(&content).map_err(failed(name, "looking at it"))?;
                head.size = u64::try_from(now.st_size).unwrap_or(0);
                self.writer.file(stat, head, &File::from(content))?;
            }
            EntryType::Directory => {
                let name = &[name, b"/"].concat();
                self.writer.header(stat, &Head { name, ..head })?;
            }
            EntryType::Symlink => {
                let link = match rustix::fs::readlinkat(object, "", Vec::new()) {
                    Err(error) if is_gone(error) => return Ok(()),
                    link => link.map_err(failed(name, "reading the link"))?,
                };
                let link = link.as_bytes();
                self.writer.header(stat, &Head { link, ..head })?;
            }
            _ => self.writer.header(stat, &head)?,
        }
        Ok(())
    }
}

/// The extended attributes that mean the same elsewhere: a program's own, and
/// the capabilities of a program.
fn xattrs(object: BorrowedFd<'_>, name: &[u8]) -> Result<Xattrs, PackError> {
    let itself = beneath::itself(object);
    let mut xattrs = Xattrs::new();
    let failed = || failed(name, "reading its extended attributes");
    let keys = match filled(|buffer| rustix::fs::listxattr(&itself, buffer)) {
        Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => return Ok(xattrs),
        keys => keys.map_err(failed())?,
    };
    for key in keys.split(|byte| *byte == 0) {
        if !key.starts_with(b"user.") && key != b"security.capability" {
            continue;
        }
        match filled(|buffer| rustix::fs::getxattr(&itself, key, buffer)) {
            Ok(value) => {
                xattrs.insert(key.to_vec(), value);
            }
            // Taken away meanwhile, or not readable here.
            Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => {}
            Err(error) => return Err(failed()(error)),
        }
    }
    Ok(xattrs)
}

/// Fills a buffer that is as large as it has to be: the kernel's limit is 64 KiB.
fn filled(mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
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

/// Whether an open object is a directory.
///
/// # Errors
/// The kernel refuses.
pub fn is_directory(object: impl AsFd) -> Result<bool, Errno> {
    let stat = rustix::fs::statat(object, "", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}
