//! `gantry-oci`: the OCI runtime as a command with runc's interface.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else, for nothing is open yet and one execve costs least now. Only these verbs make a process
    // of this program that enters a container; a word that only looks like one costs a millisecond.
    let enters = std::env::args_os()
        .skip(1)
        .any(|word| word == "create" || word == "run" || word == "exec");
    if enters && let Err(error) = gantry_shim::container::protect_own_binary() {
        eprintln!("gantry-oci: {error}");
        return ExitCode::FAILURE;
    }
    gantry_shim::oci_cli::main()
}
