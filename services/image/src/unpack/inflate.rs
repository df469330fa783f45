//! The inflating half of reading an archive: compressed bytes in, chunks of tar out, on a thread of its own.
//!
//! Inflating costs as much as everything else together, so it overlaps with
//! hashing and writing. The two threads share a handful of chunks that go
//! round: full ones down one channel, empty ones back up another.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use gantry_oci::{Compression, Hasher};

use super::error::UnpackError;
use super::gzip::{Checksum, Members};
use super::limits::Limits;

/// Bytes in a chunk; `CHUNKS` of them are all the memory a layer's stream takes.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS: usize = 6;
/// The window a zstd frame may ask for (2^27 bytes, what `zstd --ultra` uses at most).
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

enum Message {
    Chunk(Vec<u8>),
    End,
    Failed(UnpackError),
}

/// Who is shown what passes.
pub(crate) trait Passing {
    fn passed(&mut self, bytes: &[u8]);
}

impl Passing for Hasher {
    fn passed(&mut self, bytes: &[u8]) {
        self.update(bytes);
    }
}

/// Nobody.
impl Passing for () {
    fn passed(&mut self, _bytes: &[u8]) {}
}

/// The inflated stream, hashed as it passes.
pub(crate) struct TarStream<H = Hasher> {
    full: Receiver<Message>,
    empty: SyncSender<Vec<u8>>,
    compressed: Arc<AtomicU64>,
    limits: Limits,
    hasher: H,
    /// Header bytes that straddle chunks.
    carry: Vec<u8>,
    carry_at: usize,
    chunk: Vec<u8>,
    chunk_at: usize,
    received: u64,
    ended: bool,
}

/// Counts what is taken from the source.
struct Counted<R> {
    source: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(buffer)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl<H: Passing> TarStream<H> {
    /// Starts inflating. The thread ends with the source, or at its next chunk
    /// once this stream is dropped.
    pub(crate) fn start<R: Read + Send + 'static>(
        source: R,
        limits: &Limits,
        hasher: H,
        checksum: Checksum,
    ) -> Result<Self, UnpackError> {
        let (full_sender, full) = sync_channel(CHUNKS);
        let (empty, empty_receiver) = sync_channel::<Vec<u8>>(CHUNKS + 1);
        let compressed = Arc::new(AtomicU64::new(0));
        let source = Counted {
            source,
            count: Arc::clone(&compressed),
        };
        thread::Builder::new()
            .name("inflate".into())
            .spawn(move || {
                let last = match inflate(source, checksum, &full_sender, &empty_receiver) {
                    Ok(()) => Message::End,
                    Err(error) => Message::Failed(error),
                };
                // Nobody listens any more: then nobody needs to know.
                let _ = full_sender.send(last);
            })
            .map_err(UnpackError::Read)?;
        Ok(Self {
            full,
            empty,
            compressed,
            limits: limits.clone(),
            hasher,
            carry: Vec::new(),
            carry_at: 0,
            chunk: Vec::new(),
            chunk_at: 0,
            received: 0,
            ended: false,
        })
    }

    /// Bytes of tar taken from the stream so far.
    pub(crate) fn position(&self) -> u64 {
        let held = (self.carry.len() - self.carry_at) + (self.chunk.len() - self.chunk_at);
        self.received - held as u64
    }

    /// The next bytes, at least one unless the stream has ended.
    pub(crate) fn peek(&mut self) -> Result<&[u8], UnpackError> {
        if self.carry_at < self.carry.len() {
            return Ok(&self.carry[self.carry_at..]);
        }
        if self.chunk_at == self.chunk.len() && !self.ended {
            self.next_chunk()?;
        }
        Ok(&self.chunk[self.chunk_at..])
    }

    /// The next bytes, at least `wanted` unless the stream ends before.
    pub(crate) fn peek_at_least(&mut self, wanted: usize) -> Result<&[u8], UnpackError> {
        if self.carry_at == self.carry.len() && self.chunk.len() - self.chunk_at >= wanted {
            return Ok(&self.chunk[self.chunk_at..]);
        }
        self.carry.drain(..self.carry_at);
        self.carry_at = 0;
        while self.carry.len() < wanted {
            if self.chunk_at == self.chunk.len() {
                if self.ended {
                    break;
                }
                self.next_chunk()?;
                continue;
            }
            let missing = wanted - self.carry.len();
            let end = self.chunk.len().min(self.chunk_at + missing);
            self.carry
                .extend_from_slice(&self.chunk[self.chunk_at..end]);
            self.chunk_at = end;
        }
        Ok(&self.carry)
    }

    /// Marks bytes that were peeked at as taken.
    pub(crate) fn advance(&mut self, count: usize) {
        let from_carry = count.min(self.carry.len() - self.carry_at);
        self.carry_at += from_carry;
        self.chunk_at = (self.chunk_at + count - from_carry).min(self.chunk.len());
    }

    /// Takes everything to the end of the stream, so that it is hashed.
    pub(crate) fn drain(&mut self) -> Result<(), UnpackError> {
        while !self.ended {
            self.next_chunk()?;
        }
        self.carry.clear();
        self.carry_at = 0;
        self.chunk_at = self.chunk.len();
        Ok(())
    }

    /// The hash and the length of all that was received.
    pub(super) fn finish(self) -> (H, u64) {
        (self.hasher, self.received)
    }

    fn next_chunk(&mut self) -> Result<(), UnpackError> {
        let spent = std::mem::take(&mut self.chunk);
        self.chunk_at = 0;
        if spent.capacity() > 0 {
            // The other side may have ended already: then the chunk is just freed.
            let _ = self.empty.try_send(spent);
        }
        match self.full.recv() {
            Ok(Message::Chunk(chunk)) => {
                self.hasher.passed(&chunk);
                self.received += chunk.len() as u64;
                self.chunk = chunk;
                self.check_limits()
            }
            Ok(Message::End) => {
                self.ended = true;
                Ok(())
            }
            Ok(Message::Failed(error)) => {
                self.ended = true;
                Err(error)
            }
            Err(_) => Err(UnpackError::ThreadLost),
        }
    }

    fn check_limits(&self) -> Result<(), UnpackError> {
        if self.received > self.limits.unpacked_bytes {
            return Err(UnpackError::Limit {
                what: "bytes once inflated",
                limit: self.limits.unpacked_bytes,
            });
        }
        let compressed = self.compressed.load(Ordering::Relaxed).max(1);
        if self.received > Limits::RATIO_FREE_BYTES
            && self.received / compressed > self.limits.ratio
        {
            return Err(UnpackError::Limit {
                what: "inflated bytes for each compressed byte",
                limit: self.limits.ratio,
            });
        }
        Ok(())
    }
}

fn inflate<R: Read>(
    source: R,
    checksum: Checksum,
    full: &SyncSender<Message>,
    empty: &Receiver<Vec<u8>>,
) -> Result<(), UnpackError> {
    let mut source = source;
    let head = first_bytes(&mut source).map_err(UnpackError::Read)?;
    let format = Compression::detect(&head);
    let source = BufReader::with_capacity(CHUNK_BYTES, io::Cursor::new(head).chain(source));
    match format {
        Compression::None => pump(format, source, full, empty),
        Compression::Gzip => pump(format, Members::new(source, checksum), full, empty),
        Compression::Zstd => {
            let decoder =
                zstd_decoder(source).map_err(|source| UnpackError::Inflate { format, source })?;
            pump(format, decoder, full, empty)
        }
    }
}

fn zstd_decoder<R: BufRead>(source: R) -> io::Result<zstd::stream::read::Decoder<'static, R>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(decoder)
}

/// The tar in a packed layer, inflated on the reader's own thread.
pub(crate) fn inflated<R: Read + Send + 'static>(
    mut source: R,
) -> io::Result<Box<dyn Read + Send>> {
    let head = first_bytes(&mut source)?;
    let format = Compression::detect(&head);
    let source = BufReader::with_capacity(CHUNK_BYTES, io::Cursor::new(head).chain(source));
    Ok(match format {
        Compression::None => Box::new(source),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Compression::Zstd => Box::new(zstd_decoder(source)?),
    })
}

/// Four bytes are enough to see a format. A source that is still growing may
/// hand them out one by one.
fn first_bytes<R: Read>(source: &mut R) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(4);
    source.take(4).read_to_end(&mut head)?;
    Ok(head)
}

fn pump<R: Read>(
    format: Compression,
    mut decoder: R,
    full: &SyncSender<Message>,
    empty: &Receiver<Vec<u8>>,
) -> Result<(), UnpackError> {
    let mut made = 0;
    loop {
        let mut chunk = match empty.try_recv() {
            Ok(chunk) => chunk,
            Err(_) if made < CHUNKS => {
                made += 1;
                vec![0; CHUNK_BYTES]
            }
            Err(_) => match empty.recv() {
                Ok(chunk) => chunk,
                Err(_) => return Ok(()),
            },
        };
        chunk.resize(CHUNK_BYTES, 0);
        let mut filled = 0;
        while filled < CHUNK_BYTES {
            match decoder.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) if source.get_ref().is_some_and(|e| e.is::<SourceFailed>()) => {
                    return Err(UnpackError::Read(source));
                }
                Err(source) if format == Compression::None => {
                    return Err(UnpackError::Read(source));
                }
                Err(source) => return Err(UnpackError::Inflate { format, source }),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        chunk.truncate(filled);
        if full.send(Message::Chunk(chunk)).is_err() {
            return Ok(());
        }
    }
}

/// Marks an error of the source itself, so that it is not taken for damaged
/// data: wrap it in [`io::Error::other`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SourceFailed(pub String);
