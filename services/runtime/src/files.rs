//! Files inside a container: looking at them, and copying them in and out.
//!
//! # Where a path leads
//! A container's tree is what its processes see: its root with every mount in
//! its mount namespace. A thread enters that namespace for as long as it takes
//! to open the root there; from then on everything is opened from that
//! descriptor with openat2 and `RESOLVE_IN_ROOT`. So a link leads to where it
//! leads inside the container, and a program that renames and replaces what is
//! being copied can lead the copy nowhere else. Magic links of a procfs are not
//! followed.
//!
//! Paths of callers are freed of `..` by their text first, as Docker does it;
//! those of links count from where the link is, as the kernel does it.
//!
//! The copy itself is done by this service, on threads that may block: neither
//! the shim nor the container's own processes take part, so that a paused
//! container, or one that was made and never started, is as good as any.

mod resolve;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use gantry_archive::arriving::Arriving;
use gantry_archive::ids::Ids;
use gantry_archive::pack::{self, PackError};
use gantry_archive::unpack::{Destination, Owner, UnpackError, unpack};
use gantry_archive::write::{WriteError, Writer};
use gantry_proto::shim::v1 as wire;
use rustix::fs::{Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{CapabilitiesSecureBits, set_capabilities_secure_bits};
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::life::Status;
use crate::runtime::Runtime;
use crate::shim::CALL_LIMIT;

/// While files are made in a container; the service's own lets nobody else in.
const UMASK: u32 = 0o022;

/// Pieces of an archive that wait for whoever takes them.
const BACKLOG: usize = 4;

/// Longest path (PATH_MAX, which counts a NUL).
const PATH_MAX: usize = 4_095;

/// A path inside a container, and how far it is followed.
#[derive(Clone, Debug)]
pub struct Place {
    pub path: String,
    /// What the last component leads to, where it is a link.
    pub follow: bool,
}

/// What is at a path.
#[derive(Clone, Debug)]
pub struct PathStat {
    pub name: String,
    pub stat: Stat,
    /// Empty: it is no link.
    pub link_target: String,
    /// Where a link leads in the end; empty where it is none, or leads nowhere.
    pub link_resolved: String,
}

/// The pieces of an archive on their way to who unpacks it. `None`: it is whole.
pub type Pieces = mpsc::Receiver<Option<Bytes>>;

/// A path without `.`, and with `..` taken out of the text, as Docker does.
fn cleaned(path: &str) -> String {
    let mut components: Vec<&str> = Vec::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()),
            plain => components.push(plain),
        }
    }
    components.join("/")
}

impl Place {
    /// The last component. "." where the path says: what is in it.
    fn name(&self) -> String {
        if self.path == "." || self.path.ends_with("/.") {
            return ".".to_owned();
        }
        let cleaned = cleaned(&self.path);
        match cleaned.rsplit('/').next() {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => ".".to_owned(),
        }
    }

    /// Opens it as a place.
    fn open(&self, id: &str, root: BorrowedFd<'_>) -> Result<OwnedFd> {
        if self.path.contains('\0') || self.path.len() > PATH_MAX {
            return Err(Error::Invalid {
                field: "path",
                problem: format!("it is longer than {PATH_MAX} bytes, or has a NUL byte in it"),
            });
        }
        let directory = self.path.ends_with('/') || self.path.ends_with("/.");
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        if directory {
            flags |= OFlags::DIRECTORY;
        } else if !self.follow {
            flags |= OFlags::NOFOLLOW;
        }
        let path = match cleaned(&self.path) {
            path if path.is_empty() => "/".to_owned(),
            path => path,
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(root, path.as_str(), flags, Mode::empty(), resolve) {
                // openat2 says EAGAIN when something was renamed while it looked.
                Err(Errno::INTR | Errno::AGAIN) => {}
                Ok(found) => return Ok(found),
                Err(Errno::NOENT) => {
                    return Err(Error::NoPath {
                        id: id.to_owned(),
                        path: self.path.clone(),
                    });
                }
                Err(error) => return Err(refused(id, &self.path, "open", error)),
            }
        }
    }
}

fn refused(id: &str, path: &str, step: &'static str, error: Errno) -> Error {
    Error::Path {
        id: id.to_owned(),
        path: path.to_owned(),
        step,
        source: error.into(),
    }
}

impl Runtime {
    /// Opens the root of what a container's processes see.
    async fn root(&self, id: &str) -> Result<Arc<Root>> {
        let shim = self.roster.shim(id)?;
        let container = self.roster.get(id)?;
        let gone = |status| Error::WrongState {
            id: id.to_owned(),
            status,
            advice: "its files are seen only while its first process lives",
        };
        let pid = container.pid;
        let pidfd = Pid::from_raw(pid)
            .filter(|_| pid > 0)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            .ok_or_else(|| gone(container.status))?;
        // Asked after the pidfd was taken: while the shim, which reaps it, says
        // that it lives, its number is nobody else's.
        let state = self
            .forward(&shim, CALL_LIMIT, |mut client| async move {
                client.state(wire::StateRequest {}).await
            })
            .await?;
        if state.pid != pid || state.exit.is_some() {
            return Err(gone(Status::Stopped));
        }
        let opened = on_thread(move || {
            // A thread of its own, since it stays where it goes.
            std::thread::scope(|scope| {
                let entered = scope.spawn(|| Root::open(pid, pidfd.as_fd())).join();
                entered.unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
            })
        })
        .await?;
        let root = opened.map_err(|source| Error::Path {
            id: id.to_owned(),
            path: "/".to_owned(),
            step: "enter",
            source,
        })?;
        Ok(Arc::new(root))
    }

    /// What is at a path.
    ///
    /// # Errors
    /// There is nothing, or the container has no live process.
    pub async fn stat_path(&self, id: &str, place: Place) -> Result<PathStat> {
        let root = self.root(id).await?;
        let id = id.to_owned();
        on_thread(move || {
            let found = place.open(&id, root.directory.as_fd())?;
            let failed = |error| refused(&id, &place.path, "look at", error);
            let stat = root.ids.inside(&rustix::fs::fstat(&found).map_err(failed)?);
            let link = rustix::fs::FileType::from_raw_mode(stat.st_mode);
            let (link_target, link_resolved) = if link == rustix::fs::FileType::Symlink {
                let target = rustix::fs::readlinkat(&found, "", Vec::new()).map_err(failed)?;
                let path = cleaned(&place.path);
                let resolved = resolve::resolve(root.directory.as_fd(), path.as_bytes()).ok();
                (
                    target.to_string_lossy().into_owned(),
                    resolved.and_then(|path| String::from_utf8(path).ok()),
                )
            } else {
                (String::new(), None)
            };
            Ok(PathStat {
                name: place.name(),
                stat,
                link_target,
                link_resolved: link_resolved.unwrap_or_default(),
            })
        })
        .await?
    }

    /// A file or a directory as an archive. `name`: what it is called in it;
    /// empty: as the path says.
    ///
    /// # Errors
    /// There is nothing at the path. What fails later is the last of the stream.
    pub async fn copy_out(
        &self,
        id: &str,
        place: Place,
        name: String,
    ) -> Result<mpsc::Receiver<Result<Bytes>>> {
        let root = self.root(id).await?;
        let owned = id.to_owned();
        let (found, root, place) = on_thread(move || {
            let found = place.open(&owned, root.directory.as_fd());
            found.map(|found| (found, root, place))
        })
        .await??;
        let name = if name.is_empty() { place.name() } else { name };
        let (pieces, received) = mpsc::channel(BACKLOG);
        let id = id.to_owned();
        tokio::task::spawn_blocking(move || {
            let take = |piece: Bytes| pieces.blocking_send(Ok(piece)).is_ok();
            let mut writer = Writer::new(take);
            let packed = pack::pack(found.as_fd(), name.as_bytes(), &root.ids, &mut writer)
                .and_then(|()| writer.finish().map_err(PackError::from));
            match packed {
                Ok(_) | Err(PackError::Write(WriteError::Unwanted)) => {}
                Err(source) => {
                    let _nobody_listens = pieces.blocking_send(Err(Error::Pack { id, source }));
                }
            }
        });
        Ok(received)
    }

    /// Unpacks an archive into a directory.
    ///
    /// # Errors
    /// The directory is not there, the archive is damaged or breaks off, or
    /// something in it cannot be made. What was made before stays.
    pub async fn copy_in(
        &self,
        id: &str,
        path: String,
        keep_owner: bool,
        mut pieces: Pieces,
    ) -> Result<()> {
        let root = self.root(id).await?;
        let id = id.to_owned();
        on_thread(move || {
            let place = Place {
                path: format!("{path}/"),
                follow: true,
            };
            place.open(&id, root.directory.as_fd())?;
            let resolved = resolve::resolve(root.directory.as_fd(), cleaned(&path).as_bytes())
                .map_err(|error| refused(&id, &path, "open", error))?;
            let owner = if keep_owner {
                Owner::Kept
            } else {
                Owner::Of(0, 0)
            };
            let source = Arriving::new(move || pieces.blocking_recv());
            let destination = Destination::InRoot {
                root: root.directory.as_fd(),
                path: &resolved,
            };
            root.write(move |ids| unpack(destination, source, owner, ids))
                .map_err(|source| unpacking(id, path, source))
        })
        .await?
    }
}

fn unpacking(id: String, path: String, source: UnpackError) -> Error {
    match &source {
        UnpackError::Write { source: cause, .. }
            if cause.raw_os_error() == Some(Errno::ROFS.raw_os_error()) =>
        {
            Error::ReadOnly { id, path }
        }
        _ => Error::Unpack { id, path, source },
    }
}

/// The root of what a container's processes see, and their users and groups.
#[derive(Debug)]
struct Root {
    directory: OwnedFd,
    ids: Ids,
}

impl Root {
    /// By a thread that stays where it goes.
    fn open(pid: i32, process: BorrowedFd<'_>) -> io::Result<Self> {
        let ids = Ids::of_process(pid)?;
        gantry_sys::clone::unshare_root()?;
        gantry_sys::clone::enter_namespaces(process, gantry_sys::clone::MOUNT_NAMESPACE)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open("/", flags, Mode::empty())?;
        Ok(Self { directory, ids })
    }

    /// Runs what makes files. Where the host's root is nobody, it is the
    /// container's root who makes them, with all rights of the host's.
    fn write<T: Send>(
        &self,
        make: impl FnOnce(&Ids) -> Result<T, UnpackError> + Send,
    ) -> Result<T, UnpackError> {
        let as_root = || -> io::Result<()> {
            // Directories that the archive only implies are for the container's users too.
            gantry_sys::clone::unshare_root()?;
            rustix::process::umask(Mode::from_raw_mode(UMASK));
            if self.ids.are_plain() {
                return Ok(());
            }
            let (uid, gid) = self.ids.outside(0, 0).map_err(|_| Errno::OVERFLOW)?;
            set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
            nix::unistd::setfsgid(gid.into());
            nix::unistd::setfsuid(uid.into());
            Ok(())
        };
        let failed = |source| UnpackError::Write {
            path: "/".to_owned(),
            step: "becoming the container's root",
            source,
        };
        // These are a thread's own, and this one ends.
        std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                as_root().map_err(failed)?;
                make(&self.ids)
            });
            made.join()
                .unwrap_or_else(|_| Err(failed(io::ErrorKind::Other.into())))
        })
    }
}

/// Runs what may wait for a disk.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Error::Stopping)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str) -> Place {
        Place {
            path: path.to_owned(),
            follow: false,
        }
    }

    #[test]
    fn a_path_names_its_last_component() {
        for (path, name) in [
            ("/etc/passwd", "passwd"),
            ("etc", "etc"),
            ("/etc/", "etc"),
            ("/etc/.", "."),
            ("/", "."),
            ("/a/../b", "b"),
            ("/..", "."),
        ] {
            assert_eq!(place(path).name(), name, "{path}");
        }
    }

    #[test]
    fn no_path_leads_out_of_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/here"), "").unwrap();
        std::fs::write(directory.path().join("outside"), "").unwrap();
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, root.join(name)).unwrap();
        link("/etc", "absolute");
        link("../../../etc", "upward");
        link("/outside", "nowhere");
        link("../outside", "out");
        let root: OwnedFd = std::fs::File::open(&root).unwrap().into();
        let open = |path: &str| {
            let place = Place {
                follow: true,
                ..place(path)
            };
            place.open("c", root.as_fd())
        };
        for path in [
            "/absolute/here",
            "upward/here",
            "/../etc/here",
            "/etc/../etc/here",
        ] {
            assert!(open(path).is_ok(), "{path}");
        }
        for path in ["/nowhere", "/out", "/../outside", "/absolute/../../outside"] {
            let error = open(path).unwrap_err();
            assert!(matches!(error, Error::NoPath { .. }), "{path}: {error}");
        }
        assert!(open("/etc/here/").is_err(), "a file is no directory");
    }
}
