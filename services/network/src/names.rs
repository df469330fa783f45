//! What a network's bridge and table are called, and which subnet it has.
//!
//! | | system-wide engine | engine with `--root` |
//! | --- | --- | --- |
//! | bridge | gantry0 | `gantry-<tag>`: the tag follows from the root |
//! | table | gantry | `gantry-<tag>` |
//! | subnet | 10.66.0.0/16 | a /20 of [`POOLS`], from a place on that follows from the root |
//!
//! What the configuration names goes over that; the table of a configured bridge
//! is `gantry-<bridge>`, and "gantry" for gantry0. A subnet is chosen so that it
//! has no address in common with any route or address of the machine, also for
//! the system-wide engine where somebody has 10.66.0.0/16.
//!
//! ```text
//! <state>/network/names      {"bridge":…,"table":…,"subnet":…}
//! ```
//! The file keeps the choice, as containers may have fixed addresses in the
//! subnet. It holds for as long as the subnet is free, and in any case while
//! endpoints live. An engine of a version that kept no such file and has living
//! endpoints goes on under the names that version used for every engine, until
//! it starts without endpoints once.

use std::net::Ipv4Addr;
use std::path::Path;
use std::{fs, io};

use gantry_kit::identity::Identity;
use gantry_kit::{directories, durable};
use serde::{Deserialize, Serialize};

use crate::config::Wanted;
use crate::error::StartError;
use crate::subnet::Subnet;

const DEFAULT_BRIDGE: &str = "gantry0";
const NAME: &str = "gantry";
const FILE: &str = "names";

/// Where subnets come from: network, number of subnets, in order of preference.
/// What is below 10.67.0.0 is left to the system-wide engine.
const POOLS: [(Ipv4Addr, u32); 3] = [
    (Ipv4Addr::new(10, 67, 0, 0), 61 * 16),
    (Ipv4Addr::new(172, 16, 0, 0), 256),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
];
/// More addresses than a bridge has ports.
const POOL_PREFIX: u8 = 20;

/// The names and the subnet of one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Names {
    pub(crate) bridge: String,
    pub(crate) table: String,
    pub(crate) subnet: Subnet,
}

/// Addresses that somebody on this machine uses, as network and prefix length.
pub(crate) type Used = [(Ipv4Addr, u8)];

/// The bridge and the table without a look at the host.
pub(crate) fn of_root(wanted: &Wanted) -> (String, String) {
    let identity = &wanted.identity;
    let bridge = wanted
        .bridge
        .clone()
        .unwrap_or_else(|| match identity.root() {
            None => DEFAULT_BRIDGE.to_owned(),
            Some(_) => identity.scoped(NAME),
        });
    let table = wanted
        .table
        .clone()
        .unwrap_or_else(|| match &wanted.bridge {
            None => identity.scoped(NAME),
            Some(bridge) if bridge == DEFAULT_BRIDGE => NAME.to_owned(),
            Some(bridge) => format!("{NAME}-{bridge}"),
        });
    (bridge, table)
}

/// The bridge and the table that this start uses: those of [`of_root`], but for
/// an engine that has living endpoints under other names.
pub(crate) fn current(wanted: &Wanted, kept: Option<&Names>, alive: bool) -> (String, String) {
    let (bridge, table) = of_root(wanted);
    if !alive || wanted.bridge.is_some() {
        return (bridge, table);
    }
    match kept {
        Some(kept) => (
            kept.bridge.clone(),
            wanted.table.clone().unwrap_or_else(|| kept.table.clone()),
        ),
        // A version without the file made them.
        None => (
            DEFAULT_BRIDGE.to_owned(),
            wanted.table.clone().unwrap_or_else(|| NAME.to_owned()),
        ),
    }
}

/// The subnet of this start.
///
/// # Errors
/// None is free.
pub(crate) fn subnet(
    wanted: &Wanted,
    kept: Option<&Names>,
    alive: bool,
    used: &Used,
) -> Result<Subnet, StartError> {
    if let Some(subnet) = wanted.subnet {
        return Ok(subnet);
    }
    let default = default_subnet();
    if wanted
        .gateway
        .is_some_and(|gateway| default.has_host(gateway))
    {
        return Ok(default);
    }
    let is_free = |subnet: &Subnet| {
        !used
            .iter()
            .any(|(network, prefix)| subnet.overlaps(*network, *prefix))
    };
    match kept {
        Some(kept) if is_free(&kept.subnet) => return Ok(kept.subnet),
        Some(kept) if alive => {
            tracing::warn!(
                subnet = %kept.subnet,
                "somebody else on this machine uses addresses of the subnet; it stays as long as there are endpoints"
            );
            return Ok(kept.subnet);
        }
        None if alive => return Ok(default),
        Some(_) | None => {}
    }
    let first = wanted
        .identity
        .root()
        .is_none()
        .then_some(default)
        .into_iter();
    first
        .chain(candidates(&wanted.identity))
        .find(is_free)
        .ok_or(StartError::NoSubnet)
}

/// All subnets of the pools, from a place on that follows from the root: engines
/// that start at the same moment choose different ones.
fn candidates(identity: &Identity) -> impl Iterator<Item = Subnet> {
    let number = identity.number().unwrap_or_default();
    POOLS.into_iter().flat_map(move |(network, count)| {
        let begin = (number % u64::from(count)) as u32;
        (0..count).filter_map(move |step| {
            let offset = ((begin + step) % count) << (32 - POOL_PREFIX);
            Subnet::new(Ipv4Addr::from_bits(network.to_bits() + offset), POOL_PREFIX)
        })
    })
}

/// 10.66.0.0/16.
fn default_subnet() -> Subnet {
    Subnet::new(Ipv4Addr::new(10, 66, 0, 0), 16)
        .unwrap_or_else(|| unreachable!("the default subnet is well formed"))
}

/// Reads what an earlier start chose. A file that cannot be read counts as none.
pub(crate) fn read(state: &Path) -> Option<Names> {
    let path = state.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "cannot read the names of the network");
            }
            return None;
        }
    };
    serde_json::from_slice(&text)
        .inspect_err(|error| {
            tracing::warn!(path = %path.display(), %error, "the names of the network are damaged");
        })
        .ok()
}

/// Keeps the choice, so that it is there after a power cut.
pub(crate) fn keep(state: &Path, names: &Names) -> io::Result<()> {
    let path = state.join(FILE);
    let text = serde_json::to_vec(names)?;
    if fs::read(&path).is_ok_and(|present| present == text) {
        return Ok(());
    }
    directories::close(state)?;
    durable::replace(&path, 0o600, &text).map_err(|error| error.source)
}

#[cfg(test)]
mod tests {
    use gantry_kit::paths::Paths;

    use super::*;
    use crate::config::Config;

    fn wanted(root: Option<&str>, change: impl FnOnce(&mut Config)) -> Wanted {
        let mut config = Config::default();
        change(&mut config);
        let paths = Paths::resolve(root.map(Path::new)).unwrap();
        Wanted::new(config, &paths).unwrap()
    }

    fn names(bridge: &str, table: &str) -> (String, String) {
        (bridge.to_owned(), table.to_owned())
    }

    #[test]
    fn engines_with_other_roots_have_other_names_and_other_subnets() {
        let system = wanted(None, |_| {});
        assert_eq!(of_root(&system), names("gantry0", "gantry"));
        assert_eq!(subnet(&system, None, false, &[]).unwrap(), default_subnet());
        let one = wanted(Some("/srv/one"), |_| {});
        let two = wanted(Some("/srv/two"), |_| {});
        let (bridge, table) = of_root(&one);
        assert_eq!(bridge, table);
        assert!(
            bridge.starts_with("gantry-") && bridge.len() == 13,
            "{bridge}"
        );
        assert_ne!(of_root(&one), of_root(&two));
        let first = subnet(&one, None, false, &[]).unwrap();
        assert_ne!(first, subnet(&two, None, false, &[]).unwrap());
        assert!(!first.overlaps(default_subnet().network(), 16));
    }

    #[test]
    fn what_is_configured_goes_over_the_root() {
        let own = |change: fn(&mut Config)| of_root(&wanted(Some("/srv/one"), change));
        assert_eq!(
            own(|config| config.bridge = "br9".to_owned()),
            names("br9", "gantry-br9")
        );
        assert_eq!(
            own(|config| config.bridge = "gantry0".to_owned()),
            names("gantry0", "gantry")
        );
        assert_eq!(own(|config| config.table = "mine".to_owned()).1, "mine");
    }

    #[test]
    fn a_subnet_in_use_is_passed_over_and_the_kept_one_stays_while_endpoints_live() {
        let one = wanted(Some("/srv/one"), |_| {});
        let first = subnet(&one, None, false, &[]).unwrap();
        let kept = Names {
            bridge: "gantry-1".to_owned(),
            table: "gantry-1".to_owned(),
            subnet: first,
        };
        let used = [(first.first_host(), 32)];
        let second = subnet(&one, None, false, &used).unwrap();
        assert_ne!(first, second);
        assert_eq!(subnet(&one, Some(&kept), false, &used).unwrap(), second);
        assert_eq!(subnet(&one, Some(&kept), true, &used).unwrap(), first);
        assert_eq!(subnet(&one, Some(&kept), false, &[]).unwrap(), first);
        // A network that has all of 10.0.0.0/8.
        let ten = [(Ipv4Addr::new(10, 0, 0, 0), 8)];
        let other = subnet(&one, None, false, &ten).unwrap();
        assert_eq!(other.network().octets()[0], 172);
        let all = POOLS.map(|(network, _)| (network, 8));
        assert!(matches!(
            subnet(&one, None, false, &all),
            Err(StartError::NoSubnet)
        ));
    }

    #[test]
    fn living_endpoints_of_a_version_without_the_file_keep_their_names() {
        let one = wanted(Some("/srv/one"), |_| {});
        assert_eq!(current(&one, None, true), names("gantry0", "gantry"));
        assert_eq!(subnet(&one, None, true, &[]).unwrap(), default_subnet());
        assert_eq!(current(&one, None, false), of_root(&one));
    }

    #[test]
    fn the_choice_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("network");
        assert_eq!(read(&state), None);
        let names = Names {
            bridge: "b".to_owned(),
            table: "t".to_owned(),
            subnet: default_subnet(),
        };
        keep(&state, &names).unwrap();
        assert_eq!(read(&state), Some(names));
        fs::write(state.join(FILE), "{").unwrap();
        assert_eq!(read(&state), None);
    }
}
