//! What processes hold of the machine, so that a test can see that it does not grow.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::audit::command_of;

/// What one process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    files: usize,
    threads: usize,
    /// Memory that is its own: anonymous, in KiB.
    memory: u64,
    mounts: usize,
}

/// What some processes hold at one time.
#[derive(Debug)]
pub struct Footprint {
    processes: BTreeMap<i32, Held>,
    cgroups: usize,
}

/// What may come on top: caches that fill, an arena of the allocator for each
/// thread of a pool, files of connections that close a little later.
#[derive(Clone, Copy, Debug)]
pub struct Slack {
    pub files: usize,
    pub threads: usize,
    /// KiB.
    pub memory: u64,
    /// Namespaces that wait for a container are mounted, too.
    pub mounts: usize,
}

impl Default for Slack {
    fn default() -> Self {
        Self {
            files: 8,
            threads: 4,
            memory: 12 << 10,
            mounts: 8,
        }
    }
}

impl Footprint {
    /// Mounts are counted that name `root`: others have some, too.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn of(pids: &BTreeSet<i32>, root: &Path) -> Result<Self> {
        let root = root.to_string_lossy();
        let mut processes = BTreeMap::new();
        for &pid in pids {
            let gone = || format!("process {pid} has ended");
            let count = |what: &str| {
                let entries = fs::read_dir(format!("/proc/{pid}/{what}"));
                entries.map(Iterator::count).with_context(gone)
            };
            let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(gone)?;
            let memory = status
                .lines()
                .find_map(|line| line.strip_prefix("RssAnon:"))
                .and_then(|line| line.trim().strip_suffix(" kB"))
                .and_then(|number| number.trim().parse().ok())
                .with_context(|| format!("no RssAnon of {pid}"))?;
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).with_context(gone)?;
            let held = Held {
                files: count("fd")?,
                threads: count("task")?,
                memory,
                mounts: mounts.lines().filter(|l| l.contains(&*root)).count(),
            };
            processes.insert(pid, held);
        }
        let cgroups = fs::read_to_string("/proc/cgroups").context("/proc/cgroups")?;
        let cgroups = cgroups
            .lines()
            .filter_map(|line| line.split_whitespace().nth(2)?.parse::<usize>().ok())
            .max()
            .unwrap_or(0);
        Ok(Self { processes, cgroups })
    }

    /// Holds that `later` is no more than this, but for the slack.
    ///
    /// # Errors
    /// A process holds more, or is another one.
    pub fn holds(&self, later: &Self, slack: Slack) -> Result<()> {
        for (pid, before) in &self.processes {
            let now = later.processes.get(pid).context("a process was replaced")?;
            ensure!(
                now.files <= before.files + slack.files
                    && now.threads <= before.threads + slack.threads
                    && now.memory <= before.memory + slack.memory
                    && now.mounts <= before.mounts + slack.mounts,
                "{}: {now:?} now, {before:?} before",
                command_of(*pid)
            );
        }
        // Other tests of the same machine have some, too.
        ensure!(
            later.cgroups <= self.cgroups + 200,
            "{} cgroups now, {} before",
            later.cgroups,
            self.cgroups
        );
        Ok(())
    }
}

impl std::fmt::Display for Footprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (pid, held) in &self.processes {
            let line = command_of(*pid);
            let name = line.split(' ').next().unwrap_or_default();
            let name = name.rsplit('/').next().unwrap_or_default();
            writeln!(
                f,
                "{name}: {} files, {} threads, {} KiB, {} mounts",
                held.files, held.threads, held.memory, held.mounts
            )?;
        }
        write!(f, "{} cgroups", self.cgroups)
    }
}
