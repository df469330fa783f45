//! The table `[network]` of the configuration, and what follows from it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde::Deserialize;

use crate::resolver::Resolver;
use crate::subnet::Subnet;

/// Longest name of a link, less its final zero byte (IFNAMSIZ, netdevice(7)).
const LINK_NAME_MAX: usize = 15;
/// Smallest packet size that IPv4 requires a link to carry (RFC 791).
const MTU_MIN: u32 = 68;
const DEFAULT_BRIDGE: &str = "gantry0";

/// The table `[network]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of the bridge. It is made where there is none.
    pub bridge: String,
    /// Addresses of the containers.
    pub subnet: Subnet,
    /// The bridge's own address. Absent: the first of the subnet.
    pub gateway: Option<Ipv4Addr>,
    /// Largest packet in bytes. 0: that of the host's default route.
    pub mtu: u32,
    /// Name of the nftables table. Empty: "gantry" for the bridge gantry0,
    /// `gantry-<bridge>` for any other.
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
            bridge: DEFAULT_BRIDGE.to_owned(),
            // 10.66.0.0/16: a constant that cannot fail to parse is tested below.
            subnet: "10.66.0.0/16"
                .parse()
                .unwrap_or_else(|_| unreachable!("the default subnet is well formed")),
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

/// A configuration that was checked, with its defaults filled in.
#[derive(Clone, Debug)]
pub struct Settings {
    pub bridge: String,
    pub subnet: Subnet,
    pub gateway: Ipv4Addr,
    /// None: that of the host's default route.
    pub mtu: Option<u32>,
    pub table: String,
    pub warm_pool: usize,
    pub resolver: Resolver,
    /// Directory of this service below the run directory.
    pub run: PathBuf,
    /// Directory of the pinned network namespaces.
    pub pins: PathBuf,
}

impl Settings {
    /// Checks `config` for an engine whose run directory is `run`.
    ///
    /// # Errors
    /// A value that cannot be used.
    pub fn new(config: Config, run: &std::path::Path) -> Result<Self, ConfigError> {
        check_link_name("bridge", &config.bridge)?;
        let gateway = config.gateway.unwrap_or(config.subnet.first_host());
        if !config.subnet.has_host(gateway) {
            return Err(ConfigError::Gateway {
                gateway,
                subnet: config.subnet,
            });
        }
        let mtu = match config.mtu {
            0 => None,
            mtu if mtu < MTU_MIN => return Err(ConfigError::Mtu(mtu)),
            mtu => Some(mtu),
        };
        let table = match (config.table, config.bridge.as_str()) {
            (table, DEFAULT_BRIDGE) if table.is_empty() => "gantry".to_owned(),
            (table, bridge) if table.is_empty() => format!("gantry-{bridge}"),
            (table, _) => table,
        };
        Ok(Self {
            gateway,
            mtu,
            table,
            bridge: config.bridge,
            subnet: config.subnet,
            warm_pool: config.warm_pool,
            resolver: Resolver::new(config.dns),
            run: run.join("network"),
            pins: run.join("netns"),
        })
    }
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
    use std::path::Path;

    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_design() {
        let settings = Settings::new(Config::default(), Path::new("/run/gantry")).unwrap();
        assert_eq!(settings.gateway, Ipv4Addr::new(10, 66, 0, 1));
        assert_eq!(settings.table, "gantry");
        assert_eq!(settings.pins, Path::new("/run/gantry/netns"));
    }

    #[test]
    fn another_bridge_has_a_table_of_its_own() {
        let config = Config {
            bridge: "br9".to_owned(),
            ..Config::default()
        };
        let settings = Settings::new(config, Path::new("/r")).unwrap();
        assert_eq!(settings.table, "gantry-br9");
    }

    #[test]
    fn values_that_cannot_be_used_are_refused() {
        let refused = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            Settings::new(config, Path::new("/r")).unwrap_err()
        };
        for name in ["", "a/b", "sixteen-letters!", ".."] {
            assert!(check_link_name("bridge", name).is_err(), "{name}");
        }
        assert!(matches!(
            refused(|config| config.gateway = Some(Ipv4Addr::new(10, 67, 0, 1))),
            ConfigError::Gateway { .. }
        ));
        assert_eq!(refused(|config| config.mtu = 60), ConfigError::Mtu(60));
    }
}
