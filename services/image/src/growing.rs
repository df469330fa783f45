//! A file that one thread writes while another reads it.
//!
//! A layer is unpacked while it is downloaded, and both go through the blob's
//! file: so a download that is resumed or was there already looks no different,
//! and memory stays the same whatever the speeds.
//!
//! Large files are written past the page cache, and reading them back costs the
//! disk as much again. So what was just written also goes to the reader through
//! a window in memory. A reader that is slower than the writer holds it up by
//! the size of the window; one that stands still (it may wait for other layers)
//! holds it up for a moment only, and finds the rest in the file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::unpack::SourceFailed;

/// Bytes that the window holds at most, but for its last piece.
const WINDOW_BYTES: usize = 4 << 20;
/// How long a writer waits for a reader that does not move.
const PATIENCE: Duration = Duration::from_millis(500);
/// Where a reader is that was dropped.
const GONE: u64 = u64::MAX;

#[derive(Debug)]
struct Progress {
    /// Bytes that the file has.
    written: u64,
    /// Pieces without a gap between them, which the reader has not passed yet.
    window: VecDeque<Bytes>,
    /// Where the first of them begins.
    window_at: u64,
    window_bytes: usize,
    /// Where the reader is.
    reader_at: u64,
    /// Where it stood when it was waited for in vain.
    stood_at: Option<u64>,
    /// How it ended, if it did.
    end: Option<Result<(), String>>,
}

impl Progress {
    /// The window begins anew behind the last byte that went through it.
    fn close_window(&mut self, end: u64) {
        self.window.clear();
        self.window_bytes = 0;
        self.window_at = end;
    }

    /// Takes what the window has for the reader, if it is where the reader is.
    fn take(&mut self, buffer: &mut [u8]) -> usize {
        if self.reader_at != self.window_at {
            return 0;
        }
        let Some(first) = self.window.front_mut() else {
            return 0;
        };
        let count = buffer.len().min(first.len());
        buffer[..count].copy_from_slice(&first.split_to(count));
        if first.is_empty() {
            self.window.pop_front();
        }
        self.window_at += count as u64;
        self.window_bytes -= count;
        self.reader_at += count as u64;
        count
    }
}

#[derive(Debug)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
}

/// The writer's end. Dropped before [`Growth::finish`], it fails the reader.
#[derive(Debug)]
pub(crate) struct Growth {
    shared: Arc<Shared>,
}

/// The reader's end. Dropped, it lets the writer go on alone.
#[derive(Debug)]
pub(crate) struct GrowingFile {
    file: File,
    shared: Arc<Shared>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Both ends of a file that has `written` bytes so far; `file` is for reading.
pub(crate) fn pair(file: File, written: u64) -> (Growth, GrowingFile) {
    let shared = Arc::new(Shared {
        progress: Mutex::new(Progress {
            written,
            window: VecDeque::new(),
            window_at: written,
            window_bytes: 0,
            reader_at: 0,
            stood_at: None,
            end: None,
        }),
        changed: Condvar::new(),
    });
    let growth = Growth {
        shared: Arc::clone(&shared),
    };
    (growth, GrowingFile { file, shared })
}

impl Growth {
    /// The file has so many bytes by now.
    pub(crate) fn wrote(&self, total: u64) {
        self.shared.lock().written = total;
        self.shared.changed.notify_all();
    }

    /// The next piece was given to the file, which has `total` bytes by now; it
    /// may keep the end of the piece in memory for a while.
    pub(crate) fn passed(&self, piece: Bytes, total: u64) {
        let mut progress = self.shared.lock();
        while progress.window_bytes >= WINDOW_BYTES {
            let before = progress.reader_at;
            self.shared.changed.notify_all();
            let (after, waited) = self
                .shared
                .changed
                .wait_timeout(progress, PATIENCE)
                .unwrap_or_else(PoisonError::into_inner);
            progress = after;
            if waited.timed_out() && progress.reader_at == before {
                let end = progress.window_at + progress.window_bytes as u64;
                progress.close_window(end);
                progress.stood_at = Some(before);
            }
        }
        // Only now: until then the reader must not get past the window by way of the file.
        progress.written = total;
        if progress.reader_at == GONE {
            return;
        }
        if progress.stood_at == Some(progress.reader_at) {
            // It is not waited for again before it moves.
            progress.window_at += piece.len() as u64;
            drop(progress);
            self.shared.changed.notify_all();
            return;
        }
        progress.stood_at = None;
        progress.window_bytes += piece.len();
        progress.window.push_back(piece);
        drop(progress);
        self.shared.changed.notify_all();
    }

    /// Everything is there, and in the file.
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

impl Drop for GrowingFile {
    fn drop(&mut self) {
        let mut progress = self.shared.lock();
        // Nothing is kept for who does not read any more.
        progress.reader_at = GONE;
        let end = progress.window_at + progress.window_bytes as u64;
        progress.close_window(end);
        drop(progress);
        self.shared.changed.notify_all();
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
            let taken = progress.take(buffer);
            if taken > 0 {
                drop(progress);
                self.shared.changed.notify_all();
                return Ok(taken);
            }
            // Up to where the window begins it is in the file.
            let mut end = progress.written;
            if progress.reader_at < progress.window_at {
                end = end.min(progress.window_at);
            }
            if progress.reader_at < end {
                break end - progress.reader_at;
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
        let position = progress.reader_at;
        drop(progress);
        let wanted = usize::try_from(available)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.file.read_at(&mut buffer[..wanted], position)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.shared.lock().reader_at = position + count as u64;
        self.shared.changed.notify_all();
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
    fn what_passes_through_the_window_is_read_in_order_with_what_was_there_before() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0; 1000]).unwrap();
        let (growth, mut reader) = pair(file.reopen().unwrap(), 1000);
        let reading = thread::spawn(move || {
            let mut content = Vec::new();
            reader.read_to_end(&mut content).map(|_| content)
        });
        // More than the window holds, and none of it in the file yet.
        let pieces = 3 * WINDOW_BYTES / 100_000;
        for n in 1..=pieces {
            growth.passed(Bytes::from(vec![n as u8; 100_000]), 1000);
        }
        growth.finish();
        let content = reading.join().unwrap().unwrap();
        assert_eq!(content.len(), 1000 + pieces * 100_000);
        for n in 1..=pieces {
            assert_eq!(content[1000 + (n - 1) * 100_000], n as u8);
            assert_eq!(content[999 + n * 100_000], n as u8);
        }
    }

    #[test]
    fn a_reader_that_stands_still_holds_nobody_up_and_finds_all_in_the_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let (growth, mut reader) = pair(file.reopen().unwrap(), 0);
        let pieces = 3 * WINDOW_BYTES / (1 << 20);
        for n in 1..=pieces {
            let piece = vec![n as u8; 1 << 20];
            file.write_all(&piece).unwrap();
            growth.passed(Bytes::from(piece), (n << 20) as u64);
        }
        // It was waited for once: since then nothing goes through the window.
        assert!(growth.shared.lock().window.is_empty());
        growth.finish();
        let mut content = Vec::new();
        reader.read_to_end(&mut content).unwrap();
        assert_eq!(content.len(), pieces << 20);
        for n in 1..=pieces {
            assert_eq!(content[(n << 20) - 1], n as u8);
        }
    }

    #[test]
    fn a_writer_goes_on_when_its_reader_is_gone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (growth, reader) = pair(file.reopen().unwrap(), 0);
        drop(reader);
        for _ in 0..3 {
            growth.passed(Bytes::from(vec![0; WINDOW_BYTES]), 0);
        }
        growth.finish();
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
