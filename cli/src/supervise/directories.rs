//! The engine's directories, made with their modes; its sockets, taken away.

use std::{fs, io};

use gantry_kit::directories;
use gantry_kit::paths::Paths;

use super::{SuperviseError, notify_directory, notify_socket};

/// Makes the missing directories, and closes those that are open to others.
pub(super) fn create(paths: &Paths, group: &str) -> Result<(), SuperviseError> {
    directories::prepare(paths, group)?;
    directories::close(&notify_directory(paths))?;
    Ok(())
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
