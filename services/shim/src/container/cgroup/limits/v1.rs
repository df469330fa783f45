//! Version 1: a hierarchy for each controller.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::{Entry, cpuset, entry, max, swap};
use crate::container::error::{Error, Result};

pub(in crate::container::cgroup) fn entries(resources: &LinuxResources) -> Result<Vec<Entry>> {
    let mut out = Vec::new();
    if let Some(memory) = resources.memory() {
        add_memory(memory, &mut out);
    }
    if let Some(cpu) = resources.cpu() {
        add_cpu(cpu, &mut out);
    }
    if let Some(pids) = resources.pids() {
        out.push(entry("pids", "pids.max", max(pids.limit()), "pids.limit"));
    }
    if let Some(block) = resources.block_io() {
        add_block(block, &mut out);
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

fn add_memory(memory: &LinuxMemory, out: &mut Vec<Entry>) {
    let mut add = |file: &str, value: Option<i64>, field: &str| {
        if let Some(value) = value {
            out.push(entry("memory", file, value, field));
        }
    };
    // A swap limit may not be below the memory limit: raised first when there is none, lowered last.
    let unlimited = swap(memory) == Some(-1);
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
        add("memory.memsw.limit_in_bytes", swap(memory), "memory.swap");
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

fn add_cpu(cpu: &LinuxCpu, out: &mut Vec<Entry>) {
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

fn throttle(
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

fn add_block(block: &LinuxBlockIo, out: &mut Vec<Entry>) {
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
        throttle(devices.as_ref(), file, field, out);
    }
}
