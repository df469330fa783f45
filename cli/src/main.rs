//! `gantry`: the command line of the Gantry container engine.
#![forbid(unsafe_code)]
// Comments on flags are their help text, which shows brackets as they are.
#![allow(rustdoc::broken_intra_doc_links)]

mod agreement;
mod arguments;
mod connection;
mod container_options;
mod content_trust;
mod copying;
mod detach;
mod display;
mod each;
mod ending;
mod exit;
mod filters;
mod format;
mod health_options;
mod inspect;
mod interrupt;
mod lists;
mod new_file;
mod operands;
mod parse;
mod processes;
mod progress;
mod refused_options;
mod registry_auth;
mod session;
mod stream;
mod supervise;
mod table;
mod terminal;
mod verbs;
mod watch;

use std::process::ExitCode;

fn main() -> ExitCode {
    // No child of this program (a service, a credential helper) gets a descriptor that this program inherited. Without
    // close_range(2), before Linux 5.9, they get them; the services of an engine still do not.
    let _older_kernel = gantry_sys::fd::close_on_exec_from(3);
    match arguments::read(std::env::args_os()) {
        Ok(request) => session::run(request),
        Err(refusal) => refusal.report(),
    }
}
