//! The shim: one small process per container, which creates it, owns its
//! terminal, log and exit status, and depends on no service being alive.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`container`] | the OCI runtime as a library |
//! | [`daemon`] | what makes a process a shim |
//! | [`serve`], [`grpc`] | `gantry.shim.v1` on its socket |
//! | [`shim`], `created` | one container, as the shim sees it |
//! | [`foreign`] | the same, made by another OCI runtime |
//! | [`process`], [`stdio`] | one process and its streams |
//! | [`log`] | the output on disk |
//! | [`reaper`], [`exit`] | how processes end |
//! | [`sweep`] | cleaning up after a shim that died |
//!
//! The process has one thread: the container's first process is cloned from it,
//! and a clone of a process with more threads may find a lock taken for ever.
#![forbid(unsafe_code)]

pub mod container;
mod created;
pub mod daemon;
pub mod error;
pub mod exit;
pub mod foreign;
pub mod grpc;
pub mod interfaces;
pub mod log;
pub mod oci_cli;
pub mod process;
pub mod reaper;
pub mod serve;
pub mod shim;
pub mod stdio;
pub mod sweep;
