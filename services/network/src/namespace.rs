//! Network namespaces that stay without a process: pinned by a bind mount of
//! their nsfs file.
//!
//! unshare(2) moves the calling thread, and a thread that has moved must run
//! nothing else: each namespace is made by a thread of its own, which ends.
//!
//! One that a user namespace shall own is made with that, by a process that does
//! nothing else, and the thread enters it.
//!
//! ```text
//! <run>/netns/<sandbox>        an empty file, the namespace's nsfs file mounted on it
//! <run>/netns/<sandbox>.user   the same of the user namespace that owns it, if it is not the host's
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::statfs;

use crate::endpoint::Users;

/// `NSFS_MAGIC` (linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";
/// Extension of the pin of an owner.
const OWNER: &str = "user";
/// Endpoints have no IPv6 yet: without this each link would look for a router
/// and for a duplicate of its own address.
const IPV6_OFF: &str = "/proc/sys/net/ipv6/conf/default/disable_ipv6";

/// A namespace that cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("cannot start a thread for a network namespace")]
    Thread { source: io::Error },
    #[error("cannot make a network namespace")]
    Unshare { source: io::Error },
    #[error("cannot make a user namespace for a network namespace")]
    Users { source: io::Error },
    #[error("cannot pin a network namespace at {path:?}")]
    Pin { path: PathBuf, source: io::Error },
    #[error("cannot remove the network namespace at {path:?}")]
    Unpin { path: PathBuf, source: io::Error },
    #[error("the thread that made a network namespace has panicked")]
    Panicked,
}

/// Where the owner of the namespace at `pin` is pinned.
pub(crate) fn owner_of(pin: &Path) -> PathBuf {
    pin.with_extension(OWNER)
}

/// The namespace that a pin is about: its own, or the one that it owns.
pub(crate) fn subject_of(pin: &Path) -> PathBuf {
    if pin.extension().is_some_and(|extension| extension == OWNER) {
        pin.with_extension("")
    } else {
        pin.to_owned()
    }
}

/// Makes a namespace, owned by a new user namespace with `users`, if any; pins it
/// at `pin`, and runs `furnish` inside it with its file. When that fails, the pin
/// is removed again.
pub(crate) fn create<T, E>(
    pin: &Path,
    users: Option<&Users>,
    furnish: impl FnOnce(&File) -> Result<T, E> + Send,
) -> Result<T, E>
where
    T: Send,
    E: From<NamespaceError> + Send,
{
    thread::scope(|scope| {
        let maker = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                match users {
                    Some(users) => enter_owned(pin, users)?,
                    None => unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| {
                        NamespaceError::Unshare {
                            source: errno.into(),
                        }
                    })?,
                }
                let file = pin_at(Path::new(OWN_NAMESPACE), pin).map_err(|source| {
                    NamespaceError::Pin {
                        path: pin.to_owned(),
                        source,
                    }
                })?;
                match fs::write(IPV6_OFF, "1") {
                    // A kernel without IPv6 has nothing to turn off.
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::debug!(%error, "IPv6 stays on in a new namespace");
                    }
                    _ => {}
                }
                furnish(&file).inspect_err(|_| {
                    if let Err(error) = remove(pin) {
                        tracing::warn!(pin = %pin.display(), %error, "a namespace is left over");
                    }
                })
            })
            .map_err(|source| NamespaceError::Thread { source })?;
        maker
            .join()
            .unwrap_or_else(|_| Err(NamespaceError::Panicked.into()))
    })
}

/// Makes a user namespace with a network namespace, pins the former and enters the
/// latter.
fn enter_owned(pin: &Path, users: &Users) -> Result<(), NamespaceError> {
    let failed = |source| NamespaceError::Users { source };
    let made = gantry_sys::user_namespace::make(&users.uids, &users.gids, true).map_err(failed)?;
    let owner = owner_of(pin);
    let file = PathBuf::from(format!("/proc/self/fd/{}", made.user.as_raw_fd()));
    pin_at(&file, &owner).map_err(|source| NamespaceError::Pin {
        path: owner,
        source,
    })?;
    let network = made
        .network
        .ok_or_else(|| failed(io::ErrorKind::Other.into()))?;
    setns(network.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| NamespaceError::Unshare {
        source: errno.into(),
    })
}

fn pin_at(namespace: &Path, pin: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(pin)?;
    let mounted = mount(
        Some(namespace),
        pin,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    );
    if let Err(errno) = mounted {
        fs::remove_file(pin)?;
        return Err(errno.into());
    }
    File::open(pin)
}

/// Whether a namespace is pinned at `pin`.
pub(crate) fn is_pinned(pin: &Path) -> bool {
    statfs(pin).is_ok_and(|status| status.f_type == NSFS_MAGIC)
}

/// Removes a pin, and that of the owner; one that is not there is no error. The
/// namespace itself ends with the last process in it.
pub(crate) fn remove(pin: &Path) -> Result<(), NamespaceError> {
    unpin(&owner_of(pin))?;
    unpin(pin)
}

fn unpin(pin: &Path) -> Result<(), NamespaceError> {
    let failed = |source| NamespaceError::Unpin {
        path: pin.to_owned(),
        source,
    };
    while is_pinned(pin) {
        umount2(pin, MntFlags::MNT_DETACH).map_err(|errno| failed(errno.into()))?;
    }
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}
