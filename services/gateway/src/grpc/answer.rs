//! Records and events, to the wire.

use std::time::Duration;

use gantry_kit::journal::Told;
use gantry_proto::gateway::v1 as wire;
use gantry_proto::network::v1 as network;
use gantry_proto::shim::v1 as shim;
use gantry_proto::types::v1 as types;

use super::config::{to_config, to_map, to_mount};
use super::status::status;
use crate::container::{Endpoint, Record, StepTime};
use crate::health::{Check, Health, Probe};
use crate::lifecycle::attach::AttachEvent;
use crate::lifecycle::exec::ExecEvent;
use crate::lifecycle::inspect::Detail;
use crate::lifecycle::run::RunEvent;
use crate::peers::Sizes;
use crate::spec::process;
use crate::state::State;
use crate::window::{Stream, WindowOutput};
use crate::wire as common;
use tonic::Status;

fn state(state: State) -> wire::ContainerState {
    match state {
        State::Creating | State::Created => wire::ContainerState::Created,
        State::Starting | State::Running => wire::ContainerState::Running,
        State::Paused => wire::ContainerState::Paused,
        State::Restarting => wire::ContainerState::Restarting,
        State::Ending | State::Exited => wire::ContainerState::Exited,
        State::Removing | State::Gone => wire::ContainerState::Removing,
        State::Dead => wire::ContainerState::Dead,
    }
}

pub(super) fn summary(record: &Record) -> wire::ContainerSummary {
    let endpoint = record.endpoint.as_ref();
    let mut labels = record
        .image
        .as_ref()
        .map(|image| image.config.labels.clone())
        .unwrap_or_default();
    labels.extend(record.wanted.labels.clone());
    let network_mode = match record.wanted.network_mode.as_str() {
        "" | "default" => "bridge",
        mode => mode,
    };
    wire::ContainerSummary {
        id: record.id.to_string(),
        name: record.name.clone(),
        image: record.wanted.image.clone(),
        image_id: record
            .image
            .as_ref()
            .map(|image| image.id.clone())
            .unwrap_or_default(),
        command: process::args(record).unwrap_or_default(),
        created: Some(common::to_timestamp(record.created)),
        state: state(record.state).into(),
        started_at: record.started.map(common::to_timestamp),
        exit: record
            .exit
            .as_ref()
            .filter(|_| !record.state.is_running())
            .map(common::to_exit),
        ports: endpoint
            .map(|endpoint| endpoint.ports.iter().map(common::to_port).collect())
            .unwrap_or_default(),
        labels: to_map(&labels),
        network_mode: network_mode.to_owned(),
        ip_address: endpoint
            .map(|endpoint| endpoint.ip().to_owned())
            .unwrap_or_default(),
        mounts: record.mounts().iter().map(to_mount).collect(),
        sick: record.sick.clone(),
        exposed_ports: record.exposed_ports(),
        health: match &record.health {
            Some(health) => health.status.name().to_owned(),
            None => String::new(),
        },
        size_rw_bytes: None,
        size_root_bytes: None,
    }
}

/// The same with the sizes of its files.
pub(super) fn sized(record: &Record, sizes: Sizes) -> wire::ContainerSummary {
    wire::ContainerSummary {
        size_rw_bytes: Some(sizes.writable),
        size_root_bytes: Some(sizes.whole),
        ..summary(record)
    }
}

fn health(health: &Health) -> wire::Health {
    let result = |probe: &Probe| wire::HealthResult {
        start: Some(common::to_timestamp(probe.start)),
        end: Some(common::to_timestamp(probe.end)),
        exit_code: probe.code,
        output: probe.output.clone(),
    };
    wire::Health {
        status: health.status.name().to_owned(),
        failing_streak: health.failing_streak,
        log: health.log.iter().map(result).collect(),
    }
}

fn check(check: &Check) -> wire::HealthCheck {
    let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    wire::HealthCheck {
        test: check.test.clone(),
        interval_nanos: nanos(check.interval),
        timeout_nanos: nanos(check.timeout),
        start_period_nanos: nanos(check.start_period),
        start_interval_nanos: nanos(check.start_interval),
        retries: i32::try_from(check.retries).unwrap_or(i32::MAX),
    }
}

fn endpoint(record: &Record, endpoint: &Endpoint) -> network::Endpoint {
    network::Endpoint {
        container_id: record.id.to_string(),
        network: endpoint.network.clone(),
        netns_path: endpoint.netns.clone(),
        userns_path: endpoint.userns.clone(),
        interface: endpoint.interface.clone(),
        address: endpoint.address.clone(),
        gateway: endpoint.gateway.clone(),
        mac_address: endpoint.mac.clone(),
        ports: endpoint.ports.iter().map(common::to_port).collect(),
        dns_servers: endpoint.dns_servers.clone(),
        dns_search: endpoint.dns_search.clone(),
        created: endpoint.created.map(common::to_timestamp),
    }
}

fn step(step: &StepTime) -> types::Step {
    types::Step {
        name: step.name.clone(),
        start_unix_nanos: step.start,
        duration_nanos: step.duration,
    }
}

pub(super) fn detail(detail: Detail) -> wire::ContainerDetail {
    let record = &detail.record;
    let (entrypoint, cmd) = process::entrypoint_and_command(record);
    let image = record.image.as_ref();
    let volumes = image.map(|image| image.config.volumes.keys().cloned());
    wire::ContainerDetail {
        entrypoint,
        cmd,
        volumes: volumes.into_iter().flatten().collect(),
        exec_ids: detail.exec_ids,
        summary: Some(summary(record)),
        config: Some(to_config(&record.wanted)),
        pid: record.pid,
        restart_count: record.restarts,
        endpoint: record.endpoint.as_ref().map(|held| endpoint(record, held)),
        rootfs: record.rootfs.as_ref().map(common::to_rootfs),
        error: record.error.clone(),
        steps: record.steps.iter().map(step).collect(),
        log_path: detail.log_path,
        spec: detail.spec.into(),
        args: process::args(record).unwrap_or_default(),
        env: process::configured_env(record),
        working_dir: process::configured_cwd(record).to_owned(),
        user: process::user(record),
        stop_signal: record.stop_signal(),
        health: record.health.as_ref().map(health),
        health_check: Check::of(record).as_ref().map(check),
    }
}

fn output(stream: Stream, data: bytes::Bytes) -> shim::Output {
    let stream = match stream {
        Stream::Stdout => types::Stream::Stdout,
        Stream::Stderr => types::Stream::Stderr,
    };
    shim::Output {
        stream: stream.into(),
        data,
    }
}

/// None: nothing the caller is to hear of.
pub(super) fn run(event: RunEvent) -> Option<Result<wire::RunResponse, Status>> {
    use wire::run_response::Message;
    let message = match event {
        RunEvent::Pull(progress) => Message::Pull(*progress.0),
        RunEvent::Created { id } => Message::Created(wire::CreateResponse {
            container_id: id,
            warnings: Vec::new(),
        }),
        RunEvent::Started { at } => Message::Started(wire::Started {
            started_at: Some(common::to_timestamp(at)),
        }),
        RunEvent::Output(WindowOutput::Output { stream, data }) => {
            Message::Output(output(stream, data))
        }
        RunEvent::Output(WindowOutput::Missed { bytes }) => Message::Missed(shim::Missed { bytes }),
        RunEvent::Output(WindowOutput::Attached(_) | WindowOutput::Typed { .. }) => return None,
        RunEvent::Output(WindowOutput::Exited(exit)) | RunEvent::Exited(exit) => {
            Message::Exited(common::to_exit(&exit))
        }
        RunEvent::Failed(error) => return Some(Err(status(error))),
    };
    Some(Ok(wire::RunResponse {
        message: Some(message),
    }))
}

/// None: nothing the caller is to hear of.
pub(super) fn attach(event: AttachEvent) -> Option<Result<shim::AttachResponse, Status>> {
    use shim::attach_response::Message;
    let message = match event {
        AttachEvent::Output(WindowOutput::Attached(attached)) => {
            Message::Attached(shim::Attached {
                terminal: attached.terminal,
                primary: attached.primary,
                ..shim::Attached::default()
            })
        }
        AttachEvent::Output(WindowOutput::Typed { .. }) => return None,
        AttachEvent::Output(WindowOutput::Output { stream, data }) => {
            Message::Output(output(stream, data))
        }
        AttachEvent::Output(WindowOutput::Missed { bytes }) => {
            Message::Missed(shim::Missed { bytes })
        }
        AttachEvent::Output(WindowOutput::Exited(exit)) => Message::Exited(common::to_exit(&exit)),
        AttachEvent::Failed(error) => return Some(Err(status(error))),
    };
    Some(Ok(shim::AttachResponse {
        message: Some(message),
    }))
}

/// None: nothing the caller is to hear of.
pub(super) fn exec(event: ExecEvent) -> Option<Result<wire::ExecResponse, Status>> {
    use wire::exec_response::Message;
    let message = match event {
        ExecEvent::Started { exec_id, pid } => Message::Started(wire::ExecStarted { exec_id, pid }),
        ExecEvent::Output(WindowOutput::Output { stream, data }) => {
            Message::Output(output(stream, data))
        }
        ExecEvent::Output(WindowOutput::Missed { bytes }) => {
            Message::Missed(shim::Missed { bytes })
        }
        ExecEvent::Output(WindowOutput::Attached(_) | WindowOutput::Typed { .. }) => return None,
        ExecEvent::Output(WindowOutput::Exited(exit)) | ExecEvent::Exited(exit) => {
            Message::Exited(common::to_exit(&exit))
        }
        ExecEvent::Failed(error) => return Some(Err(status(error))),
    };
    Some(Ok(wire::ExecResponse {
        message: Some(message),
    }))
}

pub(super) fn told(told: &Told) -> wire::EventsResponse {
    let event = &told.event;
    wire::EventsResponse {
        time: Some(common::to_timestamp(told.at)),
        r#type: event.kind.name().to_owned(),
        action: event.action.clone().into_owned(),
        id: event.id.clone(),
        attributes: to_map(&event.attributes),
    }
}
