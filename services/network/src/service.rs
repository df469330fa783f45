//! The service as a program.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use crate::config::{Config, Wanted};
use crate::grpc::NetworkGrpc;
use crate::network::Network;
use gantry_kit::service::{self, BoxError, Context, Service};
use gantry_proto::network::v1::network_service_server::NetworkServiceServer;
use tonic::service::Routes;

/// The program: serves until it is told to stop.
pub fn main() -> ExitCode {
    let running: OnceLock<Arc<Network>> = OnceLock::new();
    let code = service::main("network", async |context: Context<Config>| {
        let wanted = Wanted::new(context.config, &context.paths)?;
        let network = tokio::task::spawn_blocking(|| Network::start(wanted)).await??;
        let network = running.get_or_init(|| Arc::new(network));
        let server = NetworkServiceServer::new(NetworkGrpc::new(Arc::clone(network)));
        Ok::<_, BoxError>(Service::new(
            Routes::new(server),
            &["gantry.network.v1.NetworkService"],
        ))
    });
    // After the last call has ended.
    if let Some(network) = running.get() {
        network.stop();
    }
    code
}
