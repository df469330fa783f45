//! One window on a process: a bounded ring of output between the program and a
//! caller who reads at a pace of its own.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use super::{Stream, lock};
use crate::exit::ExitStatus;

/// What a window holds before it loses output.
pub const RING_BYTES: usize = 1 << 20;

/// Small writes are gathered up to this size, so that a window's memory is its
/// bytes and not the account of them.
const SEGMENT_BYTES: usize = 64 << 10;

/// How long, in all, a program may be held up for one window. Reading earns it
/// back at `EARN_BYTES_PER_SECOND`: a window that reads at least so fast gets
/// every byte, and one that stopped costs this much once.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// See [`PATIENCE`].
const EARN_BYTES_PER_SECOND: u64 = 4 << 20;

/// What comes out of a window, in this order of precedence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// So many bytes were lost before what comes next.
    Missed(u64),
    Output(Stream, Bytes),
    /// The process ended; the last item.
    Exited(ExitStatus),
}

#[derive(Debug)]
struct Ring {
    segments: VecDeque<(Stream, BytesMut)>,
    bytes: usize,
    missed: u64,
    exit: Option<ExitStatus>,
    finished: bool,
    patience: Duration,
    reader: Option<Waker>,
}

/// The ring, and who is told of room in it.
#[derive(Debug)]
pub(super) struct Shared {
    ring: Mutex<Ring>,
    out: bool,
    err: bool,
}

impl Shared {
    pub(super) fn new(out: bool, err: bool) -> Self {
        Self {
            ring: Mutex::new(Ring {
                segments: VecDeque::new(),
                bytes: 0,
                missed: 0,
                exit: None,
                finished: false,
                patience: PATIENCE,
                reader: None,
            }),
            out,
            err,
        }
    }

    fn wants(&self, stream: Stream) -> bool {
        match stream {
            Stream::Out => self.out,
            Stream::Err => self.err,
        }
    }

    /// Adds output; the oldest goes where there is no room.
    pub(super) fn push(&self, stream: Stream, data: &[u8]) {
        if !self.wants(stream) || data.is_empty() {
            return;
        }
        let mut ring = lock(&self.ring);
        ring.bytes += data.len();
        match ring.segments.back_mut() {
            Some((last, segment))
                if *last == stream && segment.len() + data.len() <= SEGMENT_BYTES =>
            {
                segment.extend_from_slice(data);
            }
            _ => ring.segments.push_back((stream, BytesMut::from(data))),
        }
        while ring.bytes > RING_BYTES {
            let Some((_, lost)) = ring.segments.pop_front() else {
                break;
            };
            ring.bytes -= lost.len();
            ring.missed += lost.len() as u64;
        }
        if let Some(reader) = ring.reader.take() {
            reader.wake();
        }
    }

    /// How long the program may be held up until this window has room. `None`:
    /// it has, or it has used up its patience.
    pub(super) fn wait_wanted(&self) -> Option<Duration> {
        let ring = lock(&self.ring);
        let full = ring.bytes + SEGMENT_BYTES > RING_BYTES;
        (full && !ring.patience.is_zero()).then_some(ring.patience)
    }

    /// Charges the window, if it is full, with a wait of that length.
    pub(super) fn charge(&self, waited: Duration) {
        let mut ring = lock(&self.ring);
        ring.patience = ring.patience.saturating_sub(waited);
    }

    /// All output was pushed: the reader gets what is left, then `exit`.
    pub(super) fn finish(&self, exit: ExitStatus) {
        let mut ring = lock(&self.ring);
        ring.exit.get_or_insert(exit);
        if let Some(reader) = ring.reader.take() {
            reader.wake();
        }
    }
}

/// The reading end. Dropping it closes the window.
#[derive(Debug)]
pub struct Window {
    pub(super) shared: Arc<Shared>,
    pub(super) room: Arc<Notify>,
    pub(super) closed: Arc<Notify>,
}

impl tokio_stream::Stream for Window {
    type Item = Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        let mut ring = lock(&self.shared.ring);
        if ring.missed > 0 {
            let missed = std::mem::take(&mut ring.missed);
            return Poll::Ready(Some(Item::Missed(missed)));
        }
        if let Some((stream, data)) = ring.segments.pop_front() {
            ring.bytes -= data.len();
            let earned =
                Duration::from_nanos(data.len() as u64 * 1_000_000_000 / EARN_BYTES_PER_SECOND);
            ring.patience = (ring.patience + earned).min(PATIENCE);
            self.room.notify_waiters();
            return Poll::Ready(Some(Item::Output(stream, data.freeze())));
        }
        if ring.finished {
            return Poll::Ready(None);
        }
        if let Some(exit) = ring.exit.clone() {
            ring.finished = true;
            return Poll::Ready(Some(Item::Exited(exit)));
        }
        ring.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // Nobody waits for a window that is gone.
        self.closed.notify_one();
        self.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    fn window() -> (Arc<Shared>, Window) {
        let shared = Arc::new(Shared::new(true, true));
        let window = Window {
            shared: shared.clone(),
            room: Arc::default(),
            closed: Arc::default(),
        };
        (shared, window)
    }

    fn exit() -> ExitStatus {
        ExitStatus::reaped(Some(0), None)
    }

    #[tokio::test]
    async fn a_window_that_does_not_read_keeps_the_newest_and_learns_what_it_missed() {
        let (shared, mut window) = window();
        let block = vec![7_u8; 10_000];
        for _ in 0..300 {
            shared.push(Stream::Out, &block);
        }
        shared.push(Stream::Out, b"end");
        shared.finish(exit());
        let mut missed = 0;
        let mut got = Vec::new();
        let mut last = None;
        while let Some(item) = window.next().await {
            match &item {
                Item::Missed(bytes) => missed += bytes,
                Item::Output(_, data) => got.extend_from_slice(data),
                Item::Exited(_) => {}
            }
            last = Some(item);
        }
        assert_eq!(missed + got.len() as u64, 3_000_003);
        assert!(got.len() <= RING_BYTES && got.len() > RING_BYTES / 2);
        assert!(got.ends_with(b"end"));
        assert!(matches!(last, Some(Item::Exited(_))));
    }

    #[tokio::test]
    async fn single_bytes_are_gathered_and_streams_stay_apart() {
        let (shared, mut window) = window();
        for _ in 0..1000 {
            shared.push(Stream::Out, b"o");
        }
        shared.push(Stream::Err, b"e");
        shared.push(Stream::Out, b"p");
        shared.finish(exit());
        let mut items = Vec::new();
        while let Some(item) = window.next().await {
            items.push(item);
        }
        assert_eq!(items.len(), 4);
        assert_eq!(
            items[1],
            Item::Output(Stream::Err, Bytes::from_static(b"e"))
        );
    }

    #[test]
    fn patience_ends_with_a_window_that_reads_nothing() {
        let (shared, _window) = window();
        shared.push(Stream::Out, &vec![0; RING_BYTES]);
        assert_eq!(shared.wait_wanted(), Some(PATIENCE));
        shared.charge(PATIENCE);
        assert_eq!(shared.wait_wanted(), None);
    }

    #[tokio::test]
    async fn reading_earns_patience_back() {
        let (shared, mut window) = window();
        shared.charge(PATIENCE);
        shared.push(Stream::Out, &vec![0; RING_BYTES]);
        assert_eq!(shared.wait_wanted(), None);
        window.next().await.unwrap();
        shared.push(Stream::Out, &vec![0; RING_BYTES]);
        assert_eq!(shared.wait_wanted(), Some(Duration::from_millis(250)));
    }
}
