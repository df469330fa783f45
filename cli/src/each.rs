//! One call for each of several objects: the name of each that succeeded goes
//! to standard output, an error does not stop the others.

use std::io;

use crate::exit::Failure;
use crate::session::Session;
use crate::terminal;

/// The code is 1 where one failed.
#[derive(Debug)]
pub(crate) struct Each<'a> {
    session: &'a Session,
    failed: bool,
}

impl<'a> Each<'a> {
    pub(crate) fn new(session: &'a Session) -> Self {
        Self {
            session,
            failed: false,
        }
    }

    /// Notes how it went for `name`.
    pub(crate) fn note<T>(
        &mut self,
        name: &str,
        outcome: Result<T, impl Into<Failure>>,
    ) -> io::Result<()> {
        if self.check(outcome).is_some() {
            self.said(name)?;
        }
        Ok(())
    }

    /// Shows the name of one that succeeded.
    pub(crate) fn said(&self, name: &str) -> io::Result<()> {
        terminal::println(name)
    }

    /// As [`Each::note`], where the answer is to be shown in another way.
    pub(crate) fn check<T>(&mut self, outcome: Result<T, impl Into<Failure>>) -> Option<T> {
        match outcome {
            Ok(answer) => Some(answer),
            Err(failure) => {
                failure.into().say(self.session.engine.socket());
                self.failed = true;
                None
            }
        }
    }

    pub(crate) fn code(&self) -> u8 {
        u8::from(self.failed)
    }
}
