//! How a command ends: exit codes as Docker's, and one line on standard error.
//!
//! | code | when |
//! | --- | --- |
//! | 0-255 | `run`, `exec`, `start -a`, `attach`, `wait`-like verbs: the container's own |
//! | 122 | `run`, `exec`, `start -a`, `attach`, `logs`: output was missed; standard error says how much |
//! | 125 | a wrong flag; `run`: the engine could not do it |
//! | 126, 127 | the command cannot be executed, or does not exist |
//! | 1 | anything else |
//!
//! What the engine answered is told apart by [`Fault::reason`], never by text.

use std::error::Error;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use gantry_kit::client;
use gantry_kit::fault::{Fault, chain};
use gantry_kit::metadata::shortened;
use tonic::{Code, Status};

use crate::display::escaped;
use crate::parse::ParseError;

/// Not all of a program's output was shown.
pub(crate) const INCOMPLETE: u8 = 122;
/// The engine could not do what `run` asked, or a flag is wrong.
pub(crate) const REFUSED: u8 = 125;
pub(crate) const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Flags whose values Docker's command judges itself, and here the engine does: a
/// value that it refuses is a wrong flag.
const FLAGS: [&str; 8] = [
    "cgroupns",
    "device-cgroup-rule",
    "pid",
    "security-opt",
    "sysctl",
    "ulimit",
    "userns",
    "uts",
];
/// Longest message that is shown.
const MESSAGE_BYTES: usize = 4 << 10;
/// As a shell shows a program that SIGPIPE ended.
const BROKEN_PIPE: u8 = 128 + 13;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The engine refused, or cannot be reached.
    Call(Box<Status>),
    /// Found out here.
    Here { code: u8, message: String },
    /// All has been said; only the code is left to hand over.
    Said(u8),
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::Here {
            code: 1,
            message: message.into(),
        }
    }

    /// A flag or an operand has a value that cannot be used.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Here {
            code: REFUSED,
            message: message.into(),
        }
    }

    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        Self::new(chain(error))
    }

    /// The exit code, where `otherwise` is the verb's own for a refusal of the
    /// engine.
    pub(crate) fn code(&self, otherwise: u8) -> u8 {
        match self {
            Self::Call(status) => {
                let fault = Fault::from_status(status);
                let field = fault.metadata.get("field").map(String::as_str);
                match fault.reason.as_str() {
                    "COMMAND_NOT_FOUND" => NOT_FOUND,
                    "COMMAND_NOT_EXECUTABLE" => NOT_EXECUTABLE,
                    "INVALID_CONFIG" if field.is_some_and(|field| FLAGS.contains(&field)) => {
                        REFUSED
                    }
                    _ => otherwise,
                }
            }
            Self::Here { code: 1, .. } => otherwise,
            Self::Here { code, .. } | Self::Said(code) => *code,
        }
    }

    /// The same, with `otherwise` settled as its code.
    pub(crate) fn settled(self, otherwise: u8, socket: &Path) -> Self {
        match self {
            Self::Said(code) => Self::Said(code),
            failure => Self::Here {
                code: failure.code(otherwise),
                message: failure.message(socket),
            },
        }
    }

    /// The line for a person; empty where all has been said.
    pub(crate) fn message(&self, socket: &Path) -> String {
        match self {
            Self::Call(status) => explain(status, socket),
            Self::Here { message, .. } => message.clone(),
            Self::Said(_) => String::new(),
        }
    }

    /// Says the line, if there is one.
    pub(crate) fn say(&self, socket: &Path) {
        let message = self.message(socket);
        if !message.is_empty() {
            eprintln!("gantry: {}", shown(&message));
        }
    }

    /// Says the line; the process' exit code.
    pub(crate) fn report(&self, socket: &Path) -> ExitCode {
        self.say(socket);
        ExitCode::from(self.code(1))
    }

    /// Whether the engine answered with this reason.
    pub(crate) fn is(&self, reason: &str) -> bool {
        matches!(self, Self::Call(status) if Fault::from_status(status).is(reason))
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

impl From<ParseError> for Failure {
    fn from(error: ParseError) -> Self {
        match error.is_refusal() {
            true => Self::new(error.to_string()),
            false => Self::usage(error.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::Said(BROKEN_PIPE);
        }
        Self::of(&error)
    }
}

/// What a refused or failed call means to the person who made it.
fn explain(status: &Status, socket: &Path) -> String {
    if let Some(error) = connect_error(status) {
        return match error.kind() {
            io::ErrorKind::PermissionDenied => format!(
                "no right to use {}: be root, or a member of the group `gantry` (usermod -aG gantry USER, then log in again)",
                socket.display()
            ),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
                "cannot reach the engine at {}: is it running? start it with `gantry up` or `systemctl start gantry-gateway`",
                socket.display()
            ),
            _ => format!("cannot reach the engine at {}: {error}", socket.display()),
        };
    }
    if client::is_silence(status) {
        return format!(
            "the gateway service at {} does not answer; see whether it runs, and its log",
            socket.display()
        );
    }
    let message = status.message();
    let by_a_service = !Fault::from_status(status).reason.is_empty();
    match status.code() {
        // What came over the wire has no source: this was found out here.
        _ if !by_a_service && status.source().is_some() => format!(
            "lost the connection to the engine at {} ({message}); containers run on: see `gantry ps`",
            socket.display()
        ),
        Code::Unavailable if !by_a_service => {
            format!("the engine at {} went away: {message}", socket.display())
        }
        Code::Unimplemented if message.is_empty() => format!(
            "the engine at {} is too old for this: it does not know the call",
            socket.display()
        ),
        Code::Cancelled if message.is_empty() => "the engine ended the call".to_owned(),
        Code::DeadlineExceeded if !by_a_service => "the engine did not answer in time".to_owned(),
        code if message.is_empty() => format!("the engine answered: {}", code.description()),
        _ => message.to_owned(),
    }
}

/// The error of connect(2), where that is why a call failed.
fn connect_error(status: &Status) -> Option<&io::Error> {
    let mut error: Option<&(dyn Error + 'static)> = status.source();
    let mut connecting = false;
    while let Some(this) = error {
        connecting |= this.is::<tonic::transport::Error>();
        if let Some(found) = this.downcast_ref::<io::Error>()
            && connecting
        {
            return Some(found);
        }
        error = this.source();
    }
    None
}

/// An error as a terminal gets it: one line of bounded length, in which nothing
/// that came from an image, a program or a caller acts on the terminal.
fn shown(message: &str) -> String {
    escaped(&shortened(&one_line(message), MESSAGE_BYTES))
}

/// Errors are one line, whatever was in them.
fn one_line(message: &str) -> String {
    message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_decides_the_exit_code() {
        let code = |reason: &str| {
            let fault = Fault::new(Code::FailedPrecondition, "gantry.shim", reason, "x");
            Failure::from(Status::from(fault)).code(REFUSED)
        };
        assert_eq!(code("COMMAND_NOT_FOUND"), 127);
        assert_eq!(code("COMMAND_NOT_EXECUTABLE"), 126);
        assert_eq!(code("IMAGE_NOT_FOUND"), 125);
        for (field, expected) in [("ulimit", 125), ("memory", 1)] {
            let fault = Fault::new(Code::InvalidArgument, "g", "INVALID_CONFIG", "x");
            let failure = Failure::from(Status::from(fault.with("field", field)));
            assert_eq!(failure.code(1), expected, "{field}");
        }
    }

    #[test]
    fn a_message_of_several_lines_is_said_on_one() {
        assert_eq!(one_line("a\n  b\n\n"), "a; b");
    }

    #[test]
    fn an_error_cannot_act_on_the_terminal_and_is_of_bounded_length() {
        let message = format!("no image \x1b]0;owned\x07{}", "x".repeat(1 << 20));
        let text = shown(&message);
        assert!(text.starts_with("no image \\x1b]0;owned\\a"), "{text:.60}");
        assert!(text.len() < 2 * MESSAGE_BYTES);
    }
}
