//! Connections as they come in, to a Unix socket or a TCP port, with bounds.
//!
//! A server library takes every connection and waits for it without end. Here it
//! is decided how many there are, how long one may stay silent, and which one
//! goes when there are too many, so that connections that do nothing never shut
//! out those that do something:
//!
//! | bound | what is closed |
//! | --- | --- |
//! | [`Limits::opening`] | a connection that has sent no whole request by then |
//! | [`Limits::unopened`] | the oldest such connection, when there are more of them |
//! | [`Limits::idle`] | a connection without a request since |
//! | [`Limits::progress`] | one whose client neither sends nor takes what it owes |
//! | [`Limits::connections`] | the longest idle, else the longest stalled connection |
//! | file descriptors | the same, and where nothing can be closed the newcomer |
//!
//! A connection "owes" when the server waits for more of a request's body
//! ([`Connection::awaits_body`]) or for room to write to. A server that takes
//! its time over an answer is never held against the client.
//!
//! **How it works.** [`Incoming::next`] gives out streams that are wrapped
//! ([`Watched`]) and count what goes through them. It looks after the bounds
//! itself, at most once a second and only while some connection is subject to
//! one. A connection is closed by failing its next read or write.
//!
//! **Locking.** The table of connections has a mutex, which is held for a scan at
//! most; what is counted per connection is atomic.
//!
//! **Limits.** All times are coarse, to a second.

mod watched;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

pub use watched::{Connection, Peer, Request, Watched};
use watched::{Shared, Table};

/// How often bounds are looked after.
const TICK: Duration = Duration::from_secs(1);
/// How long to wait after the process ran out of file descriptors.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// File descriptors that are left to everything but connections.
const RESERVE: u64 = 256;
/// The most connections of one listener, whatever the process may open.
const CONNECTIONS_MAX: usize = 16_384;
/// How often a shortage is reported.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// A client that owes something and has moved no byte for so long may be closed
/// to admit another.
const STALLED: Duration = Duration::from_secs(5);

/// The bounds of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time. A further one takes the place of an idle or stalled
    /// one; while there is neither, it waits.
    pub connections: usize,
    /// Connections at a time that have sent no whole request yet.
    pub unopened: usize,
    /// Time until the first request is there (HTTP/1, TLS), or until the protocol
    /// is known to be HTTP/2.
    pub opening: Duration,
    /// Time without a request.
    pub idle: Duration,
    /// Whether [`Limits::idle`] is also for HTTP/2 without TLS: what the engine's
    /// own clients speak, who keep their connections.
    pub idle_http2: bool,
    /// Bytes that a client who owes something has to move in a time. Absent: as
    /// it likes.
    pub progress: Option<(u64, Duration)>,
}

impl Limits {
    /// The bounds of a service's Unix socket, whose clients are root and the
    /// engine's group.
    #[must_use]
    pub fn of_socket() -> Self {
        Self {
            connections: room_for_connections(),
            unopened: 256,
            opening: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            idle_http2: false,
            progress: None,
        }
    }
}

/// How many connections the process has file descriptors for, less what it
/// needs for its own work.
#[must_use]
pub fn room_for_connections() -> usize {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let room = soft.saturating_sub(RESERVE.min(soft / 2));
    usize::try_from(room).map_or(CONNECTIONS_MAX, |room| room.clamp(1, CONNECTIONS_MAX))
}

/// Lets the process open as many files as it may: the limit that login shells
/// hand out is for programs that use select(2).
pub fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        } else {
            Ok(())
        }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

/// What connections come from.
pub trait Listener: Send + 'static {
    /// One connection.
    type Stream: Send + 'static;

    /// Waits for the next connection.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = Self::accept(self).await?;
        Ok((stream, Peer::Local))
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address): (_, SocketAddr) = Self::accept(self).await?;
        Ok((stream, Peer::Remote(address)))
    }
}

/// A listener with its connections.
#[derive(Debug)]
pub struct Incoming<L: Listener> {
    listener: L,
    limits: Limits,
    table: Arc<Table>,
    unopened: VecDeque<Weak<Shared>>,
    /// Taken from the listener, and not yet admitted.
    waiting: Option<(L::Stream, Peer)>,
    /// A file descriptor for when there are no others.
    reserve: Option<File>,
    swept: Instant,
    /// When it was last said that file descriptors are short.
    warned: Option<Instant>,
}

/// What a look at the bounds found.
enum Next {
    /// Something may run out: look again soon.
    Soon,
    /// Nothing can, until another connection comes.
    Never,
}

impl<L: Listener> Incoming<L> {
    #[must_use]
    pub fn new(listener: L, limits: Limits) -> Self {
        Self {
            listener,
            limits,
            table: Arc::default(),
            unopened: VecDeque::new(),
            waiting: None,
            reserve: File::open("/dev/null").ok(),
            swept: Instant::now(),
            warned: None,
        }
    }

    /// How many connections there are.
    #[must_use]
    pub fn open(&self) -> usize {
        self.table.open()
    }

    /// The next connection. Errors of the listener pass, and are waited out.
    pub async fn next(&mut self) -> Watched<L::Stream> {
        loop {
            if let Some((stream, peer)) = self.waiting.take() {
                if self.table.open() < self.limits.connections || self.close_one() {
                    return self.admit(stream, peer);
                }
                self.waiting = Some((stream, peer));
                // A connection that ends makes room, and so does one that stalls.
                timeout(TICK, self.table.changed.notified()).await.ok();
                self.sweep();
                continue;
            }
            let next = if self.swept.elapsed() >= TICK {
                self.sweep()
            } else {
                Next::Soon
            };
            let accepted = match next {
                Next::Never => Ok(self.listener.accept().await),
                Next::Soon => timeout(TICK, self.listener.accept()).await,
            };
            match accepted {
                Err(_) => {}
                Ok(Ok(accepted)) => self.waiting = Some(accepted),
                Ok(Err(error)) => self.survive(&error).await,
            }
        }
    }

    /// Gives out a connection.
    fn admit(&mut self, stream: L::Stream, peer: Peer) -> Watched<L::Stream> {
        let watched = Watched::new(stream, peer, &self.table);
        self.unopened.push_back(watched.downgrade());
        if self.unopened.len() > self.limits.unopened {
            let is_unopened = |entry: &Weak<Shared>| {
                entry
                    .upgrade()
                    .is_some_and(|shared| !shared.is_opened() && !shared.is_closing())
            };
            self.unopened.retain(is_unopened);
            while self.unopened.len() > self.limits.unopened {
                if let Some(oldest) = self.unopened.pop_front().and_then(|entry| entry.upgrade()) {
                    oldest.close("too many connections without a request");
                }
            }
        }
        watched
    }

    /// Closes what is over its time.
    fn sweep(&mut self) -> Next {
        self.swept = Instant::now();
        let limits = self.limits;
        let mut next = Next::Never;
        for shared in self.table.entries().values() {
            if shared.is_closing() {
                continue;
            }
            let may_be_idle = !limits.idle_http2 && shared.is_http2();
            if !may_be_idle || limits.progress.is_some() {
                next = Next::Soon;
            }
            if !shared.is_opened() {
                if shared.age() >= limits.opening {
                    shared.close("no request came");
                }
            } else if shared.is_idle() {
                if !may_be_idle && shared.idle_for() >= limits.idle {
                    shared.close("idle");
                }
            } else if let Some((bytes, time)) = limits.progress
                && shared.is_too_slow(bytes, time)
            {
                shared.close("its client sends or takes too little");
            }
        }
        next
    }

    /// Closes the connection that is needed least, if one can be spared: one
    /// without a request, the oldest first, else the longest stalled.
    fn close_one(&self) -> bool {
        let entries = self.table.entries();
        let open = || entries.values().filter(|shared| !shared.is_closing());
        let idle = open().filter(|shared| shared.is_idle());
        let idle = idle.max_by_key(|shared| (!shared.is_opened(), shared.idle_for()));
        let stalled = || {
            open()
                .filter(|shared| shared.owes() && shared.still_for() >= STALLED)
                .max_by_key(|shared| shared.still_for())
        };
        match idle.or_else(stalled) {
            Some(shared) => {
                shared.close("its place is needed");
                true
            }
            None => false,
        }
    }

    /// Gets over an error of the listener.
    async fn survive(&mut self, error: &io::Error) {
        // EMFILE, ENFILE, ENOBUFS, ENOMEM: accept(2).
        let exhausted = matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12));
        if !exhausted {
            // The peer may have gone while it waited.
            tracing::debug!(%error, "cannot take a connection");
            sleep(Duration::from_millis(1)).await;
            return;
        }
        if self.warned.is_none_or(|last| last.elapsed() >= WARN_EVERY) {
            self.warned = Some(Instant::now());
            let connections = self.table.open();
            tracing::warn!(%error, connections, "cannot take a connection; an idle one is closed");
        }
        if !self.close_one() && self.reserve.take().is_some() {
            // Who waits is told so by the end of the connection.
            timeout(EXHAUSTED_PAUSE, self.listener.accept()).await.ok();
        }
        sleep(EXHAUSTED_PAUSE).await;
        if self.reserve.is_none() {
            self.reserve = File::open("/dev/null").ok();
        }
    }
}

impl Table {
    fn entries(&self) -> MutexGuard<'_, HashMap<u64, Arc<Shared>>> {
        // Whole after every statement: a panic elsewhere does not spoil it.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections that are not about to end.
    fn open(&self) -> usize {
        let entries = self.entries();
        entries
            .values()
            .filter(|shared| !shared.is_closing())
            .count()
    }
}

#[cfg(test)]
mod tests;
