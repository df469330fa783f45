//! Entries of the CRI log format: `<RFC 3339 time> <stream> <tag> <content>`.

use std::ops::Range;

use bytes::Bytes;

use super::{Entry, Gap, Stream};

/// Length of "2026-01-02T03:04:05", up to where nanoseconds begin.
const SECONDS: usize = 19;

/// The tag of an entry that says how many lines could not be logged.
const LOST_TAG: &[u8] = b":lost";

/// What an entry with [`LOST_TAG`] says: "12 lines of output were not logged: …".
fn not_logged(content: &[u8]) -> Gap {
    let text = String::from_utf8_lossy(content);
    let text = text.trim_end();
    let lines = text.split(' ').next().and_then(|count| count.parse().ok());
    let reason = text.split_once(": ").map_or(text, |(_, why)| why);
    Gap {
        lines: lines.unwrap_or(0),
        bytes: 0,
        reason: format!("not logged: {reason}"),
    }
}

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
    /// It is no output, and says how many lines are missing.
    pub(super) lost: bool,
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
        // "stdout F " or "stderr P ", with more tags perhaps: "stderr F:lost "
        let rest = line.get(end + 1..)?;
        let stream = match rest.get(..7)? {
            b"stdout " => Stream::Out,
            b"stderr " => Stream::Err,
            _ => return None,
        };
        let tags = &rest[7..];
        let tags = &tags[..memchr::memchr(b' ', tags)?];
        Some(Head {
            time,
            stream,
            full: tags.first() == Some(&b'F'),
            lost: tags.len() > 1 && tags[1..] == *LOST_TAG,
            content: end + 1 + 7 + tags.len() + 1,
        })
    }

    /// The entry in `block[line]`; its content shares the block's memory.
    pub(super) fn entry(&mut self, block: &Bytes, line: Range<usize>) -> Option<Entry> {
        let head = self.head(&block[line.clone()])?;
        let end = if head.full { line.end } else { line.end - 1 };
        let data = block.slice(line.start + head.content..end);
        if head.lost {
            return Some(Entry {
                time: head.time,
                stream: head.stream,
                data: Bytes::new(),
                gap: Some(not_logged(&data)),
            });
        }
        Some(Entry {
            time: head.time,
            stream: head.stream,
            data,
            gap: None,
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
