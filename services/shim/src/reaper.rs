//! Reaps every child, and every orphan of the container.
//!
//! One signal may stand for many children, so each one empties the queue. A
//! child's creation and its entry among the shim's children are not divided by
//! an await: whoever is reaped here is known, or an orphan.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::ExitStatus;
use crate::shim::Shim;

/// Reaps until the process ends.
///
/// # Errors
/// The signal cannot be caught.
pub async fn reap(shim: Arc<Shim>) -> io::Result<()> {
    let mut children = signal(SignalKind::child())?;
    loop {
        reap_all(&shim);
        if children.recv().await.is_none() {
            return Ok(());
        }
    }
}

fn reap_all(shim: &Arc<Shim>) {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let status = ExitStatus::reaped(status.exit_status(), status.terminating_signal());
                shim.reaped(pid.as_raw_nonzero().get(), status);
            }
            Err(Errno::INTR) => {}
            // None has ended, or there is none.
            Ok(None) | Err(_) => return,
        }
    }
}
