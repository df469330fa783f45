//! The runtime service: one shim per running container, its live state, and its
//! adoption after a restart.
//!
//! Everything that must outlive this process is in a container's bundle
//! directory ([`bundle`]) or in its shim; everything that is asked often is
//! answered from memory ([`roster`]). A container that does not answer delays
//! only those who call that very container.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`life`] | a container's states and how it ended |
//! | [`roster`] | all containers, and the feed of what changes |
//! | [`runtime`], `delete`, [`attach`] | the verbs |
//! | [`launch`], [`shim`], [`process`] | a shim's process and connection |
//! | `supervise`, `health`, `adopt` | watching shims, and finding them again |
//! | [`logs`] | reading what was logged |
//! | [`programs`] | other OCI runtimes by name |
//! | [`files`] | files inside a container, copied in and out |
//! | [`grpc`] | `gantry.runtime.v1` |
#![forbid(unsafe_code)]

mod adopt;
pub mod attach;
pub mod bundle;
mod delete;
pub mod error;
pub mod files;
pub mod grpc;
mod health;
pub mod launch;
pub mod life;
pub mod logs;
pub mod process;
pub mod programs;
pub mod roster;
pub mod runtime;
pub mod settings;
pub mod shim;
mod supervise;

use std::process::ExitCode;

use gantry_kit::client::MESSAGE_LIMIT;
use gantry_kit::directories;
use gantry_kit::service::{self, BoxError, Context, Service};
use gantry_proto::runtime::v1::runtime_service_server::RuntimeServiceServer;
use tonic::service::Routes;

use crate::grpc::Grpc;
use crate::launch::Launcher;
use crate::programs::Programs;
use crate::runtime::Runtime;
use crate::settings::Settings;

/// The program: serves until it is told to stop.
pub fn main() -> ExitCode {
    service::main("runtime", build)
}

/// Builds the service: adopts what runs, then is ready to serve.
///
/// # Errors
/// There is no shim to start, or the directories of containers cannot be used.
pub async fn build(context: Context<Settings>) -> Result<Service, BoxError> {
    let launcher = Launcher::new(context.config.shim)
        .map_err(|error| format!("cannot use the shim: {error}; set runtime.shim"))?;
    for directory in [&context.paths.run, &context.paths.log] {
        directories::close(&directory.join("containers"))?;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let programs = Programs::new(context.config.runtimes, path)?;
    let runtime = Runtime::new(context.paths, launcher, programs, context.stopping.clone());
    runtime.adopt().await;
    tokio::spawn(runtime.clone().watch_health(context.stopping));
    let service = RuntimeServiceServer::new(Grpc::new(runtime))
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    Ok(Service::new(Routes::new(service), &[grpc::NAME]))
}
