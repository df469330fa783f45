//! The runtime service.
#![forbid(unsafe_code)]

fn main() {}
