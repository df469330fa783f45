//! The OCI runtime as a library: an OCI runtime spec in, a container out.
//!
//! Two programs drive it: the shim (one process per container, which stays) and
//! `gantry-oci` (one process per verb, which does not). Both go through the same
//! functions; what must outlive a process is a [`Record`].
//!
//! ```text
//! create(CreateOptions) ─► Created { container, terminal, timings }
//!                             │ init has everything, and waits for start
//! container.start() ──────────┤ the program runs (or the error of its execve)
//! container.exec(..)          │ further processes, in the same namespaces and cgroup
//! container.{kill,pause,resume,update,stats,oom_kills,processes}
//! container.delete()          ▼ nothing is left
//! ```
//!
//! # Who does what
//! `create` clones once. The child ("init") lives in the new namespaces and
//! prepares the root file system while the parent makes the cgroups at the same
//! time: on two cores that is the longest pair of steps, and they do not depend
//! on each other. The two talk over one socket; the child reports each step's time
//! and the first error (with step, object and errno) over it. No helper binary is
//! executed, and there is no second fork (but where a user namespace is joined, see `birth`): to exec in a container the parent lends
//! its `pid_for_children` to the container's PID namespace for one clone.
//!
//! # What the caller must know
//! * All functions block, for milliseconds. They need no runtime and start no thread.
//! * `create` and `exec` clone without exec: the calling process must have exactly one
//!   thread (checked, [`Error::Threads`]).
//! * The caller is the parent of the processes made here and must reap them: wait
//!   for the pidfd to become readable, then `waitid(P_PIDFD)` or [`Container::reap`].
//!   A process whose creation failed has been reaped here already.
//! * File descriptors the caller has open do not leak: the child closes all but its own
//!   and sets close-on-exec before it executes anything.
//! * [`protect_own_binary`] is to be called first in `main` of every program that uses this
//!   library (CVE-2019-5736).

mod affinity;
mod beneath;
mod birth;
mod cgroup;
mod cgroup_mount;
mod context;
mod copy_up;
mod create;
mod delete;
mod devices;
mod error;
mod exec;
mod handle;
mod hide;
mod hooks;
mod host_root;
mod identity;
mod init;
mod kill;
mod launch;
mod links;
mod loopback;
mod memory_policy;
mod mount_options;
mod mounts;
mod namespaces;
mod net_devices;
mod netlink;
mod options;
mod outside;
mod pause;
mod privileges;
mod program;
mod reading;
mod record;
mod rootfs;
mod seccomp;
mod setup;
mod shifted;
mod stand_in;
mod start;
mod stats;
mod sysctl;
mod terminal;
mod timing;
mod update;
mod wire;

pub use create::create;
pub(crate) use error::shortened;
pub use error::{Error, ExecFailure, Result};
pub use exec::{ExecOptions, Executed};
pub use handle::{Container, Created};
pub use kill::Target;
pub use options::{CreateOptions, Gate, Overlay, Stdio, TerminalSize};
pub use outside::{Outside, enter_own_mounts, leave, let_go, prepare, root_of, settle_user};
pub use reading::{read_process, read_spec};
pub use record::{Record, Status};
pub use seccomp::Filter;
pub use start::protect_own_binary;
pub use stats::{BlockStats, CpuStats, MemoryStats, PidsStats, PressureStats, Stats};
pub use timing::Timing;

/// The version of the runtime specification that this implements.
pub const OCI_VERSION: &str = "1.3.0";
