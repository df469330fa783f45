//! The files of a log.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::error::{Error, Result};

/// Read at once. An entry is at most 16 KiB and its head.
const BLOCK_BYTES: usize = 256 << 10;

/// One open segment, and the offset that reading has come to.
#[derive(Debug)]
pub(super) struct Segment {
    file: File,
    path: PathBuf,
    pub(super) number: u64,
    pub(super) offset: u64,
}

impl Segment {
    /// Opens segment `number`; `None` where it is gone.
    pub(super) fn open(directory: &Path, number: u64) -> Result<Option<Self>> {
        let path = directory.join(format!("{number}.log"));
        match File::open(&path) {
            Ok(file) => Ok(Some(Self {
                file,
                path,
                number,
                offset: 0,
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::file("cannot read", path, source)),
        }
    }

    pub(super) fn length(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(|e| self.failed(e))?.len())
    }

    /// The next whole entries, and moves on past them. Empty: there are none.
    pub(super) fn block(&mut self) -> Result<Bytes> {
        let mut block = self.at(self.offset, BLOCK_BYTES)?;
        // An entry that is being written is left for later.
        block.truncate(memchr::memrchr(b'\n', &block).map_or(0, |end| end + 1));
        self.offset += block.len() as u64;
        Ok(block.into())
    }

    /// Up to `length` bytes at `offset`.
    pub(super) fn at(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut block = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self
                .file
                .read_at(&mut block[filled..], offset + filled as u64)
            {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        block.truncate(filled);
        Ok(block)
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::file("cannot read", &self.path, source)
    }
}

/// The numbers of all segments, in order. A log that was never written has none.
pub(super) fn numbers(directory: &Path) -> Result<Vec<u64>> {
    let failed = |source| Error::file("cannot read", directory, source);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let number: Option<u64> = name
            .to_str()
            .and_then(|name| name.strip_suffix(".log")?.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// All segments, open, in order.
pub(super) fn all(directory: &Path) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for number in numbers(directory)? {
        segments.extend(Segment::open(directory, number)?);
    }
    Ok(segments)
}
