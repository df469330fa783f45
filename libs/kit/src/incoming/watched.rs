//! A connection that counts what goes through it, and can be closed from outside.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tonic::transport::server::Connected;

/// What a client that speaks HTTP/2 sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Who is at the other end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Peer {
    /// Somebody on this machine, on a Unix socket.
    Local,
    /// Somebody on the network.
    Remote(SocketAddr),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Remote(address) => address.fmt(f),
        }
    }
}

/// All connections of a listener.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) entries: Mutex<HashMap<u64, Arc<Shared>>>,
    /// Something ended or became idle.
    pub(super) changed: Notify,
    last: AtomicU64,
}

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Shared {
    peer: Peer,
    accepted: Instant,
    table: Weak<Table>,
    /// Bytes of [`PREFACE`] that came so far; [`NO_PREFACE`] when it is another protocol.
    preface: AtomicU8,
    /// A whole request came, or the preface did.
    opened: AtomicBool,
    /// Bytes in both directions.
    moved: AtomicU64,
    /// Requests under way.
    requests: AtomicUsize,
    /// Request bodies that the server waits for.
    bodies: AtomicUsize,
    /// The client does not take what the server writes.
    blocked: AtomicBool,
    /// Milliseconds after `accepted`.
    last_moved: AtomicU64,
    idle_since: AtomicU64,
    /// Where the present measure of progress began: milliseconds, bytes.
    measured: Mutex<Option<(u64, u64)>>,
    closing: AtomicBool,
    waker: AtomicWaker,
}

const NO_PREFACE: u8 = u8::MAX;

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn since(&self, then: &AtomicU64) -> Duration {
        Duration::from_millis(self.now().saturating_sub(then.load(Ordering::Relaxed)))
    }

    pub(super) fn age(&self) -> Duration {
        self.accepted.elapsed()
    }

    pub(super) fn is_opened(&self) -> bool {
        self.opened.load(Ordering::Relaxed)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.requests.load(Ordering::Acquire) == 0
    }

    /// Whether it speaks HTTP/2 without TLS.
    pub(super) fn is_http2(&self) -> bool {
        usize::from(self.preface.load(Ordering::Relaxed)) == PREFACE.len()
    }

    pub(super) fn idle_for(&self) -> Duration {
        self.since(&self.idle_since)
    }

    pub(super) fn still_for(&self) -> Duration {
        self.since(&self.last_moved)
    }

    /// Whether the server waits for the client.
    pub(super) fn owes(&self) -> bool {
        self.bodies.load(Ordering::Relaxed) > 0 || self.blocked.load(Ordering::Relaxed)
    }

    /// Whether the client, who owes something, moved fewer than `bytes` in `time`.
    pub(super) fn is_too_slow(&self, bytes: u64, time: Duration) -> bool {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.owes() {
            *measured = None;
            return false;
        }
        let (now, moved) = (self.now(), self.moved.load(Ordering::Relaxed));
        let (begun, before) = *measured.get_or_insert((now, moved));
        if moved - before >= bytes {
            *measured = Some((now, moved));
            return false;
        }
        now - begun >= u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn close(&self, why: &'static str) {
        if !self.closing.swap(true, Ordering::AcqRel) {
            tracing::debug!(peer = %self.peer, why, "a connection is closed");
            self.waker.wake();
        }
    }

    fn moved(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        self.last_moved.store(self.now(), Ordering::Relaxed);
    }

    /// Looks at the first bytes for what is spoken.
    fn received(&self, bytes: &[u8]) {
        let seen = self.preface.load(Ordering::Relaxed);
        let at = usize::from(seen);
        if seen != NO_PREFACE && at < PREFACE.len() {
            let part = bytes.get(..PREFACE.len() - at).unwrap_or(bytes);
            if PREFACE[at..].starts_with(part) {
                // At most 24.
                let seen = u8::try_from(at + part.len()).unwrap_or(NO_PREFACE);
                self.preface.store(seen, Ordering::Relaxed);
                if usize::from(seen) == PREFACE.len() {
                    self.opened.store(true, Ordering::Relaxed);
                }
            } else {
                self.preface.store(NO_PREFACE, Ordering::Relaxed);
            }
        }
        self.moved(bytes.len());
    }
}

/// A connection, for those who serve it: what they do is counted on it.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Shared>);

impl Connection {
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.0.peer
    }

    /// Whether it is about to be closed for one of the bounds.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.0.is_closing()
    }

    /// A request came. It is under way until what is returned is dropped: with
    /// the end of its answer's body.
    #[must_use]
    pub fn begin(&self) -> Request {
        self.0.opened.store(true, Ordering::Relaxed);
        self.0.requests.fetch_add(1, Ordering::AcqRel);
        Request(Arc::clone(&self.0))
    }

    /// Says whether the server waits for more of a request's body.
    pub fn awaits_body(&self, waits: bool) {
        if waits {
            self.0.bodies.fetch_add(1, Ordering::Relaxed);
        } else {
            self.0.bodies.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Request(Arc<Shared>);

impl Drop for Request {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Ordering::Relaxed);
        if self.0.requests.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(table) = self.0.table.upgrade()
        {
            table.changed.notify_one();
        }
    }
}

/// A stream that counts.
#[derive(Debug)]
pub struct Watched<S> {
    stream: S,
    id: u64,
    shared: Arc<Shared>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, peer: Peer, table: &Arc<Table>) -> Self {
        let id = table.last.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(Shared {
            peer,
            accepted: Instant::now(),
            table: Arc::downgrade(table),
            preface: AtomicU8::default(),
            opened: AtomicBool::default(),
            moved: AtomicU64::default(),
            requests: AtomicUsize::default(),
            bodies: AtomicUsize::default(),
            blocked: AtomicBool::default(),
            last_moved: AtomicU64::default(),
            idle_since: AtomicU64::default(),
            measured: Mutex::default(),
            closing: AtomicBool::default(),
            waker: AtomicWaker::new(),
        });
        table.entries().insert(id, Arc::clone(&shared));
        Self { stream, id, shared }
    }

    pub(super) fn downgrade(&self) -> Weak<Shared> {
        Arc::downgrade(&self.shared)
    }

    /// What those who serve it need.
    #[must_use]
    pub fn connection(&self) -> Connection {
        Connection(Arc::clone(&self.shared))
    }

    /// The stream itself.
    pub const fn stream(&self) -> &S {
        &self.stream
    }

    /// Fails what is going on when the connection is to be closed.
    fn check(&self, context: &Context<'_>) -> io::Result<()> {
        self.shared.waker.register(context.waker());
        if self.shared.is_closing() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    fn wrote(&self, outcome: &Poll<io::Result<usize>>) {
        match outcome {
            Poll::Ready(Ok(bytes)) => {
                self.shared.blocked.store(false, Ordering::Relaxed);
                self.shared.moved(*bytes);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.shared.blocked.store(true, Ordering::Relaxed),
        }
    }
}

impl<S> Drop for Watched<S> {
    fn drop(&mut self) {
        if let Some(table) = self.shared.table.upgrade() {
            table.entries().remove(&self.id);
            table.changed.notify_one();
        }
    }
}

impl<S> Connected for Watched<S> {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = outcome {
            self.shared.received(&buffer.filled()[before..]);
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.wrote(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
