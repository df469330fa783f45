//! From a file to a response's body, with bounded memory.
//!
//! While one piece is on its way to the client, the next one is read ahead on a
//! blocking thread. A client that does not read costs two pieces, not a thread.

use std::fs::File;
use std::io;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use tokio::task::JoinHandle;

const PIECE: u64 = 256 << 10;

/// The bytes of a file from `start`, `length` of them.
pub(crate) fn body(file: File, start: u64, length: u64) -> Body {
    if length == 0 {
        return Body::empty();
    }
    // Read-ahead is a hint; without it everything still works.
    rustix::fs::fadvise(&file, start, None, rustix::fs::Advice::Sequential).ok();
    let mut source = Source {
        file: Arc::new(file),
        next: start,
        end: start.saturating_add(length),
        ahead: None,
    };
    source.read_ahead();
    Body::from_stream(stream::unfold(source, |mut source| async move {
        let task = source.ahead.take()?;
        let piece = match task.await {
            Ok(piece) => piece,
            Err(_) => Err(io::Error::other("the registry is stopping")),
        };
        if piece.is_ok() {
            source.read_ahead();
        }
        Some((piece, source))
    }))
}

struct Source {
    file: Arc<File>,
    next: u64,
    end: u64,
    ahead: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Source {
    fn read_ahead(&mut self) {
        let length = PIECE.min(self.end - self.next);
        if length == 0 {
            return;
        }
        let (file, offset) = (Arc::clone(&self.file), self.next);
        self.next += length;
        self.ahead = Some(tokio::task::spawn_blocking(move || {
            read_exactly(&file, offset, length)
        }));
    }
}

fn read_exactly(file: &File, mut offset: u64, length: u64) -> io::Result<Bytes> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let mut piece = Vec::with_capacity(length);
    while piece.len() < length {
        // A vector may have more room than was asked for, so the last read can be too long: it is cut.
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut piece), offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => offset += count as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    piece.truncate(length);
    Ok(piece.into())
}
