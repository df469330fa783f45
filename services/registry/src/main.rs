//! The registry service.
#![forbid(unsafe_code)]

fn main() {}
