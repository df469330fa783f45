//! A pseudo terminal with a command in it, whose every byte is kept: for what a
//! window must carry to the byte. [`crate::terminal`] shows what a person sees.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use rustix::termios::{Winsize, tcsetwinsize};

use crate::engine::send;

/// What has come so far, and whether that is all.
#[derive(Debug, Default)]
struct Screen {
    bytes: Vec<u8>,
    ended: bool,
}

type Shared = Arc<(Mutex<Screen>, Condvar)>;

/// One terminal.
#[derive(Debug)]
pub struct Pty {
    master: File,
    child: Child,
    screen: Shared,
    reader: Option<JoinHandle<()>>,
}

impl Pty {
    /// Runs `command` in a new terminal of that size, as the leader of its session.
    ///
    /// # Errors
    /// There is no terminal left, or the command cannot be run.
    pub fn spawn(command: &Command, columns: u16, rows: u16) -> Result<Self> {
        let pair = nix::pty::openpty(None, None).context("no terminal is left")?;
        tcsetwinsize(
            &pair.master,
            Winsize {
                ws_row: rows,
                ws_col: columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )?;
        for end in [&pair.master, &pair.slave] {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
        }
        // util-linux: makes the terminal the controlling one, and becomes the command.
        let mut inside = Command::new("setsid");
        inside
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            if let Some(value) = value {
                inside.env(key, value);
            }
        }
        let end = |fd: &OwnedFd| fd.try_clone().map(Stdio::from);
        let child = inside
            .stdin(end(&pair.slave)?)
            .stdout(end(&pair.slave)?)
            .stderr(end(&pair.slave)?)
            .current_dir("/")
            .spawn()?;
        drop(inside);
        drop(pair.slave);
        let master = File::from(pair.master);
        let screen = Shared::default();
        let mut source = master.try_clone()?;
        let shared = Arc::clone(&screen);
        let reader = thread::spawn(move || {
            let (screen, changed) = &*shared;
            let mut buffer = vec![0; 64 << 10];
            loop {
                // A terminal that nobody has open any more is an error, EIO.
                let count = source.read(&mut buffer).unwrap_or(0);
                let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
                screen.bytes.extend_from_slice(&buffer[..count]);
                screen.ended = count == 0;
                changed.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        Ok(Self {
            master,
            child,
            screen,
            reader: Some(reader),
        })
    }

    /// Types.
    ///
    /// # Errors
    /// The terminal is closed.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        Ok(self.master.write_all(text.as_bytes())?)
    }

    /// Waits until a text has come, and returns all that has.
    ///
    /// # Errors
    /// It does not come in a minute, or can not come any more.
    pub fn wait_for_text(&self, text: &str) -> Result<Vec<u8>> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let (screen, changed) = &*self.screen;
        let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
        // Each byte is looked at once: who looks holds the reader up.
        let mut looked_at = 0;
        loop {
            if find(&screen.bytes[looked_at..], text).is_some() {
                return Ok(screen.bytes.clone());
            }
            looked_at = (screen.bytes.len() + 1).saturating_sub(text.len());
            let left = deadline.saturating_duration_since(Instant::now());
            if screen.ended || left.is_zero() {
                let from = screen.bytes.len().saturating_sub(400);
                bail!(
                    "{text:?} did not come; {} bytes did, the last: {:?}",
                    screen.bytes.len(),
                    String::from_utf8_lossy(&screen.bytes[from..])
                );
            }
            let waited = changed.wait_timeout(screen, left);
            screen = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends the command a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(i32::try_from(self.child.id())?, signal)
    }

    /// Waits for the command's end. Its exit code, and all that came.
    ///
    /// # Errors
    /// It does not end by itself.
    pub fn finish(mut self) -> Result<(i32, Vec<u8>)> {
        // Nobody else has the terminal open: its end is the command's.
        let ended = Arc::clone(&self.screen);
        let (screen, changed) = &*ended;
        let locked = screen.lock().unwrap_or_else(PoisonError::into_inner);
        let (locked, waited) = changed
            .wait_timeout_while(locked, Duration::from_secs(60), |screen| !screen.ended)
            .unwrap_or_else(PoisonError::into_inner);
        drop(locked);
        if waited.timed_out() {
            self.child.kill()?;
        }
        let status = self.child.wait()?;
        if let Some(reader) = self.reader.take() {
            reader.join().ok();
        }
        let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = std::mem::take(&mut screen.bytes);
        let signalled = status.signal().map(|number| 128 + number);
        Ok((status.code().or(signalled).unwrap_or(-1), bytes))
    }
}

/// Where a text begins in what came.
#[must_use]
pub fn find(bytes: &[u8], text: &str) -> Option<usize> {
    memchr::memmem::find(bytes, text.as_bytes())
}
