//! Entries of the CRI log format: `<RFC 3339 time> <stream> <tag> <content>`.

use std::ops::Range;

use bytes::Bytes;

use super::{Entry, Stream};

/// Length of "2026-01-02T03:04:05", up to where nanoseconds begin.
const SECONDS: usize = 19;

/// Reads entries. Times are parsed once per second of the log.
#[derive(Debug, Default)]
pub(super) struct Parser {
    text: Vec<u8>,
    nanos: u64,
}

/// An entry's head, and where its content is in the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) time: u64,
    pub(super) stream: Stream,
    /// The entry ends a line of the program.
    pub(super) full: bool,
    content: usize,
}

/// The lines of a block, each with its newline.
pub(super) fn lines(block: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut begin = 0;
    memchr::memchr_iter(b'\n', block).map(move |end| {
        let line = begin..end + 1;
        begin = end + 1;
        line
    })
}

impl Parser {
    /// The entry in `line`, which ends with its newline; `None` for a line that
    /// is no entry.
    pub(super) fn head(&mut self, line: &[u8]) -> Option<Head> {
        let end = memchr::memchr(b' ', line)?;
        let time = self.time(&line[..end])?;
        // "stdout F " or "stderr P "
        let rest = line.get(end + 1..end + 10)?;
        let stream = match &rest[..7] {
            b"stdout " => Stream::Out,
            b"stderr " => Stream::Err,
            _ => return None,
        };
        Some(Head {
            time,
            stream,
            full: rest[7] == b'F',
            content: end + 10,
        })
    }

    /// The entry in `block[line]`; its content shares the block's memory.
    pub(super) fn entry(&mut self, block: &Bytes, line: Range<usize>) -> Option<Entry> {
        let head = self.head(&block[line.clone()])?;
        let end = if head.full { line.end } else { line.end - 1 };
        Some(Entry {
            time: head.time,
            stream: head.stream,
            data: block.slice(line.start + head.content..end),
        })
    }

    fn time(&mut self, text: &[u8]) -> Option<u64> {
        let seconds = text.get(..SECONDS)?;
        if self.text != seconds {
            let whole = format!("{}Z", std::str::from_utf8(seconds).ok()?);
            let time: jiff::Timestamp = whole.parse().ok()?;
            self.nanos = u64::try_from(time.as_nanosecond()).ok()?;
            self.text.clear();
            self.text.extend_from_slice(seconds);
        }
        let mut nanos = 0;
        let fraction = text.get(SECONDS..)?.strip_suffix(b"Z")?;
        if let Some(digits) = fraction.strip_prefix(b".") {
            for position in 0..9 {
                let digit = digits.get(position).copied().unwrap_or(b'0');
                nanos = nanos * 10 + u64::from(digit.checked_sub(b'0').filter(|d| *d < 10)?);
            }
        }
        Some(self.nanos + nanos)
    }
}
