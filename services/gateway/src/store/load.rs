//! Reading the records when the service starts, and what becomes of those that
//! cannot be read.
//!
//! A damaged record is set aside in `damaged/`, where it stays until a person
//! removes the container or repairs the file there: each start tries to read the
//! files again, and puts those that can be read back. Until then the container is
//! in the list with what is known of it, its id and perhaps its name, so that
//! what it owns has an owner.
//!
//! **While a file is set aside nothing is removed for want of a record**
//! ([`Store::kept_aside`]): the file may be the record of anything.
//!
//! A file that cannot be read for another reason (a failing disk) counts the
//! same, and stays where it is.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use gantry_kit::directories;
use gantry_kit::durable;
use jiff::Timestamp;

use super::{Store, StoreError, failed, file_of};
use crate::container::{ContainerId, Record};
use crate::name;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Longest part of a damaged file in which its name is looked for.
const NAME_WITHIN: usize = 512;

/// What [`Store::load`] found.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Records as they were written.
    pub records: Vec<Record>,
    /// Files that cannot be read.
    pub damaged: Vec<Damaged>,
    /// The machine was started since this service last ran. False where that is
    /// not known.
    pub rebooted: bool,
}

/// A file that cannot be read as a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Where it is now.
    pub path: PathBuf,
    /// The container whose record it was, by its name.
    pub id: Option<ContainerId>,
    /// The container's name, where it can still be read.
    pub name: Option<String>,
}

impl Damaged {
    fn at(path: PathBuf) -> Self {
        let id = path.file_name().and_then(id_of);
        let text = fs::read(&path).unwrap_or_default();
        Self {
            name: name_in(&text),
            id,
            path,
        }
    }

    /// When the file was written last.
    #[must_use]
    pub fn modified(&self) -> Timestamp {
        let modified = fs::metadata(&self.path).and_then(|file| file.modified());
        modified
            .ok()
            .and_then(|time| Timestamp::try_from(time).ok())
            .unwrap_or_default()
    }
}

/// One file.
enum File {
    Record(Box<Record>),
    Damaged,
    /// It cannot be read now.
    Unreadable(io::Error),
}

impl Store {
    /// Reads all records. Drafts are removed.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let boot = fs::read_to_string(BOOT_ID).map_err(failed("read", Path::new(BOOT_ID)))?;
        let last = match fs::read_to_string(&self.boot) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            last => Some(last.map_err(failed("read", &self.boot))?),
        };
        let rebooted = last.as_ref().is_some_and(|last| *last != boot);
        let mut loaded = Loaded {
            rebooted,
            ..Loaded::default()
        };
        let mut records = HashMap::new();
        for path in records_in(&self.durable)? {
            match read(&path) {
                File::Record(record) => {
                    record.written.lock().durable = Some(record.revision);
                    records.insert(record.id.clone(), *record);
                }
                File::Damaged => self.set_aside(path),
                File::Unreadable(error) => {
                    tracing::error!(path = %path.display(), %error, "a record cannot be read");
                    self.unreadable().push(path);
                }
            }
        }
        self.put_back(&mut records)?;
        self.load_volatile(&mut records, rebooted)?;
        loaded.damaged = self.kept_aside()?;
        loaded.records = records.into_values().collect();
        if last.as_ref() != Some(&boot) {
            durable::replace(&self.boot, super::MODE, boot.as_bytes())?;
        }
        Ok(loaded)
    }

    /// Reads the volatile records over the durable ones.
    fn load_volatile(
        &self,
        records: &mut HashMap<ContainerId, Record>,
        rebooted: bool,
    ) -> Result<(), StoreError> {
        for path in records_in(&self.volatile)? {
            let mut record = match read(&path) {
                File::Record(record) => *record,
                File::Damaged if rebooted => {
                    // It was not on the disk when the machine stopped, and was
                    // not promised to be.
                    tracing::warn!(path = %path.display(), "a record that was being written at a power cut is removed");
                    remove_file(&path);
                    continue;
                }
                File::Damaged => {
                    let id = path.file_name().and_then(id_of);
                    if id.is_some_and(|id| records.contains_key(&id)) {
                        tracing::error!(path = %path.display(), "a volatile record is damaged; the durable one is used");
                        remove_file(&path);
                    } else {
                        self.set_aside(path);
                    }
                    continue;
                }
                File::Unreadable(error) => {
                    tracing::error!(path = %path.display(), %error, "a record cannot be read");
                    self.unreadable().push(path);
                    continue;
                }
            };
            let there = records.get(&record.id);
            let older = there.is_some_and(|there| there.revision >= record.revision);
            if older || (rebooted && there.is_some()) {
                remove_file(&path);
                continue;
            }
            if let Some(there) = there {
                record.written = there.written.clone();
            }
            record.written.lock().volatile = Some(record.revision);
            records.insert(record.id.clone(), record);
        }
        Ok(())
    }

    /// Sets a damaged file aside; one that cannot be moved counts the same where
    /// it is.
    fn set_aside(&self, path: PathBuf) {
        let closed = directories::close(&self.damaged);
        if let Err(error) = closed {
            tracing::warn!(%error, "the directory of damaged records is not closed");
        }
        match durable::set_aside(&path, &self.damaged) {
            Ok(aside) => {
                tracing::error!(path = %aside.display(), "a damaged record was set aside");
            }
            Err(error) => {
                let error = gantry_kit::fault::chain(&error);
                tracing::error!(error, "a damaged record stays where it is");
                self.unreadable().push(path);
            }
        }
    }

    /// Puts files that were set aside and can be read back in their place.
    fn put_back(&self, records: &mut HashMap<ContainerId, Record>) -> Result<(), StoreError> {
        for Damaged { path, id, .. } in self.set_aside_before()? {
            let (Some(id), File::Record(record)) = (id, read(&path)) else {
                continue;
            };
            if records.contains_key(&id) {
                continue;
            }
            let place = file_of(&self.durable, &id);
            fs::rename(&path, &place).map_err(failed("put back", &path))?;
            durable::sync_directory(&self.durable)?;
            durable::sync_directory(&self.damaged)?;
            tracing::info!(path = %place.display(), "a record that was set aside can be read again");
            record.written.lock().durable = Some(record.revision);
            records.insert(id, *record);
        }
        Ok(())
    }

    fn set_aside_before(&self) -> Result<Vec<Damaged>, StoreError> {
        let paths = match files_in(&self.damaged) {
            Err(StoreError::File(error)) if error.source.kind() == io::ErrorKind::NotFound => {
                Vec::new()
            }
            paths => paths?,
        };
        Ok(paths.into_iter().map(Damaged::at).collect())
    }

    /// Files that are kept because they cannot be read. While there are any,
    /// what has no record must be kept as well.
    ///
    /// # Errors
    /// The directory of such files cannot be read.
    pub fn kept_aside(&self) -> Result<Vec<Damaged>, StoreError> {
        let mut kept = self.set_aside_before()?;
        let unreadable = self.unreadable().clone();
        kept.extend(
            unreadable
                .into_iter()
                .filter(|path| path.exists())
                .map(Damaged::at),
        );
        Ok(kept)
    }

    /// Writes a note among the files that are set aside, so that nothing is
    /// removed for want of a record until a person has read it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn warn_of(&self, name: &str, text: &str) -> Result<PathBuf, StoreError> {
        directories::close(&self.damaged)
            .map_err(|error| failed("make", &self.damaged)(error.into()))?;
        let path = self.damaged.join(name);
        durable::replace(&path, super::MODE, text.as_bytes())?;
        Ok(path)
    }

    /// Removes the damaged files of a container.
    pub(super) fn remove_damaged(&self, id: &ContainerId) -> Result<(), StoreError> {
        for Damaged {
            path, id: owner, ..
        } in self.kept_aside()?
        {
            if owner.as_ref() == Some(id) {
                durable::remove(&path)?;
            }
        }
        Ok(())
    }

    fn unreadable(&self) -> std::sync::MutexGuard<'_, Vec<PathBuf>> {
        self.unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files in a directory. What is no file is left alone.
fn files_in(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("read", directory))? {
        let entry = entry.map_err(failed("read", directory))?;
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            files.push(entry.path());
        } else {
            tracing::warn!(path = %entry.path().display(), "not a record, and left alone");
        }
    }
    Ok(files)
}

/// The same without drafts, which are removed.
fn records_in(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut records = Vec::new();
    for path in files_in(directory)? {
        if path.file_name().is_some_and(is_draft) {
            remove_file(&path);
        } else {
            records.push(path);
        }
    }
    Ok(records)
}

/// Removes a file that is not needed. One that cannot be removed is no reason not
/// to start.
fn remove_file(path: &Path) {
    if let Err(error) = directories::remove_or_set_aside(path) {
        tracing::warn!(path = %path.display(), %error, "a leftover cannot be removed");
    }
}

/// Whether a file is a draft: of this version, or "….json.7" of an earlier one.
fn is_draft(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let numbered = name.rsplit_once(".json.").is_some_and(|(id, number)| {
        ContainerId::is_id(id) && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    durable::is_draft(&name) || numbered
}

/// The container that a file is named after.
fn id_of(name: &OsStr) -> Option<ContainerId> {
    let (id, _) = name.to_str()?.split_once('.')?;
    ContainerId::try_from(id.to_owned()).ok()
}

/// The record in a file, where it is the file's own.
fn read(path: &Path) -> File {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) => return File::Unreadable(error),
    };
    match serde_json::from_slice::<Record>(&text) {
        Ok(record) if path.file_name().and_then(id_of).as_ref() == Some(&record.id) => {
            File::Record(Box::new(record))
        }
        _ => File::Damaged,
    }
}

/// The container's name in what is left of a record: it is near the beginning.
fn name_in(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&text[..text.len().min(NAME_WITHIN)]);
    let (_, rest) = text.split_once("\"name\":\"")?;
    let (name, _) = rest.split_once('"')?;
    name::check(name).ok()?;
    Some(name.to_owned())
}
