//! What must be kept of a container so that another process can work with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use oci_spec::runtime::Hooks;
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;
use super::context::During;
use super::error::Result;
use super::host_root::HostRoot;

/// A container's state, as the runtime spec names it (and `paused`, as runc adds).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made.
    Creating,
    /// Made; init waits for `start`.
    Created,
    /// The program runs.
    Running,
    /// All its processes are frozen.
    Paused,
    /// Init has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A container on paper: enough for [`Container::reopen`](super::Container::reopen) after a restart
/// of the shim, or in the next invocation of `gantry-oci`. Serialised as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The container's id.
    pub id: String,
    /// Init's PID as this process' PID namespace sees it.
    pub pid: i32,
    /// Init's start time in clock ticks since boot (field 22 of /proc/PID/stat), which with
    /// the PID tells it from a later process with the same PID.
    pub start_time: u64,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The cgroup's path below each hierarchy's root, as `/gantry/ID`.
    pub cgroup: PathBuf,
    /// Whether the cgroup directories were made here (and so are removed by `delete`).
    pub owns_cgroup: bool,
    /// The socket that `start` connects to, with [`Gate::Socket`](super::Gate::Socket).
    pub gate: Option<PathBuf>,
    /// When `create` was called, seconds since 1970.
    pub created_unix: u64,
    /// The bundle's spec annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The spec's hooks: `poststart` and `poststop` come after `create`.
    #[serde(default)]
    pub hooks: Option<Hooks>,
    /// Where the container's mounts are, if it shares the host's mount namespace.
    #[serde(default)]
    pub(super) host_root: Option<HostRoot>,
}

impl Record {
    /// Of a container that another runtime makes, in the cgroup that the specification names. Its first process is not
    /// there yet.
    pub fn of_another(id: &str, bundle: &Path, cgroup: Option<&Path>) -> Result<Self> {
        Ok(Self {
            id: id.to_owned(),
            pid: 0,
            start_time: 0,
            bundle: bundle.to_owned(),
            cgroup: Cgroup::new(cgroup, id)?.path(),
            owns_cgroup: true,
            gate: None,
            created_unix: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            annotations: BTreeMap::new(),
            hooks: None,
            host_root: None,
        })
    }

    /// The same container, now that its first process is there.
    pub fn with_first_process(mut self, pid: i32) -> Result<Self> {
        self.pid = pid;
        self.start_time = start_time(pid).during("read", format_args!("/proc/{pid}/stat"))?;
        Ok(self)
    }
}

/// When a process started, in clock ticks since boot: field 22 of /proc/PID/stat.
pub(super) fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, field 2, is in parentheses and may contain anything.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}
