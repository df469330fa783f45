//! Links, addresses and routes: rtnetlink's messages, sent in batches.
//!
//! The messages are built by the crate rtnetlink. They travel over our own
//! blocking socket (see [`crate::netlink`]) and not over that crate's async
//! connection, since a step is one datagram, and half of the steps take place in
//! a thread that is inside another namespace.
//!
//! A veth pair is one message: the host's end is born as a port of the bridge,
//! up, and its peer is born inside the other namespace. So there is no
//! moment at which a link of ours is not a port of our bridge, and being such a
//! port is how a link is known as ours after a crash.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth,
    RouteMessageBuilder,
};

use crate::netlink::{Netlink, NetlinkError, Request};
use crate::subnet::{Subnet, mac_of};

/// The interface's name inside the container's namespace.
pub(crate) const INSIDE: &str = "eth0";

/// The first link of every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// `RT_TABLE_MAIN` (rtnetlink(7)).
const MAIN_TABLE: u8 = 254;

/// A link of this namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: Option<InfoKind>,
    /// Index of the bridge that it is a port of.
    pub(crate) controller: Option<u32>,
    pub(crate) mtu: Option<u32>,
    /// A text that is kept with it: see `ownership`. Empty: none.
    pub(crate) alias: String,
    group: u32,
    mac: Vec<u8>,
}

impl Link {
    pub(crate) fn is_bridge(&self) -> bool {
        self.kind == Some(InfoKind::Bridge)
    }

    /// Whether it is a bridge that [`create_bridge`] made: only such a one is
    /// ever removed. Its hardware address tells, being there from its birth.
    pub(crate) fn is_our_bridge(&self, gateway: Ipv4Addr) -> bool {
        self.is_bridge() && self.mac == mac_of(gateway)
    }
}

/// A unicast route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// Whether it is one of the main table.
    pub(crate) main: bool,
    pub(crate) destination: Ipv4Addr,
    pub(crate) prefix: u8,
    /// Index of the link that it leaves by.
    pub(crate) link: Option<u32>,
}

impl Route {
    /// Whether it is for all destinations, or for one of the halves that a VPN
    /// makes of them: it says nothing of who has an address.
    pub(crate) fn is_default(&self) -> bool {
        const SHORTEST_OF_A_NETWORK: u8 = 8;
        self.prefix < SHORTEST_OF_A_NETWORK
    }
}

pub(crate) fn links(netlink: &mut Netlink) -> Result<Vec<Link>, NetlinkError> {
    let found = netlink.dump(
        "list the links",
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
    )?;
    Ok(found.into_iter().filter_map(link_of).collect())
}

fn link_of(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        controller: None,
        mtu: None,
        alias: String::new(),
        group: 0,
        mac: Vec::new(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Mtu(mtu) => link.mtu = Some(mtu),
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::Address(mac) => link.mac = mac,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = Some(kind);
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
}

/// The IPv4 routes of all tables.
pub(crate) fn routes(netlink: &mut Netlink) -> Result<Vec<Route>, NetlinkError> {
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet;
    let found = netlink.dump("list the routes", RouteNetlinkMessage::GetRoute(query))?;
    Ok(found.into_iter().filter_map(route_of).collect())
}

fn route_of(message: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return None;
    };
    let mut route = Route {
        main: message.header.table == MAIN_TABLE,
        destination: Ipv4Addr::UNSPECIFIED,
        prefix: message.header.destination_prefix_length,
        link: None,
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => route.destination = address,
            RouteAttribute::Oif(index) => route.link = Some(index),
            _ => {}
        }
    }
    Some(route)
}

/// An IPv4 address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostAddress {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
    /// Index of the link that has it.
    pub(crate) link: u32,
}

/// The IPv4 addresses of all links, also of those that are down.
pub(crate) fn addresses(netlink: &mut Netlink) -> Result<Vec<HostAddress>, NetlinkError> {
    let mut query = AddressMessage::default();
    query.header.family = AddressFamily::Inet;
    let found = netlink.dump("list the addresses", RouteNetlinkMessage::GetAddress(query))?;
    Ok(found.into_iter().filter_map(address_of).collect())
}

fn address_of(message: RouteNetlinkMessage) -> Option<HostAddress> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    // The local one; of a point-to-point link ADDRESS is the other end's.
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(local)) => address = Some(*local),
            AddressAttribute::Address(IpAddr::V4(other)) if address.is_none() => {
                address = Some(*other);
            }
            _ => {}
        }
    }
    Some(HostAddress {
        address: address?,
        prefix: message.header.prefix_len,
        link: message.header.index,
    })
}

/// Makes the bridge, with `alias` on it.
pub(crate) fn create_bridge(
    netlink: &mut Netlink,
    name: &str,
    gateway: Ipv4Addr,
    mtu: u32,
    alias: &str,
) -> Result<(), NetlinkError> {
    // A bridge without an address of its own takes the lowest of its ports',
    // and changes it as they come and go.
    let message = LinkBridge::new(name)
        .address(mac_of(gateway).to_vec())
        .mtu(mtu)
        .build();
    netlink.apply(vec![Request {
        step: "create the bridge",
        flags: NLM_F_CREATE | NLM_F_EXCL,
        payload: RouteNetlinkMessage::NewLink(message),
    }])?;
    // An alias is not taken from the message that makes a link.
    set_alias(netlink, name, alias)
}

/// Writes a text on a link; an empty one takes away what is there.
pub(crate) fn set_alias(
    netlink: &mut Netlink,
    name: &str,
    alias: &str,
) -> Result<(), NetlinkError> {
    let mut message = LinkUnspec::new_with_name(name).build();
    message
        .attributes
        .push(LinkAttribute::IfAlias(alias.to_owned()));
    netlink.apply(vec![Request {
        step: "mark the bridge",
        flags: 0,
        payload: RouteNetlinkMessage::SetLink(message),
    }])
}

/// Gives the bridge its address, where it lacks it, and takes it up.
pub(crate) fn raise_bridge(
    netlink: &mut Netlink,
    index: u32,
    gateway: Ipv4Addr,
    subnet: Subnet,
) -> Result<(), NetlinkError> {
    netlink.apply(vec![
        Request {
            step: "give the bridge its address",
            // An address that is there already is no error.
            flags: NLM_F_CREATE | NLM_F_REPLACE,
            payload: address_message(index, gateway, subnet),
        },
        Request {
            step: "take the bridge up",
            flags: 0,
            payload: up_message(index),
        },
    ])
}

/// Makes a pair: `name` here as a port of the bridge, [`INSIDE`] in `namespace`.
pub(crate) fn create_pair(
    netlink: &mut Netlink,
    name: &str,
    bridge: u32,
    mtu: u32,
    mac: [u8; 6],
    namespace: BorrowedFd<'_>,
) -> Result<(), NetlinkError> {
    // The peer cannot be born up: at that moment it is no pair yet (ENOTCONN).
    let peer = LinkUnspec::new_with_name(INSIDE)
        .address(mac.to_vec())
        .mtu(mtu)
        .setns_by_fd(namespace.as_raw_fd())
        .build();
    let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(name)
        .mtu(mtu)
        .controller(bridge)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .up()
        .build();
    // A container that meets itself through a published port: where bridged
    // packets pass the firewall (br_netfilter), they go back by the port they
    // came from, which a bridge does only if told so.
    let port = LinkUnspec::new_with_name(name)
        .set_port_kind(InfoPortKind::Bridge)
        .set_port_data(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(
            true,
        )]))
        .build();
    netlink.apply(vec![
        Request {
            step: "create the endpoint's link",
            flags: NLM_F_CREATE | NLM_F_EXCL,
            payload: RouteNetlinkMessage::NewLink(message),
        },
        Request {
            step: "set up the endpoint's port of the bridge",
            flags: 0,
            payload: RouteNetlinkMessage::NewLink(port),
        },
    ])
}

/// Sets up the inside of a namespace; `netlink` must have been opened there.
pub(crate) fn furnish(
    netlink: &mut Netlink,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    subnet: Subnet,
) -> Result<(), NetlinkError> {
    let index = index_of(netlink, INSIDE)?;
    // Nothing else is said: a unicast route of the main table, for all
    // destinations.
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .protocol(RouteProtocol::Boot)
        .gateway(gateway)
        .output_interface(index)
        .build();
    netlink.apply(vec![
        Request {
            step: "take the endpoint's link up",
            flags: 0,
            payload: up_message(index),
        },
        Request {
            step: "take the endpoint's loopback up",
            flags: 0,
            payload: up_message(LOOPBACK_INDEX),
        },
        Request {
            step: "give the endpoint its address",
            flags: NLM_F_CREATE | NLM_F_EXCL,
            payload: address_message(index, address, subnet),
        },
        Request {
            step: "give the endpoint its default route",
            flags: NLM_F_CREATE | NLM_F_EXCL,
            payload: RouteNetlinkMessage::NewRoute(route),
        },
    ])
}

/// Makes a link a port of the bridge again.
pub(crate) fn attach(netlink: &mut Netlink, link: u32, bridge: u32) -> Result<(), NetlinkError> {
    let message = LinkUnspec::new_with_index(link)
        .controller(bridge)
        .up()
        .build();
    netlink.apply(vec![Request {
        step: "attach the endpoint's link to the bridge",
        flags: 0,
        payload: RouteNetlinkMessage::SetLink(message),
    }])
}

/// The group that links are put into to be removed together.
///
/// The kernel waits for all processors when it removes a link, 15 ms and more
/// each time. It removes all links of a group with one such wait. A group is a
/// number that anybody can use, and 0 is that of all links of the machine that
/// are in no other: hence a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RemovalGroup(NonZeroU32);

impl RemovalGroup {
    /// A random one that no link of the machine is in.
    pub(crate) fn unused(links: &[Link]) -> Result<Self, getrandom::Error> {
        loop {
            let mut bytes = [0; 4];
            getrandom::fill(&mut bytes)?;
            // People use small numbers.
            let number = u32::from_ne_bytes(bytes) | 1 << 30;
            if let Some(number) = NonZeroU32::new(number)
                && !links.iter().any(|link| link.group == number.get())
            {
                return Ok(Self(number));
            }
        }
    }
}

/// Removes links by name, and returns the outcome of each; one that is not there
/// is no error.
pub(crate) fn remove(
    netlink: &mut Netlink,
    names: &[String],
    group: RemovalGroup,
) -> Vec<Result<(), NetlinkError>> {
    let mut outcomes = Vec::with_capacity(names.len());
    for names in names.chunks(REMOVED_TOGETHER) {
        match remove_together(netlink, names, group) {
            Ok(removed) => outcomes.extend(removed),
            Err(error) => {
                // One at a time: each with a reason of its own.
                tracing::warn!(
                    error = %crate::error::chain(&error),
                    "links are removed one by one"
                );
                outcomes.extend(names.iter().map(|name| remove_one(netlink, name)));
            }
        }
    }
    outcomes
}

/// How many links are removed while the kernel's lock over all links is held.
pub(crate) const REMOVED_TOGETHER: usize = 128;

fn remove_one(netlink: &mut Netlink, name: &str) -> Result<(), NetlinkError> {
    let message = LinkUnspec::new_with_name(name).build();
    or_absent(netlink.apply(vec![Request {
        step: "remove the link",
        flags: 0,
        payload: RouteNetlinkMessage::DelLink(message),
    }]))
}

fn remove_together(
    netlink: &mut Netlink,
    names: &[String],
    group: RemovalGroup,
) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError> {
    if let [name] = names {
        return Ok(vec![remove_one(netlink, name)]);
    }
    let into_group = names
        .iter()
        .map(|name| {
            let mut message = LinkUnspec::new_with_name(name).build();
            message.attributes.push(LinkAttribute::Group(group.0.get()));
            Request {
                step: "mark a link for removal",
                flags: 0,
                payload: RouteNetlinkMessage::SetLink(message),
            }
        })
        .collect();
    let marked = netlink.apply_each(into_group)?;
    let mut of_group = LinkMessage::default();
    of_group
        .attributes
        .push(LinkAttribute::Group(group.0.get()));
    or_absent(netlink.apply(vec![Request {
        step: "remove the links",
        flags: 0,
        payload: RouteNetlinkMessage::DelLink(of_group),
    }]))?;
    Ok(marked.into_iter().map(or_absent).collect())
}

/// What is not there need not be removed.
fn or_absent(outcome: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match outcome {
        Err(error) if error.errno() == Some(nix::libc::ENODEV) => Ok(()),
        outcome => outcome,
    }
}

pub(crate) fn index_of(netlink: &mut Netlink, name: &str) -> Result<u32, NetlinkError> {
    let step = "find the link";
    let query = LinkUnspec::new_with_name(name).build();
    match netlink.get(step, RouteNetlinkMessage::GetLink(query))? {
        Some(RouteNetlinkMessage::NewLink(link)) => Ok(link.header.index),
        _ => Err(NetlinkError::Decode {
            step,
            reason: "it is not about a link".to_owned(),
        }),
    }
}

fn up_message(index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).up().build())
}

fn address_message(index: u32, address: Ipv4Addr, subnet: Subnet) -> RouteNetlinkMessage {
    let message = AddressMessageBuilder::<Ipv4Addr>::new()
        .index(index)
        .address(address, subnet.prefix())
        .build();
    RouteNetlinkMessage::NewAddress(message)
}
