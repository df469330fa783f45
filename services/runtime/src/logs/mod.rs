//! Reading what a container's shim logged.
//!
//! The format and the names of the segments are the shim's (see its `log`
//! module): numbered files of CRI log entries, the highest number being written.
//!
//! * `since` is found by bisection: over the segments by their first entries,
//!   then within one segment by byte offset.
//! * `tail` is counted backwards from the end.
//! * `follow` waits for inotify, and opens each new segment as it appears, also
//!   while its reader is slow: a rotation, or several, takes nothing from a reader
//!   who is behind. Removed segments are held open up to [`HELD_BYTES`]; beyond it
//!   the oldest is skipped, and the reader is told ([`Gap`]).

mod entry;
mod follow;
mod locate;
mod segment;

use std::collections::VecDeque;
use std::path::Path;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::error::Result;
use entry::Parser;
pub use follow::follow;
use segment::Segment;

/// Content that is sent at once.
const BATCH_BYTES: usize = 128 << 10;

/// Batches a reader may be behind before reading waits.
const QUEUE: usize = 4;

/// How much of a log is held open for a follower that is slower than the program. It
/// is disk space that rotation does not free.
const HELD_BYTES: u64 = 128 << 20;

/// What is wanted of a log.
#[derive(Clone, Debug)]
pub struct Query {
    pub since: Option<SystemTime>,
    pub until: Option<SystemTime>,
    /// Only so many of the last lines.
    pub tail: Option<u64>,
    pub out: bool,
    pub err: bool,
}

/// An entry's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Out,
    Err,
}

/// One logged line, or a part of a long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Nanoseconds since the Unix epoch.
    pub time: u64,
    pub stream: Stream,
    /// With the newline, where the entry ends a line.
    pub data: Bytes,
    /// The entry is no output: some is missing here.
    pub gap: Option<Gap>,
}

/// Output that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// 0: nobody knows how many.
    pub lines: u64,
    /// 0: nobody knows how many.
    pub bytes: u64,
    pub reason: String,
}

impl Gap {
    fn rotated(lines: u64, bytes: u64) -> Self {
        Self {
            lines,
            bytes,
            reason: "removed by rotation before it was read".to_owned(),
        }
    }
}

/// What goes to the reader.
pub type Batches = mpsc::Sender<Result<Vec<Entry>>>;

/// A queue for [`read`] and [`follow`].
#[must_use]
pub fn queue() -> (Batches, mpsc::Receiver<Result<Vec<Entry>>>) {
    mpsc::channel(QUEUE)
}

/// The query with its times as numbers.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    since: u64,
    until: u64,
    out: bool,
    err: bool,
}

impl Wanted {
    fn of(query: &Query) -> Self {
        Self {
            since: query.since.map_or(0, crate::life::unix_nanos),
            until: query.until.map_or(u64::MAX, crate::life::unix_nanos),
            out: query.out,
            err: query.err,
        }
    }

    fn stream(&self, stream: Stream) -> bool {
        match stream {
            Stream::Out => self.out,
            Stream::Err => self.err,
        }
    }
}

/// Where reading has come to.
#[derive(Debug)]
struct Reader {
    wanted: Wanted,
    segments: VecDeque<Segment>,
    parser: Parser,
    /// What is to be told before the next entry.
    gap: Option<Gap>,
    held_bytes: u64,
}

impl Reader {
    /// Segments of `directory`, from where the query begins.
    fn open(directory: &Path, query: &Query) -> Result<Self> {
        let wanted = Wanted::of(query);
        let mut segments = segment::all(directory)?;
        if query.since.is_some() {
            locate::since(&mut segments, wanted.since)?;
        }
        if let Some(lines) = query.tail {
            locate::tail(&mut segments, lines, &wanted)?;
        }
        Ok(Self {
            wanted,
            segments: segments.into(),
            parser: Parser::default(),
            gap: None,
            held_bytes: HELD_BYTES,
        })
    }

    /// Takes a segment that is new. The oldest unread ones are skipped where too much
    /// is held.
    fn push(&mut self, segment: Segment) -> Result<()> {
        self.segments.push_back(segment);
        while self.segments.len() > 2 && self.unread()? > self.held_bytes {
            self.skip()?;
        }
        Ok(())
    }

    /// Bytes that are not read yet.
    fn unread(&self) -> Result<u64> {
        self.segments.iter().try_fold(0, |sum, segment| {
            Ok(sum + segment.length()?.saturating_sub(segment.offset))
        })
    }

    /// Skips the rest of the oldest segment, and counts what was wanted of it.
    fn skip(&mut self) -> Result<()> {
        let Some(mut segment) = self.segments.pop_front() else {
            return Ok(());
        };
        let (mut lines, mut bytes) = match &self.gap {
            Some(gap) => (gap.lines, gap.bytes),
            None => (0, 0),
        };
        loop {
            let block = segment.block()?;
            if block.is_empty() {
                break;
            }
            for line in entry::lines(&block) {
                if let Some(entry) = self.parser.entry(&block, line)
                    && self.wanted.stream(entry.stream)
                {
                    lines += u64::from(entry.data.ends_with(b"\n"));
                    bytes += entry.data.len() as u64;
                }
            }
        }
        self.gap = Some(Gap::rotated(lines, bytes));
        Ok(())
    }

    /// The next entries; empty at the end of what is there now. `None` once all
    /// that follows is later than wanted.
    fn next(&mut self) -> Result<Option<Vec<Entry>>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        if let Some(gap) = self.gap.take() {
            entries.push(Entry {
                time: 0,
                stream: Stream::Err,
                data: Bytes::new(),
                gap: Some(gap),
            });
        }
        while let Some(segment) = self.segments.front_mut() {
            let block = segment.block()?;
            let number = segment.number;
            if block.is_empty() {
                // The last one may still grow.
                if self.segments.len() == 1 {
                    break;
                }
                self.segments.pop_front();
                // Segments that came and went between two looks at the directory.
                if let Some(next) = self.segments.front()
                    && next.number != number + 1
                {
                    entries.push(Entry {
                        time: 0,
                        stream: Stream::Err,
                        data: Bytes::new(),
                        gap: Some(Gap::rotated(0, 0)),
                    });
                }
                continue;
            }
            for line in entry::lines(&block) {
                let Some(entry) = self.parser.entry(&block, line) else {
                    continue;
                };
                if entry.time >= self.wanted.until {
                    return Ok((!entries.is_empty()).then_some(entries));
                }
                let wanted = self.wanted.stream(entry.stream) || entry.gap.is_some();
                if entry.time >= self.wanted.since && wanted {
                    bytes += entry.data.len();
                    entries.push(entry);
                }
            }
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        Ok(Some(entries))
    }
}

/// Sends what is logged now. Blocks: run it where that is allowed.
pub fn read(directory: &Path, query: &Query, batches: &Batches) {
    let mut reader = match Reader::open(directory, query) {
        Ok(reader) => reader,
        Err(error) => {
            // A reader who is gone needs no error.
            let _gone = batches.blocking_send(Err(error));
            return;
        }
    };
    loop {
        let answer = match reader.next() {
            Ok(Some(entries)) if !entries.is_empty() => Ok(entries),
            Ok(_) => return,
            Err(error) => Err(error),
        };
        let failed = answer.is_err();
        if batches.blocking_send(answer).is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
