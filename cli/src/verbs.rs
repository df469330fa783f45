//! The verbs, one per file.

pub(crate) mod up;

use clap::Subcommand;

use crate::exit::Failure;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run all services in the foreground
    Up(up::Up),
}

impl Verb {
    /// For the trace.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Up(_) => "up",
        }
    }

    /// Whether the verb serves until it is told to stop.
    pub(crate) fn is_service(&self) -> bool {
        matches!(self, Self::Up(_))
    }

    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        match self {
            Self::Up(up) => up.run(session).await,
        }
    }
}
