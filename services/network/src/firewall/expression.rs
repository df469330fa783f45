//! The words that rules are made of: nftables' expressions.
//!
//! A rule is a list of expressions that load registers, compare them and act.
//! Registers are 32 bits wide here; a longer value takes as many as it needs,
//! and a concatenation is values side by side, each filling whole registers.
//! Numbers are from linux/netfilter/nf_tables.h.

use std::net::Ipv4Addr;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Expressions, Immediate, Lookup, Meta, MetaKey, Operator, Payload,
    Register, Verdict, VerdictAttribute,
};

use crate::subnet::Subnet;

/// `NF_DROP` and `NF_ACCEPT` (linux/netfilter.h).
pub(super) const DROP: u32 = 0;
pub(super) const ACCEPT: u32 = 1;

/// Bits of `ct state` (nf_conntrack_common.h: a bit per `ip_conntrack_info`).
pub(super) const CT_ESTABLISHED_RELATED: u32 = (1 << 1) | (1 << 2);
/// Bit of `ct status`: the destination was translated.
pub(super) const CT_DNAT: u32 = 1 << 5;
pub(super) const CT_KEY_STATE: u32 = 0;
pub(super) const CT_KEY_STATUS: u32 = 2;

const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
const IPV4_SOURCE: u32 = 12;
const IPV4_DESTINATION: u32 = 16;
const TRANSPORT_DESTINATION: u32 = 2;
const IPV4_BYTES: u32 = 4;
const PORT_BYTES: u32 = 2;

/// IFNAMSIZ: names are compared as zero-filled 16 bytes.
const LINK_NAME_BYTES: usize = 16;
const NFPROTO_IPV4: u32 = 2;
/// `RTN_LOCAL` (rtnetlink(7)): an address of this host.
const LOCAL: u32 = 2;

const FIRST: Register = Register::Reg32_00;

/// `iifname` or `oifname` is, or is not, `name`.
pub(super) fn link(key: MetaKey, equal: bool, name: &str) -> Vec<Expressions> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(LINK_NAME_BYTES, 0);
    vec![load_meta(key, FIRST), compare(equal, bytes)]
}

/// `ip saddr subnet`.
pub(super) fn source(subnet: Subnet) -> Vec<Expressions> {
    address_in(IPV4_SOURCE, subnet.network(), subnet.mask())
}

/// `ip saddr 127.0.0.0/8`.
pub(super) fn source_is_loopback() -> Vec<Expressions> {
    address_in(
        IPV4_SOURCE,
        Ipv4Addr::new(127, 0, 0, 0),
        Ipv4Addr::new(255, 0, 0, 0),
    )
}

/// `ip daddr 127.0.0.0/8`.
pub(super) fn destination_is_loopback() -> Vec<Expressions> {
    address_in(
        IPV4_DESTINATION,
        Ipv4Addr::new(127, 0, 0, 0),
        Ipv4Addr::new(255, 0, 0, 0),
    )
}

/// `fib daddr type local`.
pub(super) fn destination_is_local() -> Vec<Expressions> {
    const RESULT_ADDRESS_TYPE: u32 = 3;
    const FLAG_DESTINATION: u32 = 1 << 1;
    vec![
        other(
            "fib",
            &[
                (1, u32::from(FIRST)),
                (2, RESULT_ADDRESS_TYPE),
                (3, FLAG_DESTINATION),
            ],
        ),
        compare(true, LOCAL.to_ne_bytes().to_vec()),
    ]
}

/// `ct state` or `ct status` has one of `bits`.
pub(super) fn conntrack_has(key: u32, bits: u32) -> Vec<Expressions> {
    vec![
        other("ct", &[(1, u32::from(FIRST)), (2, key)]),
        mask(bits.to_ne_bytes().to_vec()),
        compare(false, vec![0; 4]),
    ]
}

/// `dnat to meta l4proto . th dport map @map`, with `ip daddr .` before the key
/// where `by_address`.
pub(super) fn dnat_by(map: &str, by_address: bool) -> Vec<Expressions> {
    const NAT_DESTINATION: u32 = 1;
    let (protocol, port) = (register(1), register(2));
    let mut rule = Vec::new();
    if by_address {
        rule.push(load_payload(
            PAYLOAD_NETWORK,
            IPV4_DESTINATION,
            IPV4_BYTES,
            FIRST,
        ));
    }
    rule.extend([
        load_meta(MetaKey::L4Proto, protocol),
        load_payload(PAYLOAD_TRANSPORT, TRANSPORT_DESTINATION, PORT_BYTES, port),
        // What is found (address, port) takes the place of the key.
        Expressions::Lookup(vec![
            Lookup::Set(map.to_owned()),
            Lookup::SourceRegister(if by_address { FIRST } else { protocol }),
            Lookup::DestinationRegister(FIRST),
        ]),
        other(
            "nat",
            &[
                (1, NAT_DESTINATION),
                (2, NFPROTO_IPV4),
                (3, u32::from(FIRST)),
                (5, u32::from(register(1))),
            ],
        ),
    ]);
    rule
}

/// `masquerade`.
pub(super) fn masquerade() -> Vec<Expressions> {
    vec![other("masq", &[])]
}

/// `accept` or `drop`.
pub(super) fn verdict(code: u32) -> Vec<Expressions> {
    vec![Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(
            Verdict::Other(code),
        )])),
    ])]
}

fn register(index: u32) -> Register {
    Register::from(u32::from(FIRST) + index)
}

fn address_in(offset: u32, network: Ipv4Addr, bits: Ipv4Addr) -> Vec<Expressions> {
    vec![
        load_payload(PAYLOAD_NETWORK, offset, IPV4_BYTES, FIRST),
        mask(bits.octets().to_vec()),
        compare(true, network.octets().to_vec()),
    ]
}

fn load_meta(key: MetaKey, register: Register) -> Expressions {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(register)])
}

fn load_payload(base: u32, offset: u32, length: u32, register: Register) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn mask(bits: Vec<u8>) -> Expressions {
    let zero = vec![0; bits.len()];
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(FIRST),
        Bitwise::DestinationRegister(FIRST),
        Bitwise::Length(IPV4_BYTES),
        Bitwise::Mask(DataAttribute::Value(bits)),
        Bitwise::Xor(DataAttribute::Value(zero)),
    ])
}

fn compare(equal: bool, bytes: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(FIRST),
        Cmp::Op(if equal {
            Operator::Equal
        } else {
            Operator::NotEqual
        }),
        Cmp::Data(DataAttribute::Value(bytes)),
    ])
}

/// An expression that the netlink crate has no type for; all its attributes are
/// 32-bit numbers.
fn other(name: &str, attributes: &[(u16, u32)]) -> Expressions {
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes: attributes
            .iter()
            .map(|(kind, value)| DefaultNla::new(*kind, value.to_be_bytes().to_vec()))
            .collect(),
    }
}
