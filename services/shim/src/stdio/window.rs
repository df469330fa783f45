//! One window on a process: a bounded ring of output between the program and a
//! caller who reads at a pace of its own.
//!
//! # A primary window
//! It keeps what was sent until the caller acknowledges it, so that a caller whose
//! connection broke can go on where it was ([`Shared::resume`]). The program waits
//! while the ring is full ([`Shared::is_full`]); nothing is dropped.
//!
//! ```text
//! acknowledged │ kept: sent ─────── │ kept: to be sent again │ segments: not sent yet
//!         kept_from          kept[sent]
//! ```

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::sync::Notify;

use super::{Output, Stream, lock};
use crate::exit::ExitStatus;

/// What a window holds before it loses output; a primary window, before the
/// program waits.
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

#[derive(Debug, Default)]
struct Ring {
    /// Not sent yet.
    segments: VecDeque<(Stream, BytesMut)>,
    /// Of a primary window: not acknowledged.
    kept: VecDeque<(Stream, Bytes)>,
    /// So many of `kept` were sent.
    sent: usize,
    /// The position of the first byte of `kept`.
    kept_from: u64,
    /// Bytes of `segments` and `kept`.
    bytes: usize,
    missed: u64,
    exit: Option<ExitStatus>,
    finished: bool,
    patience: Duration,
    reader: Option<Waker>,
    /// Which opening of the window reads. An earlier one gets nothing more.
    opening: u64,
    /// Given up: nothing is added any more.
    released: bool,
}

impl Ring {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// The position behind the last byte that was sent.
    fn sent_to(&self) -> u64 {
        let sent = self.kept.iter().take(self.sent);
        self.kept_from + sent.map(|(_, data)| data.len() as u64).sum::<u64>()
    }

    /// Drops what is kept before `position`.
    fn acknowledge(&mut self, position: u64) {
        while let Some((_, data)) = self.kept.front_mut() {
            let wanted = position.saturating_sub(self.kept_from);
            let length = data.len() as u64;
            if wanted == 0 || self.sent == 0 {
                return;
            }
            if wanted < length {
                // Less than the length, which is a usize.
                let count = usize::try_from(wanted).unwrap_or(0);
                data.advance(count);
                self.bytes -= count;
                self.kept_from = position;
                return;
            }
            self.bytes -= data.len();
            self.kept_from += length;
            self.sent -= 1;
            self.kept.pop_front();
        }
    }
}

/// The ring, and who is told of room in it.
#[derive(Debug)]
pub(super) struct Shared {
    ring: Mutex<Ring>,
    out: bool,
    err: bool,
    primary: bool,
}

impl Shared {
    pub(super) fn new(out: bool, err: bool, primary: bool) -> Self {
        Self {
            ring: Mutex::new(Ring {
                patience: PATIENCE,
                ..Ring::default()
            }),
            out,
            err,
            primary,
        }
    }

    fn wants(&self, stream: Stream) -> bool {
        match stream {
            Stream::Out => self.out,
            Stream::Err => self.err,
        }
    }

    /// Adds output. Where there is no room a usual window loses the oldest, unless
    /// this is the `rest` of what an ended process wrote.
    pub(super) fn push(&self, stream: Stream, data: &[u8], rest: bool) {
        if !self.wants(stream) || data.is_empty() {
            return;
        }
        let mut ring = lock(&self.ring);
        if ring.released {
            return;
        }
        ring.bytes += data.len();
        match ring.segments.back_mut() {
            Some((last, segment))
                if *last == stream && segment.len() + data.len() <= SEGMENT_BYTES =>
            {
                segment.extend_from_slice(data);
            }
            _ => ring.segments.push_back((stream, BytesMut::from(data))),
        }
        while !rest && !self.primary && ring.bytes > RING_BYTES {
            let Some((_, lost)) = ring.segments.pop_front() else {
                break;
            };
            ring.bytes -= lost.len();
            ring.missed += lost.len() as u64;
        }
        ring.wake();
    }

    /// Whether the program has to wait for this window, for as long as it takes.
    pub(super) fn is_full(&self) -> bool {
        self.primary && lock(&self.ring).bytes + SEGMENT_BYTES > RING_BYTES
    }

    /// How long the program may be held up until this window has room. `None`:
    /// it has, or it has used up its patience, or it is a primary one.
    pub(super) fn wait_wanted(&self) -> Option<Duration> {
        let ring = lock(&self.ring);
        let full = !self.primary && ring.bytes + SEGMENT_BYTES > RING_BYTES;
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
        ring.wake();
    }

    /// The caller has received all before `position`.
    pub(super) fn acknowledge(&self, position: u64) {
        lock(&self.ring).acknowledge(position);
    }

    /// Opens a primary window again: what was sent from `position` on is sent
    /// again. Answers the number of this opening; `None`: output from there on is
    /// not kept.
    pub(super) fn resume(&self, position: u64) -> Option<u64> {
        let mut ring = lock(&self.ring);
        if position < ring.kept_from || position > ring.sent_to() {
            return None;
        }
        ring.acknowledge(position);
        ring.sent = 0;
        ring.finished = false;
        ring.opening += 1;
        // An earlier reader learns that it is one.
        ring.wake();
        Some(ring.opening)
    }

    /// The number of the opening that reads.
    pub(super) fn opening(&self) -> u64 {
        lock(&self.ring).opening
    }

    /// Bytes that were not acknowledged. `None`: the process runs, or its exit was
    /// not read yet.
    pub(super) fn left(&self) -> Option<usize> {
        let ring = lock(&self.ring);
        ring.finished.then_some(ring.bytes)
    }

    /// Drops what a primary window holds, and takes no more.
    pub(super) fn release(&self) {
        let mut ring = lock(&self.ring);
        ring.released = true;
        ring.segments = VecDeque::new();
        ring.kept = VecDeque::new();
        ring.sent = 0;
        ring.bytes = 0;
        ring.wake();
    }
}

/// The reading end. Dropping it closes the window; a primary one is kept for a
/// while, to be opened again.
#[derive(Debug)]
pub struct Window {
    pub(super) shared: Arc<Shared>,
    pub(super) opening: u64,
    pub(super) room: Arc<Notify>,
    pub(super) closed: Arc<Notify>,
    /// Of a primary window: the output that keeps it.
    pub(super) output: Weak<Output>,
}

impl tokio_stream::Stream for Window {
    type Item = Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        let mut ring = lock(&self.shared.ring);
        if ring.opening != self.opening || ring.released {
            return Poll::Ready(None);
        }
        if ring.missed > 0 {
            let missed = std::mem::take(&mut ring.missed);
            return Poll::Ready(Some(Item::Missed(missed)));
        }
        let sent = ring.sent;
        if let Some((stream, data)) = ring.kept.get(sent).cloned() {
            ring.sent += 1;
            return Poll::Ready(Some(Item::Output(stream, data)));
        }
        if let Some((stream, data)) = ring.segments.pop_front() {
            let data = data.freeze();
            if self.shared.primary {
                ring.kept.push_back((stream, data.clone()));
                ring.sent += 1;
            } else {
                ring.bytes -= data.len();
                let earned =
                    Duration::from_nanos(data.len() as u64 * 1_000_000_000 / EARN_BYTES_PER_SECOND);
                ring.patience = (ring.patience + earned).min(PATIENCE);
                self.room.notify_waiters();
            }
            return Poll::Ready(Some(Item::Output(stream, data)));
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
        if let Some(output) = self.output.upgrade() {
            output.keep_for_a_while(&self.shared, self.opening);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    fn window() -> (Arc<Shared>, Window) {
        let shared = Arc::new(Shared::new(true, true, false));
        let window = reader(&shared, 0);
        (shared, window)
    }

    fn reader(shared: &Arc<Shared>, opening: u64) -> Window {
        Window {
            shared: shared.clone(),
            opening,
            room: Arc::default(),
            closed: Arc::default(),
            output: Weak::new(),
        }
    }

    /// Output up to the exit, or to what is there.
    async fn read(window: &mut Window, most: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < most
            && let Some(item) = window.next().await
        {
            match item {
                Item::Output(_, data) => got.extend_from_slice(&data),
                Item::Missed(bytes) => panic!("{bytes} bytes were missed"),
                Item::Exited(_) => break,
            }
        }
        got
    }

    fn exit() -> ExitStatus {
        ExitStatus::reaped(Some(0), None)
    }

    #[tokio::test]
    async fn a_window_that_does_not_read_keeps_the_newest_and_learns_what_it_missed() {
        let (shared, mut window) = window();
        let block = vec![7_u8; 10_000];
        for _ in 0..300 {
            shared.push(Stream::Out, &block, false);
        }
        shared.push(Stream::Out, b"end", false);
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
            shared.push(Stream::Out, b"o", false);
        }
        shared.push(Stream::Err, b"e", false);
        shared.push(Stream::Out, b"p", false);
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
        shared.push(Stream::Out, &vec![0; RING_BYTES], false);
        assert_eq!(shared.wait_wanted(), Some(PATIENCE));
        shared.charge(PATIENCE);
        assert_eq!(shared.wait_wanted(), None);
    }

    #[tokio::test]
    async fn reading_earns_patience_back() {
        let (shared, mut window) = window();
        shared.charge(PATIENCE);
        shared.push(Stream::Out, &vec![0; RING_BYTES], false);
        assert_eq!(shared.wait_wanted(), None);
        window.next().await.unwrap();
        shared.push(Stream::Out, &vec![0; RING_BYTES], false);
        assert_eq!(shared.wait_wanted(), Some(Duration::from_millis(250)));
    }

    #[tokio::test]
    async fn a_primary_window_is_full_until_its_output_is_acknowledged() {
        let shared = Arc::new(Shared::new(true, true, true));
        let mut window = reader(&shared, 0);
        let sent = vec![7; RING_BYTES];
        shared.push(Stream::Out, &sent, false);
        assert!(shared.is_full());
        assert_eq!(shared.wait_wanted(), None);
        assert_eq!(read(&mut window, RING_BYTES).await, sent);
        // That it was sent is not enough: it may be lost on its way.
        assert!(shared.is_full());
        shared.acknowledge(RING_BYTES as u64);
        assert!(!shared.is_full());
    }

    #[tokio::test]
    async fn a_primary_window_that_is_opened_again_goes_on_at_any_position() {
        let output: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        for position in [0, 1, 64 << 10, 100_000, 300_000, 500_000] {
            let shared = Arc::new(Shared::new(true, true, true));
            let mut first = reader(&shared, 0);
            for block in output.chunks(7_000) {
                shared.push(Stream::Out, block, false);
            }
            shared.acknowledge(0);
            let sent = read(&mut first, 500_000).await.len();
            assert!(sent >= position, "{sent}");
            let opening = shared.resume(position as u64).unwrap();
            assert_eq!(first.next().await, None);
            let mut again = reader(&shared, opening);
            shared.finish(exit());
            let rest = read(&mut again, usize::MAX).await;
            assert!(rest == output[position..], "from {position}");
        }
    }

    #[tokio::test]
    async fn a_primary_window_cannot_go_on_where_nothing_is_kept() {
        let shared = Arc::new(Shared::new(true, true, true));
        let mut window = reader(&shared, 0);
        shared.push(Stream::Out, b"0123456789", false);
        assert_eq!(read(&mut window, 10).await, b"0123456789");
        shared.acknowledge(5);
        assert_eq!(shared.resume(4), None);
        assert_eq!(shared.resume(11), None);
        assert!(shared.resume(5).is_some());
    }

    #[tokio::test]
    async fn the_exit_of_a_primary_window_is_told_again_to_who_opens_it_again() {
        let shared = Arc::new(Shared::new(true, true, true));
        let mut window = reader(&shared, 0);
        shared.finish(exit());
        assert!(matches!(window.next().await, Some(Item::Exited(_))));
        assert_eq!(window.next().await, None);
        let opening = shared.resume(0).unwrap();
        let mut again = reader(&shared, opening);
        assert!(matches!(again.next().await, Some(Item::Exited(_))));
    }
}
