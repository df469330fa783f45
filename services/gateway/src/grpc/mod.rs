//! The gateway's own services on the wire, beside those it forwards
//! (see [`crate::proxy`]).

mod answer;
mod config;
mod containers;
mod copies;
mod request;
mod status;
mod system;

use std::sync::Arc;

use gantry_kit::client::{ANSWER_LIMIT, MESSAGE_LIMIT};
use gantry_proto::gateway::v1::container_service_server::{self, ContainerServiceServer};
use gantry_proto::gateway::v1::system_service_server::{self, SystemServiceServer};
use tonic::service::Routes;

use crate::engine::Engine;

/// Full names of the services here.
pub const NAMES: [&str; 2] = [
    container_service_server::SERVICE_NAME,
    system_service_server::SERVICE_NAME,
];

/// The gateway's own services.
#[must_use]
pub fn routes(engine: &Arc<Engine>) -> Routes {
    let containers = containers::Containers {
        engine: Arc::clone(engine),
    };
    let system = system::System {
        engine: Arc::clone(engine),
    };
    Routes::new(
        ContainerServiceServer::new(containers)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(ANSWER_LIMIT),
    )
    .add_service(SystemServiceServer::new(system))
}
