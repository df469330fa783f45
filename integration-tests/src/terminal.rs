//! A real terminal: tmux, driven from outside, on a server of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::command;

/// One terminal window.
#[derive(Debug)]
pub struct Terminal {
    directory: TempDir,
}

impl Terminal {
    /// Opens a terminal of `columns` by `rows` that runs a shell.
    ///
    /// # Errors
    /// tmux is not installed (`make test` installs it).
    pub fn open(columns: u16, rows: u16) -> Result<Self> {
        let terminal = Self {
            directory: tempfile::Builder::new().prefix("gt-tmux-").tempdir()?,
        };
        terminal.tmux(&[
            "new-session",
            "-d",
            "-x",
            &columns.to_string(),
            "-y",
            &rows.to_string(),
            "env PS1='host> ' /bin/sh",
        ])?;
        terminal.wait_for("host>")?;
        Ok(terminal)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("tmux.sock")
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        command::run(
            Command::new("tmux")
                .arg("-f")
                .arg("/dev/null")
                .arg("-S")
                .arg(self.socket())
                .args(arguments)
                .env("LC_ALL", "C.UTF-8"),
            b"",
            Duration::from_secs(10),
        )
        .context("tmux: install the Debian package of that name")?
        .text()
    }

    /// Types `text`, then Enter.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn enter(&self, text: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", "--", text])?;
        self.key("Enter")
    }

    /// Presses one key, by tmux's name for it: "C-c", "C-z".
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn key(&self, name: &str) -> Result<()> {
        self.tmux(&["send-keys", name]).map(drop)
    }

    /// # Errors
    /// The terminal is gone.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        self.tmux(&[
            "resize-window",
            "-x",
            &columns.to_string(),
            "-y",
            &rows.to_string(),
        ])
        .map(drop)
    }

    /// What the terminal shows, with what scrolled away.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p", "-J", "-S", "-1000"])
    }

    /// Waits until the terminal shows `text`.
    ///
    /// # Errors
    /// It does not within 20 s; the error shows the screen.
    pub fn wait_for(&self, text: &str) -> Result<String> {
        self.wait_until(text, |screen| screen.contains(text))
    }

    /// Waits until `shown` holds for the screen.
    ///
    /// # Errors
    /// It does not within 20 s; the error shows the screen.
    pub fn wait_until(&self, what: &str, shown: impl Fn(&str) -> bool) -> Result<String> {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let screen = self.screen()?;
            if shown(&screen) {
                return Ok(screen);
            }
            if Instant::now() > end {
                bail!("the terminal does not show {what:?}, but:\n{screen}\n---");
            }
            // tmux has no event for "the screen changed" without a client.
            std::thread::sleep(Duration::from_millis(30));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}
