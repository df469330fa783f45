//! Writes pieces on a thread of its own, in their order.
//!
//! A single stream that is hashed and written by one thread alternates between
//! the processor and the disk. Here the next piece is filled and hashed while the
//! one before is written. The thread ends with [`Behind`]; nothing is written
//! after it is gone, so the file may be cut, renamed or removed then.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::{Piece, set_direct};

/// Pieces that are filled, wait or are written.
pub(super) const PIECES: usize = 4;

/// What became of a piece.
type Done = (Piece, io::Result<()>);

#[derive(Debug)]
pub(super) struct Behind {
    /// The one that is being filled.
    piece: Option<Piece>,
    /// Pieces to fill next.
    spare: Vec<Piece>,
    under_way: usize,
    to_write: Option<SyncSender<Piece>>,
    written: Receiver<Done>,
    thread: Option<JoinHandle<()>>,
}

impl Behind {
    /// Writes from `end` on. The file has to be in direct mode.
    pub(super) fn start(file: &File, end: u64) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (to_write, waiting) = sync_channel::<Piece>(PIECES);
        let (done, written) = sync_channel(PIECES);
        let thread = thread::Builder::new()
            .name("write-behind".into())
            .spawn(move || write_all(&file, end, &waiting, &done))?;
        Ok(Self {
            piece: None,
            spare: Vec::new(),
            under_way: 0,
            to_write: Some(to_write),
            written,
            thread: Some(thread),
        })
    }

    /// The piece to fill.
    pub(super) fn piece(&mut self) -> &mut Piece {
        let spare = &mut self.spare;
        self.piece
            .get_or_insert_with(|| spare.pop().unwrap_or_else(Piece::new))
    }

    /// Hands the filled piece on, and waits where as many are under way as may be.
    /// How many bytes are known to be written since the last call.
    pub(super) fn hand_on(&mut self) -> io::Result<u64> {
        let (Some(piece), Some(to_write)) = (self.piece.take(), &self.to_write) else {
            return Ok(0);
        };
        to_write.send(piece).map_err(|_| thread_lost())?;
        self.under_way += 1;
        let mut bytes = 0;
        while self.under_way > 0 {
            let done = if self.under_way == PIECES - 1 && self.spare.is_empty() {
                self.written.recv().map_err(|_| thread_lost())?
            } else if let Ok(done) = self.written.try_recv() {
                done
            } else {
                break;
            };
            let mut piece = self.take(done, &mut bytes)?;
            piece.empty();
            self.spare.push(piece);
        }
        Ok(bytes)
    }

    /// Waits for all that was handed on. The piece that is not full, and how many
    /// bytes were written since the last call.
    pub(super) fn end(mut self) -> (Piece, io::Result<u64>) {
        let rest = self.piece.take().unwrap_or_else(Piece::new);
        let mut bytes = 0;
        while self.under_way > 0 {
            let outcome = match self.written.recv() {
                Ok(done) => self.take(done, &mut bytes).map(drop),
                Err(_) => Err(thread_lost()),
            };
            if let Err(error) = outcome {
                return (rest, Err(error));
            }
        }
        (rest, Ok(bytes))
    }

    fn take(&mut self, (piece, outcome): Done, bytes: &mut u64) -> io::Result<Piece> {
        self.under_way -= 1;
        outcome?;
        *bytes += piece.filled().len() as u64;
        Ok(piece)
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.to_write = None;
        if let Some(thread) = self.thread.take() {
            // Only a panic makes this fail, and that was told already.
            thread.join().ok();
        }
    }
}

fn thread_lost() -> io::Error {
    io::Error::other("the thread that writes has ended")
}

/// Writes what comes. After a failure nothing more is written: there is no hole in the file.
fn write_all(file: &File, mut end: u64, waiting: &Receiver<Piece>, done: &SyncSender<Done>) {
    let mut failure: Option<io::ErrorKind> = None;
    for piece in waiting {
        let outcome = match failure {
            Some(kind) => Err(kind.into()),
            None => write(file, &piece, end),
        };
        match &outcome {
            Ok(()) => end += piece.filled().len() as u64,
            Err(error) => failure = Some(error.kind()),
        }
        if done.send((piece, outcome)).is_err() {
            return;
        }
    }
}

fn write(file: &File, piece: &Piece, at: u64) -> io::Result<()> {
    match file.write_all_at(piece.filled(), at) {
        // Some file systems take the flag and refuse the write.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            set_direct(file, false)?;
            file.write_all_at(piece.filled(), at)
        }
        outcome => outcome,
    }
}
