//! The table `[network]` of the configuration, and what follows from it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use gantry_kit::identity::Identity;
use gantry_kit::paths::Paths;
use serde::Deserialize;

use crate::names::Names;
use crate::resolver::Resolver;
use crate::subnet::Subnet;

/// Longest name of a link, less its final zero byte (IFNAMSIZ, netdevice(7)).
const LINK_NAME_MAX: usize = 15;
/// Smallest packet size that IPv4 requires a link to carry (RFC 791).
const MTU_MIN: u32 = 68;

/// The table `[network]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of the bridge. It is made where there is none. Empty: one that
    /// belongs to this engine alone (see `names`).
    pub bridge: String,
    /// Addresses of the containers. Absent: a subnet that the machine does not
    /// use (see `names`).
    pub subnet: Option<Subnet>,
    /// The bridge's own address. Absent: the first of the subnet.
    pub gateway: Option<Ipv4Addr>,
    /// Largest packet in bytes. 0: that of the host's default route.
    pub mtu: u32,
    /// Name of the nftables table. Empty: one that follows from the bridge.
    pub table: String,
    /// Number of endpoints that are kept ready.
    pub warm_pool: usize,
    /// Name servers for containers. Empty: those of the host that a container
    /// can reach; where it has none, public ones.
    pub dns: Vec<IpAddr>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bridge: String::new(),
            subnet: None,
            gateway: None,
            mtu: 0,
            table: String::new(),
            warm_pool: 4,
            dns: Vec::new(),
        }
    }
}

/// A value of `[network]` that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "[network] {key} = {name:?} is no name of a link: use 1 to 15 characters of [a-zA-Z0-9_.-]"
    )]
    LinkName { key: &'static str, name: String },
    #[error("[network] gateway = {gateway} is not an address for a host in the subnet {subnet}")]
    Gateway { gateway: Ipv4Addr, subnet: Subnet },
    #[error("[network] mtu = {0} is too small: use {MTU_MIN} or more, or 0 for the host's")]
    Mtu(u32),
}

/// A configuration that was checked. What is None is chosen at the start, when
/// the state of the host is known.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub identity: Identity,
    pub bridge: Option<String>,
    pub subnet: Option<Subnet>,
    pub gateway: Option<Ipv4Addr>,
    /// None: that of the host's default route.
    pub mtu: Option<u32>,
    pub table: Option<String>,
    pub warm_pool: usize,
    pub resolver: Resolver,
    /// Directory of this service below the run directory.
    pub run: PathBuf,
    /// Directory of the pinned network namespaces.
    pub pins: PathBuf,
    /// Directory of this service below the state directory.
    pub state: PathBuf,
}

/// What a network is made with.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) identity: Identity,
    pub(crate) bridge: String,
    pub(crate) subnet: Subnet,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) table: String,
    /// None: that of the host's default route.
    pub(crate) mtu: Option<u32>,
    pub(crate) warm_pool: usize,
    pub(crate) resolver: Resolver,
    pub(crate) pins: PathBuf,
}

impl Wanted {
    /// Checks `config` for the engine that has these directories.
    ///
    /// # Errors
    /// A value that cannot be used.
    pub fn new(config: Config, paths: &Paths) -> Result<Self, ConfigError> {
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let bridge = given(config.bridge);
        if let Some(bridge) = &bridge {
            check_link_name("bridge", bridge)?;
        }
        if let (Some(gateway), Some(subnet)) = (config.gateway, config.subnet) {
            check_gateway(gateway, subnet)?;
        }
        let mtu = match config.mtu {
            0 => None,
            mtu if mtu < MTU_MIN => return Err(ConfigError::Mtu(mtu)),
            mtu => Some(mtu),
        };
        Ok(Self {
            identity: Identity::of(paths),
            bridge,
            subnet: config.subnet,
            gateway: config.gateway,
            mtu,
            table: given(config.table),
            warm_pool: config.warm_pool,
            resolver: Resolver::new(config.dns),
            run: paths.run.join("network"),
            pins: paths.run.join("netns"),
            state: paths.state_of("network"),
        })
    }

    /// With the names and the subnet that were chosen.
    pub(crate) fn with(&self, names: Names) -> Result<Settings, ConfigError> {
        let gateway = self.gateway.unwrap_or(names.subnet.first_host());
        check_gateway(gateway, names.subnet)?;
        Ok(Settings {
            identity: self.identity.clone(),
            bridge: names.bridge,
            subnet: names.subnet,
            gateway,
            table: names.table,
            mtu: self.mtu,
            warm_pool: self.warm_pool,
            resolver: self.resolver.clone(),
            pins: self.pins.clone(),
        })
    }
}

fn check_gateway(gateway: Ipv4Addr, subnet: Subnet) -> Result<(), ConfigError> {
    if subnet.has_host(gateway) {
        return Ok(());
    }
    Err(ConfigError::Gateway { gateway, subnet })
}

fn check_link_name(key: &'static str, name: &str) -> Result<(), ConfigError> {
    let valid = (1..=LINK_NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if valid {
        return Ok(());
    }
    Err(ConfigError::LinkName {
        key,
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_leaves_names_and_subnet_to_the_start() {
        let wanted = Wanted::new(Config::default(), &Paths::system()).unwrap();
        assert_eq!((wanted.bridge, wanted.table), (None, None));
        assert_eq!(wanted.subnet, None);
        assert_eq!(wanted.warm_pool, 4);
        assert_eq!(wanted.pins, std::path::Path::new("/run/gantry/netns"));
    }

    #[test]
    fn values_that_cannot_be_used_are_refused() {
        let refused = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            Wanted::new(config, &Paths::system()).unwrap_err()
        };
        for name in ["", "a/b", "sixteen-letters!", ".."] {
            assert!(check_link_name("bridge", name).is_err(), "{name}");
        }
        assert!(matches!(
            refused(|config| {
                config.subnet = Some("10.66.0.0/16".parse().unwrap());
                config.gateway = Some(Ipv4Addr::new(10, 67, 0, 1));
            }),
            ConfigError::Gateway { .. }
        ));
        assert_eq!(refused(|config| config.mtu = 60), ConfigError::Mtu(60));
    }
}
