//! An archive becomes files in a directory that is there, as `docker cp` does it.
//!
//! What is there already is replaced, each file at once: a file gets its name
//! when all of it is written, so that whoever reads the name finds the old file
//! or the new one, and a copy that breaks off leaves neither a half nor a part
//! under another name (`O_TMPFILE`, where the file system has it). Directories
//! are merged. A file never takes the place of a directory, nor a directory that
//! of a file.
//!
//! A name of the archive that leads out of the directory by its text is refused.
//! Links in the tree, which the archive or another process may change meanwhile,
//! are resolved by openat2 as the [`Destination`] says: beneath the directory, or
//! in the root of a container, as for a process in it. An entry always replaces
//! a link of its own name; only links on the way to it are followed.
//!
//! Memory: the times of directories, which have to be set last.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, Timespec,
    Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::beneath;
use crate::ids::{Ids, NoSuchId};
use crate::read::{Entry, Kind, ReadError, Reader};
use crate::shown;

/// Bytes of the names of directories whose times are set last; with more, those
/// so far are set at once.
const TABLE_MAX: usize = 16 << 20;

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("entry {path:?}: it leads out of the directory that it is copied to")]
    Escapes { path: String },
    #[error(
        "entry {path:?}: the container has no user or group {id}; give it more (--userns auto:size=COUNT), or leave out the owner"
    )]
    NoSuchId { path: String, id: u32 },
    #[error("cannot overwrite directory {path:?} with a file")]
    OverDirectory { path: String },
    #[error("cannot overwrite {path:?}, which is no directory, with a directory")]
    OverFile { path: String },
    #[error("{path:?}: {step} failed")]
    Write {
        path: String,
        step: &'static str,
        source: io::Error,
    },
}

/// Who owns what is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Who the archive says.
    Kept,
    /// This user and group.
    Of(u32, u32),
    /// Whoever makes it.
    Maker,
}

/// Where an archive is unpacked, and how far links on the way may lead.
#[derive(Clone, Copy, Debug)]
pub enum Destination<'a> {
    /// A directory. What leads out of it is refused.
    Beneath(BorrowedFd<'a>),
    /// The directory at `path` in `root`. Absolute links lead to `root`, and `..`
    /// stops there; magic links of procfs are refused.
    InRoot {
        root: BorrowedFd<'a>,
        /// Absolute or not, without links.
        path: &'a [u8],
    },
}

impl Destination<'_> {
    /// Opens what is at `path` from the directory.
    fn open(self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        match self {
            Self::Beneath(directory) => {
                beneath::open(directory, path, flags, ResolveFlags::empty())
            }
            Self::InRoot { root, path: place } => {
                beneath::open_in_root(root, &[place, b"/", path].concat(), flags)
            }
        }
    }
}

/// Unpacks an archive into a directory. Blocks. `ids`: those of the directory's
/// tree, which owners of the archive and of `owner` are taken by.
///
/// # Errors
/// The archive is damaged or hostile, or the file system refuses. What was made
/// before stays.
pub fn unpack(
    destination: Destination<'_>,
    source: impl Read,
    owner: Owner,
    ids: &Ids,
) -> Result<(), UnpackError> {
    let mut unpacker = Unpacker {
        reader: Reader::new(source),
        destination,
        owner,
        ids,
        parent: None,
        times: BTreeMap::new(),
        table: 0,
    };
    while let Some(entry) = unpacker.reader.next_entry()? {
        let path = parse(&entry.path)?;
        unpacker.make(&entry, &path)?;
    }
    unpacker.reader.drain()?;
    unpacker.set_directory_times()
}

/// A name of the archive without `.` and `..`, which may not lead out.
fn parse(name: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let escapes = || UnpackError::Escapes { path: shown(name) };
    let mut components: Vec<&[u8]> = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop().ok_or_else(escapes)?;
            }
            plain => components.push(plain),
        }
    }
    Ok(components.join(&b'/'))
}

/// The directory of a path, and its last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn failed(path: &[u8], step: &'static str) -> impl FnOnce(Errno) -> UnpackError {
    let path = shown(path);
    move |error| match error {
        // A link on the way to it, or a mount in its place.
        Errno::XDEV => UnpackError::Escapes { path },
        error => UnpackError::Write {
            path,
            step,
            source: error.into(),
        },
    }
}

/// A name that nothing has yet.
fn draft() -> Result<String, Errno> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|_| Errno::IO)?;
    Ok(format!(".gantry-copy-{}", hex::encode(random)))
}

struct Unpacker<'a, R> {
    reader: Reader<R>,
    destination: Destination<'a>,
    owner: Owner,
    ids: &'a Ids,
    /// The directory that the last entry was made in.
    parent: Option<(Vec<u8>, OwnedFd)>,
    times: BTreeMap<Vec<u8>, Timespec>,
    table: usize,
}

impl<R: Read> Unpacker<'_, R> {
    /// Whose an entry is here.
    fn owner(&self, entry: &Entry, path: &[u8]) -> Result<Option<(u32, u32)>, UnpackError> {
        let (uid, gid) = match self.owner {
            Owner::Kept => (entry.uid, entry.gid),
            Owner::Of(uid, gid) => (uid, gid),
            Owner::Maker => return Ok(None),
        };
        let here = self.ids.outside(uid, gid);
        here.map(Some)
            .map_err(|NoSuchId(id)| UnpackError::NoSuchId {
                path: shown(path),
                id,
            })
    }

    fn make(&mut self, entry: &Entry, path: &[u8]) -> Result<(), UnpackError> {
        if path.is_empty() {
            return match entry.kind {
                // The directory itself, which is the caller's.
                Kind::Directory => Ok(()),
                _ => Err(UnpackError::OverDirectory { path: ".".into() }),
            };
        }
        let owner = self.owner(entry, path)?;
        match entry.kind {
            Kind::Directory => self.make_directory(entry, owner, path),
            Kind::File => self.make_file(entry, owner, path),
            Kind::Symlink => self.put(path, "making the link", |parent, name| {
                rustix::fs::symlinkat(&*entry.link, parent, name)?;
                own(owner, parent, name)?;
                let times = times(entry.modified);
                rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }),
            Kind::HardLink => {
                let target = parse(&entry.link)?;
                let (directory, target) = split(&target);
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                let directory = self
                    .destination
                    .open(directory, flags)
                    .map_err(failed(path, "finding what it is a link to"))?;
                self.put(path, "making the link", |parent, name| {
                    rustix::fs::linkat(&directory, target, parent, name, AtFlags::empty())
                })
            }
            Kind::CharacterDevice => self.make_node(entry, owner, path, FileType::CharacterDevice),
            Kind::BlockDevice => self.make_node(entry, owner, path, FileType::BlockDevice),
            Kind::Fifo => self.make_node(entry, owner, path, FileType::Fifo),
        }
    }

    /// The directory that holds `path`, made where it is missing.
    fn parent(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, UnpackError> {
        let (wanted, _) = split(path);
        let parent = match self.parent.take() {
            Some((known, opened)) if known == wanted => (known, opened),
            _ => (wanted.to_vec(), self.open_or_make(wanted, path)?),
        };
        Ok(self.parent.insert(parent).1.as_fd())
    }

    fn open_or_make(&self, wanted: &[u8], path: &[u8]) -> Result<OwnedFd, UnpackError> {
        let open = |path: &[u8]| {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            self.destination.open(path, flags)
        };
        let (outer, name) = split(wanted);
        match open(wanted) {
            Err(Errno::NOENT) if !wanted.is_empty() => {}
            other => return other.map_err(failed(path, "opening its directory")),
        }
        let outer = self.open_or_make(outer, path)?;
        match rustix::fs::mkdirat(&outer, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                if let Owner::Of(uid, gid) = self.owner {
                    own(self.ids.outside(uid, gid).ok(), outer.as_fd(), name)
                        .map_err(failed(path, "owning its directory"))?;
                }
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(path, "making its directory")(error)),
        }
        open(wanted).map_err(failed(path, "opening its directory"))
    }

    fn make_directory(
        &mut self,
        entry: &Entry,
        owner: Option<(u32, u32)>,
        path: &[u8],
    ) -> Result<(), UnpackError> {
        let parent = self.parent(path)?;
        let (_, name) = split(path);
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                let there = rustix::fs::statat(parent, name, flags)
                    .map_err(failed(path, "looking at it"))?;
                if FileType::from_raw_mode(there.st_mode) != FileType::Directory {
                    return Err(UnpackError::OverFile { path: shown(path) });
                }
            }
            Err(error) => return Err(failed(path, "making the directory")(error)),
        }
        // By a descriptor: the name may be a link by now.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let made = beneath::open(parent, name, flags, ResolveFlags::empty())
            .map_err(failed(path, "opening the directory"))?;
        Self::attributes(owner, &made, entry).map_err(failed(path, "setting its attributes"))?;
        self.times.insert(path.to_vec(), entry.modified);
        self.table += path.len() + 64;
        if self.table > TABLE_MAX {
            self.set_directory_times()?;
        }
        Ok(())
    }

    fn set_directory_times(&mut self) -> Result<(), UnpackError> {
        self.table = 0;
        // What is inside first: setting the times of a directory changes no other's.
        while let Some((path, modified)) = self.times.pop_last() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            match self.destination.open(&path, flags) {
                Ok(directory) => rustix::fs::futimens(&directory, &times(modified))
                    .map_err(failed(&path, "setting its times"))?,
                // Somebody has taken it away already.
                Err(error) if beneath::is_gone(error) => {}
                Err(error) => return Err(failed(&path, "setting its times")(error)),
            }
        }
        Ok(())
    }

    fn make_node(
        &mut self,
        entry: &Entry,
        owner: Option<(u32, u32)>,
        path: &[u8],
        kind: FileType,
    ) -> Result<(), UnpackError> {
        self.put(path, "making the device node", |parent, name| {
            rustix::fs::mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, entry.device)?;
            own(owner, parent, name)?;
            // It was just made under a name that nobody knows.
            let mode = Mode::from_raw_mode(entry.mode);
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
            let times = times(entry.modified);
            rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        })
    }

    fn make_file(
        &mut self,
        entry: &Entry,
        owner: Option<(u32, u32)>,
        path: &[u8],
    ) -> Result<(), UnpackError> {
        self.must_be_replaceable(path)?;
        let mode = Mode::RUSR | Mode::WUSR;
        let parent = self.parent(path)?;
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let step = "making the file";
        match rustix::fs::openat(parent, ".", flags, mode) {
            Ok(file) => {
                let mut file = File::from(file);
                self.fill(&mut file, entry, path)?;
                Self::attributes(owner, &file, entry)
                    .and_then(|()| rustix::fs::futimens(&file, &times(entry.modified)))
                    .map_err(failed(path, "setting its attributes"))?;
                self.put(path, step, |parent, name| {
                    let itself = beneath::itself(&file);
                    rustix::fs::linkat(CWD, itself, parent, name, AtFlags::SYMLINK_FOLLOW)
                })
            }
            // A file system without nameless files.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let draft = draft().map_err(failed(path, step))?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let file = rustix::fs::openat(parent, &*draft, flags, mode);
                let mut file = File::from(file.map_err(failed(path, step))?);
                let filled = self.fill(&mut file, entry, path).and_then(|()| {
                    Self::attributes(owner, &file, entry)
                        .and_then(|()| rustix::fs::futimens(&file, &times(entry.modified)))
                        .map_err(failed(path, "setting its attributes"))
                });
                let parent = self.parent(path)?;
                let (_, name) = split(path);
                let named = filled.and_then(|()| {
                    rustix::fs::renameat(parent, &*draft, parent, name)
                        .map_err(|error| replaced(error, path))
                });
                if named.is_err() {
                    let _gone = rustix::fs::unlinkat(parent, &*draft, AtFlags::empty());
                }
                named
            }
            Err(error) => Err(failed(path, step)(error)),
        }
    }

    /// Refuses to replace a directory or a mount, before anything is written.
    fn must_be_replaceable(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        let parent = self.parent(path)?;
        let (_, name) = split(path);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::statx(parent, name, flags, StatxFlags::TYPE) {
            Ok(found) if FileType::from_raw_mode(found.stx_mode.into()) == FileType::Directory => {
                Err(UnpackError::OverDirectory { path: shown(path) })
            }
            // The kernel refuses to replace it only in its own mount namespace;
            // in another one, it takes the mount away.
            Ok(found) if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) => {
                Err(replaced(Errno::BUSY, path))
            }
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(path, "looking at it")(error)),
        }
    }

    fn fill(&mut self, file: &mut File, entry: &Entry, path: &[u8]) -> Result<(), UnpackError> {
        let failed = |source| UnpackError::Write {
            path: shown(path),
            step: "writing its content",
            source,
        };
        let Some((map, real_size)) = &entry.sparse else {
            loop {
                let bytes = self.reader.content(u64::MAX, path)?;
                if bytes.is_empty() {
                    return Ok(());
                }
                file.write_all(bytes).map_err(failed)?;
            }
        };
        file.set_len(*real_size).map_err(failed)?;
        for region in map {
            let mut offset = region.offset;
            let end = region.offset + region.length;
            while offset < end {
                let bytes = self.reader.content(end - offset, path)?;
                file.write_all_at(bytes, offset).map_err(failed)?;
                offset += bytes.len() as u64;
            }
        }
        Ok(())
    }

    /// Runs `make`, which fails with EEXIST rather than replace, in the place of
    /// what is there.
    fn put(
        &mut self,
        path: &[u8],
        step: &'static str,
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<(), Errno>,
    ) -> Result<(), UnpackError> {
        let parent = self.parent(path)?;
        let (_, name) = split(path);
        match make(parent, name) {
            Err(Errno::EXIST) => {}
            other => return other.map_err(failed(path, step)),
        }
        self.must_be_replaceable(path)?;
        let parent = self.parent(path)?;
        let draft = draft().map_err(failed(path, step))?;
        let draft = draft.as_bytes();
        make(parent, draft).map_err(failed(path, step))?;
        let named = rustix::fs::renameat(parent, draft, parent, name);
        // It is left where both were names of one file already.
        let _gone = rustix::fs::unlinkat(parent, draft, AtFlags::empty());
        named.map_err(|error| replaced(error, path))
    }

    /// Owner, mode and extended attributes; in this order: changing the owner
    /// takes the set-id bits away.
    fn attributes(
        owner: Option<(u32, u32)>,
        file: impl std::os::fd::AsFd,
        entry: &Entry,
    ) -> Result<(), Errno> {
        if let Some((uid, gid)) = owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode))?;
        for (key, value) in &entry.xattrs {
            // These would speak to overlayfs itself.
            if key.starts_with(b"trusted.") || key.starts_with(b"user.overlay.") {
                continue;
            }
            match rustix::fs::fsetxattr(&file, key.as_slice(), value, XattrFlags::empty()) {
                // A file system, or a caller, that may not have them: the file is more.
                Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn replaced(error: Errno, path: &[u8]) -> UnpackError {
    match error {
        Errno::ISDIR => UnpackError::OverDirectory { path: shown(path) },
        Errno::BUSY => failed(path, "replacing it, which is a mount of its own,")(error),
        error => failed(path, "replacing what is there")(error),
    }
}

fn own(owner: Option<(u32, u32)>, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let Some((uid, gid)) = owner else {
        return Ok(());
    };
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
}

/// Access time as modification time: an archive has only the latter.
const fn times(modified: Timespec) -> Timestamps {
    Timestamps {
        last_access: modified,
        last_modification: modified,
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
