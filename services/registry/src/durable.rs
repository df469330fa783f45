//! The registry's use of [`gantry_kit::durable`]: its errors, and directories in
//! which every name counts, so that drafts are elsewhere.

use std::fs;
use std::io;
use std::path::Path;

use gantry_kit::durable;
pub(crate) use gantry_kit::durable::{directory, mark, remove};

use crate::error::RegistryError;

/// Mode of the registry's small files, before the umask.
const MODE: u32 = 0o666;

/// Replaces a file by one with this content. `aside` is a directory on the same file system.
pub(crate) fn write(aside: &Path, path: &Path, content: &[u8]) -> Result<(), RegistryError> {
    let name = path.file_name().unwrap_or_default();
    let draft = durable::draft_of(&aside.join(name));
    Ok(durable::replace_with(&draft, path, MODE, content)?)
}

/// Removes whatever has a name.
pub(crate) fn clear(path: &Path) -> Result<(), RegistryError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => remove_tree(path),
        Ok(_) => Ok(remove(path).map(drop)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(RegistryError::io("look at", path)(error)),
    }
}

/// Removes a directory with all that is in it; one that is not there is fine.
/// What is mounted in it is left alone, and makes this fail.
pub(crate) fn remove_tree(path: &Path) -> Result<(), RegistryError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(RegistryError::io("list", path)(error)),
    };
    if is_mounted(path).map_err(RegistryError::io("look at", path))? {
        let busy = io::Error::new(io::ErrorKind::ResourceBusy, "something is mounted there");
        return Err(RegistryError::io("remove", path)(busy));
    }
    for entry in entries {
        let entry = entry.map_err(RegistryError::io("list", path))?;
        let (path, kind) = (entry.path(), entry.file_type());
        if kind.is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&path)?;
        } else {
            fs::remove_file(&path).map_err(RegistryError::io("remove", &path))?;
        }
    }
    fs::remove_dir(path).map_err(RegistryError::io("remove", path))?;
    let parent = path.parent().unwrap_or(path);
    Ok(durable::sync_directory(parent)?)
}

/// Whether a directory is where something is mounted.
fn is_mounted(path: &Path) -> io::Result<bool> {
    let status = rustix::fs::statx(
        rustix::fs::CWD,
        path,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        rustix::fs::StatxFlags::empty(),
    )?;
    let root = rustix::fs::StatxAttributes::MOUNT_ROOT;
    Ok(status.stx_attributes.contains(root))
}

/// The names in a directory, sorted; one that is not there has none.
pub(crate) fn names(path: &Path) -> Result<Vec<String>, RegistryError> {
    let failed = || RegistryError::io("list", path);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed()(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed())?;
        // Nothing of ours has a name that is not UTF-8.
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
