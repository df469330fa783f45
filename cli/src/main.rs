//! `gantry`: the command line of the Gantry container engine.
#![forbid(unsafe_code)]

fn main() {}
