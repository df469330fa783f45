//! An archive that arrives in pieces.

use std::io::{self, Read};

use bytes::Bytes;

/// Reads the pieces that `next` answers. `Some(None)`: the archive is whole;
/// `None`: it broke off, which is an error and not an end.
pub struct Arriving<F> {
    next: F,
    piece: Bytes,
    whole: bool,
}

impl<F> std::fmt::Debug for Arriving<F> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Arriving({} bytes wait)", self.piece.len())
    }
}

impl<F: FnMut() -> Option<Option<Bytes>>> Arriving<F> {
    pub const fn new(next: F) -> Self {
        Self {
            next,
            piece: Bytes::new(),
            whole: false,
        }
    }
}

impl<F: FnMut() -> Option<Option<Bytes>>> Read for Arriving<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.whole {
            match (self.next)() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.whole = true,
                None => {
                    let why = "its sender went away before its end";
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
                }
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}
