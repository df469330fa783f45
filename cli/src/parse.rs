//! Docker's syntaxes for the values of flags.
//!
//! Each parser says what is wrong with the value and what it should look like;
//! clap puts the flag's name before it.

pub(crate) mod environment;
pub(crate) mod id_map;
pub(crate) mod keys;
pub(crate) mod limits;
pub(crate) mod mounts;
pub(crate) mod ports;
pub(crate) mod sizes;
pub(crate) mod times;

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ParseError {
    message: String,
    refusal: bool,
}

impl ParseError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            refusal: false,
        }
    }

    /// As [`ParseError::new`], of what Docker lets its engine judge: scripts tell a
    /// refusal from a wrong flag by the exit code.
    pub(crate) fn refusal(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            refusal: true,
        }
    }

    pub(crate) fn is_refusal(&self) -> bool {
        self.refusal
    }
}

pub(crate) type Parsed<T> = Result<T, ParseError>;
