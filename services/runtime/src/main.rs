//! The runtime service.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    gantry_runtime::main()
}
