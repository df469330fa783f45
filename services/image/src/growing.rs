//! A file that one thread writes while others read it.
//!
//! A layer is unpacked while it is downloaded, and both go through the blob's
//! file: so the network never waits for the unpacker, memory stays the same
//! whatever the speeds, and a download that is resumed or was there already
//! looks no different.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::unpack::SourceFailed;

#[derive(Debug)]
struct Progress {
    written: u64,
    /// How it ended, if it did.
    end: Option<Result<(), String>>,
}

#[derive(Debug)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
}

/// The writer's end. Dropped before [`Growth::finish`], it fails the readers.
#[derive(Debug)]
pub(crate) struct Growth {
    shared: Arc<Shared>,
}

/// A reader's end.
#[derive(Debug)]
pub(crate) struct GrowingFile {
    file: File,
    shared: Arc<Shared>,
    position: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Both ends of a file that has `written` bytes so far; `file` is for reading.
pub(crate) fn pair(file: File, written: u64) -> (Growth, GrowingFile) {
    let shared = Arc::new(Shared {
        progress: Mutex::new(Progress { written, end: None }),
        changed: Condvar::new(),
    });
    let growth = Growth {
        shared: Arc::clone(&shared),
    };
    let reader = GrowingFile {
        file,
        shared,
        position: 0,
    };
    (growth, reader)
}

impl Growth {
    /// More can be read.
    pub(crate) fn wrote(&self, total: u64) {
        self.shared.lock().written = total;
        self.shared.changed.notify_all();
    }

    /// Everything is there.
    pub(crate) fn finish(self) {
        self.end(Ok(()));
    }

    /// No more will come.
    pub(crate) fn fail(self, reason: String) {
        self.end(Err(reason));
    }

    fn end(&self, how: Result<(), String>) {
        self.shared.lock().end.get_or_insert(how);
        self.shared.changed.notify_all();
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        self.end(Err("it was given up".into()));
    }
}

impl Read for GrowingFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut progress = self.shared.lock();
        let available = loop {
            // What failed is not worth reading to where it failed.
            if let Some(Err(reason)) = &progress.end {
                return Err(io::Error::other(SourceFailed(reason.clone())));
            }
            if self.position < progress.written {
                break progress.written - self.position;
            }
            if progress.end.is_some() {
                return Ok(0);
            }
            progress = self
                .shared
                .changed
                .wait(progress)
                .unwrap_or_else(PoisonError::into_inner);
        };
        drop(progress);
        let wanted = usize::try_from(available)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.file.read_at(&mut buffer[..wanted], self.position)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::thread;

    #[test]
    fn a_reader_sees_everything_though_it_runs_ahead() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let (growth, mut reader) = pair(file.reopen().unwrap(), 0);
        let reading = thread::spawn(move || {
            let mut content = Vec::new();
            reader.read_to_end(&mut content).map(|_| content)
        });
        for n in 1..=50u64 {
            file.write_all(&[n as u8; 100]).unwrap();
            growth.wrote(n * 100);
        }
        growth.finish();
        let content = reading.join().unwrap().unwrap();
        assert_eq!(content.len(), 5_000);
        assert_eq!(content[4_999], 50);
    }

    #[test]
    fn a_writer_that_goes_away_fails_its_reader() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (growth, mut reader) = pair(file.reopen().unwrap(), 0);
        let reading = thread::spawn(move || reader.read(&mut [0; 4]).unwrap_err());
        drop(growth);
        assert!(reading.join().unwrap().to_string().contains("given up"));
    }
}
