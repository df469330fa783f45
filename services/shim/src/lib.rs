//! The shim.
#![forbid(unsafe_code)]

pub mod container;
