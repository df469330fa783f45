//! The image service.
#![forbid(unsafe_code)]

fn main() {}
