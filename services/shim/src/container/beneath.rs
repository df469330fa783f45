//! Paths inside the container's root, resolved so that nothing in the root can lead out of it.
//!
//! Every object is opened (`O_PATH`) with openat2 and RESOLVE_IN_ROOT, and then only used through its descriptor:
//! what was checked is what is mounted on, whatever is renamed meanwhile.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

const PROC_SUPER_MAGIC: rustix::fs::FsWord = 0x9fa0;
/// As many as the kernel follows.
const MAX_LINKS: usize = 40;

/// What is to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// Opens what is there, links followed inside the root.
pub(super) fn open(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    open_with(root, path, OFlags::PATH, ResolveFlags::empty())
}

/// Opens what is there, if no link is on the way to it.
pub(super) fn open_without_links(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    open_with(root, path, OFlags::PATH, ResolveFlags::NO_SYMLINKS)
}

/// Opens what is there; if the last part of the path is a link, the link itself.
pub(super) fn open_last_link(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    open_with(
        root,
        path,
        OFlags::PATH | OFlags::NOFOLLOW,
        ResolveFlags::empty(),
    )
}

/// Opens what a directory has at a path; links that lead out of it are an error.
pub(super) fn open_beneath(directory: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    loop {
        match rustix::fs::openat2(
            directory,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        ) {
            // Something was renamed during the walk.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Opens with any flags.
pub(super) fn open_with(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(
            root,
            path,
            flags | OFlags::CLOEXEC,
            Mode::from_raw_mode(if flags.contains(OFlags::CREATE) {
                0o644
            } else {
                0
            }),
            resolve,
        ) {
            // Something was renamed during the walk.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Opens what is there, or makes it with all directories before it.
pub(super) fn open_or_make(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    match open(root, path) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        other => return other,
    }
    let mut links = 0;
    let mut rest: Vec<Vec<u8>> = components(path);
    rest.reverse();
    let mut done = PathBuf::from("/");
    let mut directory = open(root, Path::new("/"))?;
    while let Some(component) = rest.pop() {
        if component == b".." {
            done.pop();
            directory = open(root, &done)?;
            continue;
        }
        let name = std::ffi::OsStr::from_bytes(&component);
        let last = rest.is_empty();
        let next = done.join(name);
        match open(root, &next) {
            Ok(found) => {
                directory = found;
                done = next;
                continue;
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        let made = if last && kind == Kind::File {
            rustix::fs::openat(
                &directory,
                name,
                OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW,
                Mode::from_raw_mode(0o644),
            )
            .map(drop)
        } else {
            rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755))
        };
        match made {
            Ok(()) => {
                directory = open(root, &next)?;
                done = next;
            }
            // A link that leads nowhere: make what it names, inside the root.
            Err(rustix::io::Errno::EXIST) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                let target = rustix::fs::readlinkat(&directory, name, Vec::new())?;
                let target = Path::new(std::ffi::OsStr::from_bytes(target.as_bytes()));
                if target.is_absolute() {
                    done = PathBuf::from("/");
                    directory = open(root, &done)?;
                }
                rest.extend(components(target).into_iter().rev());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(directory)
}

fn components(path: &Path) -> Vec<Vec<u8>> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.as_bytes().to_vec()),
            Component::ParentDir => Some(b"..".to_vec()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// Whether an open object is a directory.
pub(super) fn is_directory(object: impl AsFd) -> io::Result<bool> {
    let stat = rustix::fs::statat(object, "", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Whether an open object is on a procfs.
pub(super) fn is_on_proc(object: impl AsFd) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(object)?.f_type == PROC_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(directory.path()).unwrap().into();
        (directory, fd)
    }

    #[test]
    fn an_absolute_link_stays_inside_the_root() {
        let (directory, root) = root();
        std::os::unix::fs::symlink("/etc", directory.path().join("link")).unwrap();
        std::fs::create_dir(directory.path().join("etc")).unwrap();
        open_or_make(root.as_fd(), Path::new("/link/new"), Kind::Directory).unwrap();
        assert!(directory.path().join("etc/new").is_dir());
        assert!(!Path::new("/etc/new").exists());
    }

    #[test]
    fn a_link_upward_stays_inside_the_root() {
        let (directory, root) = root();
        std::os::unix::fs::symlink("../../../../../tmp/x", directory.path().join("up")).unwrap();
        open_or_make(root.as_fd(), Path::new("/up/file"), Kind::File).unwrap();
        assert!(directory.path().join("tmp/x/file").is_file());
    }

    #[test]
    fn links_in_a_circle_are_an_error() {
        let (directory, root) = root();
        std::os::unix::fs::symlink("b", directory.path().join("a")).unwrap();
        std::os::unix::fs::symlink("a", directory.path().join("b")).unwrap();
        let error = open_or_make(root.as_fd(), Path::new("/a/c"), Kind::Directory).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn proc_is_told_from_other_file_systems() {
        let host = std::fs::File::open("/").unwrap();
        assert!(!is_on_proc(&host).unwrap());
        assert!(is_on_proc(std::fs::File::open("/proc/self/status").unwrap()).unwrap());
    }
}
