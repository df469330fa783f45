//! What the shim answers when it can not do what it was asked, and how that
//! crosses the wire.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::container::{self, shortened};

/// The domain in `google.rpc.ErrorInfo`.
const DOMAIN: &str = "gantry.shim";

/// Longest message of a status, and longest operand in its details. Each is
/// encoded once or twice, and gRPC recommends 8 KiB for all headers of a call.
const MESSAGE_BYTES: usize = 1 << 10;
const OPERAND_BYTES: usize = 256;

/// Every failure of the shim.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("container {id:?} was created here already")]
    Created { id: String },
    #[error("no container was created here yet")]
    Empty,
    #[error("the container was started already")]
    Started,
    #[error("the container is not running")]
    NotRunning,
    #[error("the container still runs; stop it first, or force")]
    Busy,
    #[error("no process {exec_id:?} in this container")]
    NoProcess { exec_id: String },
    #[error("a process {exec_id:?} exists in this container already")]
    ProcessExists { exec_id: String },
    #[error("process {process:?} has no terminal")]
    NoTerminal { process: String },
    #[error("{field}: {problem}")]
    Invalid {
        field: &'static str,
        problem: String,
    },
    #[error("{step}")]
    Io {
        step: &'static str,
        source: io::Error,
    },
    #[error("a process of the container did not end within {limit:?} of SIGKILL")]
    Stuck { limit: Duration },
    /// Another runtime's own error.
    #[error("runtime {runtime} ({verb}): {words}")]
    Runtime {
        runtime: String,
        verb: &'static str,
        words: String,
        exit_code: i32,
    },
    #[error(
        "runtime {runtime} did not {verb} the container within {limit:?}, and was ended; try again, or remove the container by force"
    )]
    RuntimeStuck {
        runtime: String,
        verb: &'static str,
        limit: Duration,
    },
    #[error(transparent)]
    Container(#[from] container::Error),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with all its causes on one line.
#[must_use]
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            // Writing to a string cannot fail.
            let _infallible = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Code and reason of a container's error.
fn classify(error: &container::Error) -> (Code, &'static str) {
    use container::{Error as E, ExecFailure};
    match error {
        E::Invalid { .. } => (Code::InvalidArgument, "INVALID_SPEC"),
        E::Exec {
            failure: ExecFailure::NotFound,
            ..
        } => (Code::FailedPrecondition, "COMMAND_NOT_FOUND"),
        E::Exec {
            failure: ExecFailure::NotExecutable,
            ..
        } => (Code::FailedPrecondition, "COMMAND_NOT_EXECUTABLE"),
        E::Directory { .. } => (Code::FailedPrecondition, "WORKING_DIRECTORY"),
        E::UnknownUser { .. } => (Code::FailedPrecondition, "UNKNOWN_USER"),
        E::MissingSource { .. } => (Code::FailedPrecondition, "MISSING_MOUNT_SOURCE"),
        E::Hook { .. } => (Code::Aborted, "HOOK_FAILED"),
        E::State { .. } => (Code::FailedPrecondition, "WRONG_STATE"),
        E::Threads { .. } => (Code::Internal, "THREADS"),
        E::Died { .. } => (Code::Aborted, "PROCESS_DIED"),
        E::Unsupported { .. } => (Code::Unimplemented, "UNSUPPORTED"),
        // The container's error may grow; a failed step is what it then is.
        _ => (Code::Internal, "STEP_FAILED"),
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut metadata = std::collections::HashMap::new();
        let (code, reason) = match &error {
            Error::Created { .. } => (Code::AlreadyExists, "CONTAINER_EXISTS"),
            Error::Empty => (Code::FailedPrecondition, "NO_CONTAINER"),
            Error::Started => (Code::FailedPrecondition, "ALREADY_STARTED"),
            Error::NotRunning => (Code::FailedPrecondition, "NOT_RUNNING"),
            Error::Busy => (Code::FailedPrecondition, "STILL_RUNNING"),
            Error::NoProcess { exec_id } => {
                metadata.insert("exec_id".to_owned(), exec_id.clone());
                (Code::NotFound, "NO_PROCESS")
            }
            Error::ProcessExists { exec_id } => {
                metadata.insert("exec_id".to_owned(), exec_id.clone());
                (Code::AlreadyExists, "PROCESS_EXISTS")
            }
            Error::NoTerminal { .. } => (Code::FailedPrecondition, "NO_TERMINAL"),
            Error::Invalid { field, .. } => {
                metadata.insert("field".to_owned(), (*field).to_owned());
                (Code::InvalidArgument, "INVALID_ARGUMENT")
            }
            Error::Io { .. } => (Code::Internal, "STEP_FAILED"),
            Error::Stuck { .. } => (Code::DeadlineExceeded, "PROCESS_STUCK"),
            Error::Runtime {
                runtime, exit_code, ..
            } => {
                metadata.insert("runtime".to_owned(), runtime.clone());
                metadata.insert("exit_code".to_owned(), exit_code.to_string());
                match exit_code {
                    127 => (Code::FailedPrecondition, "COMMAND_NOT_FOUND"),
                    126 => (Code::FailedPrecondition, "COMMAND_NOT_EXECUTABLE"),
                    _ => (Code::Aborted, "RUNTIME_FAILED"),
                }
            }
            Error::RuntimeStuck { runtime, .. } => {
                metadata.insert("runtime".to_owned(), runtime.clone());
                (Code::DeadlineExceeded, "RUNTIME_STUCK")
            }
            Error::Container(error) => {
                metadata.insert("exit_code".to_owned(), error.exit_code().to_string());
                if let container::Error::Invalid { field, problem } = error {
                    metadata.insert("field".to_owned(), field.clone());
                    metadata.insert("problem".to_owned(), problem.clone());
                }
                classify(error)
            }
        };
        // A status goes in headers, and one whose headers are too long ends the
        // connection that all of the container's calls are on.
        let message = shortened(&chain(&error), MESSAGE_BYTES);
        for value in metadata.values_mut() {
            *value = shortened(value, OPERAND_BYTES);
        }
        Self::with_error_details(
            code,
            message,
            ErrorDetails::with_error_info(reason, DOMAIN, metadata),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_short_however_long_the_command_line_is() {
        let error = Error::Container(container::Error::Exec {
            program: "é\n".repeat(1 << 20),
            failure: container::ExecFailure::NotFound,
            source: io::Error::from_raw_os_error(libc::ENAMETOOLONG),
        });
        let status = Status::from(error);
        assert!(status.message().len() <= MESSAGE_BYTES);
        assert!(status.message().starts_with("cannot execute"));
        assert!(status.message().ends_with("(os error 36)"), "{status}");
        assert!(status.details().len() < 2 * MESSAGE_BYTES);
    }
}
