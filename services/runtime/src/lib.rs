//! Running containers: starts and supervises one shim per container.
#![forbid(unsafe_code)]
