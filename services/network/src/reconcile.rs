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
//! | nothing | a link of our bridge, a pin of ours | removed, unless a record could not be read |
//!
//! "Our bridge" is one that carries the engine's mark (see `ownership`).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use gantry_kit::directories;
use gantry_kit::identity::{Identity, Mark};

use crate::addresses::AddressPool;
use crate::config::{Settings, Wanted};
use crate::endpoint::Assignment;
use crate::error::{StartError, chain};
use crate::firewall::{self, Bounds, Firewall};
use crate::link::{self, HostAddress, Link, RemovalGroup, Route};
use crate::names::{self, Names};
use crate::namespace;
use crate::netlink::{Netlink, NetlinkError};
use crate::network::{Live, Shared, Slot, State, targets};
use crate::ownership::Owner;
use crate::ports;
use crate::sandbox::{Bridge, Life, Sandbox, SandboxId};
use crate::store::{Journal, Past};
use crate::subnet::Subnet;

/// Where a host has no default route to take the size from.
const DEFAULT_MTU: u32 = 1500;
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Brings the network up.
pub(crate) fn start(wanted: Wanted) -> Result<Shared, StartError> {
    let (configured, _) = names::of_root(&wanted);
    let bridge_error = |name: &str, source| StartError::Bridge {
        name: name.to_owned(),
        source,
    };
    let mut netlink = Netlink::route().map_err(|source| bridge_error(&configured, source))?;
    let host = Host::look(&mut netlink).map_err(|source| bridge_error(&configured, source))?;
    host.check_bridge(&wanted.identity, &configured)?;
    if let Some(subnet) = wanted.subnet {
        host.check_subnet(subnet, &configured)?;
    }
    for directory in [&wanted.run, &wanted.pins] {
        directories::close(directory).map_err(|error| StartError::Directory {
            path: directory.clone(),
            source: error.into(),
        })?;
    }
    let (journal, past) = Journal::open(&wanted.run)?;
    if past.unreadable > 0 {
        tracing::warn!(
            lines = past.unreadable,
            "unreadable records were passed over"
        );
    }
    let settings = settle(&wanted, &host, &past)?;
    firewall::check(&settings.table, &settings.identity)?;
    let names = Names {
        bridge: settings.bridge.clone(),
        table: settings.table.clone(),
        subnet: settings.subnet,
    };
    // A full disk is no reason to do without a network: the same names follow
    // from the root again.
    if let Err(error) = names::keep(&wanted.state, &names) {
        tracing::error!(
            directory = %wanted.state.display(),
            %error,
            "the subnet of the network is not recorded, and can be another one after the next start"
        );
    }
    let bounds = Bounds {
        bridge: settings.bridge.clone(),
        subnet: settings.subnet,
        mark: settings.identity.mark(),
    };
    // The name of the table first: only one engine can take it.
    let firewall = Firewall::claim(settings.table.clone(), settings.identity.clone(), bounds)?;
    let removal =
        RemovalGroup::unused(&host.links).map_err(|source| StartError::Random { source })?;
    let bridge = raise_bridge(&settings, &mut netlink, host.mtu(&settings)).inspect_err(|_| {
        if past.sandboxes.is_empty()
            && let Err(error) = firewall.remove()
        {
            tracing::error!(error = %chain(&error), "the firewall table is left over");
        }
    })?;
    let strays = host.strays_are_ours(&settings);
    let incomplete = past.incomplete;
    let state = adopt(&settings, &mut netlink, bridge, &host.links, past);
    if incomplete {
        // It may be in use, by what a damaged record was about.
        tracing::error!(
            "records could not be read: what is on no record is kept until the machine is started again"
        );
    } else if strays {
        remove_unknown(
            &settings,
            &mut netlink,
            bridge,
            &host.links,
            &state,
            removal,
        );
    }
    let published = state
        .endpoints
        .values()
        .filter_map(|slot| match slot {
            Slot::Live(live) => Some(targets(&live.assignment.ports, live.sandbox.address)),
            Slot::Busy => None,
        })
        .flatten()
        .collect::<BTreeMap<_, _>>();
    firewall.start(published)?;
    Ok(Shared::new(
        settings,
        bridge,
        Box::new(journal),
        firewall,
        removal,
        state,
    ))
}

/// Chooses the names and the subnet, and clears away what an earlier choice left.
fn settle(wanted: &Wanted, host: &Host, past: &Past) -> Result<Settings, StartError> {
    let kept = names::read(&wanted.state);
    let alive = past
        .sandboxes
        .iter()
        .any(|sandbox| matches!(sandbox.life, Life::Assigned(_)));
    let (mut bridge, mut table) = names::current(wanted, kept.as_ref(), alive);
    let (of_root, table_of_root) = names::of_root(wanted);
    if bridge != of_root && host.owner(&wanted.identity, &bridge).is_some() {
        // Another engine has the former names by now.
        (bridge, table) = (of_root, table_of_root);
    }
    host.check_bridge(&wanted.identity, &bridge)?;
    let subnet = names::subnet(wanted, kept.as_ref(), alive, &host.used(&bridge))?;
    Ok(wanted.with(Names {
        bridge,
        table,
        subnet,
    })?)
}

/// What the host has of links, routes and addresses.
struct Host {
    links: Vec<Link>,
    routes: Vec<Route>,
    addresses: Vec<HostAddress>,
}

impl Host {
    fn look(netlink: &mut Netlink) -> Result<Self, NetlinkError> {
        Ok(Self {
            links: link::links(netlink)?,
            routes: link::routes(netlink)?,
            addresses: link::addresses(netlink)?,
        })
    }

    fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    fn by_index(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The other engine that a bridge belongs to.
    fn owner(&self, identity: &Identity, bridge: &str) -> Option<Owner> {
        let link = self.link(bridge)?;
        let owner = Owner::by_mark(identity, &link.alias)?;
        let used = self
            .links
            .iter()
            .any(|port| port.controller == Some(link.index));
        if owner.is_gone() && !used {
            tracing::warn!(bridge, %owner, "the bridge of an engine that is gone is taken over");
            return None;
        }
        Some(owner)
    }

    fn check_bridge(&self, identity: &Identity, name: &str) -> Result<(), StartError> {
        if self.link(name).is_some_and(|link| !link.is_bridge()) {
            return Err(StartError::NotABridge {
                name: name.to_owned(),
            });
        }
        match self.owner(identity, name) {
            None => Ok(()),
            Some(owner) => Err(StartError::BridgeOwned {
                name: name.to_owned(),
                owner,
            }),
        }
    }

    fn check_subnet(&self, subnet: Subnet, bridge: &str) -> Result<(), StartError> {
        let own = self.link(bridge).map(|link| link.index);
        let overlapping = self.routes.iter().find(|route| {
            let leaves_by_own = route.link.is_some() && route.link == own;
            route.main
                && !leaves_by_own
                && !route.is_default()
                && subnet.overlaps(route.destination, route.prefix)
        });
        let Some(route) = overlapping else {
            return Ok(());
        };
        Err(StartError::Overlap {
            subnet,
            destination: route.destination,
            prefix: route.prefix,
            device: route
                .link
                .and_then(|index| self.by_index(index))
                .map_or_else(|| "no link".to_owned(), |link| link.name.clone()),
        })
    }

    /// All addresses that somebody has or reaches, but for those of `bridge`.
    fn used(&self, bridge: &str) -> Vec<(Ipv4Addr, u8)> {
        let own = self.link(bridge).map(|link| link.index);
        let routes = self
            .routes
            .iter()
            .filter(|route| !route.is_default() && (own.is_none() || route.link != own))
            .map(|route| (route.destination, route.prefix));
        let addresses = self
            .addresses
            .iter()
            .filter(|address| Some(address.link) != own)
            .map(|address| (address.address, address.prefix));
        routes.chain(addresses).collect()
    }

    /// The packet size to use.
    fn mtu(&self, settings: &Settings) -> u32 {
        let outward = self
            .routes
            .iter()
            .find(|route| route.main && route.prefix == 0)
            .and_then(|route| self.by_index(route.link?))
            .and_then(|link| link.mtu);
        settings.mtu.or(outward).unwrap_or(DEFAULT_MTU)
    }

    /// Whether links of the bridge that are on no record are this engine's: it
    /// was marked, so no engine of a version without marks has it too.
    fn strays_are_ours(&self, settings: &Settings) -> bool {
        self.link(&settings.bridge)
            .is_none_or(|link| settings.identity.read(&link.alias) == Mark::Own)
    }
}

/// Makes the bridge, or adopts it. Each step is harmless where it is done.
fn raise_bridge(
    settings: &Settings,
    netlink: &mut Netlink,
    mtu: u32,
) -> Result<Bridge, StartError> {
    let failed = |source| StartError::Bridge {
        name: settings.bridge.clone(),
        source,
    };
    let (name, mark) = (&settings.bridge, settings.identity.mark());
    match link::create_bridge(netlink, name, settings.gateway, mtu, &mark) {
        Err(error) if error.errno() == Some(nix::libc::EEXIST) => {
            // Looked at again: it may have been made a moment ago.
            let host = Host::look(netlink).map_err(failed)?;
            host.check_bridge(&settings.identity, name)?;
            // A person's own text on a person's own bridge stays.
            let is_free = host.link(name).is_some_and(|link| {
                link.alias.is_empty()
                    || matches!(settings.identity.read(&link.alias), Mark::Other(_))
            });
            if is_free {
                link::set_alias(netlink, name, &mark).map_err(failed)?;
            }
        }
        outcome => outcome.map_err(failed)?,
    }
    let index = link::index_of(netlink, name).map_err(failed)?;
    link::raise_bridge(netlink, index, settings.gateway, settings.subnet).map_err(failed)?;
    let localnet = format!("/proc/sys/net/ipv4/conf/{name}/route_localnet");
    // Forwarding is for the whole machine: it is never turned off again, as
    // another engine may need it.
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
    let mut netlink = Netlink::route().map_err(failed)?;
    let links = link::links(&mut netlink).map_err(failed)?;
    if links
        .iter()
        .any(|link| link.name == settings.bridge && link.index == former.index)
    {
        return Ok(None);
    }
    let bridge = raise_bridge(settings, &mut netlink, former.mtu)?;
    let cut_off = links.iter().filter(|link| {
        SandboxId::of_link(&link.name).is_some_and(|id| ours.contains(&id))
            && link.controller != Some(bridge.index)
    });
    for link in cut_off {
        link::attach(&mut netlink, link.index, bridge.index).map_err(failed)?;
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
        stuck: Vec::new(),
        published: Vec::new(),
        addresses: AddressPool::new(settings.subnet, settings.gateway),
        stopping: false,
    };
    for sandbox in past.sandboxes {
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
    links: &[Link],
    state: &State,
    group: RemovalGroup,
) {
    let live = state.endpoints.values().filter_map(|slot| match slot {
        Slot::Live(live) => Some(&live.sandbox),
        Slot::Busy => None,
    });
    let known: HashSet<SandboxId> = live
        .chain(&state.ready)
        .chain(&state.doomed)
        .map(|sandbox| sandbox.id.clone())
        .collect();
    let stray: Vec<String> = links
        .iter()
        .filter(|link| {
            link.controller == Some(bridge.index)
                && SandboxId::of_link(&link.name).is_some_and(|id| !known.contains(&id))
        })
        .map(|link| link.name.clone())
        .collect();
    for outcome in link::remove(host, &stray, group) {
        if let Err(error) = outcome {
            tracing::error!(error = %chain(&error), "a link that is on no record is left over");
        }
    }
    for pin in stray_pins(&settings.pins, &known) {
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

/// Removes the bridge if this engine made it and it has no port. One that a
/// person made is only marked no more.
pub(crate) fn remove_bridge(host: &mut Netlink, settings: &Settings, group: RemovalGroup) {
    let links = match link::links(host) {
        Ok(links) => links,
        Err(error) => {
            tracing::error!(error = %chain(&error), "the bridge is left over");
            return;
        }
    };
    let Some(bridge) = links.iter().find(|link| link.name == settings.bridge) else {
        return;
    };
    match settings.identity.read(&bridge.alias) {
        Mark::Other(_) => return,
        Mark::Own | Mark::None => {}
    }
    let outcome = if !bridge.is_our_bridge(settings.gateway) {
        if settings.identity.read(&bridge.alias) != Mark::Own {
            return;
        }
        link::set_alias(host, &bridge.name, "")
    } else if links
        .iter()
        .any(|link| link.controller == Some(bridge.index))
    {
        return;
    } else {
        link::remove(host, std::slice::from_ref(&bridge.name), group)
            .into_iter()
            .collect()
    };
    if let Err(error) = outcome {
        tracing::error!(error = %chain(&error), "the bridge is left over");
    }
}
