//! `SystemService`: what the engine is and runs on, and which services answer.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use futures::future::{join, join_all};
use gantry_proto::gateway::v1 as wire;
use gantry_proto::image::v1 as image;
use tonic::{Request, Response, Status};
use wire::system_service_server::SystemService;

use super::status::status;
use crate::check;
use crate::engine::Engine;
use crate::error::Peer;
use crate::state::State;
use crate::store::load::Damaged;

const PEERS: [Peer; 4] = [Peer::Image, Peer::Runtime, Peer::Network, Peer::Registry];

const APIS: [&str; 4] = [
    "gantry.gateway.v1",
    "gantry.image.v1",
    "gantry.network.v1",
    "gantry.registry.v1",
];

#[derive(Clone, Debug)]
pub(super) struct System {
    pub(super) engine: Arc<Engine>,
}

/// A one-line file below /proc/sys/kernel.
fn kernel_file(name: &str) -> String {
    fs::read_to_string(Path::new("/proc/sys/kernel").join(name))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// What os-release(5) says of this machine.
fn distribution(key: &str) -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.split_once('='));
    let value = lines.find(|(name, _)| *name == key).map(|(_, value)| value);
    value
        .unwrap_or_default()
        .trim_matches(['"', '\''])
        .to_owned()
}

/// This machine's architecture as Go's GOARCH.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok());
    kibibytes.unwrap_or_default() * 1024
}

#[tonic::async_trait]
impl SystemService for System {
    async fn version(
        &self,
        _request: Request<wire::VersionRequest>,
    ) -> Result<Response<wire::VersionResponse>, Status> {
        Ok(Response::new(wire::VersionResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            apis: APIS.map(str::to_owned).to_vec(),
            os: std::env::consts::OS.to_owned(),
            architecture: architecture().to_owned(),
            kernel: kernel_file("osrelease"),
        }))
    }

    async fn info(
        &self,
        _request: Request<wire::InfoRequest>,
    ) -> Result<Response<wire::InfoResponse>, Status> {
        let engine = &self.engine;
        let health = join_all(PEERS.map(|peer| async move {
            let error = engine.peers.health(peer).await.err();
            let warnings = match (peer, &error) {
                (Peer::Registry, None) => engine.peers.registry_warnings().await,
                _ => Vec::new(),
            };
            wire::ServiceStatus {
                name: peer.name().to_owned(),
                serving: error.is_none(),
                warnings,
                error: error.map(|error| error.to_string()).unwrap_or_default(),
            }
        }));
        let (services, images) = join(health, engine.peers.image.count()).await;
        let records = engine.roster.records();
        let damaged = engine.kept_aside().await.map_err(status)?;
        let count = |is: fn(State) -> bool| {
            let fitting = records.iter().filter(|record| is(record.state)).count();
            u32::try_from(fitting).unwrap_or(u32::MAX)
        };
        let running = count(|state| matches!(state, State::Starting | State::Running));
        let paused = count(|state| state == State::Paused);
        let containers = count(|_| true);
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        Ok(Response::new(wire::InfoResponse {
            containers,
            containers_running: running,
            containers_paused: paused,
            containers_stopped: containers - running - paused,
            images: u32::try_from(images.unwrap_or_default()).unwrap_or(u32::MAX),
            state_dir: engine.paths.state.display().to_string(),
            cgroup_version: if unified { "2" } else { "1" }.to_owned(),
            kernel: kernel_file("osrelease"),
            os: std::env::consts::OS.to_owned(),
            architecture: architecture().to_owned(),
            cpus: u32::try_from(engine.host.cpus).unwrap_or(u32::MAX),
            memory_bytes: memory_bytes(),
            hostname: kernel_file("hostname"),
            services,
            operating_system: distribution("PRETTY_NAME"),
            os_version: distribution("VERSION_ID"),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            damaged_records: damaged.into_iter().map(Into::into).collect(),
        }))
    }

    async fn check(
        &self,
        request: Request<wire::CheckRequest>,
    ) -> Result<Response<wire::CheckResponse>, Status> {
        let repair = request.into_inner().repair;
        let checked = check::check(&self.engine, repair).await.map_err(status)?;
        Ok(Response::new(wire::CheckResponse {
            findings: checked.findings.into_iter().map(Into::into).collect(),
            objects: u64::try_from(checked.objects).unwrap_or(u64::MAX),
        }))
    }
}

impl From<check::Finding> for image::Finding {
    fn from(finding: check::Finding) -> Self {
        Self {
            object: finding.object,
            problem: finding.problem,
            repaired: finding.repaired,
            needed_by: finding.needed_by,
        }
    }
}

impl From<Damaged> for wire::DamagedRecord {
    fn from(damaged: Damaged) -> Self {
        Self {
            container_id: damaged.id.map(String::from).unwrap_or_default(),
            name: damaged.name.unwrap_or_default(),
            path: damaged.path.display().to_string(),
        }
    }
}
