//! The image service.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use gantry_image::ImageStore;
use gantry_image::config::Config;
use gantry_image::grpc::{ImageGrpc, SERVICES};
use gantry_kit::service::{self, BoxError, Context, Service};

fn main() -> ExitCode {
    service::main("image", async |context: Context<Config>| {
        let root = context.paths.state_of("image");
        let config = context.config;
        let store = tokio::task::spawn_blocking(move || ImageStore::open(&root, config)).await??;
        let routes = ImageGrpc::new(store, context.stopping).routes();
        Ok::<_, BoxError>(Service::new(routes, SERVICES))
    })
}
