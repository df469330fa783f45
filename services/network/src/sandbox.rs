//! A sandbox: a network namespace with a link, an address and a default route.
//!
//! It is made without an owner, as making it takes a millisecond or more of the
//! kernel's time, and is then given to a container by writing a record. The
//! record is on disk before anything of it is in the kernel, so that whatever
//! a crash leaves behind has a record that names it.
//!
//! ```text
//!                    made              given to a container
//!   (none) -> Building -----> Ready ----------------------> Assigned
//!                 |             |                               |
//!                 +-------------+----> Doomed <-----------------+
//!                                        | everything of it is gone
//!                                        v
//!                                     (none)
//! ```

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::endpoint::{Assignment, Users};
use crate::link::{self, RemovalGroup};
use crate::namespace::{self, NamespaceError};
use crate::netlink::{Netlink, NetlinkError};
use crate::subnet::mac_of;

/// Start of the host-side link's name; the id follows.
const LINK_PREFIX: &str = "veth";
const ID_BYTES: usize = 4;

/// Names a sandbox, its link and its pin: eight hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct SandboxId(String);

impl SandboxId {
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; ID_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(format!("{:08x}", u32::from_ne_bytes(bytes))))
    }

    /// Reads the id back from the name of a host-side link.
    pub(crate) fn of_link(name: &str) -> Option<Self> {
        name.strip_prefix(LINK_PREFIX)?.to_owned().try_into().ok()
    }

    /// Name of the host-side link.
    pub(crate) fn link(&self) -> String {
        format!("{LINK_PREFIX}{}", self.0)
    }

    pub(crate) fn pin(&self, pins: &Path) -> PathBuf {
        pins.join(&self.0)
    }
}

/// A text that is no id of a sandbox.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not the id of a sandbox")]
pub(crate) struct SandboxIdError(String);

impl TryFrom<String> for SandboxId {
    type Error = SandboxIdError;

    fn try_from(text: String) -> Result<Self, SandboxIdError> {
        let valid = text.len() == 2 * ID_BYTES
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if valid {
            Ok(Self(text))
        } else {
            Err(SandboxIdError(text))
        }
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Where in its life a sandbox is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Life {
    Building,
    Ready,
    Assigned(Assignment),
    Doomed,
}

/// The record of a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    pub(crate) id: SandboxId,
    pub(crate) address: Ipv4Addr,
    /// True: the address was asked for, and was not the next of the pool.
    #[serde(default)]
    pub(crate) chosen: bool,
    /// True: a user namespace of its own owns the network namespace.
    #[serde(default)]
    pub(crate) own_users: bool,
    /// The hardware address that was asked for.
    #[serde(default)]
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) life: Life,
}

impl Sandbox {
    /// The hardware address of the interface inside.
    pub(crate) fn mac(&self) -> [u8; 6] {
        self.mac.unwrap_or_else(|| mac_of(self.address))
    }

    /// The same sandbox at another point of its life.
    pub(crate) fn at(&self, life: Life) -> Self {
        Self {
            life,
            ..self.clone()
        }
    }
}

/// A sandbox that cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("cannot make a network namespace for {address}")]
    Namespace {
        address: Ipv4Addr,
        source: NamespaceError,
    },
    #[error("cannot set up the link for {address}")]
    Link {
        address: Ipv4Addr,
        source: NetlinkError,
    },
}

impl SandboxError {
    /// Whether the bridge takes no more ports.
    pub(crate) fn is_bridge_full(&self) -> bool {
        match self {
            Self::Link { source, .. } => source.errno() == Some(nix::libc::EXFULL),
            Self::Namespace { .. } => false,
        }
    }
}

/// Makes in the kernel what `sandbox` says.
pub(crate) fn build(
    sandbox: &Sandbox,
    settings: &Settings,
    bridge: Bridge,
    users: Option<&Users>,
) -> Result<(), SandboxError> {
    let address = sandbox.address;
    // Opened here, in the host's namespace, for use in the other thread.
    let mut host = Netlink::route().map_err(|source| SandboxError::Link { address, source })?;
    namespace::create(&sandbox.id.pin(&settings.pins), users, |namespace| {
        let mut inside = Netlink::route()?;
        link::create_pair(
            &mut host,
            &sandbox.id.link(),
            bridge.index,
            bridge.mtu,
            sandbox.mac(),
            namespace.as_fd(),
        )?;
        link::furnish(&mut inside, address, settings.gateway, settings.subnet)?;
        Ok(())
    })
    .map_err(|error: BuildError| match error {
        BuildError::Namespace(source) => SandboxError::Namespace { address, source },
        BuildError::Link(source) => SandboxError::Link { address, source },
    })
}

/// The bridge that sandboxes are attached to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bridge {
    pub(crate) index: u32,
    pub(crate) mtu: u32,
}

enum BuildError {
    Namespace(NamespaceError),
    Link(NetlinkError),
}

impl From<NamespaceError> for BuildError {
    fn from(error: NamespaceError) -> Self {
        Self::Namespace(error)
    }
}

impl From<NetlinkError> for BuildError {
    fn from(error: NetlinkError) -> Self {
        Self::Link(error)
    }
}

/// Removes from the kernel whatever there is of these sandboxes. All are tried;
/// those of which something is left are returned with the reason.
pub(crate) fn destroy<'a>(
    sandboxes: &'a [Sandbox],
    settings: &Settings,
    host: &mut Netlink,
    group: RemovalGroup,
) -> Vec<(&'a Sandbox, SandboxError)> {
    let mut failures = Vec::new();
    // The links first: with its link the address is off the wire even where some
    // process still holds the namespace.
    let links: Vec<String> = sandboxes.iter().map(|sandbox| sandbox.id.link()).collect();
    let removed = link::remove(host, &links, group);
    for (sandbox, removed) in sandboxes.iter().zip(removed) {
        let address = sandbox.address;
        if let Err(source) = removed {
            failures.push((sandbox, SandboxError::Link { address, source }));
        }
        if let Err(source) = namespace::remove(&sandbox.id.pin(&settings.pins)) {
            failures.push((sandbox, SandboxError::Namespace { address, source }));
        }
    }
    failures
}
