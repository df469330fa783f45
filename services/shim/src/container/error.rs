//! What can go wrong, typed: which step, which object, which cause.

use std::io;
use std::path::PathBuf;

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a program could not be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecFailure {
    /// No such file, in the root file system or along `PATH`: exit code 127.
    NotFound,
    /// There, but may not or can not be executed (a directory, no x bit, no
    /// interpreter, not a program): exit code 126.
    NotExecutable,
}

impl ExecFailure {
    /// Docker's and the shell's exit code for this failure.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        match self {
            Self::NotFound => 127,
            Self::NotExecutable => 126,
        }
    }
}

/// Every failure of the runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The spec or an option is wrong. Found before anything was changed, where it can be.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field of the spec (`linux.resources.memory.limit`) or option.
        field: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// A step failed, in the parent or in the container's first process.
    #[error("{step}: {object}")]
    Step {
        /// What was being done: "mount", "pivot root", "set capabilities".
        step: String,
        /// To what: a path, a cgroup file, a namespace.
        object: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The container's program could not be executed.
    #[error("cannot execute {program:?}")]
    Exec {
        /// `args[0]` as given.
        program: String,
        /// Whether it is absent or not executable.
        failure: ExecFailure,
        /// The system's answer.
        source: io::Error,
    },
    /// The program's working directory is not there, is none, or is closed to its user.
    #[error("cannot enter the working directory {path:?}")]
    Directory {
        /// `cwd` as given.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// `user` names nobody in the container's /etc/passwd or /etc/group.
    #[error("unknown {kind} {name:?} in the container's /etc/{file}")]
    UnknownUser {
        /// "user" or "group".
        kind: &'static str,
        /// The name that was looked for.
        name: String,
        /// `passwd` or `group`.
        file: &'static str,
    },
    /// A bind mount's source does not exist on the host.
    #[error("bind mount on {destination:?}: source {from:?} does not exist")]
    MissingSource {
        /// The host's path.
        from: PathBuf,
        /// The mount point in the container.
        destination: PathBuf,
    },
    /// A hook exited with a failure, or took longer than its timeout.
    #[error("{kind} hook {path:?} {problem}")]
    Hook {
        /// `createRuntime`, `startContainer`, …
        kind: String,
        /// The program.
        path: PathBuf,
        /// "exited with status 1: …", "timed out after 5 s".
        problem: String,
    },
    /// The verb does not fit the container's state.
    #[error("cannot {verb} container {id:?}: it is {status}")]
    State {
        /// The container.
        id: String,
        /// The verb asked for.
        verb: &'static str,
        /// Its present state.
        status: Status,
    },
    /// `create` and `exec` were called from a process with more than one thread.
    #[error("the process has {count} threads; cloning a container needs exactly one")]
    Threads {
        /// How many there are.
        count: u64,
    },
    /// The child died without a report (killed, out of memory).
    #[error("the container's process ended during \"{step}\": {how}")]
    Died {
        /// The last step heard of.
        step: String,
        /// "killed by signal 9" and alike.
        how: String,
    },
    /// This kernel or machine does not offer what was asked for.
    #[error("{what} is not supported here: {why}")]
    Unsupported {
        /// The feature.
        what: String,
        /// What is missing.
        why: String,
    },
}

use super::record::Status;

/// `text` of at most `limit` bytes: its beginning and its end, and between them how many bytes are left out. What an
/// error names may be as long as a command line, and the ways that an error takes are not.
pub(crate) fn shortened(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let left_out = |bytes| format!("… ({bytes} bytes left out) …");
    let kept = limit.saturating_sub(left_out(text.len()).len());
    let boundary = |index: &usize| text.is_char_boundary(*index);
    let head = (0..=kept / 2).rev().find(boundary).unwrap_or(0);
    let tail = text.len() - kept / 2;
    let tail = (tail..=text.len()).find(boundary).unwrap_or(text.len());
    format!(
        "{}{}{}",
        &text[..head],
        left_out(tail - head),
        &text[tail..]
    )
}

impl Error {
    /// The exit code that Docker's command gives for this error: 126, 127, or 125.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Exec { failure, .. } => failure.exit_code(),
            _ => 125,
        }
    }

    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn step(
        step: impl Into<String>,
        object: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Step {
            step: step.into(),
            object: object.into(),
            source: source.into(),
        }
    }
}
