//! What can go wrong, and how it is told on one line.

use std::error::Error;
use std::net::Ipv4Addr;

use crate::config::ConfigError;
use crate::endpoint::{ContainerId, ContainerIdError};
use crate::firewall::FirewallError;
use crate::netlink::NetlinkError;
use crate::ownership::Owner;
use crate::ports::PortError;
use crate::sandbox::SandboxError;
use crate::store::StoreError;
use crate::subnet::Subnet;

/// Why something asked of the network cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(transparent)]
    ContainerId(#[from] ContainerIdError),
    #[error("no such network: {name:?}; there are bridge, host and none")]
    UnknownNetwork { name: String },
    #[error("network {name:?} has no endpoints: nothing has to be made for it")]
    NoEndpoints { name: String },
    #[error("{text:?} is not an IPv4 address (for {what})")]
    Address { what: &'static str, text: String },
    #[error(
        "{text:?} is not a hardware address of one interface: use six pairs of hexadecimal digits as in 02:42:0a:00:00:05, the first of them even"
    )]
    Mac { text: String },
    #[error("{port} is not a port (for {what}): use 1 to 65535")]
    PortNumber { what: &'static str, port: u32 },
    #[error("{number} is not a protocol: use tcp, udp or sctp")]
    Protocol { number: i32 },
    #[error("mappings of users need mappings of groups, and the reverse")]
    HalfMapped,
    #[error("container {container} already has an endpoint; delete it first")]
    EndpointExists { container: ContainerId },
    #[error("container {container} has no endpoint")]
    EndpointNotFound { container: ContainerId },
    #[error("the endpoint of container {container} is being changed and did not come to rest")]
    EndpointBusy { container: ContainerId },
    #[error("address {address} is already in use; choose another")]
    AddressInUse { address: Ipv4Addr },
    #[error("address {address} is not one that a container can have in the subnet {subnet}")]
    AddressOutside { address: Ipv4Addr, subnet: Subnet },
    #[error(
        "all {total} addresses of the subnet {subnet} are in use; remove containers, or configure a larger [network] subnet"
    )]
    PoolExhausted { subnet: Subnet, total: u64 },
    #[error(
        "the bridge {bridge:?} has {ports} endpoints, and a Linux bridge takes no more; remove containers, or give some --network none or host"
    )]
    BridgeFull { bridge: String, ports: usize },
    #[error(
        "{count} endpoints of ended containers are still being removed, and the kernel did not catch up in {seconds} s; try again later"
    )]
    Backlog { count: usize, seconds: u64 },
    #[error(transparent)]
    Port(#[from] PortError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no random number can be had")]
    Random { source: getrandom::Error },
    #[error("the network service is stopping")]
    Stopping,
}

/// Why the network cannot be brought up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "subnet {subnet} overlaps the route {destination}/{prefix} of {device}; configure another [network] subnet"
    )]
    Overlap {
        subnet: Subnet,
        destination: Ipv4Addr,
        prefix: u8,
        device: String,
    },
    #[error("link {name:?} exists and is not a bridge; configure another [network] bridge")]
    NotABridge { name: String },
    #[error(
        "the bridge {name:?} belongs to {owner}; configure another [network] bridge, or end that engine when it has no containers, or remove what is left of it with `ip link delete {name}`"
    )]
    BridgeOwned { name: String, owner: Owner },
    #[error(
        "every subnet that could be chosen overlaps a route or an address of this machine; configure a free one as [network] subnet"
    )]
    NoSubnet,
    #[error("no random number can be had")]
    Random { source: getrandom::Error },
    #[error("cannot set up the bridge {name:?}")]
    Bridge { name: String, source: NetlinkError },
    #[error("cannot set the kernel parameter {path}")]
    Parameter {
        path: String,
        source: std::io::Error,
    },
    #[error("cannot use the directory {path:?}")]
    Directory {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    #[error("cannot start a thread")]
    Thread { source: std::io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An error with all its causes on one line.
#[must_use]
pub(crate) fn chain(error: &dyn Error) -> String {
    gantry_kit::fault::chain(error)
}
