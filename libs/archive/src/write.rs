//! Entries of a tar archive, written one after the other.
//!
//! The format is the one that every reader has: ustar headers, with PAX records
//! for what they cannot say (long names, large numbers, fractions of a second,
//! extended attributes). An archive holds nothing but what it is told: the same
//! entries give the same bytes.
//!
//! # Files whose size is not what they hold
//! A header gives the size before the content, and a file's size is a claim:
//! procfs says 0, sysfs 4,096, and a file may grow or shrink while it is read.
//! [`Writer::file`] therefore reads a file of up to 256 KiB to its end before it
//! writes the header. A larger one is stored with the size that it has when it
//! is opened: what is appended later is left out, and one that is cut is an
//! error, never zeros in the place of what is missing. A file that says it is
//! small and is not is read into memory, up to 64 MiB.
//!
//! Files with holes are stored whole, since not every reader knows holes; the
//! holes are not read. Where the readers do know them, as those of layers,
//! [`Writer::sparse`] stores a file of large holes as its regions.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};

use bytes::Bytes;
use rustix::fs::{SeekFrom, Stat};
use rustix::io::Errno;
use tar_core::builder::{HeaderBuilder, PaxBuilder};
use tar_core::{EntryType, HEADER_SIZE};

use crate::shown;

/// Bytes that are handed on at once.
const CHUNK: usize = 256 << 10;
/// A file that says it is not larger than this is read before its header is written.
const SMALL: u64 = CHUNK as u64;
/// The most content of one file that is held in memory.
const HELD_MAX: u64 = 64 << 20;
/// The longest name and link target of a ustar header.
const NAME_FIELD: usize = 100;
/// The largest number in a ustar header's field for an owner, and for a size or time.
const OWNER_FIELD: u64 = 0o777_7777;
const SIZE_FIELD: u64 = 0o777_7777_7777;

/// Bytes of holes from which on [`Writer::sparse`] leaves them out.
pub const HOLES_FROM: u64 = 64 << 20;
/// Regions of a file with holes: their map stays below the MiB that Go's reader takes.
const REGIONS_MAX: usize = 20_000;

/// Extended attributes by their names.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Why an entry could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file's content could not be read.
    #[error("{path:?}: reading its content failed")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
    /// A file was cut while it was read.
    #[error(
        "{path:?}: the file was cut from {expected} to {found} bytes while it was read; copy it again"
    )]
    Shrunk {
        path: String,
        expected: u64,
        found: u64,
    },
    /// A file of the kernel's, most likely.
    #[error(
        "{path:?}: the file says that it has {size} bytes and holds more than {}; read it with a program in the container",
        HELD_MAX
    )]
    SizeUnknown { path: String, size: u64 },
    /// Something that a tar cannot say.
    #[error("{path:?}: an archive cannot hold it ({reason})")]
    Header { path: String, reason: String },
    /// Nobody takes the archive any more.
    #[error("the archive is not wanted any more")]
    Unwanted,
}

/// Writes an archive, which goes in pieces to `take`. False: it is not wanted
/// any more.
pub struct Writer<T> {
    take: T,
    chunk: Vec<u8>,
    filled: usize,
    entries: u64,
    /// Content of a file that is read before its header is written.
    held: Vec<u8>,
}

impl<T> std::fmt::Debug for Writer<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Writer({} entries)", self.entries)
    }
}

/// What an entry's header says besides the file's own attributes.
#[derive(Debug)]
pub struct Head<'a> {
    pub kind: EntryType,
    pub name: &'a [u8],
    pub size: u64,
    pub link: &'a [u8],
    pub xattrs: Xattrs,
}

fn refused(path: &[u8], reason: impl ToString) -> WriteError {
    WriteError::Header {
        path: shown(path),
        reason: reason.to_string(),
    }
}

impl<T: FnMut(Bytes) -> bool> Writer<T> {
    /// An archive without entries.
    pub fn new(take: T) -> Self {
        Self {
            take,
            chunk: Vec::new(),
            filled: 0,
            entries: 0,
            held: Vec::new(),
        }
    }

    /// Ends the archive. How many entries it has.
    ///
    /// # Errors
    /// It is not wanted any more.
    pub fn finish(mut self) -> Result<u64, WriteError> {
        self.zeros(2 * HEADER_SIZE as u64)?;
        self.hand_on()?;
        Ok(self.entries)
    }

    /// Writes the header of an entry. An extended attribute whose name is no text
    /// has no place in an archive, and is left out.
    ///
    /// # Errors
    /// A tar cannot say it, or it is not wanted any more.
    pub fn header(&mut self, stat: &Stat, head: &Head<'_>) -> Result<(), WriteError> {
        let mut header = HeaderBuilder::new_ustar();
        let mut pax = PaxBuilder::new();
        put_attributes(&mut header, &mut pax, stat, head)
            .map_err(|reason| refused(head.name, reason))?;
        put_xattrs(&mut pax, &head.xattrs);
        self.put_headers(head.name, header, pax)
    }

    fn put_headers(
        &mut self,
        name: &[u8],
        mut header: HeaderBuilder,
        pax: PaxBuilder,
    ) -> Result<(), WriteError> {
        self.entries += 1;
        let records = pax.finish();
        if !records.is_empty() {
            let mut extended = HeaderBuilder::new_ustar();
            extended.entry_type(EntryType::XHeader);
            extended
                .path(b"PaxHeaders/entry")
                .and_then(|header| header.mode(0o644)?.uid(0)?.gid(0)?.mtime(0))
                .and_then(|header| header.size(records.len() as u64))
                .map_err(|reason| refused(name, reason))?;
            self.put(extended.finish().as_bytes())?;
            self.put(&records)?;
            let size = records.len();
            self.zeros((size.next_multiple_of(HEADER_SIZE) - size) as u64)?;
        }
        self.put(header.finish().as_bytes())
    }

    /// Writes an empty file that has a name and nothing else.
    ///
    /// # Errors
    /// A tar cannot say it, or it is not wanted any more.
    pub fn bare(&mut self, name: &[u8]) -> Result<(), WriteError> {
        let mut header = HeaderBuilder::new_ustar();
        let mut pax = PaxBuilder::new();
        let long = put_name(&mut header, &mut pax, name);
        long.and_then(|()| {
            header.mode(0o600)?.uid(0)?.gid(0)?.size(0)?.mtime(0)?;
            header.entry_type(EntryType::Regular);
            Ok(())
        })
        .map_err(|reason| refused(name, reason))?;
        self.put_headers(name, header, pax)
    }

    /// Writes a regular file. `head.size`: what the file says it holds; the entry
    /// gets the size that is found.
    ///
    /// # Errors
    /// The content cannot be read or is cut meanwhile, a tar cannot say it, or it
    /// is not wanted any more.
    pub fn file(
        &mut self,
        stat: &Stat,
        mut head: Head<'_>,
        content: &File,
    ) -> Result<(), WriteError> {
        if head.size > SMALL {
            self.header(stat, &head)?;
            return self.content(content, head.size, head.name);
        }
        let mut held = std::mem::take(&mut self.held);
        held.clear();
        hold(&mut held, content, &head)?;
        head.size = held.len() as u64;
        self.header(stat, &head)?;
        self.put(&held)?;
        held.shrink_to(CHUNK);
        self.held = held;
        self.pad(head.size)
    }

    fn pad(&mut self, size: u64) -> Result<(), WriteError> {
        self.zeros(size.next_multiple_of(HEADER_SIZE as u64) - size)
    }

    /// Writes the header and the content of a file with large holes, of which
    /// only the regions between them go into the archive (GNU's sparse format
    /// 1.0, in PAX records). False: it has none worth that, and nothing was
    /// written. [`Head::size`] is the size of the whole file.
    ///
    /// # Errors
    /// As of [`Writer::file`].
    pub fn sparse(&mut self, stat: &Stat, head: Head<'_>, file: &File) -> Result<bool, WriteError> {
        let source = Source {
            file,
            size: head.size,
            name: head.name,
        };
        let Ok(name) = std::str::from_utf8(head.name) else {
            return Ok(false);
        };
        let size = head.size;
        let Some(regions) = regions(file, size).map_err(|error| source.unreadable(error))? else {
            // The search has moved the file's position.
            rustix::fs::seek(file, SeekFrom::Start(0)).map_err(|error| source.failed(error))?;
            return Ok(false);
        };
        let mut map = format!("{}\n", regions.len());
        for (offset, end) in &regions {
            map.push_str(&format!("{offset}\n{}\n", end - offset));
        }
        let map_size = map.len().next_multiple_of(HEADER_SIZE);
        let data: u64 = regions.iter().map(|(offset, end)| end - offset).sum();
        let mut header = HeaderBuilder::new_ustar();
        let mut pax = PaxBuilder::new();
        pax.add("GNU.sparse.major", "1");
        pax.add("GNU.sparse.minor", "0");
        pax.add("GNU.sparse.name", name);
        pax.add("GNU.sparse.realsize", size.to_string());
        let stored = Head {
            // Who does not know the records sees what it is.
            name: b"GNUSparseFile.0",
            size: map_size as u64 + data,
            ..head
        };
        put_attributes(&mut header, &mut pax, stat, &stored)
            .map_err(|reason| refused(head.name, reason))?;
        put_xattrs(&mut pax, &stored.xattrs);
        self.put_headers(name.as_bytes(), header, pax)?;
        self.put(map.as_bytes())?;
        self.zeros((map_size - map.len()) as u64)?;
        for (offset, end) in regions {
            rustix::fs::seek(file, SeekFrom::Start(offset))
                .map_err(|error| source.failed(error))?;
            self.copy(source, end - offset)?;
        }
        self.pad(data)?;
        Ok(true)
    }

    /// Writes the content of a file, of exactly `size` bytes, after its header.
    fn content(&mut self, file: &File, size: u64, name: &[u8]) -> Result<(), WriteError> {
        let read = Source { file, size, name };
        let found = rustix::fs::fstat(file).map_err(|error| read.failed(error))?;
        let allocated = u64::try_from(found.st_blocks).unwrap_or(0) * 512;
        if allocated < size {
            self.copy_with_holes(read)?;
        } else {
            self.copy(read, size)?;
        }
        self.pad(size)
    }

    /// Copies the next `count` bytes.
    fn copy(&mut self, source: Source<'_>, count: u64) -> Result<(), WriteError> {
        let mut left = count;
        while left > 0 {
            let room = self.room()?;
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
            match rustix::io::read(source.file, &mut room[..wanted]) {
                Ok(0) => return Err(source.shrunk()),
                Ok(count) => {
                    self.filled += count;
                    left -= count as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(source.failed(error)),
            }
        }
        Ok(())
    }

    /// Copies all without reading the holes.
    fn copy_with_holes(&mut self, source: Source<'_>) -> Result<(), WriteError> {
        let Source { file, size, .. } = source;
        let mut position = 0;
        while let Some((data, end)) =
            next_region(file, position, size).map_err(|error| source.unreadable(error))?
        {
            self.zeros(data - position)?;
            rustix::fs::seek(file, SeekFrom::Start(data)).map_err(|error| source.failed(error))?;
            self.copy(source, end - data)?;
            position = end;
        }
        self.zeros(size - position)?;
        // A hole at the end looks as a file does that was cut.
        if source.size_now() < size {
            return Err(source.shrunk());
        }
        Ok(())
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let count = bytes.len().min(room.len());
            let (now, rest) = bytes.split_at(count);
            room[..count].copy_from_slice(now);
            self.filled += count;
            bytes = rest;
        }
        Ok(())
    }

    fn zeros(&mut self, count: u64) -> Result<(), WriteError> {
        let mut left = count;
        while left > 0 {
            let room = self.room()?;
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
            room[..count].fill(0);
            self.filled += count;
            left -= count as u64;
        }
        Ok(())
    }

    /// What is free of the chunk, at least one byte.
    fn room(&mut self) -> Result<&mut [u8], WriteError> {
        if self.filled == self.chunk.len() {
            self.hand_on()?;
            self.chunk = vec![0; CHUNK];
        }
        Ok(&mut self.chunk[self.filled..])
    }

    fn hand_on(&mut self) -> Result<(), WriteError> {
        let mut chunk = std::mem::take(&mut self.chunk);
        chunk.truncate(std::mem::take(&mut self.filled));
        if chunk.is_empty() || (self.take)(Bytes::from(chunk)) {
            Ok(())
        } else {
            Err(WriteError::Unwanted)
        }
    }
}

/// The next region of a file that is no hole: where it begins and where it ends.
/// `None`: up to `size` there is none. Moves the file's position.
///
/// # Errors
/// The file system fails.
pub fn next_region(file: &File, position: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if position >= size {
        return Ok(None);
    }
    let data = match rustix::fs::seek(file, SeekFrom::Data(position)) {
        Ok(data) if data >= size => return Ok(None),
        Ok(data) => data,
        Err(Errno::NXIO) => return Ok(None),
        // A file system that knows no holes.
        Err(Errno::INVAL) => position,
        Err(error) => return Err(error.into()),
    };
    let end = match rustix::fs::seek(file, SeekFrom::Hole(data)) {
        Ok(hole) => hole.min(size),
        Err(Errno::NXIO | Errno::INVAL) => size,
        Err(error) => return Err(error.into()),
    };
    // A file that is cut short meanwhile must not hold anybody up.
    Ok(Some((data, end.max(data + 1).min(size))))
}

/// The regions of a file, where it has holes worth leaving out.
fn regions(file: &File, size: u64) -> io::Result<Option<Vec<(u64, u64)>>> {
    let found = rustix::fs::fstat(file)?;
    let allocated = u64::try_from(found.st_blocks).unwrap_or(0) * 512;
    if size.saturating_sub(allocated) < HOLES_FROM {
        return Ok(None);
    }
    let mut regions = Vec::new();
    let (mut position, mut data) = (0, 0);
    while let Some((start, end)) = next_region(file, position, size)? {
        if regions.len() == REGIONS_MAX {
            return Ok(None);
        }
        regions.push((start, end));
        data += end - start;
        position = end;
    }
    Ok((size - data >= HOLES_FROM).then_some(regions))
}

/// An extended attribute whose name is no text has no place in an archive.
fn put_xattrs(pax: &mut PaxBuilder, xattrs: &Xattrs) {
    for (key, value) in xattrs {
        if let Ok(key) = std::str::from_utf8(key)
            && !key.contains('=')
        {
            pax.add(&format!("SCHILY.xattr.{key}"), value);
        }
    }
}

/// A file that is stored with a size that is known before.
#[derive(Clone, Copy)]
struct Source<'a> {
    file: &'a File,
    size: u64,
    name: &'a [u8],
}

impl Source<'_> {
    fn failed(self, error: Errno) -> WriteError {
        self.unreadable(error.into())
    }

    fn unreadable(self, source: io::Error) -> WriteError {
        WriteError::Read {
            path: shown(self.name),
            source,
        }
    }

    fn size_now(self) -> u64 {
        rustix::fs::fstat(self.file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
    }

    fn shrunk(self) -> WriteError {
        WriteError::Shrunk {
            path: shown(self.name),
            expected: self.size,
            found: self.size_now(),
        }
    }
}

/// Reads a file that says it is small to its end.
fn hold(held: &mut Vec<u8>, content: &File, head: &Head<'_>) -> Result<(), WriteError> {
    let source = Source {
        file: content,
        size: head.size,
        name: head.name,
    };
    for limit in [SMALL, HELD_MAX] {
        // One byte more shows whether that is the end.
        let room = limit + 1 - held.len() as u64;
        content
            .take(room)
            .read_to_end(held)
            .map_err(|error| source.unreadable(error))?;
        // A file that grows as it is read may be left at any point; what its size
        // does not account for may not.
        if held.len() as u64 <= limit || source.size_now() >= held.len() as u64 {
            return Ok(());
        }
    }
    Err(WriteError::SizeUnknown {
        path: shown(head.name),
        size: source.size_now(),
    })
}

fn put_name(header: &mut HeaderBuilder, pax: &mut PaxBuilder, name: &[u8]) -> tar_core::Result<()> {
    if name.len() > NAME_FIELD {
        pax.path(name);
    }
    header.path(&name[..name.len().min(NAME_FIELD)])?;
    Ok(())
}

fn put_attributes(
    header: &mut HeaderBuilder,
    pax: &mut PaxBuilder,
    stat: &Stat,
    head: &Head<'_>,
) -> tar_core::Result<()> {
    put_name(header, pax, head.name)?;
    if head.link.len() > NAME_FIELD {
        pax.linkpath(head.link);
    }
    header.link_name(&head.link[..head.link.len().min(NAME_FIELD)])?;
    header.entry_type(head.kind);
    header.mode(stat.st_mode & 0o7777)?;
    let (uid, gid) = (u64::from(stat.st_uid), u64::from(stat.st_gid));
    if uid > OWNER_FIELD {
        pax.uid(uid);
    }
    header.uid(if uid > OWNER_FIELD { 0 } else { uid })?;
    if gid > OWNER_FIELD {
        pax.gid(gid);
    }
    header.gid(if gid > OWNER_FIELD { 0 } else { gid })?;
    if head.size > SIZE_FIELD {
        pax.size(head.size);
    }
    header.size(if head.size > SIZE_FIELD { 0 } else { head.size })?;
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let seconds = u64::try_from(stat.st_mtime)
        .ok()
        .filter(|s| *s <= SIZE_FIELD);
    if nanoseconds != 0 || seconds.is_none() {
        pax.add("mtime", decimal_time(stat.st_mtime, nanoseconds));
    }
    header.mtime(seconds.unwrap_or(0))?;
    if matches!(head.kind, EntryType::Char | EntryType::Block) {
        header.device(
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        )?;
    }
    Ok(())
}

/// A time as PAX writes it: "12.5", "-0.25".
fn decimal_time(seconds: i64, nanoseconds: u32) -> String {
    let (sign, seconds, nanoseconds) = match (seconds, nanoseconds) {
        (0.., _) => ("", seconds.unsigned_abs(), nanoseconds),
        (_, 0) => ("-", seconds.unsigned_abs(), 0),
        (_, fraction) => ("-", seconds.unsigned_abs() - 1, 1_000_000_000 - fraction),
    };
    let text = format!("{sign}{seconds}.{nanoseconds:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::read::Reader;

    /// The content of a file after its way through an archive.
    fn stored(file: &File, said: u64) -> Result<Vec<u8>, WriteError> {
        let mut archive = Vec::new();
        let mut writer = Writer::new(|piece: Bytes| {
            archive.extend_from_slice(&piece);
            true
        });
        let head = Head {
            kind: EntryType::Regular,
            name: b"name",
            size: said,
            link: b"",
            xattrs: Xattrs::new(),
        };
        writer.file(&rustix::fs::fstat(file).unwrap(), head, file)?;
        writer.bare(b"next")?;
        writer.finish()?;
        let mut reader = Reader::new(&*archive);
        let entry = reader.next_entry().unwrap().unwrap();
        let mut content = Vec::new();
        loop {
            match reader.content(u64::MAX, b"name").unwrap() {
                [] => break,
                bytes => content.extend_from_slice(bytes),
            }
        }
        assert_eq!(entry.size, content.len() as u64);
        assert_eq!(reader.next_entry().unwrap().unwrap().path, b"next");
        Ok(content)
    }

    fn file_of(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        rustix::fs::seek(&file, SeekFrom::Start(0)).unwrap();
        file
    }

    #[test]
    fn a_file_is_stored_with_what_it_holds_and_not_with_what_it_says() {
        for length in [0, 1, 511, 512, CHUNK, CHUNK + 1, 3 * CHUNK] {
            let content: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let all = content.len() as u64;
            let said = if all > SMALL {
                vec![all]
            } else {
                vec![0, 1, 4_096, SMALL, all]
            };
            for said in said {
                let found = stored(&file_of(&content), said).unwrap();
                assert!(found == content, "{length} bytes, {said} said");
            }
        }
    }

    #[test]
    fn a_file_that_grew_since_it_was_looked_at_is_stored_up_to_some_point() {
        let content: Vec<u8> = (0..3 * CHUNK).map(|at| (at % 251) as u8).collect();
        for said in [0, 1, SMALL, SMALL + 1] {
            let found = stored(&file_of(&content), said).unwrap();
            assert!(found.len() as u64 >= said && content.starts_with(&found));
        }
    }

    #[test]
    fn a_file_of_the_kernel_that_says_it_is_empty_is_read_to_its_end() {
        let file = File::open("/proc/self/maps").unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        let text = String::from_utf8(stored(&file, 0).unwrap()).unwrap();
        assert!(text.contains("[stack]"), "{text}");
    }

    #[test]
    fn a_file_without_an_end_is_refused_and_not_cut() {
        let endless = File::open("/dev/zero").unwrap();
        let error = stored(&endless, 0).unwrap_err();
        assert!(matches!(error, WriteError::SizeUnknown { .. }), "{error}");
    }

    #[test]
    fn a_large_file_that_is_cut_is_an_error_and_not_zeros() {
        let said = 2 * SMALL;
        // Written throughout, with a hole, and with nothing but a hole.
        for (written, length) in [(SMALL, SMALL), (1, SMALL), (0, SMALL)] {
            let file = file_of(&vec![7; usize::try_from(written).unwrap()]);
            file.set_len(length).unwrap();
            let error = stored(&file, said).unwrap_err();
            assert!(
                matches!(error, WriteError::Shrunk { expected, found, .. } if expected == said && found == length),
                "{error}"
            );
        }
    }

    #[test]
    fn times_are_written_as_decimal_numbers_with_sign_and_fraction() {
        assert_eq!(decimal_time(1_700_000_000, 0), "1700000000");
        assert_eq!(decimal_time(12, 500_000_000), "12.5");
        assert_eq!(decimal_time(10, 7), "10.000000007");
        assert_eq!(decimal_time(-2, 750_000_000), "-1.25");
        assert_eq!(decimal_time(-1, 0), "-1");
        assert_eq!(decimal_time(-1, 500_000_000), "-0.5");
        assert_eq!(decimal_time(0, 0), "0");
    }
}
