//! Limits of a container's cgroup, and its sysctls.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use super::Host;
use super::devices::block_device;
use crate::error::{Error, Result};
use crate::own_ids;
use crate::wanted::{NamespaceMode, NetworkMode, Resources, Wanted};

/// Less than a first process needs is a mistake (Docker's own limit).
const MEMORY_MIN: u64 = 6 << 20;

/// The kernel's default period for CPU quotas, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// What the kernel takes for a period, and at least for a quota, in microseconds.
const CPU_PERIODS: RangeInclusive<u64> = 1_000..=1_000_000;

/// What the machine has, as lists: "0-3,5".
const ONLINE_CPUS: &str = "/sys/devices/system/cpu/online";
const ONLINE_NODES: &str = "/sys/devices/system/node/online";

/// The most tasks that the kernel has (PID_MAX_LIMIT).
const PIDS_MAX: i64 = 4 << 20;

/// What the kernel takes for the shares of a CPU.
const CPU_SHARES: RangeInclusive<u64> = 2..=262_144;

/// The longest quota that the kernel takes, in microseconds.
const CPU_QUOTA_MAX: i64 = (1 << 44) - 1;

/// Refuses a number of bytes that the runtime specification cannot hold.
fn check_bytes(field: &str, bytes: u64) -> Result<()> {
    if i64::try_from(bytes).is_err() {
        let problem = format!(
            "{bytes} bytes are more than there can be; give {} or less",
            i64::MAX
        );
        return Err(Error::invalid(field, problem));
    }
    Ok(())
}

fn memory(resources: &Resources, host: &Host) -> Result<Value> {
    let mut memory = Map::new();
    check_bytes("memory", resources.memory_bytes)?;
    check_bytes("memory-reservation", resources.memory_reservation_bytes)?;
    if resources.memory_swap_bytes < -1 {
        return Err(Error::invalid(
            "memory-swap",
            "give -1 for no limit, or a number of bytes",
        ));
    }
    let limit = resources.memory_bytes;
    if limit > 0 {
        if limit < MEMORY_MIN {
            return Err(Error::invalid(
                "memory",
                format!("{limit} bytes are too few to start a program; give 6m or more"),
            ));
        }
        memory.insert("limit".to_owned(), json!(limit));
    }
    let swap = match resources.memory_swap_bytes {
        0 if limit > 0 => i64::try_from(limit.saturating_mul(2)).unwrap_or(i64::MAX),
        swap => swap,
    };
    if swap > 0 {
        if limit == 0 {
            return Err(Error::invalid(
                "memory-swap",
                "a limit for memory and swap needs one for memory (-m) beside it",
            ));
        }
        if u64::try_from(swap).is_ok_and(|swap| swap < limit) {
            return Err(Error::invalid(
                "memory-swap",
                "it counts memory and swap together, and cannot be below the memory limit",
            ));
        }
    }
    if swap != 0 && host.swap_limit {
        memory.insert("swap".to_owned(), json!(swap));
    }
    if resources.memory_reservation_bytes > 0 {
        let reservation = resources.memory_reservation_bytes;
        if reservation < MEMORY_MIN {
            return Err(Error::invalid(
                "memory-reservation",
                format!("{reservation} bytes are too few to run a program; give 6m or more"),
            ));
        }
        if limit > 0 && reservation > limit {
            return Err(Error::invalid(
                "memory-reservation",
                "it is a part of the memory limit, and cannot be above it",
            ));
        }
        memory.insert("reservation".to_owned(), json!(reservation));
    }
    if resources.oom_kill_disable {
        memory.insert("disableOOMKiller".to_owned(), json!(true));
    }
    if let Some(swappiness) = resources.memory_swappiness {
        if swappiness > 100 {
            return Err(Error::invalid("memory-swappiness", "give 0 to 100"));
        }
        memory.insert("swappiness".to_owned(), json!(swappiness));
    }
    Ok(Value::Object(memory))
}

fn cpu(resources: &Resources, host: &Host) -> Result<Value> {
    let mut cpu = Map::new();
    if resources.cpu_shares > 0 {
        // As the kernel does where it takes them at all.
        let shares = resources
            .cpu_shares
            .clamp(*CPU_SHARES.start(), *CPU_SHARES.end());
        cpu.insert("shares".to_owned(), json!(shares));
    }
    if resources.nano_cpus > 0 {
        if resources.cpu_quota_micros != 0 || resources.cpu_period_micros != 0 {
            return Err(Error::invalid(
                "cpus",
                "it sets period and quota; leave out cpu-period and cpu-quota",
            ));
        }
        let most = host.cpus as u64 * 1_000_000_000;
        if resources.nano_cpus > most {
            return Err(Error::invalid(
                "cpus",
                format!("this machine has {} CPUs; give 0.01 to {0}", host.cpus),
            ));
        }
        let quota = u128::from(resources.nano_cpus) * u128::from(CPU_PERIOD) / 1_000_000_000;
        // The kernel takes no quota below a millisecond.
        if quota < 1000 {
            return Err(Error::invalid("cpus", "the least is 0.01"));
        }
        cpu.insert("period".to_owned(), json!(CPU_PERIOD));
        cpu.insert("quota".to_owned(), json!(quota as u64));
    }
    if resources.cpu_period_micros > 0 {
        if !CPU_PERIODS.contains(&resources.cpu_period_micros) {
            return Err(Error::invalid(
                "cpu-period",
                "give 1000 to 1000000: a millisecond to a second",
            ));
        }
        cpu.insert("period".to_owned(), json!(resources.cpu_period_micros));
    }
    if resources.cpu_quota_micros != 0 {
        let least = CPU_PERIODS.start().cast_signed();
        if (1..least).contains(&resources.cpu_quota_micros) {
            return Err(Error::invalid(
                "cpu-quota",
                "give 1000 or more: a millisecond",
            ));
        }
        if resources.cpu_quota_micros > CPU_QUOTA_MAX {
            let problem = format!("give {CPU_QUOTA_MAX} or less, or -1 for no limit");
            return Err(Error::invalid("cpu-quota", problem));
        }
        let quota = resources.cpu_quota_micros.max(-1);
        cpu.insert("quota".to_owned(), json!(quota));
    }
    let (runtime, period) = (
        resources.cpu_realtime_runtime_micros,
        resources.cpu_realtime_period_micros,
    );
    if period > 0 && i64::try_from(period).is_ok_and(|period| runtime > period) {
        return Err(Error::invalid(
            "cpu-rt-runtime",
            "it is a part of cpu-rt-period, and cannot be above it",
        ));
    }
    if i64::try_from(period).is_err() {
        return Err(Error::invalid("cpu-rt-period", "it is too long"));
    }
    if runtime < -1 {
        return Err(Error::invalid(
            "cpu-rt-runtime",
            "give -1 for no limit, or a number of microseconds",
        ));
    }
    if period > 0 {
        cpu.insert("realtimePeriod".to_owned(), json!(period));
    }
    if runtime != 0 {
        cpu.insert("realtimeRuntime".to_owned(), json!(runtime));
    }
    for (key, field, list, online) in [
        ("cpus", "cpuset-cpus", &resources.cpuset_cpus, ONLINE_CPUS),
        ("mems", "cpuset-mems", &resources.cpuset_mems, ONLINE_NODES),
    ] {
        if !list.is_empty() {
            check_list(field, list, online)?;
            cpu.insert(key.to_owned(), json!(list));
        }
    }
    Ok(Value::Object(cpu))
}

/// "0-3,5" as ranges. None: it is not of this form.
fn ranges(list: &str) -> Option<Vec<RangeInclusive<u32>>> {
    let ranges = list.trim().split(',').map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then_some(first..=last)
    });
    ranges.collect()
}

/// Refuses a list of CPUs or memory nodes that the machine does not have.
fn check_list(field: &str, list: &str, online: &str) -> Result<()> {
    let wanted = ranges(list).ok_or_else(|| {
        Error::invalid(field, format!("{list:?} is not a list; say one as 0-3,5"))
    })?;
    // A kernel without the file has one node.
    let online = std::fs::read_to_string(online).unwrap_or_else(|_| "0".to_owned());
    let there = ranges(&online).unwrap_or_default();
    let is_there = |number: u32| there.iter().any(|range| range.contains(&number));
    // Only the ends of what is there can be the first that is not.
    let beyond = there.iter().map(|range| range.end().saturating_add(1));
    let beyond: Vec<u32> = beyond.collect();
    for range in &wanted {
        let inside = beyond.iter().filter(|number| range.contains(number));
        let mut all = inside.chain([range.start(), range.end()]);
        if let Some(missing) = all.find(|number| !is_there(**number)) {
            let online = online.trim();
            let problem = format!("this machine has no {missing}; there are {online}");
            return Err(Error::invalid(field, problem));
        }
    }
    Ok(())
}

/// The spec's `linux.resources`, without devices.
///
/// # Errors
/// A limit is out of its range or contradicts another.
pub fn resources(resources: &Resources, host: &Host) -> Result<Map<String, Value>> {
    let mut all = Map::new();
    for (key, part) in [
        ("memory", memory(resources, host)?),
        ("cpu", cpu(resources, host)?),
    ] {
        if part.as_object().is_some_and(|part| !part.is_empty()) {
            all.insert(key.to_owned(), part);
        }
    }
    let pids = match resources.pids_limit {
        0 => host.pids_limit,
        limit => limit,
    };
    if pids > PIDS_MAX {
        let problem = format!("the kernel has at most {PIDS_MAX} tasks; give -1 for no limit");
        return Err(Error::invalid("pids-limit", problem));
    }
    if pids > 0 {
        all.insert("pids".to_owned(), json!({"limit": pids}));
    }
    let block = block(resources)?;
    if !block.is_empty() {
        all.insert("blockIO".to_owned(), Value::Object(block));
    }
    Ok(all)
}

fn block(resources: &Resources) -> Result<Map<String, Value>> {
    const WEIGHTS: std::ops::RangeInclusive<u64> = 10..=1000;
    let mut block = Map::new();
    if resources.blkio_weight > 0 {
        if !WEIGHTS.contains(&resources.blkio_weight.into()) {
            return Err(Error::invalid("blkio-weight", "give 10 to 1000"));
        }
        block.insert("weight".to_owned(), json!(resources.blkio_weight));
    }
    for (field, key, value, limits) in [
        (
            "blkio-weight-device",
            "weightDevice",
            "weight",
            &resources.blkio_weight_devices,
        ),
        (
            "device-read-bps",
            "throttleReadBpsDevice",
            "rate",
            &resources.device_read_bps,
        ),
        (
            "device-write-bps",
            "throttleWriteBpsDevice",
            "rate",
            &resources.device_write_bps,
        ),
        (
            "device-read-iops",
            "throttleReadIOPSDevice",
            "rate",
            &resources.device_read_iops,
        ),
        (
            "device-write-iops",
            "throttleWriteIOPSDevice",
            "rate",
            &resources.device_write_iops,
        ),
    ] {
        let mut list = Vec::new();
        for limit in limits {
            if value == "weight" && !WEIGHTS.contains(&limit.value) {
                return Err(Error::invalid(field, "give a weight of 10 to 1000"));
            }
            let (major, minor) = block_device(field, &limit.host_path)?;
            list.push(json!({"major": major, "minor": minor, value: limit.value}));
        }
        if !list.is_empty() {
            block.insert(key.to_owned(), Value::Array(list));
        }
    }
    Ok(block)
}

/// Sysctls: those of the container's own namespaces only, and Docker's two
/// defaults, by which a program needs no capability for low ports and for ping.
///
/// # Errors
/// One would change the host's.
pub fn sysctls(wanted: &Wanted) -> Result<BTreeMap<String, String>> {
    let network = wanted.network();
    let own_network = matches!(network, NetworkMode::Network(_) | NetworkMode::None);
    let own_ipc = wanted.ipc() == Some(NamespaceMode::Private);
    let mut sysctls = BTreeMap::new();
    if own_network && !wanted.privileged {
        sysctls.insert(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "0".to_owned(),
        );
        sysctls.insert(
            "net.ipv4.ping_group_range".to_owned(),
            // Every group that there is: i32::MAX, or the last of the container's own.
            match own_ids::wanted(&wanted.userns_mode)? {
                Some(count) => format!("0 {}", count - 1),
                None => "0 2147483647".to_owned(),
            },
        );
    }
    for (key, value) in &wanted.sysctls {
        let of_ipc = key.starts_with("fs.mqueue.")
            || key.starts_with("kernel.shm")
            || key.starts_with("kernel.msg")
            || key == "kernel.sem";
        let fits = (key.starts_with("net.") && own_network) || (of_ipc && own_ipc);
        if !fits {
            return Err(Error::invalid(
                "sysctl",
                format!("{key} belongs to no namespace of this container's own"),
            ));
        }
        sysctls.insert(key.clone(), value.clone());
    }
    Ok(sysctls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            cpus: 4,
            ..Host::default()
        }
    }

    #[test]
    fn memory_without_swap_limit_gets_as_much_swap_again() {
        let wanted = Resources {
            memory_bytes: 64 << 20,
            ..Resources::default()
        };
        let all = resources(&wanted, &host()).unwrap();
        assert_eq!(all["memory"]["limit"], 64 << 20);
        assert_eq!(all["memory"]["swap"], 128 << 20);
        let no_swap = Host {
            swap_limit: false,
            ..host()
        };
        let all = resources(&wanted, &no_swap).unwrap();
        assert!(all["memory"].get("swap").is_none());
    }

    #[test]
    fn cpus_become_a_quota() {
        let wanted = Resources {
            nano_cpus: 1_500_000_000,
            ..Resources::default()
        };
        let all = resources(&wanted, &host()).unwrap();
        assert_eq!(all["cpu"], json!({"period": 100_000, "quota": 150_000}));
    }

    #[test]
    fn limits_out_of_range_are_refused() {
        let with = |set: fn(&mut Resources)| {
            let mut wanted = Resources::default();
            set(&mut wanted);
            resources(&wanted, &host())
        };
        assert!(with(|r| r.memory_bytes = 1 << 20).is_err());
        for refused in [
            with(|r| r.memory_bytes = u64::MAX),
            with(|r| r.memory_reservation_bytes = 1 << 63),
            with(|r| {
                r.memory_bytes = 64 << 20;
                r.memory_swap_bytes = -2;
            }),
            with(|r| r.pids_limit = i64::MAX),
            with(|r| r.cpu_quota_micros = i64::MAX),
            with(|r| r.cpu_period_micros = u64::MAX),
            with(|r| r.nano_cpus = u64::MAX),
            with(|r| r.cpu_realtime_period_micros = u64::MAX),
            with(|r| r.cpu_realtime_runtime_micros = i64::MIN),
            with(|r| r.cpuset_cpus = "0-99999".to_owned()),
            with(|r| r.cpuset_mems = "-1".to_owned()),
        ] {
            assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
        }
        // What the kernel brings into its range itself.
        let all = with(|r| r.cpu_shares = u64::MAX).unwrap();
        assert_eq!(all["cpu"]["shares"], 262_144);
        let all = with(|r| r.cpu_quota_micros = i64::MIN).unwrap();
        assert_eq!(all["cpu"]["quota"], -1);
        assert!(with(|r| r.memory_swap_bytes = 64 << 20).is_err());
        assert!(with(|r| r.nano_cpus = 5_000_000_000).is_err());
        assert!(with(|r| r.nano_cpus = 1).is_err());
        assert!(with(|r| r.blkio_weight = 1).is_err());
        assert!(with(|r| r.memory_reservation_bytes = 1 << 20).is_err());
        assert!(
            with(|r| {
                r.memory_bytes = 10 << 20;
                r.memory_reservation_bytes = 20 << 20;
            })
            .is_err()
        );
        assert!(with(|r| r.cpu_period_micros = 5).is_err());
        assert!(with(|r| r.cpu_quota_micros = 5).is_err());
        assert!(with(|r| r.cpu_quota_micros = -1).is_ok());
        for list in ["0-x", "3-1", "", "0,", "99999", "0-99999"] {
            let wanted = Resources {
                cpuset_cpus: format!("0,{list}"),
                ..Resources::default()
            };
            let error = resources(&wanted, &host()).unwrap_err().to_string();
            assert!(error.contains("cpuset-cpus"), "{error}");
        }
        assert!(with(|r| r.cpuset_cpus = "0".to_owned()).is_ok());
        assert!(with(|r| r.cpuset_mems = "0".to_owned()).is_ok());
        assert!(with(|r| r.cpuset_mems = "99".to_owned()).is_err());
        assert!(with(|_| {}).unwrap().is_empty());
    }

    #[test]
    fn a_limit_of_a_device_names_a_block_device_of_the_host() {
        let with = |path: &str| {
            resources(
                &Resources {
                    device_read_bps: vec![crate::wanted::DeviceLimit {
                        host_path: path.to_owned(),
                        value: 1 << 20,
                    }],
                    ..Resources::default()
                },
                &host(),
            )
        };
        let error = with("/dev/null").unwrap_err().to_string();
        assert!(error.contains("no block device"), "{error}");
        assert!(with("/no/such/device").is_err());
        let disk = std::fs::read_dir("/sys/block")
            .unwrap()
            .flatten()
            .map(|entry| std::path::Path::new("/dev").join(entry.file_name()))
            .find(|path| path.exists());
        if let Some(disk) = disk {
            let all = with(disk.to_str().unwrap()).unwrap();
            assert_eq!(all["blockIO"]["throttleReadBpsDevice"][0]["rate"], 1 << 20);
        }
    }

    #[test]
    fn swappiness_and_real_time_have_their_ranges() {
        let with = |set: fn(&mut Resources)| {
            let mut wanted = Resources::default();
            set(&mut wanted);
            resources(&wanted, &host())
        };
        assert!(with(|r| r.memory_swappiness = Some(101)).is_err());
        let all = with(|r| r.memory_swappiness = Some(0)).unwrap();
        assert_eq!(all["memory"]["swappiness"], 0);
        assert!(
            with(|r| {
                r.cpu_realtime_period_micros = 1000;
                r.cpu_realtime_runtime_micros = 2000;
            })
            .is_err()
        );
    }

    #[test]
    fn no_sysctl_reaches_the_host() {
        let with = |key: &str, network: &str| {
            sysctls(&Wanted {
                sysctls: [(key.to_owned(), "1".to_owned())].into(),
                network_mode: network.to_owned(),
                ..Wanted::default()
            })
        };
        assert!(with("net.ipv4.ip_forward", "bridge").is_ok());
        assert!(with("net.ipv4.ip_forward", "host").is_err());
        assert!(with("kernel.shmmax", "host").is_ok());
        assert!(with("kernel.panic", "bridge").is_err());
    }
}
