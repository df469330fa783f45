//! Runs a command to its end, or to a deadline, and keeps what it said.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// No command of the tests has a reason to take longer, but the few that say so.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// What a finished command said.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The command line, for messages.
    pub line: String,
    /// Exit code; 128 + the signal where one ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Outcome {
    /// The outcome, where the command ended with `code`.
    ///
    /// # Errors
    /// It ended with another; the error shows everything.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        ensure!(self.code == code, "wanted exit code {code} of {self}");
        Ok(self)
    }

    /// Standard output without the final newline, where the command succeeded.
    ///
    /// # Errors
    /// It failed.
    pub fn text(self) -> Result<String> {
        Ok(self.expect_code(0)?.stdout.trim_end().to_owned())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}`: exit code {} after {:?}\n--- stdout\n{}\n--- stderr\n{}\n---",
            self.line,
            self.code,
            self.took,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

/// Runs `command` with `input` on its standard input.
///
/// # Errors
/// It cannot be started, or does not end before the deadline (it is killed
/// then, and the error shows what it said so far).
pub fn run(command: &mut Command, input: &[u8], deadline: Duration) -> Result<Outcome> {
    Ok(to_end(command, input, deadline)?.0)
}

/// As [`run`], for a command that must succeed: its standard output as it is.
///
/// # Errors
/// As [`run`], or it fails.
pub fn run_bytes(command: &mut Command, input: &[u8], deadline: Duration) -> Result<Vec<u8>> {
    let (outcome, stdout) = to_end(command, input, deadline)?;
    ensure!(
        outcome.code == 0,
        "`{}`: exit code {}: {}",
        outcome.line,
        outcome.code,
        outcome.stderr
    );
    Ok(stdout)
}

fn to_end(command: &mut Command, input: &[u8], deadline: Duration) -> Result<(Outcome, Vec<u8>)> {
    let line = command_line(command);
    let started = Instant::now();
    let mut child = command
        .stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let writer = child.stdin.take().map(|mut stdin| {
        let input = input.to_owned();
        // A command that does not read its input may hang up on it.
        thread::spawn(move || stdin.write_all(&input).is_ok())
    });
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);

    let ended = wait_until(&child, started + deadline)?;
    if !ended {
        child.kill()?;
    }
    let status = child.wait()?;
    let took = started.elapsed();
    if !ended {
        // A grandchild may hold the pipes open for longer than we wait.
        bail!("`{line}` did not end within {deadline:?}; it was killed");
    }
    if let Some(writer) = writer {
        drop(writer);
    }
    let stdout = collected(stdout);
    let outcome = Outcome {
        line,
        code: status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&collected(stderr)).into_owned(),
        took,
    };
    Ok((outcome, stdout))
}

/// Whether the child ended before `deadline`. It is not reaped.
///
/// # Errors
/// The kernel has no pidfd for it.
pub fn wait_until(child: &Child, deadline: Instant) -> Result<bool> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
    wait_readable(&pidfd, deadline)
}

/// Whether `fd` became readable before `deadline`.
///
/// # Errors
/// poll(2) fails.
pub fn wait_readable(fd: &impl std::os::fd::AsFd, deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("deadline out of range")?;
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
    }
}

/// The command as a person would type it.
#[must_use]
pub fn command_line(command: &Command) -> String {
    let program = command
        .get_program()
        .to_string_lossy()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let arguments = command.get_args().map(|word| {
        let word = word.to_string_lossy();
        if word.is_empty() || word.contains([' ', '\n', '"', '$']) {
            format!("{word:?}")
        } else {
            word.into_owned()
        }
    });
    std::iter::once(program)
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What arrived before an error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn collected(reader: Option<thread::JoinHandle<Vec<u8>>>) -> Vec<u8> {
    let bytes = reader.map(|reader| reader.join().unwrap_or_default());
    bytes.unwrap_or_default()
}
