//! `gantry-shim`: one process per container.
//!
//! ```text
//! gantry-shim serve BUNDLE     serves on the listening socket at descriptor 0;
//!                              the bundle is there to be seen by whoever lists
//!                              processes
//! gantry-shim sweep BUNDLE     cleans up after a shim that died
//! ```
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use gantry_shim::error::{Error, Result, chain};
use gantry_shim::{container, daemon, sweep};
use rustix::fs::Mode;

/// What hooks and other runtimes begin with, whatever the umask of whoever started
/// the engine: they make directories for users that are not root.
const UMASK: u32 = 0o022;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gantry-shim: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    container::protect_own_binary()?;
    rustix::process::umask(Mode::from_raw_mode(UMASK));
    // The runtime starts shims with posix_spawn(3), which passes on what the
    // runtime itself inherited.
    let inherited = gantry_sys::process::reset_inherited_signals()
        .and_then(|()| gantry_sys::fd::close_on_exec_from(3));
    inherited.map_err(|source| Error::Io {
        step: "cannot reset inherited signals and descriptors",
        source,
    })?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [verb, _bundle] if verb == "serve" => daemon::run(),
        [verb, bundle] if verb == "sweep" => sweep::sweep(Path::new(bundle)),
        _ => Err(Error::Invalid {
            field: "arguments",
            problem: "say: serve BUNDLE, or: sweep BUNDLE".to_owned(),
        }),
    }
}
