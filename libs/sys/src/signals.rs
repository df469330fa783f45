//! Signals of the calling process as bytes of a pipe: all of them, real-time ones too.

use std::io;
use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::pipe::{PipeFlags, pipe_with};

/// The end of the pipe that the handler writes to. -1: none yet.
static WRITE: AtomicI32 = AtomicI32::new(-1);

/// Signals a program is ended with when it is at fault itself.
const FAULTS: [libc::c_int; 5] = [
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
];

/// Catches `signals` from now on. Each one that comes is a byte, its number, on the
/// pipe that is answered, which does not block. Those that cannot be caught (SIGKILL,
/// SIGSTOP, and those that the C library keeps to itself) are left out.
///
/// What the kernel sends for a fault of the program's own still ends it, and what it
/// sends for terminal access from the background (SIGTTIN, SIGTTOU) still stops it:
/// only what another process sends is caught.
///
/// # Errors
/// The pipe cannot be made, or signals are caught already.
pub fn catch(signals: impl IntoIterator<Item = i32>) -> io::Result<OwnedFd> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    if WRITE
        .compare_exchange(-1, write.as_raw_fd(), Ordering::SeqCst, Ordering::SeqCst)
        .is_err()
    {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // Open as long as the process: the handler may run at any time.
    let _stays_open = write.into_raw_fd();
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = caught;
    for signal in signals {
        // SAFETY: an all-zero sigaction is a valid one, and it is filled in before it is used. The handler has the
        // signature that SA_SIGINFO asks for and calls nothing that is not async-signal-safe. A number that is no
        // signal, or that cannot be caught, makes the call fail and changes nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
    Ok(read)
}

extern "C" fn caught(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel hands over a siginfo that is valid during the call.
    let by_kernel = !info.is_null() && unsafe { (*info).si_code } > 0;
    if by_kernel && FAULTS.contains(&signal) {
        // SAFETY: signal(2) is async-signal-safe. The instruction faults again and ends the process.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the location of errno is valid for the thread, and it is put back before the return; kill(2), getpid(2)
    // and write(2) are async-signal-safe; the byte outlives the call.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        if by_kernel && (signal == libc::SIGTTIN || signal == libc::SIGTTOU) {
            libc::kill(libc::getpid(), libc::SIGSTOP);
        } else {
            // 1-64. A full pipe has more signals than anybody waits for.
            let number = signal.to_ne_bytes();
            let byte = if cfg!(target_endian = "little") {
                &number[0]
            } else {
                &number[3]
            };
            libc::write(
                WRITE.load(Ordering::SeqCst),
                std::ptr::from_ref(byte).cast(),
                1,
            );
        }
        *errno = before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_of_others_are_caught_real_time_ones_too() {
        let own = std::process::id().cast_signed();
        let wanted = [
            libc::SIGUSR1,
            libc::SIGSEGV,
            libc::SIGTTIN,
            libc::SIGTSTP,
            37,
            64,
        ];
        let pipe = catch(wanted).unwrap();
        for signal in wanted {
            crate::process::send_signal(own, signal).unwrap();
            let mut byte = [0];
            // Another thread may take it a moment later.
            rustix::event::poll(
                &mut [rustix::event::PollFd::new(
                    &pipe,
                    rustix::event::PollFlags::IN,
                )],
                None,
            )
            .unwrap();
            rustix::io::read(&pipe, &mut byte).unwrap();
            assert_eq!(i32::from(byte[0]), signal);
        }
        assert!(catch([libc::SIGUSR1]).is_err());
    }
}
