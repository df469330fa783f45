//! The start of a network: the host is checked, the bridge made or adopted, and
//! what the records say brought together with what the kernel has.
//!
//! | on record | in the kernel | then |
//! | --- | --- | --- |
//! | ready | link and namespace | it is ready |
//! | assigned | link and namespace | its ports are held again; it lives on |
//! | assigned | link or namespace | the same, with a warning |
//! | assigned | nothing | reported and removed |
//! | anything else | whatever | removed |
//! | nothing | a link of our bridge, a pin of ours | removed |

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use crate::addresses::AddressPool;
use crate::config::Settings;
use crate::endpoint::Assignment;
use crate::error::{StartError, chain};
use crate::firewall::{Bounds, Firewall};
use crate::link::{self, Link};
use crate::namespace;
use crate::netlink::Netlink;
use crate::network::{Live, Shared, Slot, State, targets};
use crate::ports;
use crate::sandbox::{Bridge, Life, Sandbox, SandboxId};
use crate::store::{Journal, Past};

/// Where a host has no default route to take the size from.
const DEFAULT_MTU: u32 = 1500;
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Brings the network up.
pub(crate) fn start(settings: Settings) -> Result<Shared, StartError> {
    let bridge_error = |source| StartError::Bridge {
        name: settings.bridge.clone(),
        source,
    };
    let mut host = Netlink::route().map_err(bridge_error)?;
    let links = link::links(&mut host).map_err(bridge_error)?;
    let mtu = check(&settings, &mut host, &links)?;
    for directory in [&settings.run, &settings.pins] {
        fs::create_dir_all(directory).map_err(|source| StartError::Directory {
            path: directory.clone(),
            source,
        })?;
    }
    let (journal, past) = Journal::open(&settings.run)?;
    if past.unreadable > 0 {
        tracing::warn!(
            lines = past.unreadable,
            "unreadable records were passed over"
        );
    }
    let bridge = raise_bridge(&settings, &mut host, mtu)?;
    let state = adopt(&settings, &mut host, bridge, &links, past);
    let published = state
        .endpoints
        .values()
        .filter_map(|slot| match slot {
            Slot::Live(live) => Some(targets(&live.assignment.ports, live.sandbox.address)),
            Slot::Busy => None,
        })
        .flatten()
        .collect::<BTreeMap<_, _>>();
    let bounds = Bounds {
        bridge: settings.bridge.clone(),
        subnet: settings.subnet,
    };
    let firewall = Firewall::start(settings.table.clone(), bounds, published)
        .map_err(|source| StartError::Firewall { source })?;
    Ok(Shared::new(
        settings,
        bridge,
        Box::new(journal),
        firewall,
        state,
    ))
}

/// Checks the host, changes nothing, and tells the packet size to use.
fn check(settings: &Settings, host: &mut Netlink, links: &[Link]) -> Result<u32, StartError> {
    let existing = links.iter().find(|link| link.name == settings.bridge);
    if let Some(link) = existing
        && !link.is_bridge()
    {
        return Err(StartError::NotABridge {
            name: link.name.clone(),
        });
    }
    let routes = link::routes(host).map_err(|source| StartError::Bridge {
        name: settings.bridge.clone(),
        source,
    })?;
    let by_index: HashMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
    for route in &routes {
        let own = route.link.is_some() && route.link == existing.map(|link| link.index);
        if own || route.prefix == 0 || !settings.subnet.overlaps(route.destination, route.prefix) {
            continue;
        }
        return Err(StartError::Overlap {
            subnet: settings.subnet,
            destination: route.destination,
            prefix: route.prefix,
            device: route
                .link
                .and_then(|index| by_index.get(&index))
                .map_or_else(|| "no link".to_owned(), |link| link.name.clone()),
        });
    }
    let outward = routes
        .iter()
        .find(|route| route.prefix == 0)
        .and_then(|route| route.link)
        .and_then(|index| by_index.get(&index))
        .and_then(|link| link.mtu);
    Ok(settings.mtu.or(outward).unwrap_or(DEFAULT_MTU))
}

/// Makes the bridge, or adopts it. Each step is harmless where it is done.
fn raise_bridge(settings: &Settings, host: &mut Netlink, mtu: u32) -> Result<Bridge, StartError> {
    let failed = |source| StartError::Bridge {
        name: settings.bridge.clone(),
        source,
    };
    match link::create_bridge(host, &settings.bridge, settings.gateway, mtu) {
        Err(error) if error.errno() == Some(nix::libc::EEXIST) => {}
        outcome => outcome.map_err(failed)?,
    }
    let index = link::index_of(host, &settings.bridge).map_err(failed)?;
    link::raise_bridge(host, index, settings.gateway, settings.subnet).map_err(failed)?;
    let localnet = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", settings.bridge);
    for path in [IP_FORWARD, &localnet] {
        set_parameter(path).map_err(|source| StartError::Parameter {
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(Bridge { index, mtu })
}

/// Makes the bridge again where it is gone, with `ours` as its ports. None: it
/// is there.
pub(crate) fn replace_bridge(
    settings: &Settings,
    former: Bridge,
    ours: &HashSet<SandboxId>,
) -> Result<Option<Bridge>, StartError> {
    let failed = |source| StartError::Bridge {
        name: settings.bridge.clone(),
        source,
    };
    let mut host = Netlink::route().map_err(failed)?;
    let links = link::links(&mut host).map_err(failed)?;
    if links
        .iter()
        .any(|link| link.name == settings.bridge && link.index == former.index)
    {
        return Ok(None);
    }
    let bridge = raise_bridge(settings, &mut host, former.mtu)?;
    let cut_off = links.iter().filter(|link| {
        SandboxId::of_link(&link.name).is_some_and(|id| ours.contains(&id))
            && link.controller != Some(bridge.index)
    });
    for link in cut_off {
        link::attach(&mut host, link.index, bridge.index).map_err(failed)?;
    }
    Ok(Some(bridge))
}

fn set_parameter(path: &str) -> std::io::Result<()> {
    // A file system that is mounted read-only is no hindrance to a value that
    // is right already.
    if fs::read_to_string(path)?.trim() == "1" {
        return Ok(());
    }
    fs::write(path, "1")
}

/// Brings records and kernel together.
fn adopt(
    settings: &Settings,
    host: &mut Netlink,
    bridge: Bridge,
    links: &[Link],
    past: Past,
) -> State {
    let by_id: HashMap<SandboxId, &Link> = links
        .iter()
        .filter_map(|link| Some((SandboxId::of_link(&link.name)?, link)))
        .collect();
    let mut state = State {
        endpoints: HashMap::new(),
        ready: VecDeque::new(),
        building: 0,
        doomed: Vec::new(),
        dying: 0,
        published: Vec::new(),
        addresses: AddressPool::new(settings.subnet, settings.gateway),
        stopping: false,
    };
    let mut known = HashSet::new();
    for sandbox in past.sandboxes {
        known.insert(sandbox.id.clone());
        let inside = state.addresses.claim(sandbox.address).is_ok();
        let link = by_id.get(&sandbox.id);
        let pinned = namespace::is_pinned(&sandbox.id.pin(&settings.pins));
        if let Some(link) = link
            && link.controller != Some(bridge.index)
            && let Err(error) = link::attach(host, link.index, bridge.index)
        {
            tracing::warn!(link = link.name, error = %chain(&error), "an endpoint is cut off");
        }
        let whole = link.is_some() && pinned;
        match sandbox.life.clone() {
            Life::Ready if whole && inside && state.ready.len() < settings.warm_pool => {
                state.ready.push_back(sandbox);
            }
            Life::Assigned(assignment) if pinned || link.is_some() => {
                if !whole {
                    tracing::warn!(container = %assignment.container, "a part of an endpoint was removed by somebody");
                }
                let container = assignment.container.clone();
                let live = Box::new(revive(sandbox, assignment));
                state.endpoints.insert(container, Slot::Live(live));
            }
            Life::Assigned(assignment) => {
                tracing::error!(container = %assignment.container, "an endpoint was removed by somebody; its record goes too");
                state.doomed.push(sandbox);
            }
            Life::Building | Life::Ready | Life::Doomed => state.doomed.push(sandbox),
        }
    }
    let released: Vec<_> = past.pool.released.into_iter().collect();
    state.addresses.restore(past.pool.last, &released);
    remove_unknown(settings, host, bridge, &by_id, &known);
    state
}

fn revive(sandbox: Sandbox, assignment: Assignment) -> Live {
    let held = assignment
        .ports
        .iter()
        .filter_map(|port| match ports::hold(*port) {
            Ok(held) => Some(held),
            Err(error) => {
                tracing::error!(
                    container = %assignment.container,
                    error = %chain(&error),
                    "a published port is not held any more"
                );
                None
            }
        })
        .collect();
    Live {
        sandbox,
        assignment,
        _held: held,
    }
}

/// Removes what looks like ours and is on no record.
fn remove_unknown(
    settings: &Settings,
    host: &mut Netlink,
    bridge: Bridge,
    by_id: &HashMap<SandboxId, &Link>,
    known: &HashSet<SandboxId>,
) {
    let stray: Vec<String> = by_id
        .iter()
        .filter(|(id, link)| link.controller == Some(bridge.index) && !known.contains(id))
        .map(|(_, link)| link.name.clone())
        .collect();
    if let Err(error) = link::remove(host, &stray) {
        tracing::error!(error = %chain(&error), "links that are on no record are left over");
    }
    for pin in stray_pins(&settings.pins, known) {
        if let Err(error) = namespace::remove(&pin) {
            tracing::error!(error = %chain(&error), "a namespace that is on no record is left over");
        }
    }
}

fn stray_pins(pins: &Path, known: &HashSet<SandboxId>) -> Vec<std::path::PathBuf> {
    let entries = match fs::read_dir(pins) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::error!(%error, path = %pins.display(), "cannot look for namespaces on no record");
            return Vec::new();
        }
    };
    entries
        .flatten()
        .filter(|entry| {
            let subject = namespace::subject_of(Path::new(&entry.file_name()));
            let name = subject.to_string_lossy().into_owned();
            SandboxId::try_from(name).is_ok_and(|id| !known.contains(&id))
        })
        .map(|entry| namespace::subject_of(&entry.path()))
        .collect()
}

/// Removes the bridge if it is ours and has no port.
pub(crate) fn remove_bridge(host: &mut Netlink, name: &str, gateway: Ipv4Addr) {
    let links = match link::links(host) {
        Ok(links) => links,
        Err(error) => {
            tracing::error!(error = %chain(&error), "the bridge is left over");
            return;
        }
    };
    let Some(bridge) = links
        .iter()
        .find(|link| link.name == name && link.is_our_bridge(gateway))
    else {
        return;
    };
    if links
        .iter()
        .any(|link| link.controller == Some(bridge.index))
    {
        return;
    }
    if let Err(error) = link::remove(host, std::slice::from_ref(&bridge.name)) {
        tracing::error!(error = %chain(&error), "the bridge is left over");
    }
}
