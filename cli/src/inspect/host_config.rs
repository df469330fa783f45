//! What a container may have and use, in the shape of Docker's `HostConfig`.

use gantry_proto::gateway::v1::{
    ContainerConfig, ContainerDetail, ContainerSummary, DeviceLimit, MountType, Resources,
};
use serde_json::{Map, Value, json};

use super::container::{or_null, port_bindings, strings};
use super::{Document, fields};

/// Size of /dev/shm where none was asked for.
const DEFAULT_SHM: u64 = 64 << 20;

pub(super) fn host_config(
    detail: &ContainerDetail,
    config: &ContainerConfig,
    summary: &ContainerSummary,
) -> Document {
    let limits = config.resources.clone().unwrap_or_default();
    let policy = config.restart_policy.clone().unwrap_or_default();
    let log = config.log.unwrap_or_default();
    let log_type = if config.log.is_some() && !log.enabled {
        "none"
    } else {
        "cri"
    };
    let binds: Vec<String> = config
        .mounts
        .iter()
        .filter(|mount| mount.r#type() != MountType::Tmpfs && !mount.source.is_empty())
        .map(|mount| {
            let mode = if mount.read_only { ":ro" } else { "" };
            format!("{}:{}{mode}", mount.source, mount.target)
        })
        .collect();
    let named = |name: &str, otherwise: &str| {
        Document::from(if name.is_empty() { otherwise } else { name })
    };
    let mut shown: Vec<(&'static str, Document)> = vec![
        ("Binds", or_null(binds)),
        ("ContainerIDFile", "".into()),
        (
            "LogConfig",
            fields(vec![
                ("Type", log_type.into()),
                ("Config", Value::Object(Map::new()).into()),
            ]),
        ),
        ("NetworkMode", named(&summary.network_mode, "bridge")),
        ("PortBindings", port_bindings(&config.ports, false).into()),
        (
            "RestartPolicy",
            fields(vec![
                ("Name", named(&policy.name, "no")),
                ("MaximumRetryCount", policy.maximum_retry_count.into()),
            ]),
        ),
        ("AutoRemove", config.auto_remove.into()),
        ("VolumeDriver", "".into()),
        ("CapAdd", or_null(config.cap_add.clone())),
        ("CapDrop", or_null(config.cap_drop.clone())),
        ("CgroupnsMode", named(&config.cgroupns_mode, "private")),
        ("Dns", config.dns_servers.clone().into()),
        ("DnsOptions", config.dns_options.clone().into()),
        ("DnsSearch", config.dns_search.clone().into()),
        ("ExtraHosts", or_null(config.extra_hosts.clone())),
        ("GroupAdd", or_null(config.groups.clone())),
        ("IpcMode", named(&config.ipc_mode, "private")),
        ("OomScoreAdj", config.oom_score_adj.into()),
        ("PidMode", config.pid_mode.clone().into()),
        ("Privileged", config.privileged.into()),
        ("PublishAllPorts", config.publish_all.into()),
        ("ReadonlyRootfs", config.read_only.into()),
        ("SecurityOpt", or_null(config.security_opts.clone())),
        ("UTSMode", config.uts_mode.clone().into()),
        ("UsernsMode", config.userns_mode.clone().into()),
        (
            "ShmSize",
            match config.shm_size_bytes {
                0 => DEFAULT_SHM,
                size => size,
            }
            .into(),
        ),
        ("Sysctls", strings(&config.sysctls).into()),
        ("Runtime", named(&config.runtime, "gantry")),
        ("Init", config.init.into()),
    ];
    shown.extend(id_mappings(&detail.spec));
    shown.extend(resources(&limits, config));
    fields(shown)
}

fn resources(limits: &Resources, config: &ContainerConfig) -> Vec<(&'static str, Document)> {
    let ulimits: Vec<Value> = config
        .ulimits
        .iter()
        .map(|limit| json!({"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard}))
        .collect();
    let devices: Vec<Value> = config
        .devices
        .iter()
        .map(|device| {
            let inside = if device.container_path.is_empty() {
                &device.host_path
            } else {
                &device.container_path
            };
            let access = if device.permissions.is_empty() {
                "rwm"
            } else {
                &device.permissions
            };
            json!({"PathOnHost": device.host_path, "PathInContainer": inside, "CgroupPermissions": access})
        })
        .collect();
    vec![
        ("CpuShares", limits.cpu_shares.into()),
        ("Memory", limits.memory_bytes.into()),
        ("NanoCpus", limits.nano_cpus.into()),
        ("BlkioWeight", limits.blkio_weight.into()),
        (
            "BlkioWeightDevice",
            device_limits(&limits.blkio_weight_devices, "Weight"),
        ),
        (
            "BlkioDeviceReadBps",
            device_limits(&limits.device_read_bps, "Rate"),
        ),
        (
            "BlkioDeviceWriteBps",
            device_limits(&limits.device_write_bps, "Rate"),
        ),
        (
            "BlkioDeviceReadIOps",
            device_limits(&limits.device_read_iops, "Rate"),
        ),
        (
            "BlkioDeviceWriteIOps",
            device_limits(&limits.device_write_iops, "Rate"),
        ),
        (
            "CpuRealtimePeriod",
            limits.cpu_realtime_period_micros.into(),
        ),
        (
            "CpuRealtimeRuntime",
            limits.cpu_realtime_runtime_micros.into(),
        ),
        (
            "DeviceCgroupRules",
            config.device_cgroup_rules.clone().into(),
        ),
        (
            "MemorySwappiness",
            match limits.memory_swappiness {
                Some(percent) => Value::from(percent),
                None => Value::Null,
            }
            .into(),
        ),
        ("CpuPeriod", limits.cpu_period_micros.into()),
        ("CpuQuota", limits.cpu_quota_micros.into()),
        ("CpusetCpus", limits.cpuset_cpus.clone().into()),
        ("CpusetMems", limits.cpuset_mems.clone().into()),
        ("Devices", devices.into()),
        ("MemoryReservation", limits.memory_reservation_bytes.into()),
        ("MemorySwap", limits.memory_swap_bytes.into()),
        ("OomKillDisable", limits.oom_kill_disable.into()),
        (
            "PidsLimit",
            match limits.pids_limit {
                0 => Value::Null,
                limit => limit.into(),
            }
            .into(),
        ),
        ("Ulimits", ulimits.into()),
    ]
}

fn device_limits(limits: &[DeviceLimit], value: &str) -> Document {
    limits
        .iter()
        .map(|limit| json!({"Path": limit.host_path, value: limit.value}))
        .collect::<Vec<Value>>()
        .into()
}

/// The ids of a container with users of its own, as Podman's inspection has them:
/// Docker has none for one container. `spec`: its OCI runtime specification.
fn id_mappings(spec: &[u8]) -> Option<(&'static str, Document)> {
    let spec: Value = serde_json::from_slice(spec).ok()?;
    let lines = |mappings: &str| -> Option<Vec<String>> {
        let all = spec["linux"][mappings].as_array()?.iter();
        let line = |mapping: &Value| {
            let (inside, outside) = (&mapping["containerID"], &mapping["hostID"]);
            format!("{inside}:{outside}:{}", mapping["size"])
        };
        Some(all.map(line).collect())
    };
    let (uids, gids) = (lines("uidMappings")?, lines("gidMappings")?);
    Some(("IDMappings", json!({"UidMap": uids, "GidMap": gids}).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_shown_as_inside_outside_and_count() {
        let spec = br#"{"linux": {
            "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
            "gidMappings": [{"containerID": 0, "hostID": 200000, "size": 65536}]
        }}"#;
        let (name, _) = id_mappings(spec).unwrap();
        assert_eq!(name, "IDMappings");
        assert!(id_mappings(b"{}").is_none());
        assert!(id_mappings(b"").is_none());
    }
}
