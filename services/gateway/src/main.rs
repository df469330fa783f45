//! The gateway service.
#![forbid(unsafe_code)]

fn main() {}
