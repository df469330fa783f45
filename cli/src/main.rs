//! `gantry`: the command line of the Gantry container engine.
#![forbid(unsafe_code)]
// The verbs that use the rest follow.
#![allow(dead_code)]

mod arguments;
mod connection;
mod exit;
mod operands;
mod session;
mod supervise;
mod verbs;

use std::process::ExitCode;

fn main() -> ExitCode {
    match arguments::read(std::env::args_os()) {
        Ok((options, verb)) => session::run(options, verb),
        Err(refusal) => refusal.report(),
    }
}
