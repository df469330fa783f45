//! A container in the shape of Docker's `ContainerInspect`.

use gantry_proto::gateway::v1::{
    ContainerDetail, ContainerState, ContainerSummary, Health, Mount, MountType,
};
use serde_json::json;

use super::container_config::container_config;
use super::host_config::host_config;
use super::network_settings::network_settings;
use crate::display;
use crate::format::{Data, Field};
use crate::verbs::ps::state_word;

pub(crate) fn document(detail: &ContainerDetail) -> Data {
    let summary = detail.summary.clone().unwrap_or_default();
    let config = detail.config.clone().unwrap_or_default();
    let (path, arguments) = match detail.args.split_first() {
        Some((path, arguments)) => (path.clone(), arguments.to_vec()),
        None => (String::new(), Vec::new()),
    };
    let fields = [
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
        ("ExecIDs", Data::list_or_nil(detail.exec_ids.clone())),
        ("HostConfig", host_config(detail, &config, &summary)),
        ("GraphDriver", graph_driver(detail)),
    ];
    let mut fields: Vec<Field> = fields.map(Into::into).into();
    for (name, size) in [
        ("SizeRw", summary.size_rw_bytes),
        ("SizeRootFs", summary.size_root_bytes),
    ] {
        // JSON has them where they were asked for.
        fields.push(Field::unless_nil(name, size));
    }
    let rest = [
        ("Mounts", mounts(&summary.mounts)),
        ("Config", container_config(detail, &config, &summary)),
        (
            "NetworkSettings",
            network_settings(detail, &config, &summary),
        ),
    ];
    fields.extend(rest.map(Into::into));
    Data::Struct(fields)
}

fn health(health: &Health) -> Data {
    let log = health.log.iter().map(|result| {
        json!({
            "Start": display::rfc3339(result.start.as_ref()),
            "End": display::rfc3339(result.end.as_ref()),
            "ExitCode": result.exit_code,
            "Output": result.output,
        })
    });
    Data::fields([
        ("Status", health.status.clone().into()),
        ("FailingStreak", health.failing_streak.into()),
        ("Log", Data::list(log)),
    ])
}

fn state(detail: &ContainerDetail, summary: &ContainerSummary) -> Data {
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
    let fields = [
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
    let mut fields: Vec<Field> = fields.map(Into::into).into();
    let found = detail.health.as_ref().map(health);
    fields.push(Field::unless_nil("Health", found));
    fields.extend(not_docker("Sick", &summary.sick));
    Data::Struct(fields)
}

/// A field that Docker has not, where there is something in it.
fn not_docker(name: &'static str, text: &str) -> Option<Field> {
    (!text.is_empty()).then(|| (name, text.into()).into())
}

fn graph_driver(detail: &ContainerDetail) -> Data {
    let data = detail.rootfs.iter().flat_map(|rootfs| {
        [
            ("LowerDir", rootfs.lower_dirs.join(":")),
            ("UpperDir", rootfs.upper_dir.clone()),
            ("WorkDir", rootfs.work_dir.clone()),
        ]
    });
    Data::fields([
        (
            "Data",
            Data::map_or_nil(data.map(|(name, path)| (name.to_owned(), path))),
        ),
        ("Name", "overlay2".into()),
    ])
}

/// A tmpfs of `--tmpfs` is elsewhere, and one of `--mount` is here.
fn mounts(mounts: &[Mount]) -> Data {
    let is_listed =
        |mount: &&Mount| mount.r#type() != MountType::Tmpfs || mount.short_form.is_none();
    Data::list(mounts.iter().filter(is_listed).map(mount_point))
}

fn mount_point(mount: &Mount) -> Data {
    let kind = mount.r#type();
    let propagation = match (kind, mount.propagation.as_str()) {
        (MountType::Bind, "") => "rprivate",
        (_, named) => named,
    };
    // What `-v` has after the second colon.
    let mode = mount
        .short_form
        .iter()
        .filter(|_| kind != MountType::Tmpfs)
        .filter_map(|text| text.splitn(3, ':').nth(2))
        .next()
        .unwrap_or(match kind {
            MountType::Volume if !mount.anonymous => "z",
            _ => "",
        });
    Data::fields([
        Field::from((
            "Type",
            match kind {
                MountType::Volume => "volume",
                MountType::Image => "image",
                MountType::Tmpfs => "tmpfs",
                _ => "bind",
            }
            .into(),
        )),
        Field::unless_empty("Name", mount.name.as_str()),
        ("Source", mount.source.as_str().into()).into(),
        ("Destination", mount.target.as_str().into()).into(),
        Field::unless_empty(
            "Driver",
            match kind {
                MountType::Volume => mount.volume_driver.as_str(),
                _ => "",
            },
        ),
        ("Mode", mode.into()).into(),
        ("RW", (!mount.read_only).into()).into(),
        ("Propagation", propagation.into()).into(),
    ])
}
