//! One process per container.
#![forbid(unsafe_code)]

fn main() {}
