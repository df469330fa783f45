//! The engine's directories, made with their modes; its sockets, taken away.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use gantry_kit::paths::Paths;

use super::{SuperviseError, notify_directory, notify_socket};

/// Makes what is missing; what is there keeps its mode.
pub(super) fn create(paths: &Paths) -> Result<(), SuperviseError> {
    if let Some(root) = &paths.root {
        make(root, 0o755)?;
    }
    // Processes in user namespaces of their own pass through to their layers.
    make(&paths.state, 0o711)?;
    // Whoever is in the socket's group has to reach the socket.
    make(&paths.run, 0o755)?;
    make(&paths.log, 0o750)?;
    make(&notify_directory(paths), 0o700)
}

fn make(path: &Path, mode: u32) -> Result<(), SuperviseError> {
    let failed = |source| SuperviseError::Directory {
        path: path.to_owned(),
        source,
    };
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    DirBuilder::new().mode(mode).create(path).map_err(failed)?;
    // The umask must not have a say.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
}

/// Removes the sockets of `services`, so that whoever calls next is told that
/// nothing runs, and not left waiting.
pub(super) fn remove_sockets(paths: &Paths, services: &[&str]) {
    let notify = notify_directory(paths);
    let sockets = services
        .iter()
        .flat_map(|service| [paths.socket(service), notify_socket(&notify, service)]);
    for socket in sockets {
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                eprintln!("gantry up: cannot remove {}: {error}", socket.display());
            }
            _ => {}
        }
    }
    let _not_empty = fs::remove_dir(notify);
}
