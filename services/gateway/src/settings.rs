//! The table `[gateway]` of the configuration.

use std::ops::Range;
use std::time::Duration;

use gantry_kit::identity::Identity;
use serde::Deserialize;

use crate::own_ids::OwnIds;
use crate::wanted::LogOptions;

/// The ids that systemd leaves unused (systemd.io/UIDS-GIDS).
const UNUSED_IDS: Range<u32> = 0x7000_0000..0x8000_0000;
/// The first ids of engines with a root are so far apart: as many as a container
/// that asks for no number has.
const IDS_STEP: u32 = 65_536;

/// Engines do not know of each other's containers, and begin at different places
/// instead: the system-wide one with the first id, all others in the second
/// half, so that each has room for 1,024 containers at least.
fn first_id_of(identity: &Identity) -> u32 {
    const HALF: u32 = (UNUSED_IDS.end - UNUSED_IDS.start) / 2;
    const PLACES: u64 = (HALF / IDS_STEP / 2) as u64;
    match identity.number() {
        None => UNUSED_IDS.start,
        Some(number) => UNUSED_IDS.start + HALF + (number % PLACES) as u32 * IDS_STEP,
    }
}

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
    /// hierarchy: "gantry", "machine/gantry". Empty: one of this engine alone,
    /// "gantry" or, with `--root`, `gantry-<tag>`.
    pub cgroup_parent: String,
    /// First wait before a restart by policy, in milliseconds; doubled each time.
    pub restart_backoff_ms: u64,
    /// Longest wait before a restart by policy, in milliseconds.
    pub restart_backoff_max_ms: u64,
    /// A run of so many milliseconds was a good one: the waits begin anew.
    pub restart_good_run_ms: u64,
    /// The first of the host's user and group ids that containers with
    /// `--userns auto` share among them. The default is what systemd leaves
    /// unused (systemd.io/UIDS-GIDS): for an engine with `--root` from a place in
    /// their second half on that follows from the root.
    pub userns_first_id: Option<u32>,
    /// How many they are. Absent: as many as systemd leaves unused, or with an
    /// absent first id as many of them as are left from it on.
    pub userns_ids: Option<u32>,
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
            cgroup_parent: String::new(),
            restart_backoff_ms: 100,
            restart_backoff_max_ms: 60_000,
            restart_good_run_ms: 10_000,
            userns_first_id: None,
            userns_ids: None,
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

    /// The cgroup that containers' cgroups are made in, without slashes at its
    /// ends.
    #[must_use]
    pub fn cgroup_parent(&self, identity: &Identity) -> String {
        match self.cgroup_parent.trim_matches('/') {
            "" => identity.scoped("gantry"),
            own => own.to_owned(),
        }
    }

    /// The same where it is not configured, and so no other engine's too.
    #[must_use]
    pub fn own_cgroup_parent(&self, identity: &Identity) -> Option<String> {
        let configured = !self.cgroup_parent.trim_matches('/').is_empty();
        (!configured).then(|| self.cgroup_parent(identity))
    }

    /// The ids that containers share.
    #[must_use]
    pub fn own_ids(&self, identity: &Identity) -> OwnIds {
        let (first, count) = match self.userns_first_id {
            Some(first) => (first, UNUSED_IDS.end - UNUSED_IDS.start),
            None => {
                let first = first_id_of(identity);
                (first, UNUSED_IDS.end - first)
            }
        };
        OwnIds {
            first,
            count: self.userns_ids.unwrap_or(count),
        }
    }

    #[must_use]
    pub fn good_run(&self) -> Duration {
        Duration::from_millis(self.restart_good_run_ms)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use gantry_kit::paths::Paths;

    use super::*;

    fn identity(root: Option<&str>) -> Identity {
        Identity::of(&Paths::resolve(root.map(Path::new)).unwrap())
    }

    #[test]
    fn engines_with_other_roots_have_cgroups_and_ids_of_their_own() {
        let settings = Settings::default();
        let [system, one, two] = [None, Some("/srv/one"), Some("/srv/two")].map(identity);
        assert_eq!(settings.cgroup_parent(&system), "gantry");
        assert_ne!(settings.cgroup_parent(&one), settings.cgroup_parent(&two));
        assert_eq!(
            settings.own_ids(&system),
            OwnIds {
                first: 1_879_048_192,
                count: 268_435_456
            }
        );
        let [first, second] = [&one, &two].map(|identity| settings.own_ids(identity));
        assert_ne!(first.first, second.first);
        for ids in [first, second] {
            assert!(ids.first >= 1_879_048_192 + 134_217_728, "{ids:?}");
            assert!(ids.count >= 1_024 * 65_536, "{ids:?}");
            assert_eq!(ids.first + ids.count, 0x8000_0000);
        }
    }

    #[test]
    fn what_is_configured_goes_over_the_root() {
        let settings = Settings {
            cgroup_parent: "/machine/own/".to_owned(),
            userns_first_id: Some(100_000),
            userns_ids: Some(5_000),
            ..Settings::default()
        };
        let one = identity(Some("/srv/one"));
        assert_eq!(settings.cgroup_parent(&one), "machine/own");
        assert_eq!(
            settings.own_ids(&one),
            OwnIds {
                first: 100_000,
                count: 5_000
            }
        );
    }
}
