//! A terminal out of the container's own devpts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{OFlags, ResolveFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::beneath::{self, Kind};
use super::context::During;
use super::error::Result;
use super::mounts;
use super::options::TerminalSize;

/// Opens a pair: master and slave.
pub(super) fn open(root: BorrowedFd<'_>, size: Option<TerminalSize>) -> Result<(OwnedFd, OwnedFd)> {
    let master = beneath::open_with(
        root,
        Path::new("/dev/pts/ptmx"),
        OFlags::RDWR | OFlags::NOCTTY,
        ResolveFlags::NO_SYMLINKS,
    )
    .during("open terminal", "/dev/pts/ptmx")?;
    rustix::pty::unlockpt(&master).during("open terminal", "unlock")?;
    // By ioctl and not by name: the name could be anything by now.
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .during("open terminal", "slave")?;
    if let Some(size) = size {
        rustix::termios::tcsetwinsize(
            &slave,
            Winsize {
                ws_row: size.height,
                ws_col: size.width,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )
        .during("set terminal size", "slave")?;
    }
    Ok((master, slave))
}

/// Puts the slave at /dev/console.
pub(super) fn bind_console(root: BorrowedFd<'_>, slave: &OwnedFd) -> Result<()> {
    let tree = mounts::clone_of(slave.as_fd(), false).during("bind", "/dev/console")?;
    let target = beneath::open_or_make(root, Path::new("/dev/console"), Kind::File)
        .during("make mount point", "/dev/console")?;
    mounts::attach(&tree, &target).during("bind", "/dev/console")
}

/// Makes the slave the controlling terminal of this (new) session and its three streams.
pub(super) fn adopt(slave: &OwnedFd, uid: u32) -> Result<()> {
    rustix::process::ioctl_tiocsctty(slave).during("make terminal controlling", "slave")?;
    // The user must be able to open /dev/tty's target by its name.
    let _ = rustix::fs::fchown(slave, Some(rustix::fs::Uid::from_raw(uid)), None);
    streams(slave.as_fd(), slave.as_fd(), slave.as_fd())
}

/// Sets the three standard streams.
pub(super) fn streams(
    stdin: BorrowedFd<'_>,
    stdout: BorrowedFd<'_>,
    stderr: BorrowedFd<'_>,
) -> Result<()> {
    nix::unistd::dup2_stdin(stdin).during("set stream", "stdin")?;
    nix::unistd::dup2_stdout(stdout).during("set stream", "stdout")?;
    nix::unistd::dup2_stderr(stderr).during("set stream", "stderr")
}
