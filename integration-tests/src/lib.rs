//! What the whole-system tests, the benchmark and the demo are made of.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`engine`] | a private engine per test, and its orderly or forced end |
//! | [`audit`] | the leak audit that every test ends in |
//! | [`footprint`] | what processes hold of the machine |
//! | [`fixture`] | images that many tests run |
//! | [`image`], [`tar`] | images made in memory, the hostile ones too |
//! | [`recorded_disk`] | a disk whose power can be cut at any point |
//! | [`proxy`] | a network that fails |
//! | [`registry`] | foreign registries: Debian's, and one that lies; pushing |
//! | [`grpc`] | health, reflection and other calls on an engine's sockets |
//! | [`otlp`] | an OTLP receiver |
//! | [`terminal`], [`pty`] | a real terminal: what a person sees, and every byte |
//! | [`command`], [`http`] | commands and requests with deadlines |
#![forbid(unsafe_code)]

pub mod audit;
pub mod command;
pub mod config;
pub mod engine;
pub mod firewall;
pub mod fixture;
pub mod footprint;
pub mod grpc;
pub mod http;
pub mod image;
pub mod otlp;
pub mod proxy;
pub mod pty;
pub mod recorded_disk;
pub mod registry;
mod rescue;
pub mod tar;
pub mod terminal;

/// A static program that needs nothing of a distribution; see
/// `guest/guest.rs` for what it does.
pub const GUEST: &[u8] = include_bytes!(env!("GANTRY_GUEST"));
