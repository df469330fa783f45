//! Writes a tar in pieces of one size, reading files straight into them.

use std::io::{self, Read};

use bytes::Bytes;
use gantry_oci::Hasher;
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

/// Bytes of one piece.
const PIECE: usize = 1 << 20;

/// Takes the pieces as they are full. An error: nobody wants more.
pub(super) type Sink<'a> = dyn FnMut(Bytes) -> Result<(), Gone> + Send + 'a;

/// Whoever wanted the archive is gone.
#[derive(Clone, Copy, Debug)]
pub struct Gone;

/// Why an entry could not be written.
#[derive(Debug)]
pub(super) enum WriteFailed {
    Gone,
    /// Its source could not be read, or had not as many bytes as was said.
    Read(io::Error),
}

impl From<Gone> for WriteFailed {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// A tar on its way out. All entries are root's and have no time, so that the
/// same content gives the same bytes.
pub(super) struct TarWriter<'a> {
    sink: &'a mut Sink<'a>,
    piece: Vec<u8>,
    filled: usize,
}

impl<'a> TarWriter<'a> {
    pub(super) fn new(sink: &'a mut Sink<'a>) -> Self {
        Self {
            sink,
            piece: vec![0; PIECE],
            filled: 0,
        }
    }

    pub(super) fn directory(&mut self, path: &str) -> Result<(), WriteFailed> {
        self.header(path, EntryType::Directory, 0o755, 0)
    }

    pub(super) fn bytes(&mut self, path: &str, bytes: &[u8]) -> Result<(), WriteFailed> {
        self.header(path, EntryType::Regular, 0o644, bytes.len() as u64)?;
        self.put(bytes)?;
        self.pad(bytes.len() as u64)
    }

    /// An entry of `size` bytes of a source, which go through a hasher, too.
    pub(super) fn stream(
        &mut self,
        path: &str,
        source: &mut impl Read,
        size: u64,
        hasher: &mut Hasher,
    ) -> Result<(), WriteFailed> {
        self.header(path, EntryType::Regular, 0o644, size)?;
        let mut left = size;
        while left > 0 {
            let room = &mut self.piece[self.filled..];
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
            let count = match source.read(&mut room[..wanted]) {
                Ok(0) => {
                    let short = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(WriteFailed::Read(short));
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(WriteFailed::Read(error)),
            };
            hasher.update(&room[..count]);
            self.filled += count;
            left -= count as u64;
            self.send_if_full()?;
        }
        self.pad(size)
    }

    /// Writes the end mark, and the last piece.
    pub(super) fn finish(mut self) -> Result<(), WriteFailed> {
        self.put(&[0; 2 * tar_core::HEADER_SIZE])?;
        self.piece.truncate(self.filled);
        Ok((self.sink)(Bytes::from(self.piece))?)
    }

    fn header(
        &mut self,
        path: &str,
        kind: EntryType,
        mode: u32,
        size: u64,
    ) -> Result<(), WriteFailed> {
        let impossible = |error: tar_core::HeaderError| {
            WriteFailed::Read(io::Error::new(
                io::ErrorKind::InvalidInput,
                error.to_string(),
            ))
        };
        let mut entry = EntryBuilder::new_ustar();
        entry.path(path).entry_type(kind);
        let header = entry
            .mode(mode)
            .and_then(|entry| entry.uid(0))
            .and_then(|entry| entry.gid(0))
            .and_then(|entry| entry.mtime(0))
            .and_then(|entry| entry.size(size))
            .map_err(impossible)?
            .finish_bytes();
        self.put(&header)
    }

    fn pad(&mut self, size: u64) -> Result<(), WriteFailed> {
        let block = tar_core::HEADER_SIZE as u64;
        let short = size.next_multiple_of(block) - size;
        self.put(&vec![0; usize::try_from(short).unwrap_or(0)])
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), WriteFailed> {
        while !bytes.is_empty() {
            let count = bytes.len().min(PIECE - self.filled);
            let (now, later) = bytes.split_at(count);
            self.piece[self.filled..self.filled + count].copy_from_slice(now);
            self.filled += count;
            bytes = later;
            self.send_if_full()?;
        }
        Ok(())
    }

    fn send_if_full(&mut self) -> Result<(), WriteFailed> {
        if self.filled == PIECE {
            let full = std::mem::replace(&mut self.piece, vec![0; PIECE]);
            self.filled = 0;
            (self.sink)(Bytes::from(full))?;
        }
        Ok(())
    }
}
