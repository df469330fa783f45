//! The fan-out of one process' output.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::window::{RING_BYTES, Shared, Window};
use super::{HOLD_LIMIT, Stream, lock};
use crate::exit::ExitStatus;
use crate::log::Log;

/// Read at once. One buffer serves all readers: they fill and empty it without
/// an await in between.
const READ_BYTES: usize = 64 << 10;

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

/// The window that the process waits for.
#[derive(Debug)]
struct Primary {
    name: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Windows {
    open: Vec<Weak<Shared>>,
    primary: Option<Primary>,
    exit: Option<ExitStatus>,
}

/// How a window is wanted.
#[derive(Clone, Debug, Default)]
pub struct Opening {
    pub out: bool,
    pub err: bool,
    /// The name of a primary window. Empty: a usual one.
    pub primary: String,
    /// Where a primary window goes on.
    pub resume_at: Option<u64>,
}

/// What became of a wish for a primary window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    pub primary: bool,
    /// It goes on where it was.
    pub resumed: bool,
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

    /// Opens a window: it gets every byte that is read from now on, and a primary
    /// one that is opened again every byte from where it was. Tells `closed` when
    /// it goes.
    #[must_use]
    pub fn window(self: &Arc<Self>, wanted: &Opening, closed: Arc<Notify>) -> (Window, Opened) {
        let (shared, opening, opened) = self.open(wanted);
        if wanted.out || wanted.err {
            self.release();
        }
        let window = Window {
            shared,
            opening,
            room: self.room.clone(),
            closed,
            output: match opened.primary {
                true => Arc::downgrade(self),
                false => Weak::new(),
            },
        };
        (window, opened)
    }

    fn open(&self, wanted: &Opening) -> (Arc<Shared>, u64, Opened) {
        let mut windows = lock(&self.windows);
        let named = !wanted.primary.is_empty();
        if let Some(primary) = &windows.primary
            && primary.name == wanted.primary
            && let Some(opening) = primary.shared.resume(wanted.resume_at.unwrap_or(0))
        {
            let opened = Opened {
                primary: true,
                resumed: true,
            };
            return (primary.shared.clone(), opening, opened);
        }
        // One that is to go on and cannot begins anew: its caller knows then that
        // it missed something.
        let taken = windows
            .primary
            .as_ref()
            .is_some_and(|primary| primary.name != wanted.primary);
        let opened = Opened {
            primary: named && !taken,
            resumed: false,
        };
        let shared = Arc::new(Shared::new(wanted.out, wanted.err, opened.primary));
        match windows.exit.clone() {
            Some(exit) => shared.finish(exit),
            None => windows.open.push(Arc::downgrade(&shared)),
        }
        if opened.primary {
            let primary = Primary {
                name: wanted.primary.clone(),
                shared: shared.clone(),
            };
            if let Some(earlier) = windows.primary.replace(primary) {
                earlier.shared.release();
            }
        }
        let opening = shared.opening();
        (shared, opening, opened)
    }

    /// The reader of the primary window `name` has received all before `position`.
    pub fn acknowledge(&self, name: &str, position: u64) {
        if let Some(primary) = &lock(&self.windows).primary
            && primary.name == name
        {
            primary.shared.acknowledge(position);
        }
        self.room.notify_waiters();
    }

    /// Gives up the primary window `name`: the process waits for it no more.
    pub fn release_window(&self, name: &str) {
        self.give_up(|primary| primary.name == name);
    }

    fn give_up(&self, which: impl FnOnce(&Primary) -> bool) {
        let mut windows = lock(&self.windows);
        if let Some(primary) = windows.primary.take_if(|primary| which(primary)) {
            primary.shared.release();
        }
        drop(windows);
        self.room.notify_waiters();
    }

    /// Bytes of an ended process that its primary window still keeps, to be read
    /// again.
    #[must_use]
    pub fn kept(&self) -> usize {
        let windows = lock(&self.windows);
        let primary = windows.primary.as_ref();
        primary
            .and_then(|primary| primary.shared.left())
            .unwrap_or(0)
    }

    /// The connection of the primary window broke: it can be opened again for a
    /// while.
    pub(super) fn keep_for_a_while(self: &Arc<Self>, shared: &Arc<Shared>, opening: u64) {
        let kept = shared.clone();
        let same = move |primary: &Primary| {
            Arc::ptr_eq(&primary.shared, &kept) && kept.opening() == opening
        };
        if lock(&self.windows)
            .primary
            .as_ref()
            .is_none_or(|primary| !same(primary))
        {
            return;
        }
        // The process has ended, and all was read: what is left holds nobody up, takes
        // no room, and says that nothing was missed.
        if shared.left() == Some(0) {
            return;
        }
        let output = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(HOLD_LIMIT).await;
            if let Some(output) = output.upgrade() {
                output.give_up(same);
            }
        });
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
                if !self.read_rest(&source) {
                    break;
                }
                self.settle(&mut ended);
            }
            let readable = async {
                let Ok(mut ready) = source.fd.readable().await else {
                    return false;
                };
                let open = self.read_available(&source).await;
                ready.clear_ready();
                open
            };
            tokio::select! {
                open = readable => if !open {
                    break;
                },
                // What was read was passed on: nothing is lost with the wait for room.
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
            match self.read_once(source, false) {
                Taken::End => return false,
                Taken::Bytes(_) => {}
                Taken::Nothing => return true,
            }
            self.wait_for_room().await;
            // Everybody else's turn, the windows' connections first of all.
            tokio::task::yield_now().await;
        }
    }

    /// Takes what an ended process has written, without a wait for any window: its
    /// end must not wait for who reads. False at the end of the stream.
    fn read_rest(&self, source: &Source) -> bool {
        let fd = source.fd.get_ref();
        // Descendants may write on for ever: what they write later is not the rest.
        let written = rustix::io::ioctl_fionread(fd).unwrap_or(0);
        let most = usize::try_from(written).map_or(RING_BYTES, |bytes| bytes.max(RING_BYTES));
        let mut rest = 0;
        while rest < most {
            match self.read_once(source, true) {
                Taken::End => return false,
                Taken::Bytes(count) => rest += count,
                Taken::Nothing => break,
            }
        }
        true
    }

    fn read_once(&self, source: &Source, rest: bool) -> Taken {
        let mut scratch = lock(&SCRATCH);
        if scratch.is_empty() {
            scratch.resize(READ_BYTES, 0);
        }
        match rustix::io::read(source.fd.get_ref().as_fd(), &mut scratch[..]) {
            Ok(0) => Taken::End,
            Ok(count) => {
                self.pass_on(source.stream, &scratch[..count], rest);
                Taken::Bytes(count)
            }
            Err(Errno::AGAIN) => {
                self.flush_log();
                Taken::Nothing
            }
            Err(Errno::INTR) => Taken::Bytes(0),
            // EIO: the last holder of the terminal's other side closed it.
            Err(_) => Taken::End,
        }
    }

    fn flush_log(&self) {
        if let Some(log) = &self.log {
            lock(log).flush();
        }
    }

    fn pass_on(&self, stream: Stream, data: &[u8], rest: bool) {
        if let Some(log) = &self.log {
            lock(log).append(stream, data);
        }
        lock(&self.windows)
            .open
            .retain(|window| match window.upgrade() {
                Some(window) => {
                    window.push(stream, data, rest);
                    true
                }
                None => false,
            });
    }

    /// Waits for a primary window that is full, and for others that are full and
    /// still have patience.
    async fn wait_for_room(&self) {
        let mut flushed = false;
        loop {
            let room = self.room.notified();
            let mut primary = false;
            let full: Vec<(Weak<Shared>, Duration)> = lock(&self.windows)
                .open
                .iter()
                .filter_map(Weak::upgrade)
                .filter_map(|window| {
                    primary |= window.is_full();
                    let limit = window.wait_wanted()?;
                    Some((Arc::downgrade(&window), limit))
                })
                .collect();
            if primary {
                // It may take long, and who reads the log is not to wait for it.
                if !std::mem::replace(&mut flushed, true) {
                    self.flush_log();
                }
                room.await;
                continue;
            }
            let Some(limit) = full.iter().map(|(_, limit)| *limit).min() else {
                return;
            };
            let before = Instant::now();
            let _out_of_patience = timeout(limit, room).await;
            let waited = before.elapsed();
            for (window, _) in full {
                if let Some(window) = window.upgrade() {
                    window.charge(waited);
                }
            }
        }
    }
}

/// What one read gave.
enum Taken {
    Bytes(usize),
    /// All was read for now.
    Nothing,
    End,
}
