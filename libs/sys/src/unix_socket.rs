//! Unix sockets at paths of any length, with their mode from the first moment.
//!
//! The kernel takes socket paths of at most 107 bytes (`sun_path`, unix(7)). A
//! longer path is shortened by way of a descriptor of its directory:
//! `/proc/self/fd/7/shim.sock`. Only the name of the socket itself must fit then.
//!
//! A socket's node gets its mode from the unbound socket (fchmod(2) before
//! bind(2)), so that there is no moment in which others could connect to it,
//! whatever the umask is.
//!
//! Limits: a long path needs a mounted /proc.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Longest path of a Unix socket that the kernel takes (`sun_path` less its
/// final zero byte).
pub const PATH_MAX: usize = 107;

/// Connections that wait to be accepted; the kernel lowers it to its own limit.
const BACKLOG: i32 = 4096;

/// A socket's path in a form that fits into a socket address. It is valid as
/// long as this lives.
#[derive(Debug)]
pub struct Address {
    path: PathBuf,
    directory: Option<OwnedFd>,
}

impl Address {
    /// The address of the socket that is, or is to be made, at `path`.
    ///
    /// # Errors
    /// The directory cannot be opened, or the name of the socket alone is too
    /// long.
    pub fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= PATH_MAX {
            return Ok(Self {
                path: path.to_owned(),
                directory: None,
            });
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty())?;
        let mut short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        short.push(name);
        if short.as_os_str().len() > PATH_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidFilename,
                format!(
                    "the socket name {:?} is too long",
                    String::from_utf8_lossy(name.as_bytes())
                ),
            ));
        }
        Ok(Self {
            path: short,
            directory: Some(directory),
        })
    }

    /// The path for calls of this process.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path for another process of the same user, as long as this lives.
    #[must_use]
    pub fn for_others(&self) -> PathBuf {
        match (&self.directory, self.path.file_name()) {
            (Some(directory), Some(name)) => PathBuf::from(format!(
                "/proc/{}/fd/{}",
                std::process::id(),
                directory.as_raw_fd()
            ))
            .join(name),
            _ => self.path.clone(),
        }
    }

    /// As a system call takes it.
    ///
    /// # Errors
    /// The path has a zero byte in it.
    pub fn socket_address(&self) -> io::Result<SocketAddrUnix> {
        Ok(SocketAddrUnix::new(&self.path)?)
    }
}

/// Makes a socket at `path` with exactly `mode` and listens on it.
///
/// # Errors
/// Something exists at `path`, or the socket cannot be made.
pub fn listen(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let (socket, _address) = bound(path, mode, SocketType::STREAM)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Makes a datagram socket at `path` with exactly `mode`. The address is what
/// senders need: see [`Address::for_others`].
///
/// # Errors
/// As [`listen`].
pub fn bind_datagram(path: &Path, mode: u32) -> io::Result<(UnixDatagram, Address)> {
    let (socket, address) = bound(path, mode, SocketType::DGRAM)?;
    Ok((socket.into(), address))
}

/// Makes a socket of `kind` at `path` with exactly `mode`; nobody is listened to yet.
///
/// # Errors
/// As [`listen`].
pub fn bound(path: &Path, mode: u32, kind: SocketType) -> io::Result<(OwnedFd, Address)> {
    let address = Address::of(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    let mode = Mode::from_raw_mode(mode);
    rustix::fs::fchmod(&socket, mode)?;
    rustix::net::bind(&socket, &address.socket_address()?)?;
    // The umask may have taken something away.
    rustix::fs::chmod(address.path(), mode)?;
    Ok((socket, address))
}

/// Connects to the socket at `path`.
///
/// # Errors
/// Nobody listens there, or it may not be reached.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = Address::of(path)?;
    UnixStream::connect(address.path())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A directory whose path alone is longer than an address may be.
    fn deep() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(150)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        (directory, deep)
    }

    #[test]
    fn a_path_of_any_length_is_listened_on_and_connected_to() {
        let (_directory, deep) = deep();
        for path in [deep.join("a.sock"), _directory.path().join("a.sock")] {
            let listener = listen(&path, 0o600).unwrap();
            let mut near = connect(&path).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            near.write_all(b"here").unwrap();
            drop(near);
            let mut text = String::new();
            far.read_to_string(&mut text).unwrap();
            assert_eq!(text, "here");
        }
    }

    #[test]
    fn a_socket_has_the_mode_that_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o660, 0o777] {
            let path = directory.path().join(format!("{mode:o}"));
            let _listener = listen(&path, mode).unwrap();
            let made = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(made & 0o7777, mode);
        }
    }

    #[test]
    fn another_process_reaches_a_long_datagram_socket_by_its_short_path() {
        let (_directory, deep) = deep();
        let (socket, address) = bind_datagram(&deep.join("notify"), 0o600).unwrap();
        let short = address.for_others();
        assert!(short.as_os_str().len() <= PATH_MAX, "{short:?}");
        let sender = UnixDatagram::unbound().unwrap();
        sender.send_to(b"READY=1", &short).unwrap();
        let mut message = [0; 16];
        let length = socket.recv(&mut message).unwrap();
        assert_eq!(&message[..length], b"READY=1");
    }

    #[test]
    fn a_name_that_cannot_fit_is_an_error_that_says_so() {
        let (_directory, deep) = deep();
        let error = listen(&deep.join("n".repeat(120)), 0o600).unwrap_err();
        assert!(error.to_string().contains("is too long"), "{error}");
    }
}
