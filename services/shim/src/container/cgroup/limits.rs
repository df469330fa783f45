//! The spec's resources as values of cgroup files.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use crate::container::error::{Error, Result};

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

/// Version 1.
pub(super) fn v1(resources: &LinuxResources) -> Result<Vec<Entry>> {
    let mut out = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_v1(memory, &mut out);
    }
    if let Some(cpu) = resources.cpu() {
        cpu_v1(cpu, &mut out);
    }
    if let Some(pids) = resources.pids() {
        out.push(entry("pids", "pids.max", max(pids.limit()), "pids.limit"));
    }
    if let Some(block) = resources.block_io() {
        block_v1(block, &mut out);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let file = format!("hugetlb.{}.limit_in_bytes", limit.page_size());
        out.push(entry("hugetlb", &file, limit.limit(), "hugepageLimits"));
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id() {
            out.push(entry(
                "net_cls",
                "net_cls.classid",
                class,
                "network.classID",
            ));
        }
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            out.push(entry(
                "net_prio",
                "net_prio.ifpriomap",
                value,
                "network.priorities",
            ));
        }
    }
    if resources
        .unified()
        .as_ref()
        .is_some_and(|unified| !unified.is_empty())
    {
        return Err(Error::Unsupported {
            what: "linux.resources.unified".to_owned(),
            why: "this machine has cgroup v1; use the fields for it".to_owned(),
        });
    }
    Ok(out)
}

fn memory_v1(memory: &LinuxMemory, out: &mut Vec<Entry>) {
    let mut add = |file: &str, value: Option<i64>, field: &str| {
        if let Some(value) = value {
            out.push(entry("memory", file, value, field));
        }
    };
    // A swap limit may not be below the memory limit: raised first when there is none, lowered last.
    let unlimited = memory.swap() == Some(-1);
    if unlimited {
        add("memory.memsw.limit_in_bytes", Some(-1), "memory.swap");
    }
    // 0 is no limit and no change: engines write it when they update another.
    add(
        "memory.limit_in_bytes",
        memory.limit().filter(|limit| *limit != 0),
        "memory.limit",
    );
    if !unlimited {
        add(
            "memory.memsw.limit_in_bytes",
            memory.swap().filter(|swap| *swap != 0),
            "memory.swap",
        );
    }
    add(
        "memory.soft_limit_in_bytes",
        memory.reservation().filter(|limit| *limit != 0),
        "memory.reservation",
    );
    add(
        "memory.kmem.tcp.limit_in_bytes",
        memory.kernel_tcp().filter(|limit| *limit != 0),
        "memory.kernelTCP",
    );
    if let Some(swappiness) = memory.swappiness() {
        out.push(entry(
            "memory",
            "memory.swappiness",
            swappiness,
            "memory.swappiness",
        ));
    }
    if memory.disable_oom_killer() == Some(true) {
        out.push(entry(
            "memory",
            "memory.oom_control",
            1,
            "memory.disableOOMKiller",
        ));
    }
}

fn cpu_v1(cpu: &LinuxCpu, out: &mut Vec<Entry>) {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        out.push(entry("cpu", "cpu.shares", shares, "cpu.shares"));
    }
    if let Some(idle) = cpu.idle() {
        out.push(entry("cpu", "cpu.idle", idle, "cpu.idle"));
    }
    if let Some(period) = cpu.period().filter(|period| *period != 0) {
        out.push(entry("cpu", "cpu.cfs_period_us", period, "cpu.period"));
    }
    if let Some(quota) = cpu.quota().filter(|quota| *quota != 0) {
        out.push(entry("cpu", "cpu.cfs_quota_us", quota, "cpu.quota"));
    }
    if let Some(burst) = cpu.burst() {
        out.push(entry("cpu", "cpu.cfs_burst_us", burst, "cpu.burst"));
    }
    if let Some(period) = cpu.realtime_period().filter(|period| *period != 0) {
        out.push(entry(
            "cpu",
            "cpu.rt_period_us",
            period,
            "cpu.realtimePeriod",
        ));
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|runtime| *runtime != 0) {
        out.push(entry(
            "cpu",
            "cpu.rt_runtime_us",
            runtime,
            "cpu.realtimeRuntime",
        ));
    }
    cpuset(cpu, out);
}

fn cpuset(cpu: &LinuxCpu, out: &mut Vec<Entry>) {
    if let Some(cpus) = cpu.cpus().as_deref().filter(|cpus| !cpus.is_empty()) {
        out.push(entry("cpuset", "cpuset.cpus", cpus, "cpu.cpus"));
    }
    if let Some(mems) = cpu.mems().as_deref().filter(|mems| !mems.is_empty()) {
        out.push(entry("cpuset", "cpuset.mems", mems, "cpu.mems"));
    }
}

fn throttle_v1(
    devices: Option<&Vec<LinuxThrottleDevice>>,
    file: &str,
    field: &str,
    out: &mut Vec<Entry>,
) {
    for device in devices.into_iter().flatten() {
        let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
        out.push(entry("blkio", file, value, field));
    }
}

fn block_v1(block: &LinuxBlockIo, out: &mut Vec<Entry>) {
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        let mut weight = entry("blkio", "blkio.weight", weight, "blockIO.weight");
        weight.files.push("blkio.bfq.weight".to_owned());
        out.push(weight);
    }
    if let Some(weight) = block.leaf_weight().filter(|weight| *weight != 0) {
        let mut weight = entry("blkio", "blkio.leaf_weight", weight, "blockIO.leafWeight");
        weight.files.push("blkio.bfq.leaf_weight".to_owned());
        out.push(weight);
    }
    for device in block.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            let mut weight = entry(
                "blkio",
                "blkio.weight_device",
                value,
                "blockIO.weightDevice",
            );
            weight.files.push("blkio.bfq.weight_device".to_owned());
            out.push(weight);
        }
    }
    for (devices, file, field) in [
        (
            block.throttle_read_bps_device(),
            "blkio.throttle.read_bps_device",
            "blockIO.throttleReadBpsDevice",
        ),
        (
            block.throttle_write_bps_device(),
            "blkio.throttle.write_bps_device",
            "blockIO.throttleWriteBpsDevice",
        ),
        (
            block.throttle_read_iops_device(),
            "blkio.throttle.read_iops_device",
            "blockIO.throttleReadIOPSDevice",
        ),
        (
            block.throttle_write_iops_device(),
            "blkio.throttle.write_iops_device",
            "blockIO.throttleWriteIOPSDevice",
        ),
    ] {
        throttle_v1(devices.as_ref(), file, field, out);
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

/// 2 … 262144 to 1 … 10000, as the kernel's documentation maps them.
pub(in crate::container) fn weight_of_shares(shares: u64) -> u64 {
    if shares == 0 {
        return 0;
    }
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// Version 2.
pub(super) fn v2(resources: &LinuxResources) -> Result<Vec<Entry>> {
    let mut out = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_v2(memory, &mut out)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_v2(cpu, &mut out)?;
    }
    if let Some(pids) = resources.pids() {
        out.push(entry("pids", "pids.max", max(pids.limit()), "pids.limit"));
    }
    if let Some(block) = resources.block_io() {
        block_v2(block, &mut out);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let file = format!("hugetlb.{}.max", limit.page_size());
        out.push(entry("hugetlb", &file, limit.limit(), "hugepageLimits"));
        let mut reserved = entry(
            "hugetlb",
            &format!("hugetlb.{}.rsvd.max", limit.page_size()),
            limit.limit(),
            "hugepageLimits",
        );
        reserved.optional = true;
        out.push(reserved);
    }
    for (name, rdma) in resources.rdma().iter().flatten() {
        let mut value = name.clone();
        if let Some(handles) = rdma.hca_handles() {
            value.push_str(&format!(" hca_handle={handles}"));
        }
        if let Some(objects) = rdma.hca_objects() {
            value.push_str(&format!(" hca_object={objects}"));
        }
        out.push(entry("rdma", "rdma.max", value, "rdma"));
    }
    for (key, value) in resources.unified().iter().flatten() {
        if key.contains('/') {
            return Err(Error::invalid(
                "linux.resources.unified",
                format!("{key:?} is not the name of a file"),
            ));
        }
        for line in value.lines() {
            out.push(entry("unified", key, line, "unified"));
        }
    }
    Ok(out)
}

fn memory_v2(memory: &LinuxMemory, out: &mut Vec<Entry>) -> Result<()> {
    let text = |value: i64| {
        if value < 0 {
            "max".to_owned()
        } else {
            value.to_string()
        }
    };
    if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
        // v1 counts memory and swap together, v2 swap alone.
        let value = match (swap, memory.limit()) {
            (-1, _) => "max".to_owned(),
            (swap, Some(limit)) if limit > 0 && swap >= limit => (swap - limit).to_string(),
            (swap, Some(limit)) if limit > 0 => {
                return Err(Error::invalid(
                    "linux.resources.memory.swap",
                    format!("{swap} is below the memory limit {limit}; it counts both together"),
                ));
            }
            _ => {
                return Err(Error::invalid(
                    "linux.resources.memory.swap",
                    "needs memory.limit beside it",
                ));
            }
        };
        let mut swap = entry("memory", "memory.swap.max", value, "memory.swap");
        // A kernel without swap accounting has nothing to limit.
        swap.optional = true;
        out.push(swap);
    }
    if let Some(limit) = memory.limit().filter(|limit| *limit != 0) {
        out.push(entry("memory", "memory.max", text(limit), "memory.limit"));
    }
    if let Some(reservation) = memory.reservation().filter(|value| *value != 0) {
        out.push(entry(
            "memory",
            "memory.low",
            text(reservation),
            "memory.reservation",
        ));
    }
    Ok(())
}

fn cpu_v2(cpu: &LinuxCpu, out: &mut Vec<Entry>) -> Result<()> {
    if cpu.realtime_runtime().is_some_and(|value| value != 0)
        || cpu.realtime_period().is_some_and(|value| value != 0)
    {
        return Err(Error::Unsupported {
            what: "linux.resources.cpu.realtimeRuntime".to_owned(),
            why: "cgroup v2 has no limits for real-time processes".to_owned(),
        });
    }
    if let Some(idle) = cpu.idle() {
        out.push(entry("cpu", "cpu.idle", idle, "cpu.idle"));
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        out.push(entry(
            "cpu",
            "cpu.weight",
            weight_of_shares(shares),
            "cpu.shares",
        ));
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let quota = match quota {
            Some(quota) if quota > 0 => quota.to_string(),
            _ => "max".to_owned(),
        };
        let value = match period {
            Some(period) => format!("{quota} {period}"),
            None => quota,
        };
        out.push(entry("cpu", "cpu.max", value, "cpu.quota"));
    }
    if let Some(burst) = cpu.burst() {
        out.push(entry("cpu", "cpu.max.burst", burst, "cpu.burst"));
    }
    cpuset(cpu, out);
    Ok(())
}

fn block_v2(block: &LinuxBlockIo, out: &mut Vec<Entry>) {
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        let mut bfq = entry("io", "io.bfq.weight", weight, "blockIO.weight");
        bfq.optional = true;
        out.push(bfq);
        // 10 … 1000 to 1 … 10000.
        let weight = 1 + u64::from(weight.saturating_sub(10)) * 9999 / 990;
        let mut plain = entry(
            "io",
            "io.weight",
            format!("default {weight}"),
            "blockIO.weight",
        );
        plain.optional = true;
        out.push(plain);
    }
    for (devices, key, field) in [
        (
            block.throttle_read_bps_device(),
            "rbps",
            "blockIO.throttleReadBpsDevice",
        ),
        (
            block.throttle_write_bps_device(),
            "wbps",
            "blockIO.throttleWriteBpsDevice",
        ),
        (
            block.throttle_read_iops_device(),
            "riops",
            "blockIO.throttleReadIOPSDevice",
        ),
        (
            block.throttle_write_iops_device(),
            "wiops",
            "blockIO.throttleWriteIOPSDevice",
        ),
    ] {
        for device in devices.iter().flatten() {
            let value = format!(
                "{}:{} {key}={}",
                device.major(),
                device.minor(),
                device.rate()
            );
            out.push(entry("io", "io.max", value, field));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
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
        let entries = v2(&resources(
            r#"{"memory":{"limit":1000,"swap":1500},"cpu":{"quota":50,"period":100,"shares":1024},"pids":{"limit":-1}}"#,
        ))
        .unwrap();
        assert_eq!(
            values(&entries),
            [
                ("memory.swap.max", "500"),
                ("memory.max", "1000"),
                ("cpu.weight", "39"),
                ("cpu.max", "50 100"),
                ("pids.max", "max"),
            ]
        );
    }

    #[test]
    fn nothing_is_written_for_a_limit_of_0() {
        let nothing = resources(
            r#"{"memory":{"limit":0,"swap":0,"reservation":0,"kernelTCP":0},"cpu":{"quota":0,"period":0,"shares":0}}"#,
        );
        assert_eq!(v1(&nothing).unwrap(), []);
        assert_eq!(v2(&nothing).unwrap(), []);
    }

    #[test]
    fn swap_below_memory_is_refused_where_it_can_not_be_said() {
        assert!(v2(&resources(r#"{"memory":{"limit":1000,"swap":500}}"#)).is_err());
    }

    #[test]
    fn a_unified_key_may_not_leave_the_group() {
        assert!(v2(&resources(r#"{"unified":{"../memory.max":"1"}}"#)).is_err());
    }
}
