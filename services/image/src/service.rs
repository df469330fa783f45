//! The service as a program.

use std::process::ExitCode;

use crate::ImageStore;
use crate::config::Config;
use crate::grpc::{ImageGrpc, SERVICES};
use gantry_kit::service::{self, BoxError, Context, Service};

/// The program: serves until it is told to stop.
pub fn main() -> ExitCode {
    service::main("image", async |context: Context<Config>| {
        let root = context.paths.state_of("image");
        let config = Config {
            own_registry: Some(context.paths.socket("registry")),
            ..context.config
        };
        let store = tokio::task::spawn_blocking(move || ImageStore::open(&root, config)).await??;
        let routes = ImageGrpc::new(store, context.stopping).routes();
        Ok::<_, BoxError>(Service::new(routes, SERVICES))
    })
}
