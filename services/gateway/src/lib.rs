//! Coordinates the services: containers and their life, events, the front door
//! of the CLI.
//!
//! The domain is in [`lifecycle`]: one verb to a file, over [`container`]
//! records whose life is the table in [`state`]. It knows other services as
//! [`peers`], and neither the wire nor the command line; [`grpc`] is the one
//! edge towards callers (more are to come), [`proxy`] forwards what belongs to
//! other services.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`container`], [`wanted`], [`name`] | what a container is, and what was asked for |
//! | [`state`] | the table of a container's life |
//! | [`roster`], [`store`] | all containers: in memory, on disk |
//! | [`spec`], [`etc_files`] | what a container is made of |
//! | [`lifecycle`], [`steps`] | verbs, and how several steps are done whole or not at all |
//! | [`watch`], [`watch_images`], [`reconcile`], [`sweep`], [`restart`] | what goes on without being asked |
//! | [`check`] | whether the records can be read, and what belongs to nobody |
//! | [`window`] | attached streams |
//! | [`health`] | health checks and how they went |
//! | `image_removal` | which images must stay |
//! | [`journal`], [`event_filter`], [`filter`] | events and filters |
#![forbid(unsafe_code)]

pub mod check;
pub mod container;
pub mod engine;
pub mod error;
pub mod etc_files;
pub mod event_filter;
pub mod filter;
pub mod grpc;
pub mod health;
mod image_removal;
pub mod journal;
pub mod lifecycle;
pub mod name;
pub mod own_ids;
pub mod peers;
pub mod proxy;
pub mod reconcile;
pub mod restart;
pub mod roster;
pub mod settings;
pub mod signal;
pub mod spec;
pub mod state;
pub mod steps;
pub mod store;
pub mod sweep;
pub mod wanted;
pub mod watch;
pub mod watch_images;
pub mod window;
mod wire;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use gantry_kit::identity::Identity;
use gantry_kit::service::{self, BoxError, Context, Service};

use engine::Engine;
use settings::Settings;

/// The program: serves until it is told to stop.
pub fn main() -> ExitCode {
    let parent = OnceLock::new();
    let code = service::main("gateway", async |context: Context<Settings>| {
        let identity = Identity::of(&context.paths);
        if identity.root().is_some() {
            parent.get_or_init(|| context.config.own_cgroup_parent(&identity));
        }
        build(context).await
    });
    if let Some(Some(parent)) = parent.get() {
        remove_cgroup_parent(Path::new("/sys/fs/cgroup"), parent);
    }
    code
}

/// Removes the cgroup that this engine's containers were made in from each
/// hierarchy, where it is empty: nobody else uses its name. It is made again
/// with the next container.
fn remove_cgroup_parent(mounts: &Path, parent: &str) {
    let hierarchies = fs::read_dir(mounts).into_iter().flatten().flatten();
    let directories = hierarchies
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path());
    for directory in directories.chain([mounts.to_owned()]) {
        // It does not exist, or has containers that run on.
        let _kept = fs::remove_dir(directory.join(parent));
    }
}

/// Builds the gateway: its records, its services, and what goes on by itself.
///
/// # Errors
/// The records cannot be read.
pub async fn build(context: Context<Settings>) -> Result<Service, BoxError> {
    let Context {
        config,
        paths,
        stopping,
        ..
    } = context;
    let engine = Engine::open(config, paths.clone(), stopping)?;
    tokio::spawn(watch::watch(Arc::clone(&engine)));
    tokio::spawn(watch_images::watch(Arc::clone(&engine)));
    tokio::spawn(reconcile::tidy(Arc::clone(&engine)));
    let routes = proxy::forward(grpc::routes(&engine), &engine);
    let names: Vec<&'static str> = grpc::NAMES.iter().chain(proxy::NAMES).copied().collect();
    Ok(Service::new(routes, &names).gives_up_frozen_clients())
}
