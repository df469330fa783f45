//! How every Gantry service starts, listens, logs, traces, reports health and
//! stops; how every client connects.
//!
//! A service's `main.rs` is one call of [`service::main`]: arguments, the
//! configuration file, logs and traces, the Unix socket (its own, or the one
//! that systemd or `gantry up` hands over), health and reflection, readiness,
//! and a drained stop on SIGTERM are the same for all.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`paths`] | where state, sockets, logs and the configuration file are |
//! | [`config`] | one TOML file, a table per service; environment and flags over it |
//! | [`directories`] | the engine's directories: their modes, and who may own them |
//! | [`service`] | the life of a service process |
//! | [`telemetry`] | logs, OpenTelemetry export, and the trace context on calls |
//! | [`socket`] | Unix sockets at paths of any length |
//! | [`client`] | channels to other services, with deadlines and trace context |
//! | [`calls`] | what bounds each call: one class for every method |
//! | [`metadata`] | bounds on what a call carries in headers and trailers |
//! | [`fault`] | errors as `google.rpc.Status` with typed details, and back |
//! | [`identity`] | what tells engines on one machine apart |
//! | [`incoming`] | connections as they come in, with bounds |
//! | [`durable`] | files that are replaced as a whole and survive a power cut |
//! | [`journal`] | what happened, for those who follow and those who ask later |
//! | [`pages`] | lists in pages of bounded size |
//! | [`store`] | the index each service keeps its records in |
//! | [`times`] | points in time and durations as people write them |
#![forbid(unsafe_code)]

pub mod calls;
pub mod client;
pub mod config;
pub mod directories;
pub mod durable;
pub mod fault;
pub mod identity;
pub mod incoming;
pub mod journal;
pub mod metadata;
pub mod pages;
pub mod paths;
pub mod service;
pub mod socket;
pub mod store;
pub mod telemetry;
pub mod times;
