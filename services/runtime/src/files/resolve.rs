//! Where a path leads inside a container, also where its last component is missing.
//!
//! openat2 answers with a descriptor, and so only for what exists. A copy also
//! needs the place of a file that is still to be made, through links and with the
//! `..` of their targets, as open(2) with `O_CREAT` finds it. Each component is
//! opened in the root without following it, and each link is replaced by its
//! target; `..` is taken from the path that has been resolved so far, which has
//! no links, as the kernel does it. Another process may change the tree
//! meanwhile: the answer is a path and no permission, and whoever opens it
//! resolves it in the root again.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// As many links as the kernel follows (MAXSYMLINKS).
const LINKS_MAX: usize = 40;

/// Type of procfs in statfs(2), PROC_SUPER_MAGIC.
const PROC: u64 = 0x9fa0;

/// The path that `path` leads to from `root`: without links, `.` and `..`. Its
/// last component need not exist.
///
/// # Errors
/// `NOENT`: something before the last component is missing; `NOTDIR`: it is no
/// directory; `LOOP`: too many links, or a magic link of procfs.
pub(super) fn resolve(root: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<u8>, Errno> {
    let components = |path: &[u8]| -> Vec<Vec<u8>> {
        let components = path.split(|byte| *byte == b'/');
        components.rev().map(<[u8]>::to_vec).collect()
    };
    // The next one is the last.
    let mut left = components(path);
    let mut found: Vec<Vec<u8>> = Vec::new();
    let mut links = 0;
    while let Some(component) = left.pop() {
        match &*component {
            b"" | b"." => continue,
            b".." => {
                found.pop();
                continue;
            }
            _ => found.push(component),
        }
        let place = joined(&found);
        let object = match open(root, &place, OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS) {
            Err(Errno::NOENT) if left.iter().all(|rest| matches!(&**rest, b"" | b".")) => break,
            object => object?,
        };
        let stat = rustix::fs::fstat(&object)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {}
            FileType::Symlink => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP);
                }
                // The type of the field differs between targets.
                if rustix::fs::fstatfs(&object)?.f_type as u64 == PROC {
                    // The text of a magic link is not where it leads.
                    open(root, &place, OFlags::empty(), ResolveFlags::empty())?;
                }
                let target = rustix::fs::readlinkat(&object, "", Vec::new())?.into_bytes();
                if target.starts_with(b"/") {
                    found.clear();
                } else {
                    found.pop();
                }
                left.extend(components(&target));
            }
            _ if !left.is_empty() => return Err(Errno::NOTDIR),
            _ => {}
        }
    }
    Ok([b"/", &*joined(&found)].concat())
}

fn joined(components: &[Vec<u8>]) -> Vec<u8> {
    components.join(&b'/')
}

fn open(
    root: BorrowedFd<'_>,
    path: &[u8],
    more: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | more;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | resolve;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            // openat2 says EAGAIN when something was renamed while it looked.
            Err(Errno::INTR | Errno::AGAIN) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_path_leads_where_the_kernel_takes_it() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("x/y")).unwrap();
        std::fs::create_dir_all(root.join("deep/er")).unwrap();
        std::fs::write(root.join("x/file"), "").unwrap();
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, root.join(name)).unwrap();
        link("/x/y", "lk");
        link("../z", "x/y/inner");
        link("../../deep/er", "x/y/far");
        link("far/../new", "x/y/back");
        link("../../../../../x/file", "up");
        link("/lk/inner", "chain");
        link("nowhere/", "slash");
        link("missing/new", "lost");
        link("loop", "loop");
        let root: OwnedFd = std::fs::File::open(&root).unwrap().into();
        let leads = |path: &str| {
            resolve(root.as_fd(), path.as_bytes()).map(|path| String::from_utf8(path).unwrap())
        };
        for (path, place) in [
            ("", "/"),
            ("/", "/"),
            ("/..", "/"),
            ("/x/file", "/x/file"),
            ("x//./file", "/x/file"),
            // `..` of a link's target counts from where the link is.
            ("/lk/inner", "/x/z"),
            ("/x/y/inner", "/x/z"),
            ("/chain", "/x/z"),
            // `..` after a link counts from where the link leads.
            ("/lk/..", "/x"),
            ("/lk/far/..", "/deep"),
            ("/lk/back", "/deep/new"),
            ("/up", "/x/file"),
            // What is missing at the end.
            ("/new", "/new"),
            ("/lk/new/", "/x/y/new"),
            ("/slash", "/nowhere"),
        ] {
            assert_eq!(leads(path).as_deref(), Ok(place), "{path}");
        }
        for (path, error) in [
            ("/missing/new", Errno::NOENT),
            ("/missing/..", Errno::NOENT),
            ("/lost", Errno::NOENT),
            ("/x/file/", Errno::NOTDIR),
            ("/x/file/..", Errno::NOTDIR),
            ("/up/x", Errno::NOTDIR),
            ("/loop", Errno::LOOP),
        ] {
            assert_eq!(leads(path), Err(error), "{path}");
        }
    }

    #[test]
    fn a_magic_link_leads_nowhere() {
        let root: OwnedFd = std::fs::File::open("/").unwrap().into();
        let pid = std::process::id();
        for path in ["root/etc", "cwd", "exe", "fd/0"] {
            let path = format!("/proc/{pid}/{path}");
            let error = resolve(root.as_fd(), path.as_bytes()).unwrap_err();
            assert_eq!(error, Errno::LOOP, "{path}");
        }
        let plain = resolve(root.as_fd(), b"/proc/self/status").unwrap();
        assert_eq!(plain, format!("/proc/{pid}/status").as_bytes());
    }
}
