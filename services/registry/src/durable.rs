//! Small files that survive a power cut: written aside, brought to the disk, then renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::RegistryError;

/// Replaces a file by one with this content. `aside` is a directory on the same file system.
pub(crate) fn write(aside: &Path, path: &Path, content: &[u8]) -> Result<(), RegistryError> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let temporary = aside.join(format!("{}-{number}", std::process::id()));
    let written = File::create(&temporary)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_data()
        })
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(RegistryError::io("write", path));
    if written.is_err() {
        // The error to report is the first one; a left-over is removed at the next start.
        fs::remove_file(&temporary).ok();
        return written;
    }
    sync_parent(path)
}

/// Makes an empty file, if it is not there.
pub(crate) fn mark(path: &Path) -> Result<(), RegistryError> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(RegistryError::io("create", path))?;
    sync_parent(path)
}

/// Makes a directory and those above it.
pub(crate) fn directory(path: &Path) -> Result<(), RegistryError> {
    match fs::create_dir(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                directory(parent)?;
            }
            match fs::create_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    Err(RegistryError::io("create the directory", path)(error))
                }
                _ => sync_parent(path),
            }
        }
        Err(error) => Err(RegistryError::io("create the directory", path)(error)),
    }
}

/// Removes a file; says whether it was there.
pub(crate) fn remove(path: &Path) -> Result<bool, RegistryError> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(RegistryError::io("remove", path)(error)),
    }
}

/// Removes whatever has a name.
pub(crate) fn clear(path: &Path) -> Result<(), RegistryError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => remove_tree(path),
        Ok(_) => remove(path).map(|_| ()),
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
    sync_parent(path)
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

fn sync_parent(path: &Path) -> Result<(), RegistryError> {
    let parent = path.parent().unwrap_or(path);
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(RegistryError::io("bring to the disk", parent))
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
