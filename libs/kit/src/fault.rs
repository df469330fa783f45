//! Errors on the wire: a `tonic::Status` with `google.rpc.ErrorInfo`.
//!
//! A service turns its typed error into a [`Fault`] in one exhaustive match. A
//! client reads it back with [`Fault::from_status`] and decides by
//! [`Fault::reason`], never by the message.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// An error as it crosses a service's edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub code: Code,
    /// Which error, in UPPER_SNAKE_CASE: "IMAGE_NOT_FOUND". Empty for an error
    /// that no service raised (a broken connection, say).
    pub reason: String,
    /// Who raised it: "gantry.image".
    pub domain: String,
    /// One line for a person: which object, what is wrong, what to do.
    pub message: String,
    /// The error's operands by name.
    pub metadata: HashMap<String, String>,
}

impl Fault {
    #[must_use]
    pub fn new(code: Code, domain: &str, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            domain: domain.to_owned(),
            message: message.into(),
            metadata: HashMap::new(),
        }
    }

    /// Names one of the error's operands.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.metadata.insert(name.to_owned(), value.to_string());
        self
    }

    /// Reads a fault back from what a call answered.
    #[must_use]
    pub fn from_status(status: &Status) -> Self {
        let info = status.get_details_error_info();
        let (reason, domain, metadata) = info
            .map(|info| (info.reason, info.domain, info.metadata))
            .unwrap_or_default();
        Self {
            code: status.code(),
            reason,
            domain,
            message: status.message().to_owned(),
            metadata,
        }
    }

    #[must_use]
    pub fn is(&self, reason: &str) -> bool {
        self.reason == reason
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl Error for Fault {}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        let details = ErrorDetails::with_error_info(fault.reason, fault.domain, fault.metadata);
        Self::with_error_details(fault.code, fault.message, details)
    }
}

/// An error with all its causes on one line: "cannot read x: no such file".
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat their source in their own text.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(cause_text.trim_end());
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_survives_the_wire() {
        let fault = Fault::new(
            Code::NotFound,
            "gantry.image",
            "IMAGE_NOT_FOUND",
            "no image x",
        )
        .with("reference", "x");
        assert_eq!(Fault::from_status(&Status::from(fault.clone())), fault);
    }

    #[test]
    fn a_status_without_details_has_no_reason() {
        let fault = Fault::from_status(&Status::unavailable("gone"));
        assert_eq!(fault.reason, "");
        assert_eq!(fault.message, "gone");
    }
}
