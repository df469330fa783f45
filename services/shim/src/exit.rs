//! How a process ended, and the file that keeps it.
//!
//! `<bundle>/exit.json` is written (whole, by a rename) before anybody is told:
//! a runtime that comes back later, or finds the shim gone, reads it there.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// Name of the file in the bundle directory.
pub const EXIT_FILE: &str = "exit.json";

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// 0-255, or 128 + the signal that ended the process.
    pub code: i32,
    /// The signal that ended the process; 0: it exited by itself.
    pub signal: i32,
    /// The kernel's OOM killer ended a process of the container.
    pub oom_killed: bool,
    /// When it was reaped, in nanoseconds since the Unix epoch.
    pub exited_unix_nanos: u64,
    /// Why the end is not the program's own doing. Empty: it is.
    #[serde(default)]
    pub error: String,
}

impl ExitStatus {
    /// The status of a process that was just reaped: its exit code, or the
    /// signal that ended it.
    #[must_use]
    pub fn reaped(code: Option<i32>, signal: Option<i32>) -> Self {
        let signal = signal.unwrap_or(0);
        Self {
            code: code.unwrap_or(128 + signal),
            signal,
            oom_killed: false,
            exited_unix_nanos: unix_nanos(SystemTime::now()),
            error: String::new(),
        }
    }

    #[must_use]
    pub fn exited_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.exited_unix_nanos)
    }
}

/// Nanoseconds since the Unix epoch; 0 for a clock before it.
#[must_use]
pub fn unix_nanos(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        })
}

/// A file of the bundle that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path:?}")]
pub struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// Replaces `name` in `directory` as a whole. No fsync: the directory ends with
/// the machine's uptime, as the processes do that it tells of.
///
/// # Errors
/// The file cannot be written.
pub fn write_whole(directory: &Path, name: &str, content: &[u8]) -> Result<(), WriteError> {
    let path = directory.join(name);
    let temporary = directory.join(format!(".{name}.new"));
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| fs::rename(&temporary, &path))
        .map_err(|source| WriteError { path, source })
}

/// Writes the exit status of the container's first process.
///
/// # Errors
/// The file cannot be written.
pub fn keep(bundle: &Path, status: &ExitStatus) -> Result<(), WriteError> {
    let text = serde_json::to_vec(status).map_err(|source| WriteError {
        path: bundle.join(EXIT_FILE),
        source: source.into(),
    })?;
    write_whole(bundle, EXIT_FILE, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_becomes_128_and_more() {
        let status = ExitStatus::reaped(None, Some(9));
        assert_eq!((status.code, status.signal), (137, 9));
        let status = ExitStatus::reaped(Some(7), None);
        assert_eq!((status.code, status.signal), (7, 0));
    }

    #[test]
    fn a_kept_status_reads_back() {
        let bundle = tempfile::tempdir().unwrap();
        let status = ExitStatus::reaped(Some(3), None);
        keep(bundle.path(), &status).unwrap();
        let text = fs::read(bundle.path().join(EXIT_FILE)).unwrap();
        assert_eq!(serde_json::from_slice::<ExitStatus>(&text).unwrap(), status);
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 1);
    }
}
