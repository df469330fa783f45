//! What the container's first process and its parent say to each other: one socket pair of sequenced
//! packets, each a JSON [`Message`] (child to parent, at most one descriptor with it) or one byte (parent to child).
//!
//! ```text
//! child                          parent
//!  │◄──────────── MAPPED ─────────│  (user namespace) the id mappings are written
//!  │──────────── Hooks ──────────►│  namespaces and mounts are there
//!  │◄──────────── GO ON ──────────│  runtime hooks have run
//!  │◄──────────── CGROUP ─────────│  the v1 cgroups exist
//!  │──────────── TimeOffsets ────►│  (time and user namespace; asked for as soon as CGROUP is there)
//!  │◄──────────── TIME SET ───────│
//!  │──────────── Terminal + fd ──►│
//!  │──────────── Ready ──────────►│  create returns
//!  │◄──────────── START ──────────│  (here, or on the gate's own socket)
//!  │──────────── Failed ─────────►│  or end of file: executed
//! ```

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use super::error::{Error, ExecFailure, shortened};
use super::timing::Timing;

/// Largest message: what does not fit in the receiver's buffer is cut off and lost.
const MESSAGE_BYTES: usize = 16 << 10;
/// Longest text of a [`Failure`]: six bytes each in JSON, where they are control characters, and two of them.
const FIELD_BYTES: usize = MESSAGE_BYTES / 16;

/// Parent to child: the id mappings are written.
pub(super) const MAPPED: u8 = b'm';
/// Parent to child: the offsets of the time namespace are written.
pub(super) const TIME_SET: u8 = b't';
/// Parent to child: the cgroups exist.
pub(super) const CGROUP: u8 = b'c';
/// Parent to child: runtime hooks have run.
pub(super) const HOOKS_DONE: u8 = b'h';
/// Parent to child: execute the program.
pub(super) const START: u8 = b's';

/// Child to parent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// The first process exists; its pidfd comes with this (of a go-between, on a pair of its own).
    Born,
    /// The root comes with this (of who puts layers together, on a pair of its own).
    Root,
    /// Everything is made but the root is not yet entered: time for hooks.
    Hooks,
    /// The child's time namespace is to have these offsets, and it may not write them itself.
    TimeOffsets {
        /// As the kernel's file wants them.
        lines: String,
    },
    /// The terminal's master side comes with this.
    Terminal,
    /// The seccomp notify descriptor comes with this.
    SeccompListener,
    /// Waiting for start (create) or about to execute (exec).
    Ready {
        /// The child's steps.
        timings: Vec<Timing>,
    },
    /// The end.
    Failed(Failure),
}

/// [`Error`] on the wire.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    kind: Kind,
    first: String,
    second: String,
    errno: i32,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Kind {
    Invalid,
    Step,
    NotFound,
    NotExecutable,
    Directory,
    UnknownUser,
    UnknownGroup,
    MissingSource,
    Hook,
    Unsupported,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let errno = |source: &io::Error| source.raw_os_error().unwrap_or(libc::EIO);
        let (kind, first, second, errno) = match error {
            Error::Invalid { field, problem } => (Kind::Invalid, field.clone(), problem.clone(), 0),
            Error::Step {
                step,
                object,
                source,
            } => (Kind::Step, step.clone(), object.clone(), errno(source)),
            Error::Exec {
                program,
                failure,
                source,
            } => (
                match failure {
                    ExecFailure::NotFound => Kind::NotFound,
                    ExecFailure::NotExecutable => Kind::NotExecutable,
                },
                program.clone(),
                String::new(),
                errno(source),
            ),
            Error::Directory { path, source } => (
                Kind::Directory,
                path.to_string_lossy().into_owned(),
                String::new(),
                errno(source),
            ),
            Error::UnknownUser { kind, name, .. } => (
                if *kind == "group" {
                    Kind::UnknownGroup
                } else {
                    Kind::UnknownUser
                },
                name.clone(),
                String::new(),
                0,
            ),
            Error::MissingSource { from, destination } => (
                Kind::MissingSource,
                from.to_string_lossy().into_owned(),
                destination.to_string_lossy().into_owned(),
                0,
            ),
            Error::Hook {
                kind,
                path,
                problem,
            } => (
                Kind::Hook,
                format!("{kind}\n{}", path.display()),
                problem.clone(),
                0,
            ),
            Error::Unsupported { what, why } => (Kind::Unsupported, what.clone(), why.clone(), 0),
            other @ (Error::State { .. } | Error::Threads { .. } | Error::Died { .. }) => (
                Kind::Step,
                "init".to_owned(),
                other.to_string(),
                libc::EINVAL,
            ),
        };
        Self {
            kind,
            first: shortened(&first, FIELD_BYTES),
            second: shortened(&second, FIELD_BYTES),
            errno,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let Failure {
            kind,
            first,
            second,
            errno,
        } = failure;
        let source = io::Error::from_raw_os_error(errno);
        match kind {
            Kind::Invalid => Self::Invalid {
                field: first,
                problem: second,
            },
            Kind::Step => Self::Step {
                step: first,
                object: second,
                source,
            },
            Kind::NotFound => Self::Exec {
                program: first,
                failure: ExecFailure::NotFound,
                source,
            },
            Kind::NotExecutable => Self::Exec {
                program: first,
                failure: ExecFailure::NotExecutable,
                source,
            },
            Kind::Directory => Self::Directory {
                path: first.into(),
                source,
            },
            Kind::UnknownUser => Self::UnknownUser {
                kind: "user",
                name: first,
                file: "passwd",
            },
            Kind::UnknownGroup => Self::UnknownUser {
                kind: "group",
                name: first,
                file: "group",
            },
            Kind::MissingSource => Self::MissingSource {
                from: first.into(),
                destination: second.into(),
            },
            Kind::Hook => {
                let (kind, path) = first.split_once('\n').unwrap_or(("", &first));
                Self::Hook {
                    kind: kind.to_owned(),
                    path: path.into(),
                    problem: second,
                }
            }
            Kind::Unsupported => Self::Unsupported {
                what: first,
                why: second,
            },
        }
    }
}

/// A pair of connected ends.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends a message, with a descriptor if there is one.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    message: &Message,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    send_bytes(socket, &serde_json::to_vec(message)?, descriptor)
}

/// Sends bytes, with a descriptor if there is one.
pub(super) fn send_bytes(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let rights = descriptor.map(|fd| [fd]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(rights) = &rights {
        control.push(SendAncillaryMessage::ScmRights(rights));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives a message; `None`: the other end is closed.
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
    let mut buffer = vec![0_u8; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        match rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            // The other end was closed with something unread in it. That is said once, and before
            // its last word, which is still there to be read.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            other => break other?,
        }
    };
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptor = fds.last();
        }
    }
    let length = received.bytes;
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((
        serde_json::from_slice(&buffer[..length])?,
        descriptor,
    )))
}

/// Tells the child to go on.
pub(super) fn signal(socket: impl AsFd, byte: u8) -> io::Result<()> {
    loop {
        match rustix::net::send(&socket, &[byte], SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// Waits for the parent's word. The end of the parent is an error.
pub(super) fn await_signal(socket: impl AsFd, expected: u8) -> io::Result<()> {
    let mut byte = [0_u8; 1];
    loop {
        match rustix::io::read(&socket, &mut byte[..]) {
            Err(Errno::INTR) => {}
            Ok(1) if byte[0] == expected => return Ok(()),
            Ok(0) => return Err(io::Error::from_raw_os_error(libc::EPIPE)),
            Ok(_) => return Err(io::Error::from_raw_os_error(libc::EPROTO)),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_a_child_arrives_as_it_was() {
        let errors = [
            Error::invalid("process.args", "empty"),
            Error::step("mount", "/proc", io::Error::from_raw_os_error(libc::EPERM)),
            Error::Exec {
                program: "sh".into(),
                failure: ExecFailure::NotFound,
                source: io::Error::from_raw_os_error(libc::ENOENT),
            },
            Error::UnknownUser {
                kind: "group",
                name: "wheel".into(),
                file: "group",
            },
            Error::MissingSource {
                from: "/nowhere".into(),
                destination: "/data".into(),
            },
            Error::Hook {
                kind: "createContainer".into(),
                path: "/bin/hook".into(),
                problem: "exited with status 3".into(),
            },
        ];
        for error in errors {
            let (near, far) = pair().unwrap();
            send(far.as_fd(), &Message::Failed((&error).into()), None).unwrap();
            let Some((Message::Failed(failure), None)) = receive(near.as_fd()).unwrap() else {
                panic!("{error} did not arrive");
            };
            assert_eq!(Error::from(failure).to_string(), error.to_string());
        }
    }

    #[test]
    fn an_error_arrives_however_long_its_object_is() {
        for text in ["x".repeat(2 << 20), "\u{1}é".repeat(1 << 20)] {
            let error = Error::Exec {
                program: text.clone(),
                failure: ExecFailure::NotFound,
                source: io::Error::from_raw_os_error(libc::ENAMETOOLONG),
            };
            let (near, far) = pair().unwrap();
            send(far.as_fd(), &Message::Failed((&error).into()), None).unwrap();
            let Some((Message::Failed(failure), None)) = receive(near.as_fd()).unwrap() else {
                panic!("it did not arrive");
            };
            let arrived = Error::from(failure);
            assert_eq!(arrived.exit_code(), 127);
            assert!(arrived.to_string().contains("bytes left out"), "{arrived}");
        }
        let long = Error::step("s".repeat(1 << 20), "\u{1}".repeat(1 << 20), Errno::IO);
        let (near, far) = pair().unwrap();
        send(far.as_fd(), &Message::Failed((&long).into()), None).unwrap();
        assert!(receive(near.as_fd()).unwrap().is_some());
    }

    #[test]
    fn a_descriptor_travels_with_its_message() {
        let (near, far) = pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(far.as_fd(), &Message::Terminal, Some(file.as_fd())).unwrap();
        drop(far);
        let (message, descriptor) = receive(near.as_fd()).unwrap().unwrap();
        assert!(matches!(message, Message::Terminal));
        let received = rustix::fs::fstat(descriptor.unwrap()).unwrap();
        assert_eq!(received.st_ino, rustix::fs::fstat(&file).unwrap().st_ino);
        assert!(receive(near.as_fd()).unwrap().is_none());
    }
}
