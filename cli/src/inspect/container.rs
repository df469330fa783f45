//! A container in the shape of Docker's `ContainerInspect`.

use gantry_proto::gateway::v1::{
    ContainerConfig, ContainerDetail, ContainerState, ContainerSummary, Health, HealthCheck, Mount,
    MountType,
};
use gantry_proto::network::v1::PortMapping;
use serde_json::{Map, Value, json};

use super::host_config::host_config;
use super::{Document, fields};
use crate::display;
use crate::parse::ports::protocol_name;
use crate::verbs::ps::state_word;

pub(crate) fn document(detail: &ContainerDetail) -> Document {
    let summary = detail.summary.clone().unwrap_or_default();
    let config = detail.config.clone().unwrap_or_default();
    let (path, arguments) = match detail.args.split_first() {
        Some((path, arguments)) => (path.clone(), arguments.to_vec()),
        None => (String::new(), Vec::new()),
    };
    fields(
        [
            ("Id", summary.id.clone().into()),
            ("Created", display::rfc3339(summary.created.as_ref()).into()),
            ("Path", path.into()),
            ("Args", arguments.into()),
            ("State", state(detail, &summary)),
            ("Image", summary.image_id.clone().into()),
            ("LogPath", detail.log_path.clone().into()),
            ("Name", format!("/{}", summary.name).into()),
            ("RestartCount", detail.restart_count.into()),
            ("Driver", "overlay2".into()),
            ("Platform", "linux".into()),
            ("MountLabel", "".into()),
            ("ProcessLabel", "".into()),
            ("AppArmorProfile", "".into()),
            ("ExecIDs", Value::Null.into()),
            ("HostConfig", host_config(detail, &config, &summary)),
            ("GraphDriver", graph_driver(detail)),
        ]
        .into_iter()
        .chain(sizes(&summary))
        .chain([
            ("Mounts", mounts(&summary.mounts)),
            ("Config", container_config(detail, &config, &summary)),
            ("NetworkSettings", network_settings(detail, &summary)),
        ])
        .collect(),
    )
}

/// Where they were asked for.
fn sizes(summary: &ContainerSummary) -> Vec<(&'static str, Document)> {
    [
        ("SizeRw", summary.size_rw_bytes),
        ("SizeRootFs", summary.size_root_bytes),
    ]
    .into_iter()
    .filter_map(|(name, size)| size.map(|size| (name, size.into())))
    .collect()
}

fn health(health: &Health) -> Document {
    let log: Vec<Value> = health
        .log
        .iter()
        .map(|result| {
            json!({
                "Start": display::rfc3339(result.start.as_ref()),
                "End": display::rfc3339(result.end.as_ref()),
                "ExitCode": result.exit_code,
                "Output": result.output,
            })
        })
        .collect();
    fields(vec![
        ("Status", health.status.clone().into()),
        ("FailingStreak", health.failing_streak.into()),
        ("Log", log.into()),
    ])
}

/// The check in force.
fn health_check(check: &HealthCheck) -> Document {
    fields(vec![
        ("Test", check.test.clone().into()),
        ("Interval", check.interval_nanos.into()),
        ("Timeout", check.timeout_nanos.into()),
        ("StartPeriod", check.start_period_nanos.into()),
        ("StartInterval", check.start_interval_nanos.into()),
        ("Retries", check.retries.into()),
    ])
}

fn state(detail: &ContainerDetail, summary: &ContainerSummary) -> Document {
    let state = summary.state();
    let exit = summary.exit.clone().unwrap_or_default();
    let running = matches!(
        state,
        ContainerState::Running | ContainerState::Paused | ContainerState::Restarting
    );
    let error = if detail.error.is_empty() {
        &exit.error
    } else {
        &detail.error
    };
    let mut shown: Vec<(&'static str, Document)> = vec![
        ("Status", state_word(state).into()),
        ("Running", running.into()),
        ("Paused", (state == ContainerState::Paused).into()),
        ("Restarting", (state == ContainerState::Restarting).into()),
        ("OOMKilled", exit.oom_killed.into()),
        ("Dead", (state == ContainerState::Dead).into()),
        ("Pid", detail.pid.into()),
        ("ExitCode", exit.code.into()),
        ("Error", error.clone().into()),
        (
            "StartedAt",
            display::rfc3339(summary.started_at.as_ref()).into(),
        ),
        (
            "FinishedAt",
            display::rfc3339(exit.exited_at.as_ref()).into(),
        ),
    ];
    if let Some(found) = &detail.health {
        shown.push(("Health", health(found)));
    }
    if !summary.sick.is_empty() {
        shown.push(("Sick", summary.sick.clone().into()));
    }
    fields(shown)
}

fn graph_driver(detail: &ContainerDetail) -> Document {
    let data = detail.rootfs.as_ref().map_or(Value::Null, |rootfs| {
        json!({
            "LowerDir": rootfs.lower_dirs.join(":"),
            "UpperDir": rootfs.upper_dir,
            "WorkDir": rootfs.work_dir,
        })
    });
    fields(vec![("Data", data.into()), ("Name", "overlay2".into())])
}

/// Docker has a tmpfs of `--tmpfs` elsewhere, and of `--mount` here; here none is.
fn mounts(mounts: &[Mount]) -> Document {
    let shown: Vec<Value> = mounts
        .iter()
        .filter(|mount| mount.r#type() != MountType::Tmpfs)
        .map(mount_point)
        .collect();
    shown.into()
}

fn mount_point(mount: &Mount) -> Value {
    let kind = mount.r#type();
    let propagation = match (kind, mount.propagation.as_str()) {
        (MountType::Bind, "") => "rprivate",
        (_, named) => named,
    };
    let mut shown = json!({
        "Type": match kind {
            MountType::Volume => "volume",
            MountType::Image => "image",
            _ => "bind",
        },
        "Source": mount.source,
        "Destination": mount.target,
        "Mode": if mount.read_only { "ro" } else { "" },
        "RW": !mount.read_only,
        "Propagation": propagation,
    });
    if kind == MountType::Volume {
        shown["Name"] = mount.name.as_str().into();
        shown["Driver"] = mount.volume_driver.as_str().into();
    }
    shown
}

fn container_config(
    detail: &ContainerDetail,
    config: &ContainerConfig,
    summary: &ContainerSummary,
) -> Document {
    let hostname = if config.hostname.is_empty() {
        display::short_id(&summary.id)
    } else {
        config.hostname.clone()
    };
    // What was asked for is the arguments' end; before it is the entry point.
    let entrypoint = detail
        .args
        .strip_suffix(config.command.as_slice())
        .filter(|entrypoint| !config.command.is_empty() && !entrypoint.is_empty())
        .map(<[String]>::to_vec)
        .or_else(|| config.entrypoint.clone().map(|entrypoint| entrypoint.args))
        .unwrap_or_default();
    let command = detail
        .args
        .strip_prefix(entrypoint.as_slice())
        .unwrap_or(&detail.args);
    let exposed: Map<String, Value> = summary
        .exposed_ports
        .iter()
        .cloned()
        .chain(summary.ports.iter().map(port_name))
        .map(|port| (port, json!({})))
        .collect();
    let mut shown: Vec<(&'static str, Document)> = vec![
        ("Hostname", hostname.into()),
        ("Domainname", config.domainname.clone().into()),
        ("User", detail.user.clone().into()),
        ("AttachStdin", config.stdin_open.into()),
        ("AttachStdout", true.into()),
        ("AttachStderr", true.into()),
    ];
    if !exposed.is_empty() {
        shown.push(("ExposedPorts", Value::Object(exposed).into()));
    }
    shown.extend([
        ("Tty", config.tty.into()),
        ("OpenStdin", config.stdin_open.into()),
        ("StdinOnce", false.into()),
        ("Env", detail.env.clone().into()),
        ("Cmd", or_null(command.to_vec())),
        ("Image", summary.image.clone().into()),
        ("Volumes", Value::Null.into()),
        ("WorkingDir", detail.working_dir.clone().into()),
        ("Entrypoint", or_null(entrypoint)),
        ("OnBuild", Value::Null.into()),
        ("Labels", strings(&summary.labels).into()),
        ("StopSignal", detail.stop_signal.clone().into()),
    ]);
    if let Some(timeout) = config.stop_timeout_seconds {
        shown.push(("StopTimeout", timeout.into()));
    }
    if let Some(check) = &detail.health_check {
        shown.push(("Healthcheck", health_check(check)));
    }
    fields(shown)
}

fn network_settings(detail: &ContainerDetail, summary: &ContainerSummary) -> Document {
    let endpoint = detail.endpoint.clone().unwrap_or_default();
    let (address, prefix) = endpoint
        .address
        .split_once('/')
        .unwrap_or((endpoint.address.as_str(), "0"));
    let prefix: u64 = prefix.parse().unwrap_or(0);
    let ports = if endpoint.ports.is_empty() {
        &summary.ports
    } else {
        &endpoint.ports
    };
    let mut bindings = port_bindings(ports, true);
    for port in &summary.exposed_ports {
        bindings.entry(port.clone()).or_insert(Value::Null);
    }
    let mode = if summary.network_mode.is_empty() {
        "bridge"
    } else {
        &summary.network_mode
    };
    let mut networks = Map::new();
    networks.insert(
        mode.to_owned(),
        json!({
            "IPAddress": address,
            "IPPrefixLen": prefix,
            "Gateway": endpoint.gateway,
            "MacAddress": endpoint.mac_address,
        }),
    );
    fields(vec![
        ("Bridge", "".into()),
        ("SandboxID", "".into()),
        ("SandboxKey", endpoint.netns_path.clone().into()),
        ("Ports", bindings.into()),
        ("Gateway", endpoint.gateway.clone().into()),
        ("IPAddress", address.into()),
        ("IPPrefixLen", prefix.into()),
        ("MacAddress", endpoint.mac_address.clone().into()),
        ("Networks", networks.into()),
    ])
}

fn port_name(port: &PortMapping) -> String {
    format!("{}/{}", port.container_port, protocol_name(port.protocol()))
}

/// "80/tcp" → where it is published.
pub(super) fn port_bindings(ports: &[PortMapping], bound: bool) -> Map<String, Value> {
    let mut bindings: Map<String, Value> = Map::new();
    for port in ports {
        let ip = match port.host_ip.as_str() {
            "" if bound => "0.0.0.0",
            ip => ip,
        };
        let host_port = match port.host_port {
            0 => String::new(),
            number => number.to_string(),
        };
        let binding = json!({"HostIp": ip, "HostPort": host_port});
        match bindings.entry(port_name(port)).or_insert_with(|| json!([])) {
            Value::Array(list) => list.push(binding),
            other => *other = json!([binding]),
        }
    }
    bindings
}

pub(super) fn or_null(list: Vec<String>) -> Document {
    if list.is_empty() {
        Value::Null.into()
    } else {
        list.into()
    }
}

pub(super) fn strings(map: &std::collections::HashMap<String, String>) -> Map<String, Value> {
    map.iter()
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect()
}
