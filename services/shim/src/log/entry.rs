//! Output cut into entries of the CRI log format.

use std::io::{self, Write as _};
use std::time::SystemTime;

use crate::stdio::Stream;

/// Longest content of one entry; a longer line becomes several.
const CONTENT_MAX: usize = 16 << 10;

/// The tag of an entry that is no output: it says how many lines are missing before
/// it. Its content begins with their number.
const LOST_TAG: &str = "lost";

/// Entries that wait to be written, and lines that wait for their end.
#[derive(Debug, Default)]
pub(super) struct Entries {
    batch: Vec<u8>,
    lines: u64,
    /// The beginnings of unfinished lines of both streams, under `CONTENT_MAX`.
    unfinished: [Vec<u8>; 2],
    clock: Clock,
}

impl Entries {
    pub(super) fn batch(&self) -> &[u8] {
        &self.batch
    }

    pub(super) fn lines(&self) -> u64 {
        self.lines
    }

    pub(super) fn clear(&mut self) {
        self.batch.clear();
        self.lines = 0;
    }

    pub(super) fn add(&mut self, stream: Stream, data: &[u8], now: SystemTime) {
        self.clock.set(now);
        let mut rest = data;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, after) = rest.split_at(end);
            self.content(stream, line);
            self.complete(stream, b'F');
            rest = &after[1..];
        }
        self.content(stream, rest);
    }

    pub(super) fn end(&mut self, stream: Stream, now: SystemTime) {
        self.clock.set(now);
        if !self.unfinished[index(stream)].is_empty() {
            self.complete(stream, b'P');
        }
    }

    /// Adds to the unfinished line; what exceeds an entry becomes one.
    fn content(&mut self, stream: Stream, mut data: &[u8]) {
        loop {
            let unfinished = &mut self.unfinished[index(stream)];
            let room = CONTENT_MAX - unfinished.len();
            if data.len() <= room {
                unfinished.extend_from_slice(data);
                return;
            }
            let (now, later) = data.split_at(room);
            unfinished.extend_from_slice(now);
            self.complete(stream, b'P');
            data = later;
        }
    }

    /// The entry that says that `lines` were dropped, for `why`.
    pub(super) fn lost(&mut self, lines: u64, why: &io::Error, now: SystemTime) -> Vec<u8> {
        self.clock.set(now);
        let mut entry = self.clock.text().to_vec();
        // Writing to a vector cannot fail. An error's text has no line breaks.
        let _infallible = writeln!(
            entry,
            " stderr F:{LOST_TAG} {lines} lines of output were not logged: {why}"
        );
        entry
    }

    /// Turns the unfinished line into an entry.
    fn complete(&mut self, stream: Stream, tag: u8) {
        self.batch.extend_from_slice(self.clock.text());
        self.batch.extend_from_slice(match stream {
            Stream::Out => b" stdout ",
            Stream::Err => b" stderr ",
        });
        self.batch.extend_from_slice(&[tag, b' ']);
        let unfinished = &mut self.unfinished[index(stream)];
        self.batch.append(unfinished);
        self.batch.push(b'\n');
        self.lines += 1;
    }
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Out => 0,
        Stream::Err => 1,
    }
}

/// The time as text. One reading of the clock serves all lines of one read.
#[derive(Debug, Default)]
struct Clock {
    second: Option<i64>,
    text: Vec<u8>,
}

/// Length of "2026-01-02T03:04:05".
const SECONDS_LENGTH: usize = 19;

impl Clock {
    fn set(&mut self, now: SystemTime) {
        let since = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let second = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        if self.second != Some(second) {
            self.text.clear();
            let time = jiff::Timestamp::from_second(second).unwrap_or_default();
            // Writing to a vector cannot fail.
            let _infallible = write!(self.text, "{time:.0}");
            self.second = Some(second);
        }
        self.text.truncate(SECONDS_LENGTH);
        let _infallible = write!(self.text, ".{:09}Z", since.subsec_nanos());
    }

    fn text(&self) -> &[u8] {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_entry_is_as_the_format_says() {
        let mut entries = Entries::default();
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_767_323_045, 678_901_234);
        entries.add(Stream::Err, b"one\ntwo", time);
        entries.end(Stream::Err, time + Duration::from_nanos(1));
        assert_eq!(
            String::from_utf8_lossy(entries.batch()),
            "2026-01-02T03:04:05.678901234Z stderr F one\n\
             2026-01-02T03:04:05.678901235Z stderr P two\n"
        );
        assert_eq!(entries.lines(), 2);
    }

    #[test]
    fn streams_do_not_mix_within_a_line() {
        let mut entries = Entries::default();
        let time = SystemTime::UNIX_EPOCH;
        entries.add(Stream::Out, b"o", time);
        entries.add(Stream::Err, b"e\n", time);
        entries.add(Stream::Out, b"p\n", time);
        assert_eq!(
            String::from_utf8_lossy(entries.batch()),
            "1970-01-01T00:00:00.000000000Z stderr F e\n\
             1970-01-01T00:00:00.000000000Z stdout F op\n"
        );
    }
}
