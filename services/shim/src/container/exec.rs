//! `exec`: a further process in a running container.

use std::os::fd::OwnedFd;

use oci_spec::runtime::{LinuxSeccomp, Process};

use super::error::{Error, Result};
use super::handle::Container;
use super::options::Stdio;
use super::timing::Timing;

/// What `exec` needs.
#[derive(Debug)]
pub struct ExecOptions<'a> {
    /// The process as the runtime spec describes it: args, env, cwd, user, capabilities, rlimits,
    /// noNewPrivileges, terminal.
    pub process: &'a Process,
    /// The container's filter; `None`: unconfined.
    pub seccomp: Option<&'a LinuxSeccomp>,
    /// As in [`CreateOptions::user`](super::CreateOptions::user).
    pub user: Option<String>,
    /// The standard streams.
    pub stdio: Stdio,
    /// Make `cwd` where it is missing.
    pub create_cwd: bool,
    /// Hand fds 3 … 3+n of the caller to the program.
    pub preserve_fds: u32,
}

/// What `exec` returns.
#[derive(Debug)]
pub struct Executed {
    /// In this process' PID namespace.
    pub pid: i32,
    /// Readable once the process has ended. The caller reaps it.
    pub pidfd: OwnedFd,
    /// The terminal's master side.
    pub terminal: Option<OwnedFd>,
    /// How long each step took.
    pub timings: Vec<Timing>,
}

impl Container {
    /// Runs a process in the container: all its namespaces, its cgroup, its root. Returns when the
    /// program has been executed, or with the error that prevented it (the process has been reaped then).
    /// The new process is a child of the caller, not of init.
    pub fn exec(&self, options: ExecOptions<'_>) -> Result<Executed> {
        let _ = options;
        Err(Error::Unsupported {
            what: "exec".into(),
            why: "not built yet".into(),
        })
    }
}
