//! Version 2: one hierarchy.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::{Entry, cpuset, entry, max, swap};
use crate::container::error::{Error, Result};

/// `present` reads a file of the group, for limits that are one in this version and two in the specification.
pub(in crate::container::cgroup) fn entries(
    resources: &LinuxResources,
    present: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Entry>> {
    let mut out = Vec::new();
    if let Some(memory) = resources.memory() {
        add_memory(memory, &present, &mut out)?;
    }
    if let Some(cpu) = resources.cpu() {
        add_cpu(cpu, &present, &mut out)?;
    }
    if let Some(pids) = resources.pids() {
        out.push(entry("pids", "pids.max", max(pids.limit()), "pids.limit"));
    }
    if let Some(block) = resources.block_io() {
        add_block(block, &mut out);
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

fn add_memory(
    memory: &LinuxMemory,
    present: &impl Fn(&str) -> Option<String>,
    out: &mut Vec<Entry>,
) -> Result<()> {
    let text = |value: i64| {
        if value < 0 {
            "max".to_owned()
        } else {
            value.to_string()
        }
    };
    if let Some(swap) = swap(memory) {
        // v1 counts memory and swap together, v2 swap alone.
        let limit = memory
            .limit()
            .filter(|limit| *limit != 0)
            .or_else(|| present("memory.max")?.trim().parse().ok());
        let value = match (swap, limit) {
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
                    "needs a memory.limit, which it counts too",
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

fn add_cpu(
    cpu: &LinuxCpu,
    present: &impl Fn(&str) -> Option<String>,
    out: &mut Vec<Entry>,
) -> Result<()> {
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
            Some(_) => "max".to_owned(),
            // A period cannot be written without a quota; the one there is stays.
            None => present("cpu.max")
                .and_then(|both| Some(both.split_whitespace().next()?.to_owned()))
                .unwrap_or_else(|| "max".to_owned()),
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

fn add_block(block: &LinuxBlockIo, out: &mut Vec<Entry>) {
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

/// 2 … 262144 to 1 … 10000, with the one default (1024) where the other is (100). A straight line between the ends, which
/// was the rule until 2025, made 39 of the default; all runtimes now have this curve.
fn weight_of_shares(shares: u64) -> u64 {
    let doublings = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (doublings * doublings + 125.0 * doublings) / 612.0 - 7.0 / 34.0;
    10_f64.powf(exponent).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_a_weight_by_the_curve_that_all_runtimes_have() {
        // Ends, default, and what Kubernetes gives for 100m, 500m and 2 CPUs.
        for (shares, weight) in [
            (1, 1),
            (2, 1),
            (102, 17),
            (512, 59),
            (1024, 100),
            (2048, 174),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }
}
