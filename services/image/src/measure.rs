//! Bytes on the disk: what `du` says of a tree, each file counted once.
//!
//! A container may change its tree meanwhile, move directories, and make it
//! deeper than there are file descriptors: what is gone is passed over, nothing
//! is followed, and of a deep path only the last levels are held open.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Levels of directories that are held open at once.
const OPEN_LEVELS: usize = 64;

/// Bytes of one block of `st_blocks`.
const BLOCK: u64 = 512;

/// What a tree takes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Size {
    /// Bytes on the disk.
    pub(crate) disk: u64,
    /// Bytes of the files' content.
    pub(crate) content: u64,
}

/// A file, or a directory with all that is in it. What is not there takes nothing.
pub(crate) fn tree(path: &Path) -> io::Result<Size> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut walk = Walk::default();
    walk.run(CWD, &name)?;
    Ok(walk.size)
}

/// Bytes on the disk of one file or directory, without what is in it.
pub(crate) fn alone(path: &Path) -> io::Result<u64> {
    match rustix::fs::lstat(path) {
        Ok(stat) => Ok(blocks(&stat)),
        Err(Errno::NOENT) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn blocks(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK
}

#[derive(Default)]
struct Walk {
    size: Size,
    /// Files with several names that were counted.
    seen: HashSet<(u64, u64)>,
}

/// A directory on the way to the one that is being read.
struct Level {
    /// None: closed, to be opened again through "..".
    directory: Option<OwnedFd>,
    identity: (u64, u64),
    /// Directories in it that were not read yet.
    left: Vec<CString>,
}

const fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

impl Walk {
    fn run(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        self.count(&stat);
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(());
        }
        let mut levels: Vec<Level> = self.enter(parent, name)?.into_iter().collect();
        while let Some(top) = levels.last_mut() {
            let Some(name) = top.left.pop() else {
                let done = levels.pop();
                reopen(&mut levels, done.and_then(|level| level.directory));
                continue;
            };
            let Some(directory) = &top.directory else {
                // It was moved while it was closed: what is left of it is elsewhere.
                top.left.clear();
                continue;
            };
            let entered = self.enter(directory.as_fd(), &name)?;
            levels.extend(entered);
            if levels.len() > OPEN_LEVELS {
                let far = levels.len() - OPEN_LEVELS;
                levels[far - 1].directory = None;
            }
        }
        Ok(())
    }

    fn count(&mut self, stat: &Stat) {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 && !self.seen.insert(identity(stat)) {
            return;
        }
        self.size.disk += blocks(stat);
        if kind == FileType::RegularFile {
            self.size.content += u64::try_from(stat.st_size).unwrap_or(0);
        }
    }

    /// Counts what is in a directory. None: it is gone, or none any more.
    fn enter(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Level>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let own = rustix::fs::fstat(&directory)?;
        let mut left = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            // What somebody mounted here is not on this disk.
            if stat.st_dev != own.st_dev {
                continue;
            }
            self.count(&stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                left.push(name.to_owned());
            }
        }
        Ok(Some(Level {
            directory: Some(directory),
            identity: identity(&own),
            left,
        }))
    }
}

/// Opens the last level again from below, if it was closed and still is there.
fn reopen(levels: &mut [Level], below: Option<OwnedFd>) {
    let (Some(top), Some(below)) = (levels.last_mut(), below) else {
        return;
    };
    if top.directory.is_some() {
        return;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(&below, c"..", flags, Mode::empty());
    top.directory = opened.ok().filter(|directory| {
        rustix::fs::fstat(directory).is_ok_and(|stat| identity(&stat) == top.identity)
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

    /// What `du` says, in bytes.
    fn du(path: &Path) -> u64 {
        let said = std::process::Command::new("du")
            .args(["-s", "--block-size=1"])
            .arg(path)
            .output()
            .unwrap();
        let text = String::from_utf8(said.stdout).unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn a_tree_takes_what_du_says_with_each_file_once() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("t");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/file"), vec![1; 70_000]).unwrap();
        fs::hard_link(root.join("a/file"), root.join("a/b/again")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("away")).unwrap();
        let sparse = fs::File::create(root.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        let size = tree(&root).unwrap();
        assert_eq!(size.disk, du(&root));
        assert_eq!(size.content, 70_000 + (1 << 30));
        assert!(size.disk < 1 << 20, "a hole takes no room");
        assert_eq!(tree(&root.join("none")).unwrap(), Size::default());
    }

    #[test]
    fn a_tree_deeper_than_file_descriptors_is_counted_whole() {
        let directory = tempfile::tempdir().unwrap();
        let mut at: OwnedFd = fs::File::open(directory.path()).unwrap().into();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            // Beside the way down, so that the way up has something to do.
            rustix::fs::mkdirat(&at, "e", Mode::RWXU).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            at = rustix::fs::openat(&at, "d", flags, Mode::empty()).unwrap();
        }
        assert_eq!(tree(directory.path()).unwrap().disk, du(directory.path()));
    }
}
