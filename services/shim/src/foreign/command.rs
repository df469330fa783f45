//! Running the program.
//!
//! Each call gets a log of its own, in runc's JSON format: its last error is what the program says of a failure. A
//! program that wrote none has said it on its standard error.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::timeout;

use super::Foreign;
use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::process::Ends;
use crate::shim::Shim;
use crate::stdio::lock;

/// The environment is the same wherever the shim was started from.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a call that was killed may take to go.
const FAREWELL: Duration = Duration::from_secs(2);

/// So much of the end of a log or of a standard error is looked at.
const TAIL: usize = 64 << 10;

/// Longest text of an error that is passed on.
const WORDS_MAX: usize = 4 << 10;

/// The standard streams of a call: what the process that it makes gets.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// One call of the program.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) verb: &'static str,
    /// Options of the verb. The container's id follows.
    pub(super) words: &'a [&'a OsStr],
    /// With the shim's ends of them. `None`: no input, and the output is kept for the error.
    pub(super) streams: Option<(Streams, &'a Ends)>,
    pub(super) limit: Duration,
}

/// A line of the log.
#[derive(Debug, Deserialize)]
struct Entry {
    level: String,
    msg: String,
}

impl Foreign {
    /// Runs the program to its end.
    ///
    /// # Errors
    /// It cannot be executed, fails, or does not end in time.
    pub(super) async fn run(&self, shim: &Shim, call: Call<'_>) -> Result<()> {
        let number = self.number();
        let log = self.directory().join(format!("log.{number}"));
        let errors = self.directory().join(format!("err.{number}"));
        let outcome = self.carry_out(shim, call, &log, &errors).await;
        for file in [&log, &errors] {
            // A program that succeeds may have written none.
            let _none = fs::remove_file(file);
        }
        match &outcome {
            Ok(()) => lock(&self.trouble).clear(),
            Err(error @ Error::RuntimeStuck { .. }) => {
                *lock(&self.trouble) = error.to_string();
            }
            Err(_) => {}
        }
        outcome
    }

    async fn carry_out(
        &self,
        shim: &Shim,
        call: Call<'_>,
        log: &Path,
        errors: &Path,
    ) -> Result<()> {
        let Call {
            verb,
            words,
            streams,
            limit,
        } = call;
        let (streams, ends) = streams.unzip();
        let mut command = self.command(log, streams, errors)?;
        command.arg(verb).args(words).arg(&self.id);
        let child = command.spawn().map_err(|error| {
            let path = self.program.path.display();
            self.unfit(verb, format!("cannot execute {path}: {error}"))
        })?;
        // The child's copies are its own; ours would keep the pipes open.
        drop(command);
        let pid = i32::try_from(child.id())
            .map_err(|error| Self::failed("a process number")(io::Error::other(error)))?;
        let mut ended = shim.births.end_of(pid);
        let status = match timeout(limit, &mut ended).await {
            Ok(status) => status,
            Err(_) => {
                // Its number is nobody else's until it is reaped, which is done here.
                let _no_group = gantry_sys::process::send_signal(-pid, libc::SIGKILL);
                let _stuck_in_the_kernel = timeout(FAREWELL, ended).await;
                return Err(Error::RuntimeStuck {
                    runtime: self.program.name.clone(),
                    verb,
                    limit,
                });
            }
        };
        match status {
            Ok(status) if status.code == 0 => Ok(()),
            Ok(status) => {
                let printed = match ends {
                    Some(ends) => ends.errors(TAIL),
                    None => tail(errors),
                };
                let words = said(log, &printed, &status);
                Err(Error::Runtime {
                    runtime: self.program.name.clone(),
                    verb,
                    exit_code: exit_code(&words),
                    words,
                })
            }
            Err(_) => Err(self.unfit(verb, "its end was lost".to_owned())),
        }
    }

    fn command(&self, log: &Path, streams: Option<Streams>, errors: &Path) -> Result<Command> {
        let mut command = Command::new(&self.program.path);
        command
            .args(&self.program.args)
            .arg("--root")
            .arg(self.directory().join("state"))
            .arg("--log")
            .arg(log)
            .args(["--log-format", "json"])
            .env_clear()
            .env("PATH", PATH)
            .current_dir(self.directory())
            .process_group(0);
        match streams {
            Some(streams) => {
                command
                    .stdin(streams.stdin)
                    .stdout(streams.stdout)
                    .stderr(streams.stderr);
            }
            None => {
                let kept = || {
                    let mut options = OpenOptions::new();
                    options.append(true).create(true).mode(0o600).open(errors)
                };
                let opened = kept().and_then(|out| Ok((out, kept()?)));
                let (out, err) =
                    opened.map_err(Self::failed("cannot make a file for a runtime"))?;
                command.stdin(Stdio::null()).stdout(out).stderr(err);
            }
        }
        gantry_sys::spawn::die_with_parent(&mut command, libc::SIGKILL);
        gantry_sys::spawn::with_defaults(&mut command);
        Ok(command)
    }
}

/// Why a call failed, in the program's own words.
fn said(log: &Path, printed: &str, status: &ExitStatus) -> String {
    let logged = tail(log);
    let mut entries = logged
        .lines()
        .filter_map(|line| serde_json::from_str::<Entry>(line).ok());
    let error = entries
        .rfind(|entry| matches!(entry.level.as_str(), "error" | "fatal" | "panic"))
        .map(|entry| entry.msg);
    let line = || {
        let last = printed.lines().rev().find(|line| !line.trim().is_empty());
        last.map(str::to_owned)
    };
    let how = || match status.signal {
        0 => format!("exited with status {}", status.code),
        signal => format!("killed by signal {signal}"),
    };
    let mut words = error.or_else(line).unwrap_or_else(how);
    if words.len() > WORDS_MAX {
        let end = (0..=WORDS_MAX).rev().find(|at| words.is_char_boundary(*at));
        words.truncate(end.unwrap_or(0));
    }
    words.trim().to_owned()
}

/// The end of a file; empty where there is none.
fn tail(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL as u64)))?;
        let mut bytes = Vec::new();
        file.take(TAIL as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// The exit code that the failure has for a person: 127 where the container's program is not there, 126 where it can not
/// be executed. No runtime says it but in words, which all have taken from runc; Docker reads them too.
fn exit_code(words: &str) -> i32 {
    let words = words.to_ascii_lowercase();
    let has = |any: &[&str]| any.iter().any(|part| words.contains(part));
    if !has(&["exec:", "executable"]) {
        125
    } else if has(&["not found", "no such file"]) {
        127
    } else if has(&["permission denied", "is a directory", "exec format"]) {
        126
    } else {
        125
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_the_log_is_what_a_program_says() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let status = ExitStatus::reaped(Some(3), None);
        assert_eq!(said(&log, "", &status), "exited with status 3");
        let printed = "usage\nno such option\n\n";
        assert_eq!(said(&log, printed, &status), "no such option");
        fs::write(
            &log,
            "{\"level\":\"warning\",\"msg\":\"w\"}\nrubbish\n{\"level\":\"error\",\"msg\":\"first\"}\n\
             {\"level\":\"error\",\"msg\":\"last \"}\n{\"level\":\"info\",\"msg\":\"i\"}\n",
        )
        .unwrap();
        assert_eq!(said(&log, printed, &status), "last");
        fs::remove_file(&log).unwrap();
        let long = "é".repeat(WORDS_MAX);
        assert!(said(&log, &long, &status).len() <= WORDS_MAX);
    }

    #[test]
    fn a_missing_program_is_told_from_one_that_cannot_be_executed() {
        for (words, code) in [
            (
                "unable to start container process: exec: \"x\": executable file not found in $PATH",
                127,
            ),
            ("exec: \"/x\": stat /x: no such file or directory", 127),
            (
                "executable file `x` not found in $PATH: No such file or directory",
                127,
            ),
            ("exec: \"/etc/passwd\": permission denied", 126),
            ("open `/x`: No such file or directory", 125),
            ("cgroup: permission denied", 125),
        ] {
            assert_eq!(exit_code(words), code, "{words}");
        }
    }
}
