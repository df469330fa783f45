//! The table, as messages to the kernel.
//!
//! ```text
//! table ip gantry {
//!   comment "gantry:system"
//!   map published    { inet_proto . inet_service : ipv4_addr . inet_service }
//!   map published_on { ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//!   chain guard         { filter prerouting raw
//!     iifname BRIDGE ip daddr 127.0.0.0/8 drop }
//!   chain publish       { nat prerouting dstnat
//!     dnat to ip daddr . meta l4proto . th dport map @published_on
//!     fib daddr type local dnat to meta l4proto . th dport map @published }
//!   chain publish_local { nat output dstnat; the same two rules }
//!   chain outward       { nat postrouting srcnat
//!     ip saddr SUBNET oifname != BRIDGE masquerade
//!     oifname BRIDGE ip saddr 127.0.0.0/8 masquerade
//!     oifname BRIDGE ip saddr SUBNET ct status dnat masquerade }
//!   chain forward       { filter forward filter
//!     iifname BRIDGE accept
//!     oifname BRIDGE ct state established,related accept
//!     oifname BRIDGE ct status dnat accept
//!     oifname BRIDGE drop }
//! }
//! ```
//! - *guard*: `route_localnet` lets the host reach a container from 127.0.0.1;
//!   it must not let a container reach the host's.
//! - *outward*, second rule: a connection from 127.0.0.1 needs a source that the
//!   container can answer. Third: containers that meet through a published port
//!   would answer each other directly, past the translation.
//! - *forward*: from outside, only what was published.

use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Expressions, Hook, InetHookNumber, ListAttribute,
    MetaKey, NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute,
    SetElementList, SetElementMessage, SetFlags, SetMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::Target;
use super::expression::{
    ACCEPT, CT_DNAT, CT_ESTABLISHED_RELATED, CT_KEY_STATE, CT_KEY_STATUS, DROP, conntrack_has,
    destination_is_local, destination_is_loopback, dnat_by, link, masquerade, source,
    source_is_loopback, verdict,
};
use crate::endpoint::PublishedPort;
use crate::netlink::Request;
use crate::subnet::Subnet;

const PUBLISHED: &str = "published";
const PUBLISHED_ON: &str = "published_on";

/// Names of the chains, in this version and all before.
const CHAINS: [&str; 5] = ["guard", "publish", "publish_local", "outward", "forward"];

/// Priorities of hooks by their names in nft(8).
const RAW: i32 = -300;
const DSTNAT: i32 = -100;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;

/// `nft` prints a set by the types of its parts: 6 bits each, as it numbers them.
const TYPE_IPV4: u32 = 7;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_SERVICE: u32 = 13;
/// Every part of a concatenation fills whole registers of 4 bytes.
const PART_BYTES: u32 = 4;
/// A netlink attribute is at most 64 KiB; an element takes less than 100 bytes.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// The network that a table is for.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) bridge: String,
    pub(crate) subnet: Subnet,
    /// The engine's mark, which becomes the table's comment.
    pub(crate) mark: String,
}

pub(super) type Message = Request<NetfilterMessage>;

/// One published port and where it leads.
pub(super) type Element = (PublishedPort, Target);

/// Everything: whatever the table held is replaced.
pub(super) fn whole(table: &str, bounds: &Bounds, elements: &[Element]) -> Vec<Message> {
    let mut messages = removal(table);
    messages.extend(claim(table, &bounds.mark));
    messages.push(map(table, PUBLISHED, 1, &[TYPE_PROTOCOL, TYPE_SERVICE]));
    messages.push(map(
        table,
        PUBLISHED_ON,
        2,
        &[TYPE_IPV4, TYPE_PROTOCOL, TYPE_SERVICE],
    ));
    for chain in chains(bounds) {
        messages.push(chain.message(table));
        messages.extend(chain.rules.into_iter().map(|rule| {
            let rule = rule.concat();
            new_rule(table, chain.name, rule)
        }));
    }
    messages.extend(addition(table, elements));
    messages
}

/// An empty table with a mark; one that exists is refused (EEXIST).
pub(super) fn claim(table: &str, mark: &str) -> Vec<Message> {
    vec![request(
        "create the firewall table",
        NLM_F_CREATE | NLM_F_EXCL,
        NfTablesMessage::NewTable(TableMessage {
            attributes: vec![
                TableAttribute::Name(table.to_owned()),
                TableAttribute::UserData(comment(mark)),
            ],
        }),
    )]
}

/// Asks for a table.
pub(super) fn table_query(table: &str) -> NetfilterMessage {
    request(
        "",
        0,
        NfTablesMessage::GetTable(TableMessage {
            attributes: vec![TableAttribute::Name(table.to_owned())],
        }),
    )
    .payload
}

/// Asks for all chains.
pub(super) fn chains_query() -> NetfilterMessage {
    request(
        "",
        0,
        NfTablesMessage::GetChain(ChainMessage {
            attributes: Vec::new(),
        }),
    )
    .payload
}

/// Whether a chain with this name can be one of ours.
pub(super) fn is_own_chain(name: &str) -> bool {
    CHAINS.contains(&name)
}

/// User data of a table are a list of type, length and value; nft(8) shows
/// `NFTNL_UDATA_TABLE_COMMENT` (libnftnl's udata.h), a text with a final zero.
const COMMENT: u8 = 0;

fn comment(text: &str) -> Vec<u8> {
    // A mark has at most 255 bytes, and less than that as it is made.
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let text = &text.as_bytes()[..usize::from(length) - 1];
    [&[COMMENT, length], text, &[0]].concat()
}

/// The comment in the user data of a table.
pub(super) fn comment_of(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == COMMENT {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        data = &rest[usize::from(*length)..];
    }
    None
}

/// The table goes, whether it is there or not.
pub(super) fn removal(table: &str) -> Vec<Message> {
    vec![
        new_table(table),
        request(
            "remove the firewall table",
            0,
            NfTablesMessage::DeleteTable(TableMessage {
                attributes: vec![TableAttribute::Name(table.to_owned())],
            }),
        ),
    ]
}

/// Ports are published; one that is already is refused (EEXIST).
pub(super) fn addition(table: &str, elements: &[Element]) -> Vec<Message> {
    let list = |set, by_address: bool| {
        let items: Vec<_> = elements
            .iter()
            .filter(|(port, _)| port.host_address.is_unspecified() != by_address)
            .map(|(port, target)| {
                ListAttribute::Element(vec![
                    SetElementAttribute::Key(DataAttribute::Value(key(port))),
                    SetElementAttribute::Data(DataAttribute::Value(data(*target))),
                ])
            })
            .collect();
        in_messages(items, move |items| {
            request(
                "publish the ports",
                NLM_F_CREATE | NLM_F_EXCL,
                NfTablesMessage::NewSetElement(set_elements(table, set, items)),
            )
        })
    };
    let mut messages = list(PUBLISHED, false);
    messages.extend(list(PUBLISHED_ON, true));
    messages
}

/// Ports are published no more; one that is not is refused (ENOENT).
pub(super) fn subtraction(table: &str, ports: &[PublishedPort]) -> Vec<Message> {
    let list = |set, by_address: bool| {
        let items: Vec<_> = ports
            .iter()
            .filter(|port| port.host_address.is_unspecified() != by_address)
            .map(|port| {
                ListAttribute::Element(vec![SetElementAttribute::Key(DataAttribute::Value(key(
                    port,
                )))])
            })
            .collect();
        in_messages(items, move |items| {
            request(
                "unpublish the ports",
                0,
                NfTablesMessage::DeleteSetElement(set_elements(table, set, items)),
            )
        })
    };
    let mut messages = list(PUBLISHED, false);
    messages.extend(list(PUBLISHED_ON, true));
    messages
}

struct Chain {
    name: &'static str,
    kind: &'static str,
    hook: InetHookNumber,
    priority: i32,
    /// A rule is given in parts, for reading.
    rules: Vec<Vec<Vec<Expressions>>>,
}

impl Chain {
    fn message(&self, table: &str) -> Message {
        request(
            "create a chain of the firewall",
            NLM_F_CREATE,
            NfTablesMessage::NewChain(ChainMessage {
                attributes: vec![
                    ChainAttribute::Table(table.to_owned()),
                    ChainAttribute::Name(self.name.to_owned()),
                    ChainAttribute::Policy(ACCEPT),
                    ChainAttribute::Type(self.kind.to_owned()),
                    ChainAttribute::Hook(vec![
                        Hook::Number(self.hook.into()),
                        Hook::Priority(self.priority.cast_unsigned()),
                    ]),
                ],
            }),
        )
    }
}

fn chains(bounds: &Bounds) -> Vec<Chain> {
    let from_bridge = || link(MetaKey::Iifname, true, &bounds.bridge);
    let to_bridge = || link(MetaKey::Oifname, true, &bounds.bridge);
    let not_to_bridge = || link(MetaKey::Oifname, false, &bounds.bridge);
    let publish = || {
        vec![
            vec![dnat_by(PUBLISHED_ON, true)],
            vec![destination_is_local(), dnat_by(PUBLISHED, false)],
        ]
    };
    vec![
        Chain {
            name: "guard",
            kind: "filter",
            hook: InetHookNumber::PreRouting,
            priority: RAW,
            rules: vec![vec![
                from_bridge(),
                destination_is_loopback(),
                verdict(DROP),
            ]],
        },
        Chain {
            name: "publish",
            kind: "nat",
            hook: InetHookNumber::PreRouting,
            priority: DSTNAT,
            rules: publish(),
        },
        Chain {
            name: "publish_local",
            kind: "nat",
            hook: InetHookNumber::LocalOut,
            priority: DSTNAT,
            rules: publish(),
        },
        Chain {
            name: "outward",
            kind: "nat",
            hook: InetHookNumber::PostRouting,
            priority: SRCNAT,
            rules: vec![
                vec![source(bounds.subnet), not_to_bridge(), masquerade()],
                vec![to_bridge(), source_is_loopback(), masquerade()],
                vec![
                    to_bridge(),
                    source(bounds.subnet),
                    conntrack_has(CT_KEY_STATUS, CT_DNAT),
                    masquerade(),
                ],
            ],
        },
        Chain {
            name: "forward",
            kind: "filter",
            hook: InetHookNumber::Forward,
            priority: FILTER,
            rules: vec![
                vec![from_bridge(), verdict(ACCEPT)],
                vec![
                    to_bridge(),
                    conntrack_has(CT_KEY_STATE, CT_ESTABLISHED_RELATED),
                    verdict(ACCEPT),
                ],
                vec![
                    to_bridge(),
                    conntrack_has(CT_KEY_STATUS, CT_DNAT),
                    verdict(ACCEPT),
                ],
                vec![to_bridge(), verdict(DROP)],
            ],
        },
    ]
}

fn new_table(table: &str) -> Message {
    request(
        "create the firewall table",
        NLM_F_CREATE,
        NfTablesMessage::NewTable(TableMessage {
            attributes: vec![TableAttribute::Name(table.to_owned())],
        }),
    )
}

fn new_rule(table: &str, chain: &str, rule: Vec<Expressions>) -> Message {
    request(
        "create a rule of the firewall",
        NLM_F_CREATE | NLM_F_APPEND,
        NfTablesMessage::NewRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(table.to_owned()),
                RuleAttribute::Chain(chain.to_owned()),
                RuleAttribute::Expressions(rule.into_iter().map(Into::into).collect()),
            ],
        }),
    )
}

fn map(table: &str, name: &str, id: u32, key: &[u32]) -> Message {
    let data = [TYPE_IPV4, TYPE_SERVICE];
    let concatenated = |parts: &[u32]| parts.iter().fold(0, |all, part| all << 6 | part);
    let bytes = |parts: &[u32]| parts.iter().map(|_| PART_BYTES).sum();
    request(
        "create a map of the firewall",
        NLM_F_CREATE,
        NfTablesMessage::NewSet(SetMessage {
            attributes: vec![
                SetAttribute::Table(table.to_owned()),
                SetAttribute::Name(name.to_owned()),
                SetAttribute::Flags(SetFlags::Map),
                SetAttribute::KeyType(concatenated(key)),
                SetAttribute::KeyLen(bytes(key)),
                SetAttribute::DataType(concatenated(&data)),
                SetAttribute::DataLen(bytes(&data)),
                SetAttribute::Id(id),
            ],
        }),
    )
}

fn set_elements(
    table: &str,
    set: &str,
    items: Vec<ListAttribute<SetElementAttribute>>,
) -> SetElementMessage {
    SetElementMessage {
        attributes: vec![
            SetElementList::Table(table.to_owned()),
            SetElementList::Set(set.to_owned()),
            SetElementList::Elements(items),
        ],
    }
}

fn in_messages(
    mut items: Vec<ListAttribute<SetElementAttribute>>,
    message: impl Fn(Vec<ListAttribute<SetElementAttribute>>) -> Message,
) -> Vec<Message> {
    let mut messages = Vec::new();
    while !items.is_empty() {
        let rest = items.split_off(items.len().min(ELEMENTS_PER_MESSAGE));
        messages.push(message(items));
        items = rest;
    }
    messages
}

fn key(port: &PublishedPort) -> Vec<u8> {
    let mut bytes = Vec::new();
    if !port.host_address.is_unspecified() {
        bytes.extend(port.host_address.octets());
    }
    bytes.extend([port.protocol.number(), 0, 0, 0]);
    bytes.extend(port.host_port.to_be_bytes());
    bytes.extend([0, 0]);
    bytes
}

fn data(target: Target) -> Vec<u8> {
    let address: Ipv4Addr = target.address;
    let mut bytes = address.octets().to_vec();
    bytes.extend(target.port.to_be_bytes());
    bytes.extend([0, 0]);
    bytes
}

fn request(step: &'static str, flags: u16, message: NfTablesMessage) -> Message {
    Request {
        step,
        flags,
        payload: NetfilterMessage::new(
            NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0),
            message,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_read_as_it_was_written() {
        assert_eq!(
            comment_of(&comment("gantry:/srv/g")).as_deref(),
            Some("gantry:/srv/g")
        );
        // After data of another kind; none; cut off.
        assert_eq!(comment_of(&[7, 1, 0, 0, 2, b'x', 0]).as_deref(), Some("x"));
        assert_eq!(comment_of(&[]), None);
        assert_eq!(comment_of(&[0, 9, b'x']), None);
    }

    #[test]
    fn every_chain_is_known_as_ours() {
        let bounds = Bounds {
            bridge: "b".to_owned(),
            subnet: "10.0.0.0/24".parse().unwrap(),
            mark: String::new(),
        };
        for chain in chains(&bounds) {
            assert!(is_own_chain(chain.name), "{}", chain.name);
        }
    }
}
