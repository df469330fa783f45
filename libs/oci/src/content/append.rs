//! Appends to a file, past the page cache once it is large.
//!
//! A blob is written once and seldom read soon after, and nobody is told of it
//! before it is on the disk. The page cache gains it nothing, and costs most of
//! the processor time of a write: 525 MB took 1.4 s of kernel time through the
//! cache and 0.1 s past it. So after the first [`THRESHOLD`] bytes the file is
//! written with `O_DIRECT`, in aligned pieces of [`PIECE`] bytes. Small content,
//! and file systems that refuse, take the usual way.
//!
//! Up to one piece is in memory until [`Appender::flush`], or [`behind::PIECES`]
//! of them where another thread writes ([`Appender::write_behind`]): then whoever
//! appends need not wait for the disk, and loses more when the process ends.

mod behind;

use std::fs::File;
use std::io::{self, ErrorKind, Seek as _, SeekFrom, Write};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use behind::Behind;

/// From here on the page cache is left out.
const THRESHOLD: u64 = 4 << 20;
/// How much is written at once.
const PIECE: usize = 1 << 20;
/// What memory and offsets have to be multiples of: a page, which is a multiple of every sector's size.
const ALIGNMENT: usize = 4096;

#[derive(Debug)]
pub(super) struct Appender {
    file: File,
    /// Where the file ends; what is in the piece comes after it.
    end: u64,
    way: Way,
    /// Past the page cache on another thread.
    behind: bool,
}

#[derive(Debug)]
enum Way {
    /// Through the page cache.
    Cached,
    /// Through the page cache, since the file system knows no other way.
    CachedOnly,
    /// Past it; `end` is aligned.
    Direct(Piece),
    /// The same, written by another thread; `end` is where that one is known to be.
    Behind(Behind),
}

impl Appender {
    /// The file's position must be at its end.
    pub(super) const fn new(file: File, end: u64) -> Self {
        Self {
            file,
            end,
            way: Way::Cached,
            behind: false,
        }
    }

    /// Leaves the writing of large content to another thread from here on.
    pub(super) const fn write_behind(&mut self) {
        self.behind = true;
    }

    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    /// How many bytes the file has: what is still in memory comes after them.
    pub(super) const fn written(&self) -> u64 {
        self.end
    }

    /// For reading; the position must be at the end again before the next write.
    pub(super) const fn file_mut(&mut self) -> &mut File {
        &mut self.file
    }

    /// Forgets what is not written yet and goes on at a place where the file was cut.
    pub(super) fn cut_to(&mut self, end: u64) -> io::Result<()> {
        if matches!(self.way, Way::Direct(_) | Way::Behind(_)) {
            // What is under way is written or not: it does not matter any more.
            self.way = Way::Cached;
            set_direct(&self.file, false)?;
        }
        self.end = end;
        Ok(())
    }

    pub(super) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if matches!(self.way, Way::Cached) && self.end + bytes.len() as u64 > THRESHOLD {
            // Through the cache up to the next boundary, and past it from there.
            let over = usize::try_from(self.end % ALIGNMENT as u64).unwrap_or(0);
            let short = (ALIGNMENT - over) % ALIGNMENT;
            let (head, rest) = bytes.split_at(short.min(bytes.len()));
            self.write_cached(head)?;
            bytes = rest;
            if head.len() == short {
                self.enter_direct()?;
            }
        }
        while !bytes.is_empty() {
            let piece = match &mut self.way {
                Way::Direct(piece) => piece,
                Way::Behind(behind) => behind.piece(),
                Way::Cached | Way::CachedOnly => return self.write_cached(bytes),
            };
            bytes = piece.fill(bytes);
            if piece.is_full() {
                self.write_piece()?;
            }
        }
        Ok(())
    }

    /// Writes what is still in memory, so that it survives this process.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if let Some(piece) = self.leave_direct()? {
            self.write_cached(piece.filled())?;
        }
        Ok(())
    }

    fn write_cached(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn write_piece(&mut self) -> io::Result<()> {
        let piece = match &mut self.way {
            Way::Direct(piece) => piece,
            Way::Behind(behind) => {
                self.end += behind.hand_on()?;
                return Ok(());
            }
            Way::Cached | Way::CachedOnly => return Ok(()),
        };
        let mut rest = piece.filled();
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.end += count as u64;
                    rest = &rest[count..];
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Some file systems take the flag and refuse the write.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {
                    set_direct(&self.file, false)?;
                    self.file.write_all(rest)?;
                    self.end += rest.len() as u64;
                    self.way = Way::CachedOnly;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        piece.empty();
        Ok(())
    }

    fn enter_direct(&mut self) -> io::Result<()> {
        self.way = match set_direct(&self.file, true) {
            Ok(()) if self.behind => Way::Behind(Behind::start(&self.file, self.end)?),
            Ok(()) => Way::Direct(Piece::new()),
            Err(error) if error.kind() == ErrorKind::InvalidInput => Way::CachedOnly,
            Err(error) => return Err(error),
        };
        Ok(())
    }

    fn leave_direct(&mut self) -> io::Result<Option<Piece>> {
        let piece = match std::mem::replace(&mut self.way, Way::Cached) {
            Way::Direct(piece) => piece,
            Way::Behind(behind) => {
                let (piece, written) = behind.end();
                self.end += written?;
                self.file.seek(SeekFrom::Start(self.end))?;
                piece
            }
            way @ (Way::Cached | Way::CachedOnly) => {
                self.way = way;
                return Ok(None);
            }
        };
        set_direct(&self.file, false)?;
        Ok(Some(piece))
    }
}

fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(fcntl_setfl(file, flags)?)
}

/// Memory whose beginning is aligned.
struct Piece {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Piece {
    fn new() -> Self {
        let memory = vec![0; PIECE + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self {
            memory,
            start,
            length: 0,
        }
    }

    /// Takes what fits, and returns the rest.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(bytes.len().min(PIECE - self.length));
        let at = self.start + self.length;
        self.memory[at..at + taken.len()].copy_from_slice(taken);
        self.length += taken.len();
        rest
    }

    const fn is_full(&self) -> bool {
        self.length == PIECE
    }

    fn filled(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    const fn empty(&mut self) {
        self.length = 0;
    }
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Piece({} bytes)", self.length)
    }
}
