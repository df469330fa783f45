//! The shim.
#![forbid(unsafe_code)]
