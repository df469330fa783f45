//! The fan-out of one process' output.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::window::{Shared, Window};
use super::{Stream, lock};
use crate::exit::ExitStatus;
use crate::log::Log;

/// Read at once. One buffer serves all readers: they fill and empty it without
/// an await in between.
const READ_BYTES: usize = 64 << 10;

/// How long output is held for a window that was announced.
const HOLD_LIMIT: Duration = Duration::from_secs(10);

static SCRATCH: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// An end that output is read from.
#[derive(Debug)]
pub struct Source {
    pub stream: Stream,
    pub fd: Arc<AsyncFd<OwnedFd>>,
}

/// Where a process stands, for its readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Output is held back until a window is open.
    Held,
    Flowing,
    /// The process was reaped: what is buffered is all that it wrote.
    Ended,
}

#[derive(Debug, Default)]
struct Windows {
    open: Vec<Weak<Shared>>,
    exit: Option<ExitStatus>,
}

/// One process' output.
#[derive(Debug)]
pub struct Output {
    windows: Mutex<Windows>,
    log: Option<Arc<Mutex<Log>>>,
    phase: watch::Sender<Phase>,
    /// Sources from which all that the process wrote has been read.
    drained: watch::Sender<usize>,
    sources: usize,
    room: Arc<Notify>,
}

impl Output {
    /// Starts to read from `sources`; with `hold`, once the first window opens.
    #[must_use]
    pub fn start(sources: Vec<Source>, log: Option<Arc<Mutex<Log>>>, hold: bool) -> Arc<Self> {
        let phase = if hold { Phase::Held } else { Phase::Flowing };
        let output = Arc::new(Self {
            windows: Mutex::default(),
            log,
            phase: watch::Sender::new(phase),
            drained: watch::Sender::new(0),
            sources: sources.len(),
            room: Arc::default(),
        });
        for source in sources {
            tokio::spawn(output.clone().read(source));
        }
        if hold {
            let output = output.clone();
            tokio::spawn(async move {
                let mut phase = output.phase.subscribe();
                let opened = phase.wait_for(|phase| *phase != Phase::Held);
                drop(timeout(HOLD_LIMIT, opened).await);
                output.release();
            });
        }
        output
    }

    /// Opens a window: it gets every byte that is read from now on. Tells
    /// `closed` when it goes.
    #[must_use]
    pub fn window(&self, out: bool, err: bool, closed: Arc<Notify>) -> Window {
        let shared = Arc::new(Shared::new(out, err));
        let mut windows = lock(&self.windows);
        match windows.exit.clone() {
            Some(exit) => shared.finish(exit),
            None => windows.open.push(Arc::downgrade(&shared)),
        }
        drop(windows);
        self.release();
        Window {
            shared,
            room: self.room.clone(),
            closed,
        }
    }

    /// Lets held output flow.
    pub fn release(&self) {
        self.phase.send_if_modified(|phase| {
            let held = *phase == Phase::Held;
            if held {
                *phase = Phase::Flowing;
            }
            held
        });
    }

    /// The process was reaped: returns once all that it wrote has been passed
    /// on. Descendants of it that still hold the other ends are not waited for;
    /// a window that output is held for is.
    pub async fn drain(&self) {
        let mut phase = self.phase.subscribe();
        drop(phase.wait_for(|phase| *phase != Phase::Held).await);
        self.phase.send_replace(Phase::Ended);
        let mut drained = self.drained.subscribe();
        // The sender lives as long as `self`: the wait cannot fail.
        drop(drained.wait_for(|count| *count >= self.sources).await);
        if let Some(log) = &self.log {
            lock(log).flush();
        }
    }

    /// Tells every window, open or to come, how the process ended.
    pub fn finish(&self, exit: &ExitStatus) {
        let mut windows = lock(&self.windows);
        windows.exit = Some(exit.clone());
        for window in windows.open.drain(..).filter_map(|window| window.upgrade()) {
            window.finish(exit.clone());
        }
    }

    async fn read(self: Arc<Self>, source: Source) {
        let mut phase = self.phase.subscribe();
        // The sender is in `self`: none of these waits can fail.
        drop(phase.wait_for(|phase| *phase != Phase::Held).await);
        let mut ended = false;
        loop {
            if !ended && *phase.borrow_and_update() == Phase::Ended {
                // Whatever the process wrote is in the buffer by now.
                if !self.read_available(&source).await {
                    break;
                }
                self.settle(&mut ended);
            }
            tokio::select! {
                ready = source.fd.readable() => {
                    let Ok(mut ready) = ready else { break };
                    if !self.read_available(&source).await {
                        break;
                    }
                    ready.clear_ready();
                }
                _ = phase.changed(), if !ended => {}
            }
        }
        if let Some(log) = &self.log {
            lock(log).end(source.stream);
        }
        self.settle(&mut ended);
    }

    fn settle(&self, ended: &mut bool) {
        if !std::mem::replace(ended, true) {
            self.drained.send_modify(|count| *count += 1);
        }
    }

    /// Reads and passes on until nothing is left. False at the end of the
    /// stream.
    async fn read_available(&self, source: &Source) -> bool {
        loop {
            match self.read_once(source) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Some(log) = &self.log {
                        lock(log).flush();
                    }
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // EIO: the last holder of the terminal's other side closed it.
                Err(_) => return false,
            }
            self.wait_for_room().await;
            // Everybody else's turn, the windows' connections first of all.
            tokio::task::yield_now().await;
        }
    }

    fn read_once(&self, source: &Source) -> io::Result<usize> {
        let mut scratch = lock(&SCRATCH);
        if scratch.is_empty() {
            scratch.resize(READ_BYTES, 0);
        }
        let count = rustix::io::read(source.fd.get_ref().as_fd(), &mut scratch[..])?;
        self.pass_on(source.stream, &scratch[..count]);
        Ok(count)
    }

    fn pass_on(&self, stream: Stream, data: &[u8]) {
        if let Some(log) = &self.log {
            lock(log).append(stream, data);
        }
        lock(&self.windows)
            .open
            .retain(|window| match window.upgrade() {
                Some(window) => {
                    window.push(stream, data);
                    true
                }
                None => false,
            });
    }

    /// Waits for windows that are full and still have patience.
    async fn wait_for_room(&self) {
        loop {
            let room = self.room.notified();
            let full: Vec<(Arc<Shared>, Duration)> = lock(&self.windows)
                .open
                .iter()
                .filter_map(Weak::upgrade)
                .filter_map(|window| window.wait_wanted().map(|limit| (window, limit)))
                .collect();
            let Some(limit) = full.iter().map(|(_, limit)| *limit).min() else {
                return;
            };
            let before = Instant::now();
            let windows: Vec<Weak<Shared>> = full
                .into_iter()
                .map(|(window, _)| Arc::downgrade(&window))
                .collect();
            let _out_of_patience = timeout(limit, room).await;
            let waited = before.elapsed();
            for window in windows.iter().filter_map(Weak::upgrade) {
                window.charge(waited);
            }
        }
    }
}
