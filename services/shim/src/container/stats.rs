//! What a container uses, read from its cgroup.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::error::Result;
use super::handle::Container;

/// Processor time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuStats {
    /// Nanoseconds of all CPUs together.
    pub usage_ns: u64,
    /// Of these in user mode.
    pub user_ns: u64,
    /// Of these in kernel mode.
    pub system_ns: u64,
    /// Nanoseconds per CPU; empty where the kernel does not say (v2).
    pub per_cpu_ns: Vec<u64>,
    /// Enforcement periods that have passed.
    pub periods: u64,
    /// Of these, throttled.
    pub throttled_periods: u64,
    /// Nanoseconds throttled.
    pub throttled_ns: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// In use, the page cache included.
    pub usage: u64,
    /// Most that was ever in use; 0 where the kernel does not say.
    pub peak: u64,
    /// The limit; `None`: unlimited.
    pub limit: Option<u64>,
    /// Page cache that could be dropped (`inactive_file`); Docker shows `usage` less this.
    pub inactive_file: u64,
    /// Anonymous memory.
    pub anon: u64,
    /// Page cache.
    pub file: u64,
    /// Swap in use.
    pub swap: u64,
    /// Times the limit was hit.
    pub failures: u64,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidsStats {
    /// Tasks now.
    pub current: u64,
    /// The limit; `None`: unlimited.
    pub limit: Option<u64>,
}

/// Block devices, summed over all devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockStats {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
}

/// How much of the last ten seconds some process waited, in hundredths of a percent (PSI). `None`: the kernel does
/// not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PressureStats {
    /// For CPU time.
    pub cpu: Option<u32>,
    /// For memory.
    pub memory: Option<u32>,
    /// For block devices.
    pub io: Option<u32>,
}

/// All of it. A controller that is not there leaves its part at zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes and threads.
    pub pids: PidsStats,
    /// Block devices.
    pub block: BlockStats,
    /// Processes killed for want of memory so far.
    pub oom_kills: u64,
    /// What its processes wait for.
    #[serde(default)]
    pub pressure: PressureStats,
}

impl Container {
    /// Reads the counters (about 100 µs).
    pub fn stats(&self) -> Result<Stats> {
        self.cgroup()?.stats()
    }

    /// How many of its processes the kernel has killed for want of memory. To be asked before `delete`.
    pub fn oom_kills(&self) -> Result<u64> {
        Ok(self.cgroup()?.oom_kills())
    }

    /// A descriptor on which an out-of-memory event can be waited for: readable (v1, an eventfd) or
    /// with exceptional condition (v2, `memory.events`). Ask [`Container::oom_kills`] after it fires,
    /// for it may also fire when the cgroup goes. `None` where there is no memory controller.
    pub fn oom_watch(&self) -> Result<Option<OwnedFd>> {
        self.cgroup()?.oom_watch()
    }
}
