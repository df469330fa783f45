//! What a container may have and use, in the shape of Docker's `HostConfig`.

use gantry_proto::gateway::v1::{
    ContainerConfig, ContainerDetail, ContainerSummary, DeviceLimit, Mount, MountType, Resources,
};
use serde_json::{Value, json};

use super::network_settings::port_bindings;
use crate::format::{Data, Field, Nil};

/// Size of /dev/shm where none was asked for.
const DEFAULT_SHM: u64 = 64 << 20;

pub(super) fn host_config(
    detail: &ContainerDetail,
    config: &ContainerConfig,
    summary: &ContainerSummary,
) -> Data {
    let limits = config.resources.clone().unwrap_or_default();
    let policy = config.restart_policy.clone().unwrap_or_default();
    let log = config.log.unwrap_or_default();
    let log_type = if config.log.is_some() && !log.enabled {
        "none"
    } else {
        "cri"
    };
    let named =
        |name: &str, otherwise: &str| Data::from(if name.is_empty() { otherwise } else { name });
    let shm = match config.shm_size_bytes {
        0 => DEFAULT_SHM,
        size => size,
    };
    let volume_driver = |mount: &&Mount| mount.short_form.is_some();
    let volume_driver = config.mounts.iter().find(volume_driver);
    let fields = [
        ("Binds", binds(&config.mounts)),
        ("ContainerIDFile", "".into()),
        (
            "LogConfig",
            Data::fields([
                ("Type", log_type.into()),
                ("Config", Data::map::<String>([])),
            ]),
        ),
        ("NetworkMode", named(&summary.network_mode, "bridge")),
        (
            "PortBindings",
            Data::Map(port_bindings(&config.ports, false)),
        ),
        (
            "RestartPolicy",
            Data::fields([
                ("Name", named(&policy.name, "no")),
                ("MaximumRetryCount", policy.maximum_retry_count.into()),
            ]),
        ),
        ("AutoRemove", config.auto_remove.into()),
        (
            "VolumeDriver",
            volume_driver
                .map_or("", |mount| mount.volume_driver.as_str())
                .into(),
        ),
        (
            "VolumesFrom",
            Data::list_or_nil(config.volumes_from.clone()),
        ),
        ("ConsoleSize", Data::list([0, 0])),
    ];
    let mut shown: Vec<Field> = fields.map(Into::into).into();
    shown.push(Field::unless_empty(
        "Annotations",
        Data::map_or_nil(config.annotations.clone()),
    ));
    let fields = [
        ("CapAdd", Data::list_or_nil(config.cap_add.clone())),
        ("CapDrop", Data::list_or_nil(config.cap_drop.clone())),
        ("CgroupnsMode", named(&config.cgroupns_mode, "private")),
        ("Dns", config.dns_servers.clone().into()),
        ("DnsOptions", config.dns_options.clone().into()),
        ("DnsSearch", config.dns_search.clone().into()),
        ("ExtraHosts", Data::list_or_nil(config.extra_hosts.clone())),
        ("GroupAdd", Data::list_or_nil(config.groups.clone())),
        ("IpcMode", named(&config.ipc_mode, "private")),
        ("Cgroup", "".into()),
        ("Links", Data::Nil(Nil::List)),
        ("OomScoreAdj", config.oom_score_adj.into()),
        ("PidMode", config.pid_mode.clone().into()),
        ("Privileged", config.privileged.into()),
        ("PublishAllPorts", config.publish_all.into()),
        ("ReadonlyRootfs", config.read_only.into()),
        (
            "SecurityOpt",
            Data::list_or_nil(config.security_opts.clone()),
        ),
    ];
    shown.extend(fields.map(Field::from));
    shown.push(Field::unless_empty("StorageOpt", Data::Nil(Nil::Map)));
    shown.push(Field::unless_empty("Tmpfs", tmpfs(&config.mounts)));
    let fields = [
        ("UTSMode", config.uts_mode.clone().into()),
        ("UsernsMode", config.userns_mode.clone().into()),
        ("ShmSize", shm.into()),
    ];
    shown.extend(fields.map(Field::from));
    shown.push(Field::unless_empty(
        "Sysctls",
        Data::map_or_nil(config.sysctls.clone()),
    ));
    let fields = [
        ("Runtime", named(&config.runtime, "gantry")),
        ("Isolation", "".into()),
    ];
    shown.extend(fields.map(Field::from));
    shown.extend(resources(&limits, config));
    let listed = mounts(&config.mounts);
    shown.push(Field::unless_empty("Mounts", Data::list_or_nil(listed)));
    let spec: Value = serde_json::from_slice(&detail.spec).unwrap_or_default();
    for (name, key) in [
        ("MaskedPaths", "maskedPaths"),
        ("ReadonlyPaths", "readonlyPaths"),
    ] {
        let paths = spec["linux"][key].as_array().cloned();
        shown.push((name, Data::list_or_nil(paths.unwrap_or_default())).into());
    }
    shown.push(Field::unless_nil("Init", config.init.then_some(true)));
    shown.extend(id_mappings(&spec).map(Field::from));
    Data::Struct(shown)
}

/// What `-v` was given, but for volumes without a name.
fn binds(mounts: &[Mount]) -> Data {
    let of_v = mounts.iter().filter(|mount| {
        matches!(mount.r#type(), MountType::Bind | MountType::Volume) && !mount.source.is_empty()
    });
    Data::list_or_nil(of_v.filter_map(|mount| mount.short_form.clone()))
}

/// What `--tmpfs` was given.
fn tmpfs(mounts: &[Mount]) -> Data {
    let of_tmpfs = mounts
        .iter()
        .filter(|mount| mount.r#type() == MountType::Tmpfs);
    Data::map_or_nil(of_tmpfs.filter_map(|mount| {
        let options = mount.short_form.clone()?;
        Some((mount.target.clone(), options))
    }))
}

/// What `--mount` was given.
fn mounts(mounts: &[Mount]) -> impl Iterator<Item = Data> {
    let long = mounts.iter().filter(|mount| mount.short_form.is_none());
    long.map(|mount| {
        let kind = mount.r#type();
        let bind = (kind == MountType::Bind && !mount.propagation.is_empty()).then(|| {
            let propagation = mount.propagation.as_str();
            Data::fields([Field::unless_empty("Propagation", propagation)])
        });
        let volume = (kind == MountType::Volume).then(|| {
            let driver = &mount.volume_driver;
            let driver = (!driver.is_empty() || !mount.volume_options.is_empty()).then(|| {
                Data::fields([
                    Field::unless_empty("Name", driver.as_str()),
                    Field::unless_empty("Options", Data::map_or_nil(mount.volume_options.clone())),
                ])
            });
            Data::fields([
                Field::unless_empty("NoCopy", mount.volume_no_copy),
                Field::unless_empty("Labels", Data::map_or_nil(mount.volume_labels.clone())),
                Field::unless_nil("DriverConfig", driver),
            ])
        });
        let volume = volume.filter(|options| options.json() != "{}");
        let sized = mount.tmpfs_size_bytes > 0 || mount.tmpfs_mode > 0;
        let tmpfs = (kind == MountType::Tmpfs && sized).then(|| {
            Data::fields([
                Field::unless_empty("SizeBytes", mount.tmpfs_size_bytes),
                Field::unless_empty("Mode", mount.tmpfs_mode),
            ])
        });
        Data::fields([
            Field::from((
                "Type",
                match kind {
                    MountType::Bind => "bind",
                    MountType::Tmpfs => "tmpfs",
                    MountType::Image => "image",
                    MountType::Volume | MountType::Unspecified => "volume",
                }
                .into(),
            )),
            Field::unless_empty("Source", mount.source.as_str()),
            ("Target", mount.target.as_str().into()).into(),
            Field::unless_empty("ReadOnly", mount.read_only),
            Field::unless_nil("BindOptions", bind),
            Field::unless_nil("VolumeOptions", volume),
            Field::unless_nil("TmpfsOptions", tmpfs),
        ])
    })
}

fn resources(limits: &Resources, config: &ContainerConfig) -> Vec<Field> {
    let ulimits = config
        .ulimits
        .iter()
        .map(|limit| json!({"Name": limit.name, "Hard": limit.hard, "Soft": limit.soft}));
    let devices = config.devices.iter().map(|device| {
        let or = |text: &String, otherwise: &str| match text.as_str() {
            "" => otherwise.to_owned(),
            text => text.to_owned(),
        };
        Data::fields([
            ("PathOnHost", device.host_path.clone().into()),
            (
                "PathInContainer",
                or(&device.container_path, &device.host_path).into(),
            ),
            ("CgroupPermissions", or(&device.permissions, "rwm").into()),
        ])
    });
    let pids = Some(limits.pids_limit).filter(|limit| *limit != 0);
    let fields = [
        ("CpuShares", limits.cpu_shares.into()),
        ("Memory", limits.memory_bytes.into()),
        ("NanoCpus", limits.nano_cpus.into()),
        ("CgroupParent", config.cgroup_parent.clone().into()),
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
        ("CpuPeriod", limits.cpu_period_micros.into()),
        ("CpuQuota", limits.cpu_quota_micros.into()),
        (
            "CpuRealtimePeriod",
            limits.cpu_realtime_period_micros.into(),
        ),
        (
            "CpuRealtimeRuntime",
            limits.cpu_realtime_runtime_micros.into(),
        ),
        ("CpusetCpus", limits.cpuset_cpus.clone().into()),
        ("CpusetMems", limits.cpuset_mems.clone().into()),
        ("Devices", Data::list(devices)),
        (
            "DeviceCgroupRules",
            Data::list_or_nil(config.device_cgroup_rules.clone()),
        ),
        ("DeviceRequests", Data::Nil(Nil::List)),
        ("MemoryReservation", limits.memory_reservation_bytes.into()),
        ("MemorySwap", memory_swap(limits).into()),
        ("MemorySwappiness", Data::pointer(limits.memory_swappiness)),
        (
            "OomKillDisable",
            Data::pointer(Some(limits.oom_kill_disable)),
        ),
        ("PidsLimit", Data::pointer(pids)),
        ("Ulimits", Data::list(ulimits)),
        ("CpuCount", 0.into()),
        ("CpuPercent", 0.into()),
        ("IOMaximumIOps", 0.into()),
        ("IOMaximumBandwidth", 0.into()),
    ];
    fields.map(Into::into).into()
}

/// As Docker says it: twice the memory where nothing else was asked for.
fn memory_swap(limits: &Resources) -> i64 {
    match limits.memory_swap_bytes {
        0 => i64::try_from(limits.memory_bytes.saturating_mul(2)).unwrap_or(i64::MAX),
        swap => swap,
    }
}

fn device_limits(limits: &[DeviceLimit], value: &str) -> Data {
    let limits = limits.iter();
    Data::list(limits.map(|limit| json!({"Path": limit.host_path, value: limit.value})))
}

/// The ids of a container with users of its own, as Podman's inspection has them:
/// Docker has none for one container. `spec`: its OCI runtime specification.
fn id_mappings(spec: &Value) -> Option<(&'static str, Data)> {
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
        let spec = json!({"linux": {
            "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
            "gidMappings": [{"containerID": 0, "hostID": 200000, "size": 65536}]
        }});
        let (name, shown) = id_mappings(&spec).unwrap();
        assert_eq!(name, "IDMappings");
        assert_eq!(
            shown.json(),
            r#"{"GidMap":["0:200000:65536"],"UidMap":["0:100000:65536"]}"#
        );
        assert!(id_mappings(&json!({})).is_none());
    }
}
