//! The service as a program.

use std::process::ExitCode;

use crate::ImageStore;
use crate::config::Config;
use crate::grpc::{ImageGrpc, SERVICES};
use gantry_kit::service::{self, BoxError, Context, Service};
use rustix::process::{Resource, Rlimit};

/// The program: serves until it is told to stop.
pub fn main() -> ExitCode {
    service::main("image", async |context: Context<Config>| {
        raise_descriptor_limit();
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

/// Reading the files of an image opens each of its layers, and there may be
/// hundreds: the usual soft limit of 1,024 descriptors is not for this program.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files cannot be raised: images of hundreds of layers may not be readable");
    }
}
