//! What a container runs, in the shape of Docker's `Config`: the image's wishes
//! and a person's.

use gantry_proto::gateway::v1::{
    ContainerConfig, ContainerDetail, ContainerSummary, HealthCheck, MountType,
};
use serde_json::json;

use super::network_settings::port_name;
use crate::display;
use crate::format::{Data, Field};

pub(super) fn container_config(
    detail: &ContainerDetail,
    config: &ContainerConfig,
    summary: &ContainerSummary,
) -> Data {
    let hostname = if config.hostname.is_empty() {
        display::short_id(&summary.id)
    } else {
        config.hostname.clone()
    };
    let attached = config.attached.unwrap_or_default();
    let exposed = summary.exposed_ports.iter().cloned();
    let exposed = exposed.chain(config.ports.iter().map(port_name));
    let volumes = detail.volumes.iter().cloned().chain(anonymous(config));
    // The engine's default is nobody's wish.
    let stop_signal = match (config.stop_signal.as_str(), detail.stop_signal.as_str()) {
        ("", "SIGTERM") => "",
        (_, signal) => signal,
    };
    Data::fields([
        Field::from(("Hostname", hostname.into())),
        ("Domainname", config.domainname.clone().into()).into(),
        ("User", detail.user.clone().into()).into(),
        ("AttachStdin", attached.stdin.into()).into(),
        ("AttachStdout", attached.stdout.into()).into(),
        ("AttachStderr", attached.stderr.into()).into(),
        Field::unless_empty(
            "ExposedPorts",
            Data::map(exposed.map(|port| (port, json!({})))),
        ),
        ("Tty", config.tty.into()).into(),
        ("OpenStdin", config.stdin_open.into()).into(),
        ("StdinOnce", (config.stdin_open && attached.stdin).into()).into(),
        ("Env", Data::list_or_nil(detail.env.clone())).into(),
        ("Cmd", Data::list_or_nil(detail.cmd.clone())).into(),
        Field::unless_nil("Healthcheck", health_check(detail, config)),
        ("Image", summary.image.clone().into()).into(),
        (
            "Volumes",
            Data::map_or_nil(volumes.map(|path| (path, json!({})))),
        )
            .into(),
        ("WorkingDir", detail.working_dir.clone().into()).into(),
        ("Entrypoint", Data::list_or_nil(detail.entrypoint.clone())).into(),
        Field::unless_empty("NetworkDisabled", false),
        Field::unless_empty("MacAddress", config.mac_address.as_str()),
        ("OnBuild", Data::list_or_nil(Vec::<String>::new())).into(),
        ("Labels", Data::map(summary.labels.clone())).into(),
        Field::unless_empty("StopSignal", stop_signal),
        Field::unless_nil("StopTimeout", config.stop_timeout_seconds),
        Field::unless_empty("Shell", Data::list_or_nil(Vec::<String>::new())),
    ])
}

/// Where `-v TARGET` has volumes without a name.
fn anonymous(config: &ContainerConfig) -> impl Iterator<Item = String> {
    let mounts = config.mounts.iter().filter(|mount| {
        mount.r#type() == MountType::Volume && mount.source.is_empty() && mount.short_form.is_some()
    });
    mounts.map(|mount| mount.target.clone())
}

/// As it was asked for or is the image's: what nobody asked for is the engine's
/// default, and 0 here.
fn health_check(detail: &ContainerDetail, config: &ContainerConfig) -> Option<Data> {
    const SECOND: i64 = 1_000_000_000;
    let none = |asked: &&HealthCheck| asked.test.first().is_some_and(|word| word == "NONE");
    let asked_for_none = config.health_check.as_ref().filter(none);
    let check = detail.health_check.as_ref().or(asked_for_none)?;
    let asked = |value: i64, default: i64| if value == default { 0 } else { value };
    let fields = [
        Field::unless_empty("Test", check.test.clone()),
        Field::unless_empty("Interval", asked(check.interval_nanos, 30 * SECOND)),
        Field::unless_empty("Timeout", asked(check.timeout_nanos, 30 * SECOND)),
        Field::unless_empty("StartPeriod", check.start_period_nanos),
        Field::unless_empty(
            "StartInterval",
            asked(check.start_interval_nanos, 5 * SECOND),
        ),
        Field::unless_empty("Retries", asked(check.retries.into(), 3)),
    ];
    Some(Data::fields(fields))
}
