//! Errors of the command, and how they read.

use std::io;
use std::path::{Path, PathBuf};

use crate::container::{Error, ExecFailure};

/// What can go wrong beside the runtime itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// There is no such container.
    #[error("container {id:?} does not exist")]
    NoContainer {
        /// The id asked for.
        id: String,
    },
    /// The id is taken.
    #[error("container with id {id:?} exists already")]
    Exists {
        /// The id.
        id: String,
    },
    /// A container is not in the state that a verb needs.
    #[error("cannot {verb} container {id:?}: {why}")]
    State {
        /// The container.
        id: String,
        /// The verb.
        verb: &'static str,
        /// Why not.
        why: String,
    },
    /// A file could not be read or written.
    #[error("{what} {path:?}")]
    File {
        /// "read", "write".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A JSON file is wrong.
    #[error("{path:?} is not a valid {what}")]
    Json {
        /// What it was to be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The runtime's error.
    #[error(transparent)]
    Runtime(#[from] Error),
}

impl CliError {
    pub(super) fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    pub(super) fn file(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            what,
            path: path.to_owned(),
            source,
        }
    }

    /// The whole chain in one line.
    pub(super) fn line(&self) -> String {
        // Docker and Podman tell "not found" (127) and "not executable" (126) apart by these words of runc's.
        if let Self::Runtime(Error::Exec {
            program,
            failure,
            source,
        }) = self
        {
            return match failure {
                ExecFailure::NotFound if program.contains('/') => {
                    format!("exec: {program:?}: stat {program}: no such file or directory")
                }
                ExecFailure::NotFound => {
                    format!("exec: {program:?}: executable file not found in $PATH")
                }
                ExecFailure::NotExecutable if source.raw_os_error() == Some(libc::EISDIR) => {
                    format!("exec: {program:?}: is a directory: permission denied")
                }
                ExecFailure::NotExecutable => {
                    format!("exec: {program:?}: permission denied ({source})")
                }
            };
        }
        let mut line = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            line.push_str(": ");
            line.push_str(&cause.to_string());
            source = cause.source();
        }
        line
    }
}
