//! Small files that are replaced as a whole, and what it takes for them to
//! survive a power cut.
//!
//! # The rule
//! A file that others rely on after a power cut is *durable*: it is written
//! beside its place, synced, renamed, and its directory is synced ([`replace`]).
//! Leaving out the first sync is not a weaker promise about the new content: on
//! XFS, and on ext4 without `auto_da_alloc`, the rename can reach the disk before
//! the content does, and the file is empty afterwards. So **what replaces a
//! durable file is durable itself**. A file that changes too often for that is a
//! file of its own, which nobody relies on after a power cut ([`replace_volatile`]).
//!
//! # Drafts
//! A draft is in the same file system as its target, by default in the same
//! directory, under a name with [`DRAFT`] in it. One that a killed process left
//! has no reader; [`is_draft`] tells it from other files.
//!
//! # Damage
//! A file that cannot be understood is moved to a directory for such files, under
//! a name of its own ([`set_aside`]). It is never removed by the program alone.
//!
//! # A full disk
//! Removing something often has to write a few bytes first. A [`Reserve`] is a
//! file that takes the room for them, and gives it back when the disk is full.
//!
//! All functions block for the disk.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FallocateFlags, fallocate};

/// Part of the name of every draft.
pub const DRAFT: &str = ".draft-";

/// A step that failed, and where.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path:?}")]
pub struct FileError {
    /// "write", "sync", …
    pub action: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

type Result<T> = std::result::Result<T, FileError>;

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError {
        action,
        path: path.to_owned(),
        source,
    }
}

/// A written file that does not have its name yet. Dropped before
/// [`Draft::rename`], it is removed.
#[derive(Debug)]
pub struct Draft {
    path: Option<PathBuf>,
}

impl Draft {
    /// Writes a draft and syncs it.
    ///
    /// # Errors
    /// The file cannot be made, written or synced. Nothing is left of it.
    pub fn write(path: PathBuf, mode: u32, content: &[u8]) -> Result<Self> {
        Self::write_with(path, mode, content, true)
    }

    /// Writes a draft without syncing it. It must not replace a durable file.
    ///
    /// # Errors
    /// The file cannot be made or written. Nothing is left of it.
    pub fn write_volatile(path: PathBuf, mode: u32, content: &[u8]) -> Result<Self> {
        Self::write_with(path, mode, content, false)
    }

    fn write_with(path: PathBuf, mode: u32, content: &[u8], synced: bool) -> Result<Self> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&path)
            .map_err(failed("make", &path))?;
        // From here on the file goes with the draft.
        let draft = Self {
            path: Some(path.clone()),
        };
        file.write_all(content).map_err(failed("write", &path))?;
        if synced {
            file.sync_data().map_err(failed("sync", &path))?;
        }
        Ok(draft)
    }

    /// Gives the draft its name. The directory is not synced yet.
    ///
    /// # Errors
    /// It cannot be renamed. Nothing is left of it.
    pub fn rename(mut self, target: &Path) -> Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        fs::rename(path, target).map_err(failed("replace", target))?;
        self.path = None;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // The error to report is the one that kept it from its name.
            let _left = fs::remove_file(path);
        }
    }
}

/// A name for a draft of `path`, in the same directory, that nobody else has.
#[must_use]
pub fn draft_of(path: &Path) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push(format!("{DRAFT}{}-{number}", std::process::id()));
    path.with_file_name(name)
}

/// Whether a file of this name is a draft.
#[must_use]
pub fn is_draft(name: &str) -> bool {
    name.contains(DRAFT)
}

/// Replaces a file, or makes it: when this returns, the new content survives a
/// power cut; before, and after a failure, the old one does.
///
/// # Errors
/// A step failed.
pub fn replace(path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    replace_with(&draft_of(path), path, mode, content)
}

/// The same with a draft elsewhere in the file system, for a directory in which
/// every name counts.
///
/// # Errors
/// A step failed.
pub fn replace_with(draft: &Path, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    Draft::write(draft.to_owned(), mode, content)?.rename(path)?;
    sync_parent(path)
}

/// Replaces a file that nobody relies on after a power cut: whoever reads it
/// sees the old content or the new one for as long as the machine runs, and
/// anything or nothing after that. Never for a file that was made durable.
///
/// # Errors
/// A step failed.
pub fn replace_volatile(path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    Draft::write_volatile(draft_of(path), mode, content)?.rename(path)
}

/// Makes an empty file, if it does not exist.
///
/// # Errors
/// It cannot be made or synced.
pub fn mark(path: &Path) -> Result<()> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed("make", path))?;
    sync_parent(path)
}

/// Makes a directory and those above it.
///
/// # Errors
/// One cannot be made or synced.
pub fn directory(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                directory(parent)?;
            }
            match fs::create_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    Err(failed("make the directory", path)(error))
                }
                _ => sync_parent(path),
            }
        }
        Err(error) => Err(failed("make the directory", path)(error)),
    }
}

/// Removes a file; says whether it existed.
///
/// # Errors
/// It cannot be removed.
pub fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

/// Removes a directory with everything in it. Succeeds where there is none.
///
/// # Errors
/// Something in it cannot be removed.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

/// Moves a damaged file to the directory for such files, which is made, and
/// returns where it is now: under its own name, or that and a number where the
/// name is taken.
///
/// # Errors
/// The directory cannot be made, or the file cannot be moved.
pub fn set_aside(path: &Path, directory: &Path) -> Result<PathBuf> {
    self::directory(directory)?;
    let name = path.file_name().map(OsString::from).unwrap_or_default();
    let mut aside = directory.join(&name);
    let mut number = 1_u32;
    while aside.symlink_metadata().is_ok() {
        let mut numbered = name.clone();
        numbered.push(format!(".{number}"));
        aside = directory.join(numbered);
        number += 1;
    }
    fs::rename(path, &aside).map_err(failed("set aside", path))?;
    sync_directory(directory)?;
    sync_parent(path)?;
    Ok(aside)
}

/// Room on the disk for small files that must be written when there is no other.
#[derive(Clone, Debug)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// A reserve of `bytes` in the file at `path`. Nothing is taken yet.
    #[must_use]
    pub fn at(path: PathBuf, bytes: u64) -> Self {
        Self { path, bytes }
    }

    /// Takes the room, if there is any. Without it the program works as well,
    /// but for a full disk.
    pub fn refill(&self) {
        let full = fs::metadata(&self.path).is_ok_and(|file| file.len() >= self.bytes);
        if full {
            return;
        }
        let taken = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.path)
            .and_then(|file| {
                let length = i64::try_from(self.bytes).unwrap_or(i64::MAX);
                let flags = FallocateFlags::empty();
                fallocate(&file, flags, 0, length).map_err(io::Error::from)
            });
        if let Err(error) = taken {
            // A file system that cannot do it, or a disk that is full already.
            tracing::debug!(%error, path = %self.path.display(), "no room is reserved");
            fs::remove_file(&self.path).ok();
        }
    }

    /// Runs `write`; where the disk is full, gives the room back and runs it again.
    ///
    /// # Errors
    /// What `write` says last.
    pub fn spend<T, E>(
        &self,
        mut write: impl FnMut() -> std::result::Result<T, E>,
        is_full: impl Fn(&E) -> bool,
    ) -> std::result::Result<T, E> {
        match write() {
            Err(error) if is_full(&error) && fs::remove_file(&self.path).is_ok() => write(),
            outcome => outcome,
        }
    }
}

/// Whether a disk or a quota is used up.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Brings the names in a directory to the disk.
///
/// # Errors
/// The directory cannot be opened or synced.
pub fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync the directory", directory))
}

fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
        _ => sync_directory(Path::new(".")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_replaced_file_has_the_new_content_and_mode_and_leaves_no_draft() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        for content in ["one", "another"] {
            replace(&path, 0o600, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(names(directory.path()), ["record"]);
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_file_and_no_draft() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        // A directory cannot be replaced by a file.
        fs::create_dir(&path).unwrap();
        fs::write(path.join("kept"), "").unwrap();
        replace(&path, 0o600, b"new").unwrap_err();
        replace_volatile(&path, 0o600, b"new").unwrap_err();
        assert_eq!(names(directory.path()), ["record"]);
        assert_eq!(names(&path), ["kept"]);
    }

    #[test]
    fn a_draft_is_told_from_other_files_by_its_name() {
        let draft = draft_of(Path::new("/a/record.json"));
        assert!(is_draft(draft.file_name().unwrap().to_str().unwrap()));
        assert_eq!(draft.parent(), Some(Path::new("/a")));
        assert!(!is_draft("record.json"));
    }

    #[test]
    fn damaged_files_of_one_name_are_all_kept() {
        let directory = tempfile::tempdir().unwrap();
        let aside = directory.path().join("damaged");
        for content in ["one", "two", "three"] {
            let path = directory.path().join("record");
            fs::write(&path, content).unwrap();
            let moved = set_aside(&path, &aside).unwrap();
            assert_eq!(fs::read_to_string(moved).unwrap(), content);
        }
        assert_eq!(names(&aside), ["record", "record.1", "record.2"]);
        assert_eq!(names(directory.path()), ["damaged"]);
    }

    #[test]
    fn a_reserve_is_given_back_once_when_the_disk_is_full() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = Reserve::at(directory.path().join("reserve"), 4096);
        reserve.refill();
        assert_eq!(fs::metadata(&reserve.path).unwrap().len(), 4096);
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let mut calls = 0;
        let outcome = reserve.spend(
            || {
                calls += 1;
                if calls == 1 { Err(full()) } else { Ok(calls) }
            },
            is_full,
        );
        assert_eq!(outcome.unwrap(), 2);
        assert!(!reserve.path.exists());
        // Nothing is left to give back.
        reserve.spend(|| Err::<(), _>(full()), is_full).unwrap_err();
        reserve.refill();
        assert!(reserve.path.exists());
    }

    #[test]
    fn directories_above_are_made_and_trees_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b/c");
        directory(&deep).unwrap();
        directory(&deep).unwrap();
        mark(&deep.join("mark")).unwrap();
        mark(&deep.join("mark")).unwrap();
        assert!(remove(&deep.join("mark")).unwrap());
        assert!(!remove(&deep.join("mark")).unwrap());
        remove_tree(&root.path().join("a")).unwrap();
        remove_tree(&root.path().join("a")).unwrap();
        assert_eq!(names(root.path()), [""; 0]);
    }
}
