//! A container that another OCI runtime makes: a program with runc's interface, in place of the library
//! [`container`](crate::container).
//!
//! The shim stays what it is: the parent of the container's processes, with their terminal, their log and their end. What
//! is done by running the program is `create`, `start`, `exec`, `pause`, `resume`, `update` and `delete`. What the kernel
//! does as well without it stays here, since it cannot hang: signals, counters, the list of processes, and the removal of
//! the cgroup, which is the one that the specification names.
//!
//! ```text
//! <bundle>/oci/          the program's bundle
//!   config.json          the specification, rewritten (container/outside.rs)
//!   rootfs/ mounts/N     mounted in the shim's own mount namespace, and there alone
//!   state/               the program's --root: goes with the bundle
//!   log.N err.N pid.N …  of the call N, gone after it
//! <bundle>/tty.N         the socket on which the call N sends a terminal
//! ```
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`command`] | running the program, with a deadline, and what it says |
//! | [`births`] | the ends of children that the shim does not know yet |
//! | `create`, `exec`, `verbs` | the verbs |
//! | `terminal` | taking a terminal |
//!
//! # The first process
//! The program clones it and ends; as the nearest subreaper the shim then is its parent. It may end before the shim has
//! read its number, so that while a call is under way the ends of all unknown children are kept ([`births`]).
//!
//! # Deadlines
//! A program that does not end in time is killed with its process group, the verb fails, and the container is marked as
//! sick with the cause until a later verb succeeds. It also dies with the shim.
//!
//! # Limits
//! The container's processes must be processes of this kernel, in the cgroup of the specification, and children of the
//! caller: so it is with runc, crun, youki and gantry-oci. A runtime that starts a virtual machine is refused.

mod births;
mod command;
mod create;
mod exec;
mod terminal;
mod verbs;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::stdio::lock;

pub use births::Births;
pub use create::create;
pub use exec::exec;
pub use verbs::{pause, resume, start, update};

/// The program's bundle, in the container's.
const DIRECTORY: &str = "oci";

/// The runtime's program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// As a person names it.
    pub name: String,
    /// Absolute.
    pub path: PathBuf,
    /// Before all that the shim says.
    pub args: Vec<String>,
}

/// Carries a verb to its end, also when its caller goes away: a program that was cut off leaves half of something.
///
/// # Errors
/// The verb's.
pub async fn whole<T: Send + 'static>(
    verb: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(verb).await.unwrap_or_else(|error| {
        Err(Error::Io {
            step: "a verb was cut off",
            source: std::io::Error::other(error),
        })
    })
}

/// What the shim knows of a container that a program made.
#[derive(Debug)]
pub struct Foreign {
    program: Program,
    id: String,
    bundle: PathBuf,
    /// Number of the next call.
    next: AtomicU64,
    /// Names of supplementary groups of every process.
    groups: Mutex<Vec<String>>,
    /// Why the program cannot be relied on. Empty: it can.
    trouble: Mutex<String>,
}

impl Foreign {
    fn new(program: Program, id: &str, bundle: &Path) -> Self {
        Self {
            program,
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            next: AtomicU64::new(0),
            groups: Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    fn directory(&self) -> PathBuf {
        self.bundle.join(DIRECTORY)
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Why the program cannot be relied on. Empty: it can.
    #[must_use]
    pub fn trouble(&self) -> String {
        lock(&self.trouble).clone()
    }

    /// An error of a step of ours.
    fn failed(step: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { step, source }
    }

    /// What the program did is not what a runtime does.
    fn unfit(&self, verb: &'static str, words: String) -> Error {
        Error::Runtime {
            runtime: self.program.name.clone(),
            verb,
            words,
            exit_code: 125,
        }
    }

    /// The number of the process that a call has made.
    fn made(&self, verb: &'static str, pid_file: &Path) -> Result<i32> {
        let text = std::fs::read_to_string(pid_file).unwrap_or_default();
        let _gone = std::fs::remove_file(pid_file);
        text.trim()
            .parse()
            .ok()
            .filter(|pid| *pid > 1)
            .ok_or_else(|| {
                self.unfit(
                    verb,
                    format!(
                        "its --pid-file holds {:?}, which is no process",
                        text.trim()
                    ),
                )
            })
    }
}
