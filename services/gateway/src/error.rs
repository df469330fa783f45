//! What can go wrong in the gateway, typed: which object, what is wrong, what to
//! do. The wire's side of it is in `grpc/status.rs`.

use std::io;
use std::path::PathBuf;

use gantry_kit::fault::Fault;

use crate::state::State;
use crate::store::StoreError;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A service the gateway calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    Image,
    Network,
    Runtime,
    Registry,
}

impl Peer {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Network => "network",
            Self::Runtime => "runtime",
            Self::Registry => "registry",
        }
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("no such container: {query}")]
    NotFound { query: String },
    #[error("{query} is the beginning of {count} container ids; give more of the id")]
    Ambiguous { query: String, count: usize },
    #[error("the name {name} is in use by container {id}; remove or rename that one first")]
    NameInUse { name: String, id: String },
    #[error(
        "{name:?} is not a container name: it begins with a letter or a digit and goes on with letters, digits, '_', '.' and '-'"
    )]
    InvalidName { name: String },
    /// Something in the wanted configuration is wrong.
    #[error("{field}: {problem}")]
    Invalid { field: String, problem: String },
    #[error("bind source {path:?} does not exist; make it, or leave out the mount on {target}")]
    BindSourceMissing { path: PathBuf, target: String },
    #[error("no command given, and the image {image} has none; say what to run")]
    NoCommand { image: String },
    /// The verb does not fit what the container is doing.
    #[error("cannot {verb} container {name}: it is {state}")]
    WrongState {
        name: String,
        verb: &'static str,
        state: State,
    },
    /// Something else is under way with the container, and does not end.
    #[error(
        "cannot {verb} container {name}: it is still {state} after {seconds} s; try again later"
    )]
    Busy {
        name: String,
        verb: &'static str,
        state: State,
        seconds: u64,
    },
    /// Only its id is known.
    #[error(
        "cannot {verb} container {name}: its record is damaged and was set aside: {path:?}; repair it there and restart the gateway, or remove the container"
    )]
    DamagedRecord {
        name: String,
        verb: &'static str,
        path: PathBuf,
    },
    #[error("container {name} is {state}; stop it first, or remove it by force")]
    StillRunning { name: String, state: State },
    /// Another call removed the container under way.
    #[error("container {name} was removed meanwhile")]
    RemovedMeanwhile { name: String },
    #[error("could not find the file {path} in container {name}")]
    NoPath { name: String, path: String },
    /// A copy of its files does not let go of them.
    #[error("the files of container {name} are being copied, and the copy does not end; try again")]
    FilesBusy { name: String },
    #[error("container {name} did not end within {seconds} s of SIGKILL")]
    Unkillable { name: String, seconds: u64 },
    /// A service refused. Its own error goes on as it is.
    #[error("{fault}")]
    Peer { peer: Peer, fault: Box<Fault> },
    /// A service does not answer.
    #[error(
        "the {} service does not answer: {problem}; see whether it runs, and its log",
        peer.name()
    )]
    Unanswered { peer: Peer, problem: String },
    /// A log that could not be removed with its container.
    #[error("the log of container {id} cannot be removed: {problem}")]
    LogLeft { id: String, problem: String },
    #[error("cannot read the containers' records")]
    Records { source: std::sync::Arc<StoreError> },
    #[error("cannot keep the record of container {id}")]
    Store {
        id: String,
        source: std::sync::Arc<StoreError>,
    },
    /// Something was done, and the next start of the engine may not know of it.
    #[error(
        "container {name} is {state}, but its record cannot be written, so that a power cut would undo that"
    )]
    NotRecorded {
        name: String,
        state: State,
        source: Box<Self>,
    },
    #[error("the caller went away before the program ran")]
    CallerGone,
    #[error("the gateway is being stopped; ask again")]
    Stopping,
    /// The shim forgot a window while the runtime was away.
    #[error(
        "input was lost: the runtime service did not answer for too long while the program was reading; the program runs on"
    )]
    InputLost,
    /// A part of the engine broke: a defect.
    #[error("an internal task failed: {problem}")]
    Task { problem: String },
    #[error("the kernel gives no random numbers: {problem}")]
    Random { problem: String },
    #[error("cannot {action} {path:?}")]
    File {
        action: &'static str,
        path: PathBuf,
        source: std::sync::Arc<io::Error>,
    },
}

impl Error {
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File {
            action,
            path: path.into(),
            source: std::sync::Arc::new(source),
        }
    }

    /// Whether a service refused for this reason.
    #[must_use]
    pub fn is_reason(&self, reason: &str) -> bool {
        matches!(self, Self::Peer { fault, .. } if fault.is(reason))
    }
}
