//! A file that comes to be whole or not at all.
//!
//! It has no name while it is written (`O_TMPFILE`), so that nothing is left
//! however the command ends; file systems that know no files without a name get
//! one with a hidden name beside the target. What is no regular file (a pipe, a
//! device, `/dev/stdout`) is written as it is.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

/// A file on its way to its name.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    /// Absent: it has its name already.
    target: Option<PathBuf>,
    /// Its name until it is whole, if it has one.
    hidden: Option<PathBuf>,
}

impl NewFile {
    /// Begins a file that will stand at `path`, in place of what is there.
    pub(crate) fn begin(path: &Path) -> io::Result<Self> {
        let existing = fs::metadata(path).ok();
        let is_special = path.starts_with("/dev") || path.starts_with("/proc");
        if existing.as_ref().is_some_and(fs::Metadata::is_dir) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if is_special || existing.as_ref().is_some_and(|meta| !meta.is_file()) {
            return Ok(Self {
                file: OpenOptions::new().write(true).open(path)?,
                target: None,
                hidden: None,
            });
        }
        // Through a symlink, as a shell's redirection would.
        let target = match existing {
            Some(_) => fs::canonicalize(path)?,
            None => path.to_owned(),
        };
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::open(directory_of(&target), flags, mode) {
            Ok(file) => Ok(Self {
                file: file.into(),
                target: Some(target),
                hidden: None,
            }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let hidden = hidden_name(&target);
                let mut options = OpenOptions::new();
                Ok(Self {
                    file: options
                        .write(true)
                        .create_new(true)
                        .mode(0o600)
                        .open(&hidden)?,
                    target: Some(target),
                    hidden: Some(hidden),
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the file its name.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let Some(target) = self.target.take() else {
            return Ok(());
        };
        let hidden = match &self.hidden {
            Some(hidden) => hidden.clone(),
            None => {
                let hidden = hidden_name(&target);
                let open = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                rustix::fs::linkat(CWD, open, CWD, &hidden, AtFlags::SYMLINK_FOLLOW)?;
                self.hidden = Some(hidden.clone());
                hidden
            }
        };
        if target.exists() {
            // A power cut must leave the file that is replaced, or the new one.
            self.file.sync_data()?;
        }
        fs::rename(&hidden, &target)?;
        self.hidden = None;
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden {
            // There is nobody left to tell.
            let _ = fs::remove_file(hidden);
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn hidden_name(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".gantry-{}", std::process::id()));
    directory_of(target).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<OsString> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.tar");
        let mut file = NewFile::begin(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert!(names(directory.path()).is_empty());
        drop(file);
        assert!(names(directory.path()).is_empty());

        for content in ["one", "two"] {
            let mut file = NewFile::begin(&path).unwrap();
            file.write_all(content.as_bytes()).unwrap();
            file.finish().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(names(directory.path()), ["x.tar"]);
        assert!(NewFile::begin(directory.path()).is_err());
        assert!(NewFile::begin(&directory.path().join("none/x")).is_err());
    }

    #[test]
    fn a_symlink_stays_and_a_device_is_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("x"), directory.path().join("link"));
        fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink("x", &link).unwrap();
        let mut file = NewFile::begin(&link).unwrap();
        file.write_all(b"new").unwrap();
        file.finish().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        let mut null = NewFile::begin(Path::new("/dev/null")).unwrap();
        null.write_all(b"x").unwrap();
        null.finish().unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }
}
