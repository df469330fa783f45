//! Why a stack of layers could not be read.

use std::io;

use rustix::io::Errno;

use crate::unpack::shown;

/// Why a stack of layers could not be read. Paths are those that a container sees.
#[derive(Debug, thiserror::Error)]
pub enum UnionError {
    /// The file system refused.
    #[error("{path:?}: {step} failed")]
    Read {
        path: String,
        step: &'static str,
        #[source]
        source: io::Error,
    },
    /// A directory that would take too much memory to look at.
    #[error("{path:?}: the directory has more than {limit} entries")]
    TooManyEntries { path: String, limit: usize },
    /// A path that no call of the system takes.
    #[error("{path:?}: the path is longer than the 4095 bytes that can be opened at once")]
    PathTooLong { path: String },
    /// A file of which only the attributes are there.
    #[error("{path:?}: its content is in none of the layers")]
    NoContent { path: String },
}

impl UnionError {
    pub(super) fn read(path: &[u8], step: &'static str) -> impl FnOnce(Errno) -> Self {
        let path = seen(path);
        move |error| match error {
            Errno::NAMETOOLONG => Self::PathTooLong { path },
            other => Self::Read {
                path,
                step,
                source: other.into(),
            },
        }
    }
}

/// A path as a container sees it, for an error line.
pub(super) fn seen(path: &[u8]) -> String {
    let mut absolute = Vec::with_capacity(path.len() + 1);
    absolute.push(b'/');
    absolute.extend_from_slice(path);
    shown(&absolute)
}
