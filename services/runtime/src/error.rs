//! What this service answers when it can not do what it was asked.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use gantry_kit::fault::{Fault, chain};
use tonic::{Code, Status as RpcStatus};

use crate::life::Status;

const DOMAIN: &str = "gantry.runtime";

/// Every failure of the service.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no container {id:?}")]
    NotFound { id: String },
    #[error("container {id:?} exists already")]
    Exists { id: String },
    #[error("{field}: {problem}")]
    Invalid {
        field: &'static str,
        problem: String,
    },
    #[error("unknown or invalid runtime name: {name}: {why}")]
    UnknownRuntime { name: String, why: String },
    #[error("container {id:?} is {status}; {advice}")]
    WrongState {
        id: String,
        status: Status,
        advice: &'static str,
    },
    #[error("{step} {path:?}")]
    File {
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot start the shim {program:?} of container {id:?}")]
    Spawn {
        id: String,
        program: PathBuf,
        source: io::Error,
    },
    #[error(
        "container {id:?}: its shim (process {pid}) is stopped; `kill -CONT {pid}` lets it go on, `rm -f` ends it"
    )]
    Stopped { id: String, pid: i32 },
    #[error("container {id:?}: its shim did not answer within {limit:?}")]
    NoAnswer { id: String, limit: Duration },
    #[error("container {id:?}: its shim has died{why}")]
    Gone { id: String, why: String },
    #[error("container {id:?}: what its dead shim left cannot be removed: {why}")]
    Sweep { id: String, why: String },
    #[error("container {id:?} has no log")]
    NoLog { id: String },
    #[error("there is no {path:?} in container {id:?}")]
    NoPath { id: String, path: String },
    #[error("cannot {step} {path:?} in container {id:?}")]
    Path {
        id: String,
        path: String,
        step: &'static str,
        source: io::Error,
    },
    #[error("{path:?} in container {id:?} is on a file system that is mounted read-only")]
    ReadOnly { id: String, path: String },
    #[error("copying out of container {id:?}")]
    Pack {
        id: String,
        source: gantry_archive::pack::PackError,
    },
    #[error("copying to {path:?} in container {id:?}")]
    Unpack {
        id: String,
        path: String,
        source: gantry_archive::unpack::UnpackError,
    },
    #[error("events were produced faster than they were read; ask again")]
    Lagged,
    #[error("the runtime service stops; ask again when it is back")]
    Stopping,
    /// A shim's own error, passed on as it is.
    #[error("{}", .0.message())]
    Shim(Box<RpcStatus>),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether a container's own runtime, which is not the shim, did not end in time.
    pub(crate) fn is_runtime_stuck(&self) -> bool {
        matches!(self, Self::Shim(status) if Fault::from_status(status).is("RUNTIME_STUCK"))
    }

    pub(crate) fn file(
        step: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::File {
            step,
            path: path.into(),
            source: source.into(),
        }
    }
}

/// Why a path could not be used.
fn path_reason(source: &io::Error) -> (Code, &'static str) {
    use rustix::io::Errno;
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOTDIR) => (Code::FailedPrecondition, "NOT_A_DIRECTORY"),
        // A link that leads to itself, or a magic one of a procfs.
        Some(Errno::LOOP) => (Code::FailedPrecondition, "LINK_LOOP"),
        _ => (Code::FailedPrecondition, "PATH_NOT_USABLE"),
    }
}

/// Why an archive could not be unpacked.
fn unpack_reason(error: &gantry_archive::unpack::UnpackError) -> (Code, &'static str) {
    use gantry_archive::unpack::UnpackError as E;
    match error {
        E::Read(_) => (Code::InvalidArgument, "BAD_ARCHIVE"),
        E::Escapes { .. } => (Code::InvalidArgument, "PATH_ESCAPES"),
        E::NoSuchId { .. } => (Code::InvalidArgument, "NO_SUCH_ID"),
        E::OverDirectory { .. } => (Code::FailedPrecondition, "OVER_DIRECTORY"),
        E::OverFile { .. } => (Code::FailedPrecondition, "OVER_FILE"),
        E::Write { .. } => (Code::FailedPrecondition, "NOT_COPIED"),
    }
}

impl From<Error> for RpcStatus {
    fn from(error: Error) -> Self {
        let (code, reason) = match &error {
            Error::NotFound { .. } => (Code::NotFound, "CONTAINER_NOT_FOUND"),
            Error::Exists { .. } => (Code::AlreadyExists, "CONTAINER_EXISTS"),
            Error::Invalid { .. } => (Code::InvalidArgument, "INVALID_ARGUMENT"),
            Error::UnknownRuntime { .. } => (Code::InvalidArgument, "UNKNOWN_RUNTIME"),
            Error::WrongState { .. } => (Code::FailedPrecondition, "WRONG_STATE"),
            Error::File { .. } => (Code::Internal, "FILE"),
            Error::Spawn { .. } => (Code::Internal, "SHIM_NOT_STARTED"),
            Error::Stopped { .. } => (Code::Unavailable, "SHIM_STOPPED"),
            Error::NoAnswer { .. } => (Code::DeadlineExceeded, "SHIM_NO_ANSWER"),
            Error::Gone { .. } => (Code::Unavailable, "SHIM_GONE"),
            Error::Sweep { .. } => (Code::Internal, "NOT_SWEPT"),
            Error::NoLog { .. } => (Code::NotFound, "NO_LOG"),
            Error::NoPath { .. } => (Code::NotFound, "PATH_NOT_FOUND"),
            Error::Path { source, .. } => path_reason(source),
            Error::ReadOnly { .. } => (Code::FailedPrecondition, "READ_ONLY"),
            Error::Pack { .. } => (Code::FailedPrecondition, "NOT_COPIED"),
            Error::Unpack { source, .. } => unpack_reason(source),
            Error::Lagged => (Code::DataLoss, "EVENTS_LOST"),
            Error::Stopping => (Code::Unavailable, "STOPPING"),
            Error::Shim(status) => return (**status).clone(),
        };
        let mut fault = Fault::new(code, DOMAIN, reason, chain(&error));
        match &error {
            Error::NotFound { id }
            | Error::Exists { id }
            | Error::Spawn { id, .. }
            | Error::NoAnswer { id, .. }
            | Error::Gone { id, .. }
            | Error::Sweep { id, .. }
            | Error::NoLog { id } => fault = fault.with("container_id", id),
            Error::Stopped { id, pid } => {
                fault = fault.with("container_id", id).with("shim_pid", pid);
            }
            Error::WrongState { id, status, .. } => {
                fault = fault.with("container_id", id).with("status", status);
            }
            Error::UnknownRuntime { name, .. } => fault = fault.with("runtime", name),
            Error::Invalid { field, .. } => fault = fault.with("field", field),
            Error::File { path, .. } => fault = fault.with("path", path.display()),
            Error::NoPath { id, path }
            | Error::Path { id, path, .. }
            | Error::ReadOnly { id, path }
            | Error::Unpack { id, path, .. } => {
                fault = fault.with("container_id", id).with("path", path);
            }
            Error::Pack { id, .. } => fault = fault.with("container_id", id),
            Error::Lagged | Error::Stopping | Error::Shim(_) => {}
        }
        fault.into()
    }
}
