//! All services as one program, which is the service that it is called as.
//!
//! An installation has it once, under the names of all services: processes of
//! one file share its code in memory, whichever service they are
//! (docs/decisions/017). Nothing else is shared: each service is a process of its
//! own, and any of the files can be replaced by that service's own program.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

type Main = fn() -> ExitCode;

const SERVICES: [(&str, Main); 5] = [
    ("gantry-gateway", gantry_gateway::main),
    ("gantry-image", gantry_image::main),
    ("gantry-network", gantry_network::main),
    ("gantry-registry", gantry_registry::main),
    ("gantry-runtime", gantry_runtime::main),
];

fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    let called = Path::new(&called).file_name().unwrap_or_default();
    match SERVICES.iter().find(|(name, _)| called == *name) {
        Some((_, main)) => main(),
        None => {
            eprintln!(
                "{}: this program is the service that its file is named after; link it to one of {}",
                called.display(),
                SERVICES.map(|(name, _)| name).join(", ")
            );
            ExitCode::from(2)
        }
    }
}
