//! Entries of a tar archive, as they come.
//!
//! ustar, PAX and GNU, with holes; the archive is plain. Numbers that do not
//! parse are refused: what an older header has in their place is another number.

use std::io::{self, Read};

use rustix::fs::Timespec;
use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, HEADER_SIZE, PaxExtensions, SparseEntry};

use crate::shown;

/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;
/// Bytes of the headers of one entry.
const METADATA_MAX: u32 = 1 << 20;
/// Bytes of a path, as the kernel has it.
const PATH_MAX: u32 = 4_096;

/// Headers, extensions and map of holes of one entry.
pub const HEAD_BYTES_MAX: usize = 4 << 20;

/// What a parser that wants more is given.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum More {
    /// So many bytes.
    Bytes(usize),
    /// There are none: the archive has ended.
    Ended,
    /// There have been [`HEAD_BYTES_MAX`].
    TooMany,
}

/// What comes of a parser's request for `min_bytes`, after it was to have `wanted`
/// and had `available`.
///
/// A map of holes has no length: the parser asks for a little more until it finds
/// the end, which may be never.
#[must_use]
pub fn more(min_bytes: usize, wanted: usize, available: usize) -> More {
    if available < wanted {
        More::Ended
    } else if wanted >= HEAD_BYTES_MAX {
        More::TooMany
    } else {
        More::Bytes(min_bytes.max((2 * wanted).min(HEAD_BYTES_MAX)))
    }
}

/// Why an archive could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("reading the archive failed")]
    Read(#[source] io::Error),
    #[error("the archive ends in the middle of {during}")]
    Truncated { during: String },
    #[error("this is no tar archive, or it is damaged after {position} bytes")]
    Archive {
        position: u64,
        source: tar_core::parse::ParseError,
    },
    #[error(
        "before the content of the entry at byte {position} are more than {HEAD_BYTES_MAX} bytes of headers"
    )]
    HeadTooLong { position: u64 },
    #[error("entry {path:?}: its {field} {value:?} is not usable")]
    BadValue {
        path: String,
        field: &'static str,
        value: String,
    },
    #[error("entry {path:?}: entries of type {kind:?} are not supported")]
    UnsupportedType { path: String, kind: char },
}

/// What an entry is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharacterDevice,
    BlockDevice,
    Fifo,
}

/// One entry.
#[derive(Debug)]
pub struct Entry {
    pub kind: Kind,
    /// As the archive spells it.
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub uid: u32,
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    pub modified: Timespec,
    /// Bytes of content that follow in the archive.
    pub size: u64,
    pub device: u64,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The regions that have content and the whole size of the file.
    pub sparse: Option<(Vec<SparseEntry>, u64)>,
}

/// Reads an archive from its beginning on.
pub struct Reader<R> {
    source: R,
    parser: Parser,
    buffer: Vec<u8>,
    /// What of the buffer is not used yet.
    start: usize,
    end: usize,
    position: u64,
    /// Bytes of the present entry's content, and of its padding, that are left.
    content: u64,
    padding: u64,
}

impl<R> std::fmt::Debug for Reader<R> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Reader(at {})", self.position)
    }
}

impl<R: Read> Reader<R> {
    pub fn new(source: R) -> Self {
        let mut parser = Parser::new(Limits {
            max_metadata_size: METADATA_MAX,
            max_path_len: Some(PATH_MAX),
            ..Limits::default()
        });
        // Times may be negative and fractional, which tar-core refuses or cuts.
        parser.set_ignore_pax_errors(true);
        Self {
            source,
            parser,
            buffer: vec![0; CHUNK],
            start: 0,
            end: 0,
            position: 0,
            content: 0,
            padding: 0,
        }
    }

    /// The next entry; what is left of the one before is passed over. `None`:
    /// the archive has ended.
    ///
    /// # Errors
    /// The archive is damaged, or cannot be read.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ReadError> {
        let left = self.content + self.padding;
        self.pass(left)?;
        let mut wanted = HEADER_SIZE;
        loop {
            self.fill(wanted)?;
            let input = &self.buffer[self.start..self.end];
            if input.is_empty() {
                // Many writers leave out the two blocks that end an archive.
                return Ok(None);
            }
            let position = self.position;
            let damaged = |source| ReadError::Archive { position, source };
            let (consumed, entry) = match self.parser.parse(input).map_err(damaged)? {
                ParseEvent::NeedData { min_bytes } => {
                    match more(min_bytes, wanted, input.len()) {
                        More::Bytes(count) => wanted = count,
                        More::Ended if input.iter().all(|byte| *byte == 0) => return Ok(None),
                        More::Ended => {
                            let during = "a header".to_owned();
                            return Err(ReadError::Truncated { during });
                        }
                        More::TooMany => return Err(ReadError::HeadTooLong { position }),
                    }
                    continue;
                }
                ParseEvent::Entry { consumed, entry } => (consumed, Some(read(&entry, None)?)),
                ParseEvent::SparseEntry {
                    consumed,
                    entry,
                    sparse_map,
                    real_size,
                } => (consumed, Some(read(&entry, Some((sparse_map, real_size)))?)),
                // Defaults for all entries: git writes a comment into them.
                ParseEvent::GlobalExtensions { consumed, .. } => (consumed, None),
                ParseEvent::End { .. } => return Ok(None),
            };
            self.advance(consumed);
            wanted = HEADER_SIZE;
            if let Some(entry) = entry {
                self.content = entry.size;
                self.padding = entry.size.next_multiple_of(HEADER_SIZE as u64) - entry.size;
                return Ok(Some(entry));
            }
        }
    }

    /// Some of the present entry's content; empty at its end.
    ///
    /// # Errors
    /// The archive ends before, or cannot be read.
    pub fn content(&mut self, most: u64, path: &[u8]) -> Result<&[u8], ReadError> {
        let most = most.min(self.content);
        if most == 0 {
            return Ok(&[]);
        }
        self.fill(1)?;
        let available = self.end - self.start;
        if available == 0 {
            return Err(ReadError::Truncated {
                during: shown(path),
            });
        }
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(available);
        let from = self.start;
        self.advance(count);
        self.content -= count as u64;
        Ok(&self.buffer[from..from + count])
    }

    /// Reads what comes after the archive's end, so that its sender is not cut off.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn drain(&mut self) -> Result<(), ReadError> {
        loop {
            self.start = self.end;
            self.fill(1)?;
            if self.start == self.end {
                return Ok(());
            }
        }
    }

    fn pass(&mut self, count: u64) -> Result<(), ReadError> {
        let mut left = count;
        while left > 0 {
            self.fill(1)?;
            let available = self.end - self.start;
            if available == 0 {
                let during = "an entry".to_owned();
                return Err(ReadError::Truncated { during });
            }
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(available);
            self.advance(count);
            left -= count as u64;
        }
        (self.content, self.padding) = (0, 0);
        Ok(())
    }

    fn advance(&mut self, count: usize) {
        self.start += count;
        self.position += count as u64;
    }

    /// Has at least `wanted` unused bytes in the buffer, or all that are left.
    fn fill(&mut self, wanted: usize) -> Result<(), ReadError> {
        if self.end - self.start >= wanted {
            return Ok(());
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        while self.end < wanted {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(()),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ReadError::Read(error)),
            }
        }
        Ok(())
    }
}

fn read(
    parsed: &ParsedEntry<'_>,
    sparse: Option<(Vec<SparseEntry>, u64)>,
) -> Result<Entry, ReadError> {
    let name = parsed.path.as_ref();
    let bad = |field: &'static str, value: String| ReadError::BadValue {
        path: shown(name),
        field,
        value,
    };
    let kind = kind_of(parsed).map_err(|kind| ReadError::UnsupportedType {
        path: shown(name),
        kind,
    })?;
    let pax = parsed.pax.map(pax_time).transpose();
    let pax = pax.map_err(|(field, value)| bad(field, value))?.flatten();
    let owner = |field: &'static str, value: u64| match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(bad(field, value.to_string())),
    };
    if let Some((map, real_size)) = &sparse {
        check_sparse(map, *real_size, parsed.size)
            .map_err(|why| bad("sparse map", why.to_owned()))?;
    }
    let device = match kind {
        Kind::CharacterDevice | Kind::BlockDevice => {
            rustix::fs::makedev(parsed.dev_major.unwrap_or(0), parsed.dev_minor.unwrap_or(0))
        }
        _ => 0,
    };
    let xattrs = parsed.xattrs.iter();
    Ok(Entry {
        kind,
        path: name.to_vec(),
        link: parsed.link_target.as_deref().unwrap_or_default().to_vec(),
        uid: owner("owner", parsed.uid)?,
        gid: owner("group", parsed.gid)?,
        mode: parsed.mode & 0o7777,
        modified: pax.unwrap_or(Timespec {
            tv_sec: i64::try_from(parsed.mtime).unwrap_or(i64::MAX),
            tv_nsec: 0,
        }),
        // Links, nodes and directories have no content whatever their size says (POSIX).
        size: if kind == Kind::File { parsed.size } else { 0 },
        device,
        xattrs: xattrs.map(|(k, v)| (k.to_vec(), v.to_vec())).collect(),
        sparse,
    })
}

/// What an entry is.
///
/// # Errors
/// Its type, where that is none of a file's.
pub fn kind_of(parsed: &ParsedEntry<'_>) -> Result<Kind, char> {
    Ok(match parsed.entry_type {
        // Before there was a type for directories, a trailing slash said it.
        EntryType::Regular
            if parsed.header.as_old().linkflag[0] == 0 && parsed.path.ends_with(b"/") =>
        {
            Kind::Directory
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Char => Kind::CharacterDevice,
        EntryType::Block => Kind::BlockDevice,
        EntryType::Fifo => Kind::Fifo,
        other => return Err(char::from(other.to_byte())),
    })
}

/// The modification time of extended headers. What tar-core leaves out where it
/// is no number is refused here: the header holds something else.
///
/// # Errors
/// The name of the field that makes no sense, and what is in it.
pub fn pax_time(data: &[u8]) -> Result<Option<Timespec>, (&'static str, String)> {
    let mut modified = None;
    for extension in PaxExtensions::new(data) {
        let extension = extension.map_err(|e| ("extended header", e.to_string()))?;
        let value = extension.value_bytes();
        let text = || std::str::from_utf8(value).ok();
        let field = match extension.key_bytes() {
            b"mtime" => {
                let read = text().and_then(time);
                modified = Some(read.ok_or_else(|| ("modification time", shown(value)))?);
                continue;
            }
            b"size" => "size",
            b"uid" => "owner",
            b"gid" => "group",
            _ => continue,
        };
        if text().and_then(|t| t.parse::<u64>().ok()).is_none() {
            return Err((field, shown(value)));
        }
    }
    Ok(modified)
}

/// Seconds with an optional sign and fraction (POSIX pax, "mtime").
#[must_use]
pub fn time(text: &str) -> Option<Timespec> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok().filter(|s| *s >= 0)?;
    let nanos: i64 = format!("{fraction:0<9.9}").parse().ok()?;
    Some(match (negative, nanos) {
        (false, _) => Timespec {
            tv_sec: seconds,
            tv_nsec: nanos,
        },
        (true, 0) => Timespec {
            tv_sec: -seconds,
            tv_nsec: 0,
        },
        (true, _) => Timespec {
            tv_sec: -seconds - 1,
            tv_nsec: 1_000_000_000 - nanos,
        },
    })
}

/// Whether a file's regions fit in it, and are what is stored.
///
/// # Errors
/// What is wrong.
pub fn check_sparse(map: &[SparseEntry], real_size: u64, stored: u64) -> Result<(), &'static str> {
    let mut end = 0;
    let mut sum: u64 = 0;
    for region in map {
        if region.offset < end {
            return Err("its regions overlap or are out of order");
        }
        end = region
            .offset
            .checked_add(region.length)
            .filter(|end| *end <= real_size)
            .ok_or("a region is outside of the file")?;
        sum += region.length;
    }
    if sum != stored {
        return Err("its regions do not add up to the content");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> Option<(i64, i64)> {
        time(text).map(|t| (t.tv_sec, t.tv_nsec))
    }

    #[test]
    fn times_are_read_with_sign_and_fraction() {
        assert_eq!(seconds("1700000000"), Some((1_700_000_000, 0)));
        assert_eq!(seconds("1700000000.5"), Some((1_700_000_000, 500_000_000)));
        assert_eq!(seconds("1.123456789999"), Some((1, 123_456_789)));
        assert_eq!(seconds("-1"), Some((-1, 0)));
        assert_eq!(seconds("-1.25"), Some((-2, 750_000_000)));
        for bad in ["", "-", ".5", "1.x", "--1", "1e3", "99999999999999999999"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_sparse_map_must_fit_its_file() {
        let region = |offset, length| SparseEntry { offset, length };
        assert!(check_sparse(&[region(0, 4), region(8, 4)], 16, 8).is_ok());
        assert!(check_sparse(&[region(16, 0)], 16, 0).is_ok());
        assert!(check_sparse(&[region(0, 4)], 16, 8).is_err());
        assert!(check_sparse(&[region(8, 4), region(0, 4)], 16, 8).is_err());
        assert!(check_sparse(&[region(14, 4)], 16, 4).is_err());
        assert!(check_sparse(&[region(u64::MAX, 4)], 16, 4).is_err());
    }

    /// A map of holes in which no line ends, followed by so many bytes.
    fn endless(length: usize) -> Vec<u8> {
        let seed = include_bytes!("../../../integration-tests/fuzz/seeds/archive/sparse.tar");
        // Its extended header (two blocks) and its header; the map is then ours.
        let mut archive = seed[..3 * HEADER_SIZE].to_vec();
        archive.resize(archive.len() + length, b'1');
        archive
    }

    #[test]
    fn a_map_of_holes_that_does_not_end_is_refused() {
        let refused = |length| Reader::new(&*endless(length)).next_entry().unwrap_err();
        let error = refused(3);
        assert!(matches!(error, ReadError::Truncated { .. }), "{error}");
        let error = refused(6 << 20);
        assert!(matches!(error, ReadError::HeadTooLong { .. }), "{error}");
    }
}
