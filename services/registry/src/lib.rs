//! An OCI distribution registry over HTTP(S), administered over gRPC.
//!
//! It speaks the OCI distribution specification 1.1 and what Docker's clients
//! need beyond it, and knows nothing of the engine it is part of.
//!
//! **Two sides.** The service's Unix socket, for root and the engine's group, has
//! the administration (gRPC) and the distribution API (HTTP/1.1 or 2) side by
//! side. On the network it listens only where it is told to (`registry.listen`):
//! there are no accounts, so whoever can connect can pull and push. What was
//! pushed over the socket is kept from them: see [`http::Side`].
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`store`] | repositories on files: the layout, the order of writes, the locks |
//! | [`manifests`], [`repositories`] | what is in them |
//! | [`uploads`] | blobs on their way in |
//! | [`garbage`] | the collection of blobs that nothing names |
//! | [`http`] | the distribution API |
//! | [`listen`] | the network: port, TLS, and how connections end |
//! | [`grpc`] | administration: `gantry.registry.v1` |
//! | [`error`] | the catalogue of errors |
#![forbid(unsafe_code)]

pub mod config;
mod durable;
pub mod error;
pub mod garbage;
pub mod grpc;
pub mod http;
pub mod listen;
pub mod manifests;
mod receive;
pub mod repositories;
mod send;
pub mod store;
pub mod uploads;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use gantry_kit::service::{self, BoxError, Context, Service};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use config::Config;
pub use error::RegistryError;
use http::Side;
use listen::Endpoint;
pub use store::Store;
pub use uploads::Uploads;

/// The registry: all that its interfaces share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    /// What is stored.
    pub store: Arc<Store>,
    /// What is on its way in.
    pub uploads: Arc<Uploads>,
    /// What is allowed.
    pub config: Arc<Config>,
}

impl Registry {
    /// Opens the registry in a directory, which is made if it is not there. Blocks on the disk.
    pub fn open(root: impl Into<PathBuf>, config: Config) -> Result<Self, RegistryError> {
        let store = Arc::new(Store::open(root)?);
        Ok(Self {
            uploads: Arc::new(Uploads::new(Arc::clone(&store))),
            store,
            config: Arc::new(config),
        })
    }
}

/// The program: serves until it is told to stop.
pub fn main() -> ExitCode {
    service::main("registry", build)
}

/// Builds the service: opens the files, listens for HTTP, and offers the administration over gRPC.
pub async fn build(context: Context<Config>) -> Result<Service, BoxError> {
    let Context {
        config,
        paths,
        stopping,
        ..
    } = context;
    // A configuration that cannot be used is reported before anything is changed.
    let mut endpoint = Endpoint::of(&config)?;
    if let Some(endpoint) = &mut endpoint {
        endpoint.bind().await?;
    }
    let listening = endpoint.as_ref().map(Endpoint::listening);
    let root = paths.state_of("registry");
    let registry = tokio::task::spawn_blocking(move || Registry::open(root, config)).await??;

    let administration =
        grpc::Administration::new(registry.clone(), listening.unwrap_or_default()).into_server();
    // On the service's socket the distribution API is what gRPC does not answer.
    let own_side = http::router(registry.clone(), Side::Socket);
    let routes = Routes::new(administration).into_axum_router();
    let routes = Routes::from(routes.fallback_service(own_side));
    let mut service = Service::new(routes, &[grpc::SERVICE]).accept_http1();
    if let Some(endpoint) = endpoint {
        let router = http::router(registry.clone(), Side::Network);
        let serving = endpoint.serve(router, stopping.clone());
        service = service.beside(tokio::spawn(serving));
    }
    let expiring = expire_uploads(registry, stopping);
    Ok(service.beside(tokio::spawn(expiring)))
}

/// Throws away abandoned uploads, now and then, until the service stops.
async fn expire_uploads(registry: Registry, stopping: CancellationToken) {
    let expiry = registry.config.upload_expiry();
    let pause = (expiry / 4).clamp(Duration::from_secs(1), Duration::from_secs(3600));
    loop {
        match registry.uploads.expire(expiry).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "abandoned uploads were removed"),
            Err(error) => {
                tracing::warn!(
                    "cannot look for abandoned uploads: {}",
                    gantry_kit::fault::chain(&error)
                );
            }
        }
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests;
