//! `gantry info`: what the engine is, holds and runs on.

use clap::Args;
use gantry_proto::gateway::v1::{DamagedRecord, InfoRequest, InfoResponse};
use serde_json::{Value, json};

use crate::display;
use crate::exit::Failure;
use crate::format::Format;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Info {
    /// json, or a template
    #[arg(short, long)]
    format: Option<String>,
}

impl Info {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let format = Format::parse(self.format.as_deref()).map_err(|e| Failure::of(&e))?;
        let info = session
            .engine
            .system()
            .info(InfoRequest {})
            .await?
            .into_inner();
        match format {
            Format::Json => terminal::println(&data(&info).to_string())?,
            Format::Each(template) | Format::Columns(template) => {
                let text = template
                    .render(&data(&info).into())
                    .map_err(|e| Failure::of(&e))?;
                terminal::println(&text)?;
            }
            Format::Table => terminal::print(&text(&info))?,
        }
        Ok(0)
    }
}

/// Docker's names where it has them.
fn data(info: &InfoResponse) -> Value {
    // As uname(2) has it, unlike elsewhere.
    let architecture = match info.architecture.as_str() {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    };
    let services: Vec<Value> = info
        .services
        .iter()
        .map(|service| {
            json!({
                "Name": service.name,
                "Serving": service.serving,
                "Error": service.error,
                "Warnings": service.warnings,
            })
        })
        .collect();
    let damaged: Vec<Value> = info
        .damaged_records
        .iter()
        .map(|record| {
            json!({"ContainerID": record.container_id, "Name": record.name, "Path": record.path})
        })
        .collect();
    json!({
        "Containers": info.containers,
        "ContainersRunning": info.containers_running,
        "ContainersPaused": info.containers_paused,
        "ContainersStopped": info.containers_stopped,
        "Images": info.images,
        "Driver": "overlay2",
        "LoggingDriver": "cri",
        "CgroupDriver": "cgroupfs",
        "DefaultRuntime": "gantry",
        "InitBinary": "gantry-init",
        "SecurityOptions": ["name=seccomp,profile=builtin"],
        "LiveRestoreEnabled": true,
        "ExperimentalBuild": false,
        "Debug": false,
        "Labels": [],
        "Swarm": {"LocalNodeState": "inactive", "NodeID": "", "ControlAvailable": false},
        "CgroupVersion": info.cgroup_version,
        "KernelVersion": info.kernel,
        "OSType": info.os,
        "OSVersion": info.os_version,
        "OperatingSystem": info.operating_system,
        "Architecture": architecture,
        "NCPU": info.cpus,
        "MemTotal": info.memory_bytes,
        "Name": info.hostname,
        "ServerVersion": info.version,
        "DockerRootDir": info.state_dir,
        "Services": services,
        "DamagedRecords": damaged,
        "Warnings": warnings(info),
    })
}

fn text(info: &InfoResponse) -> String {
    let mut text = format!(
        "Containers: {}\n Running: {}\n Paused: {}\n Stopped: {}\nImages: {}\n",
        info.containers,
        info.containers_running,
        info.containers_paused,
        info.containers_stopped,
        info.images
    );
    text.push_str("Services:\n");
    for service in &info.services {
        let state = match (service.serving, service.error.as_str()) {
            (true, _) => "serving",
            (false, "") => "not serving",
            (false, error) => error,
        };
        text.push_str(&format!(" {}: {state}\n", service.name));
        for warning in &service.warnings {
            text.push_str(&format!("  Warning: {warning}\n"));
        }
    }
    text.push_str(&format!(
        "Server Version: {}\nStorage Driver: overlay2\nCgroup Version: {}\nKernel Version: {}\nOperating System: {}\nOSType: {}\nArchitecture: {}\nCPUs: {}\nTotal Memory: {}\nName: {}\nState Dir: {}\n",
        info.version,
        info.cgroup_version,
        info.kernel,
        info.operating_system,
        info.os,
        info.architecture,
        info.cpus,
        display::binary_size(info.memory_bytes),
        info.hostname,
        info.state_dir,
    ));
    for warning in warnings(info) {
        text.push_str(&format!("WARNING: {warning}\n"));
    }
    text
}

fn warnings(info: &InfoResponse) -> Vec<String> {
    let of = |record: &DamagedRecord| {
        let path = &record.path;
        match record.container_id.as_str() {
            "" => format!("{path} is among the containers' records and cannot be read"),
            id => format!("the record of container {id} is damaged and kept at {path}"),
        }
    };
    let mut warnings: Vec<String> = info.damaged_records.iter().map(of).collect();
    if !warnings.is_empty() {
        warnings.push(
            "until that is put right, nothing that has no record is removed; see gantry system check"
                .to_owned(),
        );
    }
    warnings
}
