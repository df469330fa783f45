//! Single calls about the calling process.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

use crate::check;

/// Ends the process at once: no destructors, no atexit handlers, no flushing.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no precondition and does not return.
    unsafe { libc::_exit(code) }
}

/// Sets every signal to its default action, also those that were ignored, and empties the mask.
pub fn reset_signals() -> io::Result<()> {
    reset_signals_but(None)
}

/// For the start of `main`: undoes what the parent ignored or blocked. SIGPIPE stays ignored, which is how the standard
/// library starts every program.
pub fn reset_inherited_signals() -> io::Result<()> {
    reset_signals_but(Some(libc::SIGPIPE))
}

fn reset_signals_but(kept: Option<i32>) -> io::Result<()> {
    // struct sigaction as the kernel has it, all zero: SIG_DFL, no flags, an empty mask. glibc's own function would refuse
    // the two signals that it keeps to itself, which may be inherited as ignored.
    let default = [0_u64; 4];
    for signal in (1..=64).filter(|signal| Some(*signal) != kept) {
        // SAFETY: the kernel reads one sigaction with a mask of 8 bytes, which `default` has room for and outlives the call.
        // SIG_DFL installs no code. SIGKILL and SIGSTOP can not be changed, and fail harmlessly.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                8,
            );
        }
    }
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that sigprocmask then reads; both outlive the calls.
    check(
        unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
        }
        .into(),
    )
    .map(drop)
}

/// Blocks every signal in the calling thread, the two that glibc keeps to itself included. What is blocked stays pending
/// until [`wait_for_signal`] takes it. A child inherits the mask: start it with [`crate::spawn::with_defaults`].
pub fn block_signals() -> io::Result<()> {
    // SAFETY: the kernel reads a mask of 8 bytes, which outlives the call, and writes no old mask to a null pointer. Blocking
    // a signal changes no memory.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            &raw const EVERY_SIGNAL,
            std::ptr::null_mut::<u64>(),
            8,
        )
    })
    .map(drop)
}

/// A kernel signal mask (64 signals) with every bit set.
static EVERY_SIGNAL: u64 = u64::MAX;

/// Waits for a signal that [`block_signals`] has blocked and takes it: its number, 1 to 64, real-time signals included.
///
/// # Errors
/// `EINTR`: the process was stopped and continued; wait again.
pub fn wait_for_signal() -> io::Result<i32> {
    // SAFETY: the kernel reads a mask of 8 bytes, which outlives the call; without a siginfo and a timeout it writes
    // nothing and waits without limit.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const EVERY_SIGNAL,
            std::ptr::null_mut::<libc::siginfo_t>(),
            std::ptr::null::<libc::timespec>(),
            8,
        )
    })
    .map(|number| number as i32)
}

/// Joins a new, named session keyring (of its own, so that nothing of the caller's is seen).
pub fn join_session_keyring(name: &CStr) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: the name is a C string that outlives the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
        .map(drop)
}

/// What sched_setattr(2) sets.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SchedAttr {
    /// `SCHED_…`.
    pub policy: u32,
    /// `SCHED_FLAG_…`.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub runtime: u64,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub deadline: u64,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub period: u64,
}

/// `struct sched_attr` of linux/sched/types.h, its first version.
#[repr(C)]
struct RawSchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// sched_setattr(2) on the calling thread.
pub fn set_scheduler(attr: SchedAttr) -> io::Result<()> {
    let raw = RawSchedAttr {
        size: size_of::<RawSchedAttr>() as u32,
        policy: attr.policy,
        flags: attr.flags,
        nice: attr.nice,
        priority: attr.priority,
        runtime: attr.runtime,
        deadline: attr.deadline,
        period: attr.period,
    };
    // SAFETY: `raw` is a valid sched_attr of the size it names and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(&raw), 0) })
        .map(drop)
}

/// ioprio_set(2) on the calling thread: class 1 (real time), 2 (best effort), 3 (idle); level 0 … 7.
pub fn set_io_priority(class: u32, level: u32) -> io::Result<()> {
    const WHO_PROCESS: libc::c_long = 1;
    // SAFETY: ioprio_set takes integers only.
    check(unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            WHO_PROCESS,
            0,
            libc::c_long::from(class << 13 | level),
        )
    })
    .map(drop)
}

/// set_mempolicy(2) on the calling thread; `nodes` is a bit mask.
pub fn set_memory_policy(mode: i32, nodes: &[u64]) -> io::Result<()> {
    // SAFETY: the kernel reads as many bits of `nodes` as the last argument says, less one, and the slice has them.
    check(unsafe {
        libc::syscall(
            libc::SYS_set_mempolicy,
            mode,
            if nodes.is_empty() {
                std::ptr::null()
            } else {
                nodes.as_ptr()
            },
            if nodes.is_empty() {
                0
            } else {
                nodes.len() * 64 + 1
            },
        )
    })
    .map(drop)
}

/// execveat(2) of the file that `fd` is. Returns only on failure.
pub fn execute_descriptor(
    fd: BorrowedFd<'_>,
    arguments: &[std::ffi::CString],
    environment: &[std::ffi::CString],
) -> io::Error {
    let terminated = |strings: &[std::ffi::CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let arguments = terminated(arguments);
    let environment = terminated(environment);
    // SAFETY: both arrays end in a null pointer and point to C strings that outlive the call.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    debug_assert!(ret < 0);
    io::Error::last_os_error()
}

/// The number of clock ticks per second in /proc/PID/stat.
#[must_use]
pub fn clock_ticks() -> u64 {
    // SAFETY: sysconf has no precondition.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) }
        .try_into()
        .unwrap_or(100)
}

/// Sends any signal, real-time ones too, to a process.
pub fn send_signal(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill(2) takes integers only.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Sends any signal to the process that a pidfd stands for.
pub fn send_signal_to(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: without a siginfo pidfd_send_signal takes integers only.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}
