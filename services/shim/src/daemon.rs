//! What makes a process a shim: nothing but the end of its container ends it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Result};
use crate::reaper;
use crate::serve;
use crate::shim::Shim;

/// The shim is the last that the kernel takes when memory runs out: its going
/// would take the container with it.
const OOM_SCORE: &str = "-999";

/// Runs the shim on the listening socket that is its standard input.
///
/// # Errors
/// The process cannot be set up, or the socket is none.
pub fn run() -> Result<()> {
    let failed = |step| move |source: io::Error| Error::Io { step, source };
    let listener = take_listener().map_err(failed("standard input must be a listening socket"))?;
    // Executed through a descriptor, it would be named by the descriptor's number.
    let _unnamed = rustix::thread::set_name(c"gantry-shim");
    // A group leader cannot make a session, but is in nobody's way either.
    let _leader = rustix::process::setsid();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|errno| failed("cannot become the container's reaper")(errno.into()))?;
    let oom_score = fs::read_to_string("/proc/self/oom_score_adj")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    // Not permitted without CAP_SYS_RESOURCE: then it stays as it is.
    let protected = fs::write("/proc/self/oom_score_adj", OOM_SCORE).is_ok();
    let shim = Arc::new(Shim::new(oom_score.filter(|_| protected)));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("cannot start the event loop"))?;
    runtime.block_on(async {
        let ignored = catch_signals(&shim).map_err(failed("cannot catch signals"))?;
        tokio::spawn(reaper::reap(shim.clone()));
        let listener = UnixListener::from_std(listener).map_err(failed("cannot listen"))?;
        let outcome = serve::serve(shim, listener).await;
        drop(ignored);
        outcome.map_err(failed("cannot serve"))
    })
}

/// Takes the listener from descriptor 0, and leaves /dev/null there.
fn take_listener() -> io::Result<StdUnixListener> {
    let listener: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::net::sockopt::socket_acceptconn(&listener)?
        .then_some(())
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    let listener = StdUnixListener::from(listener);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Hang-ups and interrupts are for others. They are caught, not ignored: what is
/// ignored stays so in every program the container executes. SIGTERM, which
/// comes to all when the machine goes down, ends only a shim without processes.
fn catch_signals(shim: &Arc<Shim>) -> io::Result<[Signal; 3]> {
    let mut terminate = signal(SignalKind::terminate())?;
    let ignored = [
        signal(SignalKind::hangup())?,
        signal(SignalKind::interrupt())?,
        signal(SignalKind::quit())?,
    ];
    let shim = shim.clone();
    tokio::spawn(async move {
        while terminate.recv().await.is_some() {
            if shim.is_idle() {
                shim.ending.notify_one();
            }
        }
    });
    Ok(ignored)
}
