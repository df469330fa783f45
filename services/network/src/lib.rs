//! Bridges, address pools, endpoints, firewall and published ports.
//!
//! An endpoint is what a container has of a network: a network namespace with
//! an address, a default route, and ports of the host that lead to it. This
//! service makes and removes endpoints for whoever asks; it knows no more of a
//! container than its id and names, and no process of a container is ever its
//! child, so that it can be killed and restarted while containers go on.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`config`] | the table `[network]` |
//! | `names`, `ownership` | bridge, table and subnet of this engine, and of others |
//! | [`subnet`], `addresses` | subnets, and the address pool (IPAM) |
//! | [`endpoint`] | what a container asks for and gets |
//! | `sandbox` | namespace, link and address, made ahead of need |
//! | `namespace`, `link`, `netlink` | the kernel's side of it |
//! | `firewall` | NAT and published ports, in an nftables table of our own |
//! | `ports` | the host's ports, held while they are published |
//! | [`network`], `claim` | creates, finds and deletes endpoints |
//! | `workers` | keep sandboxes ready, remove those that are not needed |
//! | `reconcile` | a start: adopt what is there, clear what is left over |
//! | `store` | the records |
//! | [`resolver`] | name servers for containers |
//! | [`grpc`] | `gantry.network.v1` |
//!
//! # Present limits
//! One bridge, IPv4 only, no name service, no pods. A Linux bridge has at most
//! 1,023 ports, and so a network has at most as many endpoints.
#![forbid(unsafe_code)]

mod addresses;
mod claim;
pub mod config;
pub mod endpoint;
pub mod error;
pub mod firewall;
pub mod grpc;
mod link;
mod names;
mod namespace;
pub mod netlink;
pub mod network;
mod ownership;
pub mod ports;
mod reconcile;
pub mod resolver;
pub mod sandbox;
mod service;
mod store;
pub mod subnet;
mod workers;

pub use error::{NetworkError, StartError};
pub use ownership::Owner;
pub use service::main;
