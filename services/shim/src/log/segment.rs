//! The files a log is kept in.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use super::Limits;

/// The number of the segment that `name` names.
pub(super) fn number(name: &OsStr) -> Option<u64> {
    name.to_str()?.strip_suffix(".log")?.parse().ok()
}

#[derive(Debug)]
struct Open {
    file: File,
    number: u64,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Segments {
    directory: PathBuf,
    limits: Limits,
    open: Option<Open>,
}

impl Segments {
    pub(super) fn new(directory: PathBuf, limits: Limits) -> Self {
        Self {
            directory,
            limits,
            open: None,
        }
    }

    /// Writes whole entries, or none of them.
    pub(super) fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.bytes >= self.limits.segment_bytes)
        {
            self.rotate()?;
        }
        if self.open.is_none() {
            self.open = Some(self.resume()?);
        }
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        match open.file.write_all(batch) {
            Ok(()) => {
                open.bytes += batch.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Leave no half entry; where even that fails, begin anew later.
                if open.file.set_len(open.bytes).is_err() {
                    self.open = None;
                }
                Err(error)
            }
        }
    }

    /// Opens the newest segment there is.
    fn resume(&self) -> io::Result<Open> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        let number = self.numbers()?.last().copied().unwrap_or(1);
        let open = self.create(number)?;
        if open.bytes >= self.limits.segment_bytes {
            return self.create(number + 1);
        }
        Ok(open)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let Some(open) = &self.open else {
            return Ok(());
        };
        let next = self.create(open.number + 1)?;
        let keep = u64::from(self.limits.segments.max(1));
        let oldest = (next.number + 1).saturating_sub(keep);
        self.open = Some(next);
        for number in self.numbers()? {
            if number < oldest {
                fs::remove_file(self.path(number))?;
            }
        }
        Ok(())
    }

    fn create(&self, number: u64) -> io::Result<Open> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(self.path(number))?;
        let bytes = file.metadata()?.len();
        Ok(Open {
            file,
            number,
            bytes,
        })
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number}.log"))
    }

    /// All segments' numbers, in order.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            numbers.extend(number(&entry?.file_name()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}
