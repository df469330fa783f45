//! A network that fails: a way to a server on which every connection breaks
//! after so many bytes.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::Result;

/// It ends with the test's process; [`Cutter::die_after`] ends it earlier.
#[derive(Debug)]
pub struct Cutter {
    /// "127.0.0.1:PORT".
    pub address: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: String,
    cut_after: u64,
    down: AtomicU64,
    up: AtomicU64,
    cuts: AtomicU64,
    dies_at: AtomicU64,
    dead: AtomicBool,
}

impl Cutter {
    /// Breaks each connection to `server` after `cut_after` bytes in either direction.
    ///
    /// # Errors
    /// No port is free.
    pub fn before(server: &str, cut_after: u64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            cut_after,
            down: AtomicU64::new(0),
            up: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            dies_at: AtomicU64::new(u64::MAX),
            dead: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.dead.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(client) = client
                    && let Ok(server) = TcpStream::connect(&accepting.server)
                {
                    carry(&accepting, client, server);
                }
            }
        });
        Ok(Self { address, shared })
    }

    /// Bytes that came from the server.
    #[must_use]
    pub fn down(&self) -> u64 {
        self.shared.down.load(Ordering::SeqCst)
    }

    /// Bytes that went to the server.
    #[must_use]
    pub fn up(&self) -> u64 {
        self.shared.up.load(Ordering::SeqCst)
    }

    /// Connections that were broken.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// Breaks for good when so many bytes have come from the server.
    pub fn die_after(&self, down: u64) {
        self.shared.dies_at.store(down, Ordering::SeqCst);
    }

    /// Whether it did.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.shared.dead.load(Ordering::SeqCst)
    }
}

/// Both directions, until one ends or the connection has carried enough.
fn carry(shared: &Arc<Shared>, client: TcpStream, server: TcpStream) {
    let left = Arc::new(AtomicU64::new(shared.cut_after));
    let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    // What waits here to be sent is not on the wire yet.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&client, 64 << 10);
    let (going, coming) = (Arc::clone(shared), Arc::clone(shared));
    let budget = Arc::clone(&left);
    thread::spawn(move || pump(&going, &going.up, &budget, client_too, server_too));
    thread::spawn(move || pump(&coming, &coming.down, &left, server, client));
}

fn pump(
    shared: &Shared,
    counter: &AtomicU64,
    left: &AtomicU64,
    mut from: TcpStream,
    mut to: TcpStream,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count) = from.read(&mut buffer) {
        let before = left.load(Ordering::SeqCst);
        let allowed = usize::try_from(before).unwrap_or(usize::MAX).min(count);
        if allowed == 0 || to.write_all(&buffer[..allowed]).is_err() {
            break;
        }
        let carried = counter.fetch_add(allowed as u64, Ordering::SeqCst) + allowed as u64;
        let rest = before - allowed as u64;
        left.store(rest, Ordering::SeqCst);
        if std::ptr::eq(counter, &shared.down) && carried >= shared.dies_at.load(Ordering::SeqCst) {
            shared.dead.store(true, Ordering::SeqCst);
        }
        if shared.dead.load(Ordering::SeqCst) {
            break;
        }
        if rest == 0 {
            shared.cuts.fetch_add(1, Ordering::SeqCst);
            break;
        }
    }
    // Whoever has not noticed does now.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
