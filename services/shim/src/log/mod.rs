//! The container's output on disk, in the CRI log format.
//!
//! ```text
//! <log dir>/1.log 2.log 3.log ...          the highest number is being written
//!
//! 2026-01-02T03:04:05.678901234Z stdout F a whole line
//! 2026-01-02T03:04:05.678901234Z stderr P the first 16 KiB of a longer line, or
//!                                         the end of output without a newline
//! ```
//! An entry is one line of the file. Its content ends a line of the program
//! where the tag is `F`, and does not where it is `P`: what the program wrote is
//! the contents in their order, with a newline after each `F`.
//!
//! # Rotation
//! A segment that has reached its size is left as it is, the next number begins,
//! and the oldest beyond the number of segments kept is removed. Numbers only
//! grow, also over several lives of a container, so that a reader that has read
//! segment n to its end once n+1 exists has read all of it.
//!
//! # When the log cannot be written
//! The batch is dropped, its lines are counted ([`Log::dropped`]), and the
//! segment is cut back to the last whole entry. The next batch tries again. Where it
//! can be written, an entry goes before it that says what is missing, with a tag that
//! no output has:
//! ```text
//! 2026-01-02T03:04:05.678901234Z stderr F:lost 12 lines of output were not logged: No space left on device (os error 28)
//! ```
//!
//! # Limits
//! Writes to a disk that hangs hang the shim: regular files know no waiting.
//! Nothing is fsynced: output that a power cut takes was never promised.

mod entry;
mod segment;

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::stdio::Stream;
use entry::Entries;
use segment::Segments;

/// Written at once, where the program is that fast.
const BATCH_BYTES: usize = 64 << 10;

/// Size and number of segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub segment_bytes: u64,
    pub segments: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            segment_bytes: 10 << 20,
            segments: 3,
        }
    }
}

/// The log of one container.
#[derive(Debug)]
pub struct Log {
    entries: Entries,
    segments: Segments,
    dropped: u64,
    /// Lines that were dropped and that the log does not tell of yet, and why.
    untold: Option<(u64, io::Error)>,
}

impl Log {
    /// A log below `directory`. Nothing is made before the first line.
    #[must_use]
    pub fn new(directory: PathBuf, limits: Limits) -> Self {
        Self {
            entries: Entries::default(),
            segments: Segments::new(directory, limits),
            dropped: 0,
            untold: None,
        }
    }

    /// Takes output. It is on disk after the next [`Log::flush`].
    pub fn append(&mut self, stream: Stream, data: &[u8]) {
        self.entries.add(stream, data, SystemTime::now());
        if self.entries.batch().len() >= BATCH_BYTES {
            self.flush();
        }
    }

    /// The stream has ended: what is left of its last line is an entry too.
    pub fn end(&mut self, stream: Stream) {
        self.entries.end(stream, SystemTime::now());
        self.flush();
        // There may be no later batch to tell it before.
        let _still_unwritable = self.tell();
    }

    /// Hands the batch to the kernel.
    pub fn flush(&mut self) {
        if self.entries.batch().is_empty() {
            return;
        }
        let written = self
            .tell()
            .and_then(|()| self.segments.write(self.entries.batch()));
        if let Err(error) = written {
            let lines = self.entries.lines();
            self.dropped += lines;
            let before = self.untold.as_ref().map_or(0, |(lines, _)| *lines);
            self.untold = Some((before + lines, error));
        }
        self.entries.clear();
    }

    /// Writes what is missing before what comes next, if anything is.
    fn tell(&mut self) -> io::Result<()> {
        if let Some((lines, why)) = &self.untold {
            let entry = self.entries.lost(*lines, why, SystemTime::now());
            self.segments.write(&entry)?;
            self.untold = None;
        }
        Ok(())
    }

    /// Lines that could not be written.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const SMALL: Limits = Limits {
        segment_bytes: 4096,
        segments: 3,
    };

    /// The contents of all entries, as the module header says.
    fn read_back(directory: &Path) -> Vec<u8> {
        let mut numbers: Vec<u64> = fs::read_dir(directory)
            .unwrap()
            .filter_map(|entry| segment::number(&entry.unwrap().file_name()))
            .collect();
        numbers.sort_unstable();
        let mut text = Vec::new();
        for number in numbers {
            let content = fs::read(directory.join(format!("{number}.log"))).unwrap();
            for line in content.split_inclusive(|byte| *byte == b'\n') {
                let fields: Vec<&[u8]> = line.splitn(4, |byte| *byte == b' ').collect();
                let data = &fields[3][..fields[3].len() - 1];
                text.extend_from_slice(data);
                if fields[2] == b"F" {
                    text.push(b'\n');
                }
            }
        }
        text
    }

    #[test]
    fn what_was_written_reads_back_byte_for_byte() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::new(directory.path().join("log"), Limits::default());
        let mut wanted = Vec::new();
        for length in [0, 1, 100, 16 << 10, (16 << 10) + 1, 100_000] {
            wanted.extend(vec![b'x'; length]);
            wanted.push(b'\n');
        }
        wanted.extend_from_slice(b"no newline");
        for piece in wanted.chunks(333) {
            log.append(Stream::Out, piece);
        }
        log.end(Stream::Out);
        assert_eq!(read_back(&directory.path().join("log")), wanted);
    }

    #[test]
    fn a_log_keeps_so_many_segments_of_about_that_size() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::new(directory.path().to_owned(), SMALL);
        for number in 0..1000 {
            log.append(Stream::Out, format!("line {number}\n").as_bytes());
            log.flush();
        }
        let sizes: Vec<u64> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 3);
        assert!(sizes.iter().all(|size| *size <= 4096 + 100), "{sizes:?}");
        assert!(read_back(directory.path()).ends_with(b"line 998\nline 999\n"));
    }

    #[test]
    fn a_second_life_goes_on_where_the_first_ended() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["first\n", "second\n"] {
            let mut log = Log::new(directory.path().to_owned(), SMALL);
            log.append(Stream::Out, text.as_bytes());
            log.end(Stream::Out);
        }
        assert_eq!(read_back(directory.path()), b"first\nsecond\n");
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_the_log_recovers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        // A file where the directory should be.
        fs::write(&path, b"").unwrap();
        let mut log = Log::new(path.clone(), SMALL);
        log.append(Stream::Out, b"a\nb\n");
        log.flush();
        assert_eq!(log.dropped(), 2);
        fs::remove_file(&path).unwrap();
        log.append(Stream::Out, b"c\n");
        log.flush();
        assert_eq!(log.dropped(), 2);
        let log = fs::read_to_string(path.join("1.log")).unwrap();
        let entries: Vec<&str> = log.lines().collect();
        let told = " stderr F:lost 2 lines of output were not logged: File exists";
        assert!(entries[0].contains(told), "{log}");
        assert!(entries[1].ends_with(" stdout F c"), "{log}");
        assert_eq!(entries.len(), 2, "{log}");
    }

    #[test]
    fn lines_that_were_dropped_last_are_told_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, b"").unwrap();
        let mut log = Log::new(path.clone(), SMALL);
        log.append(Stream::Out, b"a\n");
        log.flush();
        fs::remove_file(&path).unwrap();
        log.end(Stream::Out);
        let log = fs::read_to_string(path.join("1.log")).unwrap();
        assert!(log.contains("F:lost 1 lines"), "{log}");
    }
}
