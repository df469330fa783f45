//! The one place for `unsafe`: the system calls that neither nix nor rustix offers safely.
//!
//! What is here is thin: one call, its arguments typed, its result an `io::Result`. Everything that
//! decides something lives in the crates above. Each block states the invariant it relies on.
//!
//! * [`clone`](mod@clone): clone3 with namespaces, a pidfd and a cgroup; the child goes on in a copy of the address space.
//! * [`mount`]: mount_setattr (read-only, propagation, id-mapping), read-only views of a file.
//! * [`caps`]: capability sets as 64-bit masks.
//! * [`seccomp`]: loading a classic BPF filter, with flags and the notify descriptor.
//! * [`bpf`]: device programs for cgroup v2.
//! * [`fd`]: closing and marking ranges of descriptors, adopting inherited ones.
//! * [`signals`]: signals of the calling process as bytes of a pipe.
//! * [`spawn`]: default signals and no inherited descriptor for a child, descriptors at fixed numbers, and its end with
//!   its parent's.
//! * [`process`]: signals at rest, leaving at once, keyrings, scheduling, i/o priority, memory policy.
//! * [`command_line`]: what others are shown of the calling process' arguments.
//! * [`unix_socket`]: sockets at paths of any length, closed from the first moment.
//! * [`user_namespace`]: a user namespace that nobody is in.

pub mod bpf;
pub mod caps;
pub mod clone;
pub mod command_line;
pub mod fd;
pub mod mount;
pub mod process;
pub mod seccomp;
pub mod signals;
pub mod spawn;
pub mod unix_socket;
pub mod user_namespace;

use std::io;

/// The result of a raw system call as an `io::Result`.
fn check(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}
