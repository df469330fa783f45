//! Entries of a tar archive, written one after the other.
//!
//! The format is the one that every reader has: ustar headers, with PAX records
//! for what they cannot say (long names, large numbers, fractions of a second,
//! extended attributes). An archive holds nothing but what it is told: the same
//! entries give the same bytes.
//!
//! A file may change while it is read. Its entry has the size that its header
//! says, whatever happens: what is missing is zeros. Files with holes are stored
//! whole, since not every reader knows holes; the holes are not read. Where the
//! readers do know them, as those of layers, [`Writer::sparse`] stores a file of
//! large holes as its regions.

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

    /// Writes the content of a file, of exactly `size` bytes, after its header.
    ///
    /// # Errors
    /// It cannot be read, or it is not wanted any more.
    pub fn content(&mut self, file: &File, size: u64, name: &[u8]) -> Result<(), WriteError> {
        let failed = |source: io::Error| WriteError::Read {
            path: shown(name),
            source,
        };
        let found = rustix::fs::fstat(file).map_err(|error| failed(error.into()))?;
        let allocated = u64::try_from(found.st_blocks).unwrap_or(0) * 512;
        if allocated < size {
            self.copy_with_holes(file, size, failed)?;
        } else {
            self.copy(file, size, failed)?;
        }
        self.zeros(size.next_multiple_of(HEADER_SIZE as u64) - size)
    }

    /// Writes the header and the content of a file with large holes, of which
    /// only the regions between them go into the archive (GNU's sparse format
    /// 1.0, in PAX records). False: it has none worth that, and nothing was
    /// written. [`Head::size`] is the size of the whole file.
    ///
    /// # Errors
    /// As of [`Writer::header`] and [`Writer::content`].
    pub fn sparse(&mut self, stat: &Stat, head: Head<'_>, file: &File) -> Result<bool, WriteError> {
        let failed = |source: io::Error| WriteError::Read {
            path: shown(head.name),
            source,
        };
        let Ok(name) = std::str::from_utf8(head.name) else {
            return Ok(false);
        };
        let size = head.size;
        let Some(regions) = regions(file, size).map_err(failed)? else {
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
            rustix::fs::seek(file, SeekFrom::Start(offset)).map_err(|e| failed(e.into()))?;
            self.copy(file, end - offset, failed)?;
        }
        self.zeros(data.next_multiple_of(HEADER_SIZE as u64) - data)?;
        Ok(true)
    }

    /// Copies exactly `size` bytes, or zeros in the place of those that are not there any more.
    fn copy(
        &mut self,
        mut content: &File,
        size: u64,
        failed: impl Fn(io::Error) -> WriteError,
    ) -> Result<(), WriteError> {
        let mut left = size;
        while left > 0 {
            let room = self.room()?;
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
            match content.read(&mut room[..wanted]) {
                Ok(0) => return self.zeros(left),
                Ok(count) => {
                    self.filled += count;
                    left -= count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    /// The same, without reading the holes.
    fn copy_with_holes(
        &mut self,
        content: &File,
        size: u64,
        failed: impl Fn(io::Error) -> WriteError,
    ) -> Result<(), WriteError> {
        let mut position = 0;
        while let Some((data, end)) = next_region(content, position, size).map_err(&failed)? {
            self.zeros(data - position)?;
            rustix::fs::seek(content, SeekFrom::Start(data))
                .map_err(|error| failed(error.into()))?;
            self.copy(content, end - data, &failed)?;
            position = end;
        }
        self.zeros(size - position)
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
    use super::*;

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
