//! The loopback interface of a new network namespace.

use std::io;

use super::links::{LOOPBACK, Links};

/// Sets it up in the calling process' network namespace.
pub(super) fn set_up() -> io::Result<()> {
    Links::open()?.set_up(LOOPBACK, true)
}
