//! The wanted configuration, from and to the wire.

use std::collections::{BTreeMap, HashMap};

use gantry_proto::gateway::v1 as wire;
use gantry_proto::network::v1 as network;
use gantry_proto::types::v1 as types;

use crate::error::Error;
use crate::wanted::{
    Attached, Device, DeviceLimit, HealthWanted, IdMap, IdRange, LogOptions, Mount, MountKind,
    OnUnhealthy, Platform, PortMapping, Resources, RestartName, RestartPolicy, Ulimit, Wanted,
};
use crate::wire as common;

fn invalid(field: &str, problem: impl Into<String>) -> Error {
    Error::invalid(field, problem)
}

fn mount(wire: wire::Mount) -> Result<Mount, Error> {
    let kind = match wire.r#type() {
        wire::MountType::Bind => MountKind::Bind,
        wire::MountType::Tmpfs => MountKind::Tmpfs,
        wire::MountType::Volume => MountKind::Volume,
        wire::MountType::Image => MountKind::Image,
        wire::MountType::Unspecified => {
            return Err(invalid("mount", format!("{}: it has no type", wire.target)));
        }
    };
    Ok(Mount {
        kind,
        source: wire.source,
        target: wire.target,
        read_only: wire.read_only,
        propagation: wire.propagation,
        tmpfs_size_bytes: wire.tmpfs_size_bytes,
        tmpfs_mode: wire.tmpfs_mode,
        create_source: wire.create_source,
        non_recursive: wire.non_recursive,
        options: wire.options,
        volume_no_copy: wire.volume_no_copy,
        volume_driver: wire.volume_driver,
        volume_options: sorted(wire.volume_options),
        volume_labels: sorted(wire.volume_labels),
        subpath: wire.subpath,
        id_map: wire.id_map.map(|map| IdMap {
            uids: id_ranges(&map.uids),
            gids: id_ranges(&map.gids),
        }),
        read_only_non_recursive: wire.read_only_non_recursive,
        anonymous: false,
        volume_must_exist: false,
        short_form: wire.short_form,
        found: None,
    })
}

fn id_ranges(wire: &[wire::IdRange]) -> Vec<IdRange> {
    let ranges = wire.iter().map(|range| IdRange {
        on_disk: range.on_disk,
        seen: range.seen,
        count: range.count,
    });
    ranges.collect()
}

fn to_id_ranges(ranges: &[IdRange]) -> Vec<wire::IdRange> {
    let ranges = ranges.iter().map(|range| wire::IdRange {
        on_disk: range.on_disk,
        seen: range.seen,
        count: range.count,
    });
    ranges.collect()
}

pub(super) fn to_mount(mount: &Mount) -> wire::Mount {
    let kind = match mount.kind {
        MountKind::Bind => wire::MountType::Bind,
        MountKind::Tmpfs => wire::MountType::Tmpfs,
        MountKind::Volume => wire::MountType::Volume,
        MountKind::Image => wire::MountType::Image,
    };
    let found = mount.found.as_ref();
    let volume = found.filter(|found| !found.volume.is_empty());
    wire::Mount {
        r#type: kind.into(),
        source: volume
            .map_or(&mount.source, |found| &found.mountpoint)
            .clone(),
        target: mount.target.clone(),
        read_only: mount.read_only,
        propagation: mount.propagation.clone(),
        tmpfs_size_bytes: mount.tmpfs_size_bytes,
        tmpfs_mode: mount.tmpfs_mode,
        create_source: mount.create_source,
        non_recursive: mount.non_recursive,
        options: mount.options.clone(),
        volume_no_copy: mount.volume_no_copy,
        volume_driver: volume
            .map_or(&mount.volume_driver, |found| &found.driver)
            .clone(),
        volume_options: to_map(&mount.volume_options),
        volume_labels: to_map(&mount.volume_labels),
        subpath: mount.subpath.clone(),
        id_map: mount.id_map.as_ref().map(|map| wire::IdMap {
            uids: to_id_ranges(&map.uids),
            gids: to_id_ranges(&map.gids),
        }),
        read_only_non_recursive: mount.read_only_non_recursive,
        name: volume.map(|found| found.volume.clone()).unwrap_or_default(),
        anonymous: mount.anonymous,
        short_form: mount.short_form.clone(),
    }
}

fn port(wire: network::PortMapping) -> Result<PortMapping, Error> {
    for number in [wire.host_port, wire.container_port] {
        if number > u32::from(u16::MAX) {
            return Err(invalid("publish", format!("{number} is not a port")));
        }
    }
    Ok(common::port(wire))
}

fn resources(wire: wire::Resources) -> Resources {
    Resources {
        memory_bytes: wire.memory_bytes,
        memory_swap_bytes: wire.memory_swap_bytes,
        memory_reservation_bytes: wire.memory_reservation_bytes,
        nano_cpus: wire.nano_cpus,
        cpu_shares: wire.cpu_shares,
        cpuset_cpus: wire.cpuset_cpus,
        cpuset_mems: wire.cpuset_mems,
        pids_limit: wire.pids_limit,
        cpu_period_micros: wire.cpu_period_micros,
        cpu_quota_micros: wire.cpu_quota_micros,
        blkio_weight: wire.blkio_weight,
        oom_kill_disable: wire.oom_kill_disable,
        blkio_weight_devices: device_limits(wire.blkio_weight_devices),
        device_read_bps: device_limits(wire.device_read_bps),
        device_write_bps: device_limits(wire.device_write_bps),
        device_read_iops: device_limits(wire.device_read_iops),
        device_write_iops: device_limits(wire.device_write_iops),
        cpu_realtime_runtime_micros: wire.cpu_realtime_runtime_micros,
        cpu_realtime_period_micros: wire.cpu_realtime_period_micros,
        memory_swappiness: wire.memory_swappiness,
    }
}

fn device_limits(wire: Vec<wire::DeviceLimit>) -> Vec<DeviceLimit> {
    wire.into_iter()
        .map(|limit| DeviceLimit {
            host_path: limit.host_path,
            value: limit.value,
        })
        .collect()
}

fn to_device_limits(limits: &[DeviceLimit]) -> Vec<wire::DeviceLimit> {
    limits
        .iter()
        .map(|limit| wire::DeviceLimit {
            host_path: limit.host_path.clone(),
            value: limit.value,
        })
        .collect()
}

fn to_resources(resources: &Resources) -> wire::Resources {
    wire::Resources {
        memory_bytes: resources.memory_bytes,
        memory_swap_bytes: resources.memory_swap_bytes,
        memory_reservation_bytes: resources.memory_reservation_bytes,
        nano_cpus: resources.nano_cpus,
        cpu_shares: resources.cpu_shares,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        pids_limit: resources.pids_limit,
        cpu_period_micros: resources.cpu_period_micros,
        cpu_quota_micros: resources.cpu_quota_micros,
        blkio_weight: resources.blkio_weight,
        oom_kill_disable: resources.oom_kill_disable,
        blkio_weight_devices: to_device_limits(&resources.blkio_weight_devices),
        device_read_bps: to_device_limits(&resources.device_read_bps),
        device_write_bps: to_device_limits(&resources.device_write_bps),
        device_read_iops: to_device_limits(&resources.device_read_iops),
        device_write_iops: to_device_limits(&resources.device_write_iops),
        cpu_realtime_runtime_micros: resources.cpu_realtime_runtime_micros,
        cpu_realtime_period_micros: resources.cpu_realtime_period_micros,
        memory_swappiness: resources.memory_swappiness,
    }
}

pub(super) fn restart_policy(wire: wire::RestartPolicy) -> Result<RestartPolicy, Error> {
    let name = match wire.name.as_str() {
        "" | "no" => RestartName::No,
        "on-failure" => RestartName::OnFailure,
        "always" => RestartName::Always,
        "unless-stopped" => RestartName::UnlessStopped,
        other => {
            return Err(invalid(
                "restart",
                format!("{other:?} is not known; there are no, on-failure, always, unless-stopped"),
            ));
        }
    };
    if wire.maximum_retry_count > 0 && name != RestartName::OnFailure {
        return Err(invalid(
            "restart",
            "only on-failure takes a number of tries",
        ));
    }
    Ok(RestartPolicy {
        name,
        maximum_retry_count: wire.maximum_retry_count,
    })
}

fn to_restart_policy(policy: RestartPolicy) -> wire::RestartPolicy {
    let name = match policy.name {
        RestartName::No => "no",
        RestartName::OnFailure => "on-failure",
        RestartName::Always => "always",
        RestartName::UnlessStopped => "unless-stopped",
    };
    wire::RestartPolicy {
        name: name.to_owned(),
        maximum_retry_count: policy.maximum_retry_count,
    }
}

fn health(wire: wire::HealthCheck) -> HealthWanted {
    HealthWanted {
        test: wire.test,
        interval_nanos: wire.interval_nanos,
        timeout_nanos: wire.timeout_nanos,
        start_period_nanos: wire.start_period_nanos,
        start_interval_nanos: wire.start_interval_nanos,
        retries: wire.retries,
    }
}

fn to_health(health: &HealthWanted) -> Option<wire::HealthCheck> {
    (*health != HealthWanted::default()).then(|| wire::HealthCheck {
        test: health.test.clone(),
        interval_nanos: health.interval_nanos,
        timeout_nanos: health.timeout_nanos,
        start_period_nanos: health.start_period_nanos,
        start_interval_nanos: health.start_interval_nanos,
        retries: health.retries,
    })
}

fn on_unhealthy(text: &str) -> Result<OnUnhealthy, Error> {
    Ok(match text {
        "" | "none" => OnUnhealthy::None,
        "restart" => OnUnhealthy::Restart,
        "stop" => OnUnhealthy::Stop,
        "kill" => OnUnhealthy::Kill,
        other => {
            let problem = format!("{other:?} is not known; there are none, restart, stop, kill");
            return Err(invalid("on-unhealthy", problem));
        }
    })
}

fn attached(wire: wire::AttachedStreams) -> Attached {
    Attached {
        stdin: wire.stdin,
        stdout: wire.stdout,
        stderr: wire.stderr,
    }
}

fn to_attached(attached: Attached) -> Option<wire::AttachedStreams> {
    (attached != Attached::default()).then_some(wire::AttachedStreams {
        stdin: attached.stdin,
        stdout: attached.stdout,
        stderr: attached.stderr,
    })
}

fn platform(wire: types::Platform) -> Platform {
    Platform {
        os: wire.os,
        architecture: wire.architecture,
        variant: wire.variant,
    }
}

fn sorted(map: HashMap<String, String>) -> BTreeMap<String, String> {
    map.into_iter().collect()
}

pub(super) fn to_map(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.clone().into_iter().collect()
}

impl TryFrom<wire::ContainerConfig> for Wanted {
    type Error = Error;

    fn try_from(wire: wire::ContainerConfig) -> Result<Self, Error> {
        Ok(Self {
            image: wire.image,
            platform: wire.platform.map(platform),
            command: wire.command,
            entrypoint: wire.entrypoint.map(|entrypoint| entrypoint.args),
            env: wire.env,
            working_dir: wire.working_dir,
            user: wire.user,
            hostname: wire.hostname,
            domainname: wire.domainname,
            tty: wire.tty,
            stdin_open: wire.stdin_open,
            labels: sorted(wire.labels),
            mounts: wire
                .mounts
                .into_iter()
                .map(mount)
                .collect::<Result<_, _>>()?,
            network_mode: wire.network_mode,
            ports: wire.ports.into_iter().map(port).collect::<Result<_, _>>()?,
            publish_all: wire.publish_all,
            resources: wire.resources.map(resources).unwrap_or_default(),
            cap_add: wire.cap_add,
            cap_drop: wire.cap_drop,
            privileged: wire.privileged,
            read_only: wire.read_only,
            security_opts: wire.security_opts,
            ulimits: wire
                .ulimits
                .into_iter()
                .map(|ulimit| Ulimit {
                    name: ulimit.name,
                    soft: ulimit.soft,
                    hard: ulimit.hard,
                })
                .collect(),
            init: wire.init,
            auto_remove: wire.auto_remove,
            stop_signal: wire.stop_signal,
            stop_timeout_seconds: wire.stop_timeout_seconds,
            restart_policy: restart_policy(wire.restart_policy.unwrap_or_default())?,
            log: wire.log.map(|log| LogOptions {
                enabled: log.enabled,
                max_segment_bytes: log.max_segment_bytes,
                max_segments: log.max_segments,
            }),
            extra_hosts: wire.extra_hosts,
            dns_servers: wire.dns_servers,
            dns_search: wire.dns_search,
            dns_options: wire.dns_options,
            devices: wire
                .devices
                .into_iter()
                .map(|device| Device {
                    host_path: device.host_path,
                    container_path: device.container_path,
                    permissions: device.permissions,
                })
                .collect(),
            sysctls: sorted(wire.sysctls),
            shm_size_bytes: wire.shm_size_bytes,
            pid_mode: wire.pid_mode,
            ipc_mode: wire.ipc_mode,
            uts_mode: wire.uts_mode,
            cgroupns_mode: wire.cgroupns_mode,
            groups: wire.groups,
            oom_score_adj: wire.oom_score_adj,
            ip_address: wire.ip_address,
            annotations: sorted(wire.annotations),
            exposed_ports: wire.exposed_ports,
            health: health(wire.health_check.unwrap_or_default()),
            on_unhealthy: on_unhealthy(&wire.on_unhealthy)?,
            device_cgroup_rules: wire.device_cgroup_rules,
            userns_mode: wire.userns_mode,
            runtime: wire.runtime,
            volumes_from: wire.volumes_from,
            cgroup_parent: wire.cgroup_parent,
            mac_address: wire.mac_address,
            attached: attached(wire.attached.unwrap_or_default()),
        })
    }
}

/// The configuration as it was asked for.
pub(super) fn to_config(wanted: &Wanted) -> wire::ContainerConfig {
    wire::ContainerConfig {
        image: wanted.image.clone(),
        platform: wanted.platform.as_ref().map(common::to_platform),
        command: wanted.command.clone(),
        entrypoint: wanted
            .entrypoint
            .clone()
            .map(|args| wire::Entrypoint { args }),
        env: wanted.env.clone(),
        working_dir: wanted.working_dir.clone(),
        user: wanted.user.clone(),
        hostname: wanted.hostname.clone(),
        domainname: wanted.domainname.clone(),
        tty: wanted.tty,
        stdin_open: wanted.stdin_open,
        labels: to_map(&wanted.labels),
        mounts: wanted.mounts.iter().map(to_mount).collect(),
        network_mode: wanted.network_mode.clone(),
        ports: wanted.ports.iter().map(common::to_port).collect(),
        publish_all: wanted.publish_all,
        resources: Some(to_resources(&wanted.resources)),
        cap_add: wanted.cap_add.clone(),
        cap_drop: wanted.cap_drop.clone(),
        privileged: wanted.privileged,
        read_only: wanted.read_only,
        security_opts: wanted.security_opts.clone(),
        ulimits: wanted
            .ulimits
            .iter()
            .map(|ulimit| wire::Ulimit {
                name: ulimit.name.clone(),
                soft: ulimit.soft,
                hard: ulimit.hard,
            })
            .collect(),
        init: wanted.init,
        auto_remove: wanted.auto_remove,
        stop_signal: wanted.stop_signal.clone(),
        stop_timeout_seconds: wanted.stop_timeout_seconds,
        restart_policy: Some(to_restart_policy(wanted.restart_policy)),
        log: wanted.log.map(common::to_log),
        extra_hosts: wanted.extra_hosts.clone(),
        dns_servers: wanted.dns_servers.clone(),
        dns_search: wanted.dns_search.clone(),
        dns_options: wanted.dns_options.clone(),
        devices: wanted
            .devices
            .iter()
            .map(|device| wire::Device {
                host_path: device.host_path.clone(),
                container_path: device.container_path.clone(),
                permissions: device.permissions.clone(),
            })
            .collect(),
        sysctls: to_map(&wanted.sysctls),
        shm_size_bytes: wanted.shm_size_bytes,
        pid_mode: wanted.pid_mode.clone(),
        ipc_mode: wanted.ipc_mode.clone(),
        uts_mode: wanted.uts_mode.clone(),
        cgroupns_mode: wanted.cgroupns_mode.clone(),
        groups: wanted.groups.clone(),
        oom_score_adj: wanted.oom_score_adj,
        ip_address: wanted.ip_address.clone(),
        annotations: to_map(&wanted.annotations),
        exposed_ports: wanted.exposed_ports.clone(),
        health_check: to_health(&wanted.health),
        on_unhealthy: match wanted.on_unhealthy {
            OnUnhealthy::None => "",
            OnUnhealthy::Restart => "restart",
            OnUnhealthy::Stop => "stop",
            OnUnhealthy::Kill => "kill",
        }
        .to_owned(),
        device_cgroup_rules: wanted.device_cgroup_rules.clone(),
        userns_mode: wanted.userns_mode.clone(),
        runtime: wanted.runtime.clone(),
        volumes_from: wanted.volumes_from.clone(),
        cgroup_parent: wanted.cgroup_parent.clone(),
        mac_address: wanted.mac_address.clone(),
        attached: to_attached(wanted.attached),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_comes_back_as_it_was_asked_for() {
        let asked = wire::ContainerConfig {
            image: "debian".to_owned(),
            command: vec!["ls".to_owned()],
            entrypoint: Some(wire::Entrypoint { args: Vec::new() }),
            mounts: vec![wire::Mount {
                r#type: wire::MountType::Tmpfs.into(),
                target: "/t".to_owned(),
                tmpfs_mode: 0o700,
                ..Default::default()
            }],
            ports: vec![network::PortMapping {
                host_ip: "127.0.0.1".to_owned(),
                host_port: 8080,
                container_port: 80,
                protocol: network::Protocol::Udp.into(),
            }],
            resources: Some(wire::Resources {
                memory_bytes: 1 << 26,
                ..Default::default()
            }),
            restart_policy: Some(wire::RestartPolicy {
                name: "on-failure".to_owned(),
                maximum_retry_count: 3,
            }),
            stop_timeout_seconds: Some(0),
            health_check: Some(wire::HealthCheck {
                test: vec!["CMD".to_owned(), "up".to_owned()],
                retries: 2,
                ..Default::default()
            }),
            on_unhealthy: "stop".to_owned(),
            labels: [("a".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        };
        let wanted = Wanted::try_from(asked.clone()).unwrap();
        assert_eq!(to_config(&wanted), asked);
    }

    #[test]
    fn malformed_configurations_are_refused() {
        let with = |set: fn(&mut wire::ContainerConfig)| {
            let mut config = wire::ContainerConfig::default();
            set(&mut config);
            Wanted::try_from(config)
        };
        assert!(with(|_| {}).is_ok());
        assert!(with(|c| c.mounts = vec![wire::Mount::default()]).is_err());
        assert!(
            with(|c| {
                c.ports = vec![network::PortMapping {
                    host_port: 65536,
                    ..Default::default()
                }];
            })
            .is_err()
        );
        for (name, tries) in [("sometimes", 0), ("always", 1)] {
            let config = wire::ContainerConfig {
                restart_policy: Some(wire::RestartPolicy {
                    name: name.to_owned(),
                    maximum_retry_count: tries,
                }),
                ..Default::default()
            };
            assert!(Wanted::try_from(config).is_err(), "{name}");
        }
    }
}
