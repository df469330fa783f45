//! Taking the terminal that the program has made: it sends the master side over a socket (`--console-socket`).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use gantry_sys::unix_socket::{self, Address};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::container::TerminalSize;

/// The program is root, as this process is.
const MODE: u32 = 0o600;

/// A socket that waits for a terminal. It goes when this is dropped.
#[derive(Debug)]
pub(super) struct Expected {
    listener: UnixListener,
    path: PathBuf,
    /// What the program is told, whose sockets' paths have the kernel's limit.
    address: Address,
}

impl Drop for Expected {
    fn drop(&mut self) {
        // The bundle it is in goes anyhow.
        let _gone = std::fs::remove_file(&self.path);
    }
}

impl Expected {
    /// Listens in the bundle.
    pub(super) fn at(bundle: &Path, number: u64) -> io::Result<Self> {
        let path = bundle.join(format!("tty.{number}"));
        let listener = unix_socket::listen(&path, MODE)?;
        listener.set_nonblocking(true)?;
        let address = Address::of(&path)?;
        Ok(Self {
            listener,
            path,
            address,
        })
    }

    /// The socket's path for the program.
    pub(super) fn path(&self) -> PathBuf {
        self.address.for_others()
    }

    /// The terminal. Whoever sent it has ended: what is not there now does not come.
    pub(super) fn take(self, size: Option<TerminalSize>) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        // The sender says the terminal's name beside it.
        let mut name = [0_u8; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut name)];
        recvmsg(&stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let sent = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let master = sent.ok_or(io::ErrorKind::UnexpectedEof)?;
        if let Some(size) = size {
            let size = Winsize {
                ws_col: size.width,
                ws_row: size.height,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            tcsetwinsize(&master, size)?;
        }
        Ok(master)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    #[test]
    fn a_descriptor_arrives_from_a_sender_that_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let expected = Expected::at(directory.path(), 1).unwrap();
        let path = expected.path();
        let (mut near, far) = UnixStream::pair().unwrap();
        let sender = UnixStream::connect(&path).unwrap();
        let rights = [far.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&rights));
        sendmsg(
            &sender,
            &[IoSlice::new(b"/dev/ptmx")],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .unwrap();
        drop(sender);
        let taken = expected.take(None).unwrap();
        drop(far);
        UnixStream::from(taken).write_all(b"same").unwrap();
        let mut said = String::new();
        near.read_to_string(&mut said).unwrap();
        assert_eq!(said, "same");
        assert!(!path.exists());
    }

    #[test]
    fn a_program_reaches_the_socket_of_a_bundle_with_a_long_path() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("b".repeat(200));
        std::fs::create_dir(&bundle).unwrap();
        let expected = Expected::at(&bundle, 1).unwrap();
        UnixStream::connect(expected.path()).unwrap();
    }

    #[test]
    fn a_program_that_sends_nothing_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let expected = Expected::at(directory.path(), 1).unwrap();
        assert_eq!(
            expected.take(None).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }
}
