//! The gateway's errors on the wire: one exhaustive match.

use gantry_kit::fault::{Fault, chain};
use tonic::{Code, Status};

use crate::error::Error;

const DOMAIN: &str = "gantry.gateway";

/// An error as a status, with its reason and operands.
pub(crate) fn status(error: Error) -> Status {
    let message = chain(&error);
    let fault = |code, reason| Fault::new(code, DOMAIN, reason, message.clone());
    let fault = match error {
        Error::NotFound { query } => {
            fault(Code::NotFound, "CONTAINER_NOT_FOUND").with("container", query)
        }
        Error::Ambiguous { query, count } => fault(Code::InvalidArgument, "AMBIGUOUS_ID")
            .with("container", query)
            .with("count", count),
        Error::NameInUse { name, id } => fault(Code::AlreadyExists, "NAME_IN_USE")
            .with("name", name)
            .with("container", id),
        Error::InvalidName { name } => {
            fault(Code::InvalidArgument, "INVALID_NAME").with("name", name)
        }
        Error::Invalid { field, problem } => fault(Code::InvalidArgument, "INVALID_CONFIG")
            .with("field", field)
            .with("problem", problem),
        Error::BindSourceMissing { path, target } => {
            fault(Code::InvalidArgument, "BIND_SOURCE_MISSING")
                .with("source", path.display())
                .with("target", target)
        }
        Error::NoCommand { image } => {
            fault(Code::InvalidArgument, "NO_COMMAND").with("image", image)
        }
        Error::WrongState { name, verb, state } => {
            let reason = if verb == "start" {
                "CANNOT_START"
            } else {
                "WRONG_STATE"
            };
            fault(Code::FailedPrecondition, reason)
                .with("container", name)
                .with("verb", verb)
                .with("state", state)
        }
        Error::Busy {
            name,
            verb,
            state,
            seconds,
        } => fault(Code::DeadlineExceeded, "CONTAINER_BUSY")
            .with("container", name)
            .with("verb", verb)
            .with("state", state)
            .with("seconds", seconds),
        Error::DamagedRecord { name, verb, path } => {
            fault(Code::FailedPrecondition, "DAMAGED_RECORD")
                .with("container", name)
                .with("verb", verb)
                .with("path", path.display())
        }
        Error::StillRunning { name, state } => fault(Code::FailedPrecondition, "CONTAINER_RUNNING")
            .with("container", name)
            .with("state", state),
        Error::RemovedMeanwhile { name } => {
            fault(Code::Aborted, "CONTAINER_REMOVED").with("container", name)
        }
        Error::NoPath { name, path } => fault(Code::NotFound, "PATH_NOT_FOUND")
            .with("container", name)
            .with("path", path),
        Error::FilesBusy { name } => {
            fault(Code::FailedPrecondition, "FILES_BUSY").with("container", name)
        }
        Error::Unkillable { name, seconds } => fault(Code::DeadlineExceeded, "UNKILLABLE")
            .with("container", name)
            .with("seconds", seconds),
        // Another service's own error: as it is.
        Error::Peer { fault, .. } => *fault,
        Error::Unanswered { peer, problem } => fault(Code::Unavailable, "SERVICE_UNAVAILABLE")
            .with("service", peer.name())
            .with("problem", problem),
        Error::Store { id, source } if source.is_full() => {
            fault(Code::ResourceExhausted, "DISK_FULL").with("container", id)
        }
        Error::NotRecorded { name, state, .. } => fault(Code::DataLoss, "NOT_RECORDED")
            .with("container", name)
            .with("state", state),
        Error::Store { id, .. } => fault(Code::Internal, "RECORD_NOT_KEPT").with("container", id),
        Error::LogLeft { id, problem } => fault(Code::FailedPrecondition, "LOG_LEFT")
            .with("container", id)
            .with("problem", problem),
        Error::Records { .. } => fault(Code::Internal, "RECORDS_NOT_READ"),
        Error::CallerGone => fault(Code::Cancelled, "CALLER_GONE"),
        Error::Stopping => fault(Code::Unavailable, "STOPPING"),
        Error::InputLost => fault(Code::DataLoss, "INPUT_LOST"),
        Error::Task { .. } => fault(Code::Internal, "TASK_FAILED"),
        Error::Random { .. } => fault(Code::Internal, "NO_RANDOMNESS"),
        Error::File { action, path, .. } => fault(Code::FailedPrecondition, "FILE")
            .with("action", action)
            .with("path", path.display()),
    };
    if matches!(fault.code, Code::Internal) {
        tracing::error!(reason = fault.reason, "{}", fault.message);
    }
    fault.into()
}
