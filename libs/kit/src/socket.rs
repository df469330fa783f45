//! Unix sockets at paths of any length: listened on with their mode and group,
//! and connected to.
//!
//! See [`gantry_sys::unix_socket`] for how a path longer than the kernel's 107
//! bytes is used.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use gantry_sys::unix_socket::{self, Address};
use nix::unistd::Group;
use tokio::net::UnixStream;

pub use std::os::unix::net::UnixListener;

/// Sockets are for root and the configured group.
const MODE: u32 = 0o660;
/// A socket's mode before it has its group.
const NEW_MODE: u32 = 0o600;

/// A socket that cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another service listens on {0:?} already; stop it first")]
    InUse(PathBuf),
    #[error("cannot listen on {path:?}")]
    Listen { path: PathBuf, source: io::Error },
}

/// Listens on a new socket at `path` with mode 0660 and the given group, which
/// need not exist. A socket there that nobody listens on any more is replaced.
///
/// # Errors
/// Somebody listens there, or the socket cannot be made.
pub fn bind(path: &Path, group: &str) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Listen {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent() {
        crate::directories::make(parent).map_err(|error| failed(error.into()))?;
    }
    match unix_socket::connect(path) {
        Ok(_) => return Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            crate::directories::remove_or_set_aside(path).map_err(failed)?;
        }
        Err(_) => {}
    }
    let listener = unix_socket::listen(path, NEW_MODE).map_err(failed)?;
    if let Ok(Some(group)) = Group::from_name(group) {
        nix::unistd::chown(path, None, Some(group.gid)).map_err(|errno| failed(errno.into()))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE)).map_err(failed)?;
    Ok(listener)
}

/// Connects to the socket at `path`.
///
/// # Errors
/// Nobody listens there, or it may not be reached.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = Address::of(path)?;
    UnixStream::connect(address.path()).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_socket_is_for_root_and_the_group() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/one.sock");
        let _listener = bind(&path, "daemon").unwrap();
        let found = std::fs::metadata(&path).unwrap();
        let group = Group::from_name("daemon").unwrap().unwrap();
        assert_eq!(found.mode() & 0o7777, 0o660);
        assert_eq!(found.gid(), group.gid.as_raw());
    }

    #[test]
    fn a_socket_in_use_is_refused_and_one_left_behind_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("one.sock");
        let first = bind(&path, "").unwrap();
        assert!(matches!(bind(&path, ""), Err(SocketError::InUse(_))));
        drop(first);
        bind(&path, "").unwrap();
    }

    #[tokio::test]
    async fn a_socket_below_a_long_directory_is_reached() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d".repeat(200)).join("one.sock");
        let _listener = bind(&path, "").unwrap();
        connect(&path).await.unwrap();
    }
}
