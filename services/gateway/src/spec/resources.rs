//! Limits of a container's cgroup, and its sysctls.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Host;
use crate::error::{Error, Result};
use crate::wanted::{NamespaceMode, NetworkMode, Resources, Wanted};

/// Less than a first process needs is a mistake (Docker's own limit).
const MEMORY_MIN: u64 = 6 << 20;

/// The kernel's default period for CPU quotas, in microseconds.
const CPU_PERIOD: u64 = 100_000;

fn memory(resources: &Resources, host: &Host) -> Result<Value> {
    let mut memory = Map::new();
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
        memory.insert("reservation".to_owned(), json!(reservation));
    }
    if resources.oom_kill_disable {
        memory.insert("disableOOMKiller".to_owned(), json!(true));
    }
    Ok(Value::Object(memory))
}

fn cpu(resources: &Resources, host: &Host) -> Result<Value> {
    let mut cpu = Map::new();
    if resources.cpu_shares > 0 {
        cpu.insert("shares".to_owned(), json!(resources.cpu_shares));
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
        cpu.insert("period".to_owned(), json!(resources.cpu_period_micros));
    }
    if resources.cpu_quota_micros != 0 {
        cpu.insert("quota".to_owned(), json!(resources.cpu_quota_micros));
    }
    for (key, cpus) in [
        ("cpus", &resources.cpuset_cpus),
        ("mems", &resources.cpuset_mems),
    ] {
        if !cpus.is_empty() {
            cpu.insert(key.to_owned(), json!(cpus));
        }
    }
    Ok(Value::Object(cpu))
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
    if pids > 0 {
        all.insert("pids".to_owned(), json!({"limit": pids}));
    }
    if resources.blkio_weight > 0 {
        if !(10..=1000).contains(&resources.blkio_weight) {
            return Err(Error::invalid("blkio-weight", "give 10 to 1000"));
        }
        let weight = resources.blkio_weight;
        all.insert("blockIO".to_owned(), json!({"weight": weight}));
    }
    Ok(all)
}

/// Sysctls: those of the container's own namespaces only, and Docker's two
/// defaults, by which a program needs no capability for low ports and for ping.
///
/// # Errors
/// One would change the host's.
pub fn sysctls(wanted: &Wanted) -> Result<BTreeMap<String, String>> {
    let network = wanted.network();
    let own_network = matches!(network, NetworkMode::Network(_) | NetworkMode::None);
    let own_ipc = NamespaceMode::parse(&wanted.ipc_mode) == Some(NamespaceMode::Private);
    let mut sysctls = BTreeMap::new();
    if own_network && !wanted.privileged {
        sysctls.insert(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "0".to_owned(),
        );
        sysctls.insert(
            "net.ipv4.ping_group_range".to_owned(),
            "0 2147483647".to_owned(),
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
        assert!(with(|r| r.memory_swap_bytes = 64 << 20).is_err());
        assert!(with(|r| r.nano_cpus = 5_000_000_000).is_err());
        assert!(with(|r| r.nano_cpus = 1).is_err());
        assert!(with(|r| r.blkio_weight = 1).is_err());
        assert!(with(|_| {}).unwrap().is_empty());
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
