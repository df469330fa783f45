//! An endpoint: what a container has of a network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::subnet::Subnet;

const CONTAINER_ID_MAX: usize = 64;

/// Names the owner of an endpoint: 1-64 characters of `[a-zA-Z0-9_.-]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ContainerId(String);

/// A text that is no container's id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a container id: use 1 to 64 characters of [a-zA-Z0-9_.-]")]
pub struct ContainerIdError(String);

impl TryFrom<String> for ContainerId {
    type Error = ContainerIdError;

    fn try_from(text: String) -> Result<Self, ContainerIdError> {
        let valid = (1..=CONTAINER_ID_MAX).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if valid {
            Ok(Self(text))
        } else {
            Err(ContainerIdError(text))
        }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A transport protocol, by its number in an IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// IANA's number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRequest {
    /// Address of the host; unspecified (0.0.0.0): all.
    pub host_address: Ipv4Addr,
    /// None: one that is free.
    pub host_port: Option<u16>,
    pub container_port: u16,
    pub protocol: Protocol,
}

/// A published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Address of the host; unspecified (0.0.0.0): all.
    pub host_address: Ipv4Addr,
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
}

/// What a container asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRequest {
    pub container: ContainerId,
    /// Names under which the container is known.
    pub names: Vec<String>,
    pub ports: Vec<PortRequest>,
    /// None: the next of the pool.
    pub address: Option<Ipv4Addr>,
    /// True: the endpoint ends with its container.
    pub ephemeral: bool,
    /// None: the host's user namespace owns its network namespace.
    pub users: Option<Users>,
    /// Hardware address. None: one that follows from the address.
    pub mac: Option<[u8; 6]>,
}

/// Ids of a user namespace, each line as user_namespaces(7) has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Users {
    pub uids: String,
    pub gids: String,
}

/// Whose a sandbox is, and what was published for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Assignment {
    pub(crate) container: ContainerId,
    pub(crate) names: Vec<String>,
    pub(crate) ports: Vec<PublishedPort>,
    pub(crate) ephemeral: bool,
    /// Milliseconds since the Unix epoch.
    pub(crate) created: u64,
}

/// What a container has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub container: ContainerId,
    pub names: Vec<String>,
    /// The pinned network namespace.
    pub namespace: PathBuf,
    /// The pinned user namespace that owns it; None: the host's.
    pub user_namespace: Option<PathBuf>,
    /// Name of the interface inside.
    pub interface: &'static str,
    pub address: Ipv4Addr,
    pub subnet: Subnet,
    pub gateway: Ipv4Addr,
    pub mac: [u8; 6],
    pub ports: Vec<PublishedPort>,
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
    /// Milliseconds since the Unix epoch.
    pub created: u64,
}
