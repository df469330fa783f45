//! The other services, as the domain sees them: domain types in, domain types
//! and typed errors out. Wire types stop here.
//!
//! A channel is made once and connects at its first call, and again after its
//! service was restarted; so every service may come and go. What a service
//! refuses is passed on as its own error; one that does not answer becomes
//! [`Error::Unanswered`], which names it.

mod copies;
mod image;
mod network;
mod runtime;

use gantry_kit::client;
use gantry_kit::fault::Fault;
use gantry_kit::paths::Paths;
use gantry_proto::registry::v1::StatusRequest;
use gantry_proto::registry::v1::registry_service_client::RegistryServiceClient;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::error::{Error, Peer, Result};

pub use copies::{FoundPath, Place};
pub use image::{
    ChangeStream, Changes, Chunk, ChunkStream, Committed, ImageEvents, ImagePosition, ImageTold,
    Images, NewImage, Prepared, PullProgress, RegistryAuth, Sizes,
};
pub use network::{EndpointWanted, Networks};
pub use runtime::{
    ContainerWanted, Deleted, EtcFile, EventKind, EventStream, ExecWanted, HeldIds, Live,
    LiveStatus, LogBatch, LogStream, LogsWanted, OutputWanted, RuntimeEvent, Runtimes, Stats,
};

/// Clients of all services.
#[derive(Clone, Debug)]
pub struct Peers {
    pub image: Images,
    pub network: Networks,
    pub runtime: Runtimes,
    paths: Paths,
}

impl Peers {
    /// Clients of the services of the engine at `paths`. Connects to none yet.
    #[must_use]
    pub fn new(paths: &Paths) -> Self {
        let channel = |peer: Peer| client::connect(&paths.socket(peer.name()));
        Self {
            image: Images::new(&channel(Peer::Image)),
            network: Networks::new(channel(Peer::Network)),
            runtime: Runtimes::new(channel(Peer::Runtime)),
            paths: paths.clone(),
        }
    }

    /// Whether a service answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn health(&self, peer: Peer) -> Result<()> {
        let mut health = HealthClient::new(client::connect(&self.paths.socket(peer.name())));
        let mut request = tonic::Request::new(HealthCheckRequest::default());
        request.set_timeout(std::time::Duration::from_secs(2));
        health
            .check(request)
            .await
            .map(|_serving| ())
            .map_err(|status| refused(peer, &status))
    }
}

impl Peers {
    /// What the registry cannot do at present. Empty where it does not say.
    pub async fn registry_warnings(&self) -> Vec<String> {
        let socket = self.paths.socket(Peer::Registry.name());
        let mut registry = RegistryServiceClient::new(client::connect(&socket));
        let mut request = tonic::Request::new(StatusRequest { listen_only: true });
        request.set_timeout(std::time::Duration::from_secs(2));
        let status = registry
            .status(request)
            .await
            .map(tonic::Response::into_inner);
        let error = status.map(|status| status.listen_error).unwrap_or_default();
        Some(error)
            .filter(|error| !error.is_empty())
            .into_iter()
            .collect()
    }
}

/// A service's answer that is no success.
fn refused(peer: Peer, status: &Status) -> Error {
    let fault = Fault::from_status(status);
    let unanswered = fault.reason.is_empty()
        && matches!(
            fault.code,
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded
        );
    if !unanswered {
        return Error::Peer {
            peer,
            fault: Box::new(fault),
        };
    }
    Error::Unanswered {
        peer,
        problem: cause(status),
    }
}

/// The last cause of a broken call: "no such file or directory", not the layers
/// of transport above it.
pub(crate) fn cause(status: &Status) -> String {
    if client::is_silence(status)
        || matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
    {
        return "no answer in time".to_owned();
    }
    let mut last: &dyn std::error::Error = status;
    while let Some(source) = last.source() {
        last = source;
    }
    match last.downcast_ref::<Status>() {
        Some(_) => status.message().to_owned(),
        None => last.to_string(),
    }
}
