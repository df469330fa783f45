//! The spec's resources as values of cgroup files.

mod v1;
mod v2;

pub(super) use v1::entries as v1;
pub(super) use v2::entries as v2;

use std::io;

use nix::libc;
use oci_spec::runtime::{LinuxCpu, LinuxMemory};

use crate::container::error::Error;

/// A value for a file of a controller. Of `files` the first that exists is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) controller: &'static str,
    pub(super) files: Vec<String>,
    pub(super) value: String,
    /// The spec's field, for errors.
    pub(super) field: String,
    /// Not an error where the file is missing.
    pub(super) optional: bool,
}

fn entry(controller: &'static str, file: &str, value: impl ToString, field: &str) -> Entry {
    Entry {
        controller,
        files: vec![file.to_owned()],
        value: value.to_string(),
        field: format!("linux.resources.{field}"),
        optional: false,
    }
}

/// "max" for what the spec writes as −1 (and, for pids, 0).
fn max(limit: i64) -> String {
    if limit <= 0 {
        "max".to_owned()
    } else {
        limit.to_string()
    }
}

/// What is asked for as the limit of memory and swap together. No limit on memory alone would leave one on both, which
/// is below it, so it takes that away too, unless the same breath says otherwise.
fn swap(memory: &LinuxMemory) -> Option<i64> {
    memory
        .swap()
        .filter(|swap| *swap != 0)
        .or_else(|| memory.limit().filter(|limit| *limit == -1))
}

/// Has the limit of memory and swap written before the one of memory where that
/// is above what both may take now: version 1 refuses it in the other order.
pub(super) fn raise_swap_first(writes: &mut [Entry], current: impl Fn(&str) -> Option<String>) {
    const BOTH: &str = "memory.memsw.limit_in_bytes";
    let position = |file: &str| writes.iter().position(|entry| entry.files[0] == file);
    let (Some(limit), Some(both)) = (position("memory.limit_in_bytes"), position(BOTH)) else {
        return;
    };
    let now = current(BOTH).and_then(|text| text.trim().parse::<i128>().ok());
    let wanted = writes[limit].value.parse::<i128>().ok();
    if limit < both && wanted > now && now.is_some() {
        writes.swap(limit, both);
    }
}

/// Whether the kernel refused a value, and not the write.
pub(super) fn refuses_value(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINVAL
                | libc::ERANGE
                | libc::EBUSY
                | libc::ENOSPC
                | libc::EACCES
                | libc::E2BIG
                | libc::EOPNOTSUPP
                | libc::ENODEV
        )
    )
}

/// The error of a value that the kernel refused.
pub(super) fn refused(entry: &Entry, file: &str, error: &io::Error) -> Error {
    let why = match error.raw_os_error() {
        Some(libc::EBUSY) if entry.controller == "memory" => {
            "the container uses more than that now"
        }
        Some(libc::EACCES | libc::ENOSPC) if entry.controller == "cpuset" => {
            "the cgroup above it does not have all of them"
        }
        _ => "it does not fit this machine or the other limits",
    };
    Error::invalid(
        &entry.field,
        format!(
            "the kernel refuses {:?} for {file}: {why} ({error})",
            entry.value
        ),
    )
}

fn cpuset(cpu: &LinuxCpu, out: &mut Vec<Entry>) {
    if let Some(cpus) = cpu.cpus().as_deref().filter(|cpus| !cpus.is_empty()) {
        out.push(entry("cpuset", "cpuset.cpus", cpus, "cpu.cpus"));
    }
    if let Some(mems) = cpu.mems().as_deref().filter(|mems| !mems.is_empty()) {
        out.push(entry("cpuset", "cpuset.mems", mems, "cpu.mems"));
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxResources;

    use super::*;
    use crate::container::error::Result;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    /// In a group that has no limits.
    fn v2_anew(json: &str) -> Result<Vec<Entry>> {
        v2_over(
            json,
            &[("cpu.max", "max 100000\n"), ("memory.max", "max\n")],
        )
    }

    fn v2_over(json: &str, group: &[(&str, &str)]) -> Result<Vec<Entry>> {
        v2(&resources(json), |file| {
            let (_, value) = group.iter().find(|(name, _)| *name == file)?;
            Some((*value).to_owned())
        })
    }

    fn values(entries: &[Entry]) -> Vec<(&str, &str)> {
        entries
            .iter()
            .map(|entry| (entry.files[0].as_str(), entry.value.as_str()))
            .collect()
    }

    #[test]
    fn limits_become_the_files_of_version_1() {
        let entries = v1(&resources(
            r#"{"memory":{"limit":1000,"swap":2000},"cpu":{"quota":50,"period":100,"shares":512},"pids":{"limit":5}}"#,
        ))
        .unwrap();
        assert_eq!(
            values(&entries),
            [
                ("memory.limit_in_bytes", "1000"),
                ("memory.memsw.limit_in_bytes", "2000"),
                ("cpu.shares", "512"),
                ("cpu.cfs_period_us", "100"),
                ("cpu.cfs_quota_us", "50"),
                ("pids.max", "5"),
            ]
        );
    }

    #[test]
    fn limits_become_the_files_of_version_2() {
        let entries = v2_anew(
            r#"{"memory":{"limit":1000,"swap":1500},"cpu":{"quota":50,"period":100,"shares":1024},"pids":{"limit":-1}}"#,
        )
        .unwrap();
        assert_eq!(
            values(&entries),
            [
                ("memory.swap.max", "500"),
                ("memory.max", "1000"),
                ("cpu.weight", "100"),
                ("cpu.max", "50 100"),
                ("pids.max", "max"),
            ]
        );
    }

    #[test]
    fn the_limit_of_both_is_raised_before_the_limit_of_memory() {
        let wanted = resources(r#"{"memory":{"limit":3000,"swap":6000}}"#);
        for (now, first) in [
            (Some("2000\n"), "memory.memsw.limit_in_bytes"),
            (Some("4000\n"), "memory.limit_in_bytes"),
            (None, "memory.limit_in_bytes"),
        ] {
            let mut writes = v1(&wanted).unwrap();
            raise_swap_first(&mut writes, |_| now.map(str::to_owned));
            assert_eq!(writes[0].files[0], first, "{now:?}");
        }
    }

    #[test]
    fn a_value_that_the_kernel_refuses_is_the_callers_error_and_names_its_field() {
        let entry = entry("memory", "memory.max", 5, "memory.limit");
        for errno in [libc::EINVAL, libc::ERANGE, libc::EBUSY] {
            let error = io::Error::from_raw_os_error(errno);
            assert!(refuses_value(&error));
            let refused = refused(&entry, "memory.max", &error);
            assert!(
                matches!(&refused, Error::Invalid { field, .. } if field == "linux.resources.memory.limit"),
                "{refused:?}"
            );
        }
        assert!(!refuses_value(&io::Error::from_raw_os_error(libc::EIO)));
    }

    #[test]
    fn nothing_is_written_for_a_limit_of_0() {
        let nothing = r#"{"memory":{"limit":0,"swap":0,"reservation":0,"kernelTCP":0},"cpu":{"quota":0,"period":0,"shares":0}}"#;
        assert_eq!(v1(&resources(nothing)).unwrap(), []);
        assert_eq!(v2_anew(nothing).unwrap(), []);
    }

    #[test]
    fn swap_below_memory_is_refused_where_it_can_not_be_said() {
        assert!(v2_anew(r#"{"memory":{"limit":1000,"swap":500}}"#).is_err());
    }

    #[test]
    fn a_unified_key_may_not_leave_the_group() {
        assert!(v2_anew(r#"{"unified":{"../memory.max":"1"}}"#).is_err());
    }
    #[test]
    fn a_new_period_keeps_the_quota_of_version_2() {
        let group = [("cpu.max", "20000 100000\n")];
        for (json, value) in [
            (r#"{"cpu":{"period":50000}}"#, "20000 50000"),
            (r#"{"cpu":{"quota":-1,"period":50000}}"#, "max 50000"),
            (r#"{"cpu":{"quota":30000}}"#, "30000"),
        ] {
            let entries = v2_over(json, &group).unwrap();
            assert_eq!(values(&entries), [("cpu.max", value)]);
        }
        let entries = v2_anew(r#"{"cpu":{"period":50000}}"#).unwrap();
        assert_eq!(values(&entries), [("cpu.max", "max 50000")]);
    }

    #[test]
    fn a_swap_limit_goes_with_the_memory_limit_that_it_counts() {
        let update = resources(r#"{"memory":{"limit":-1}}"#);
        assert_eq!(
            values(&v1(&update).unwrap()),
            [
                ("memory.memsw.limit_in_bytes", "-1"),
                ("memory.limit_in_bytes", "-1"),
            ]
        );
        assert_eq!(
            values(&v2_anew(r#"{"memory":{"limit":-1}}"#).unwrap()),
            [("memory.swap.max", "max"), ("memory.max", "max")]
        );
        // Alone it counts the limit that is there; without one it cannot be said.
        let swap = r#"{"memory":{"swap":1500}}"#;
        let entries = v2_over(swap, &[("memory.max", "1000\n")]).unwrap();
        assert_eq!(values(&entries), [("memory.swap.max", "500")]);
        assert!(v2_anew(swap).is_err());
    }
}
