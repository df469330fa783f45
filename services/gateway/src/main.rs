//! The gateway service.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    gantry_kit::service::main("gateway", gantry_gateway::build)
}
