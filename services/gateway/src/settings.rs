//! The table `[gateway]` of the configuration.

use std::time::Duration;

use serde::Deserialize;

use crate::own_ids::OwnIds;
use crate::wanted::LogOptions;

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whether containers that say nothing of a log have one.
    pub log_enabled: bool,
    /// A log's segment is closed when it reaches this size in bytes.
    pub log_max_segment_bytes: u64,
    /// Segments of a log that are kept.
    pub log_max_segments: u32,
    /// Processes and threads of a container that names no limit. 0: no limit.
    pub pids_limit: i64,
    /// The cgroup that containers' cgroups are made in, from the root of each
    /// hierarchy: "gantry", "machine/gantry".
    pub cgroup_parent: String,
    /// First wait before a restart by policy, in milliseconds; doubled each time.
    pub restart_backoff_ms: u64,
    /// Longest wait before a restart by policy, in milliseconds.
    pub restart_backoff_max_ms: u64,
    /// A run of so many milliseconds was a good one: the waits begin anew.
    pub restart_good_run_ms: u64,
    /// The first of the host's user and group ids that containers with
    /// `--userns auto` share among them. The default is what systemd leaves
    /// unused (systemd.io/UIDS-GIDS).
    pub userns_first_id: u32,
    /// How many they are.
    pub userns_ids: u32,
    /// Events that are remembered for `events --since`.
    pub events_kept: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            log_enabled: true,
            log_max_segment_bytes: 10 << 20,
            log_max_segments: 3,
            pids_limit: 0,
            cgroup_parent: "gantry".to_owned(),
            restart_backoff_ms: 100,
            restart_backoff_max_ms: 60_000,
            restart_good_run_ms: 10_000,
            userns_first_id: 1_879_048_192,
            userns_ids: 268_435_456,
            events_kept: 1024,
        }
    }
}

impl Settings {
    /// How the output of a container that says nothing of it is logged.
    #[must_use]
    pub fn log(&self) -> LogOptions {
        LogOptions {
            enabled: self.log_enabled,
            max_segment_bytes: self.log_max_segment_bytes,
            max_segments: self.log_max_segments,
        }
    }

    /// The ids that containers share.
    #[must_use]
    pub fn own_ids(&self) -> OwnIds {
        OwnIds {
            first: self.userns_first_id,
            count: self.userns_ids,
        }
    }

    #[must_use]
    pub fn good_run(&self) -> Duration {
        Duration::from_millis(self.restart_good_run_ms)
    }
}
