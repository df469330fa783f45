//! Naming the step and the object of a failure, in as few words at the call as possible.

use std::fmt::Display;
use std::io;

use super::error::{Error, Result};

/// `call().during("mount", "/proc")?`
pub(super) trait During<T> {
    /// Turns a system's error into [`Error::Step`].
    fn during(self, step: &str, object: impl Display) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, step: &str, object: impl Display) -> Result<T> {
        self.map_err(|source| Error::step(step, object.to_string(), source))
    }
}
