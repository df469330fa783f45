//! Flows that the kernel remembers from before a port was published.
//!
//! A translation is decided by a flow's first packet and holds for all others.
//! A client that goes on sending UDP from the same port never begins a new
//! flow: it would be sent to the container that had the port before, or, where
//! it sent while nobody had it, to the host for ever. So when a UDP port is
//! published, flows to it that lead elsewhere are forgotten.
//!
//! # Limits
//! All flows of the host are looked through, off the path of callers. TCP needs
//! none of it: a new connection is a new flow.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol as WireProtocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use super::Target;
use crate::endpoint::{Protocol, PublishedPort};
use crate::link;
use crate::netlink::{Netlink, NetlinkError, Request};

/// A port that was just published, and where it leads.
pub(crate) type Published = (PublishedPort, Target);

/// Whether flows of this port can be stale.
pub(crate) fn concerns(port: &PublishedPort) -> bool {
    port.protocol == Protocol::Udp
}

/// Forgets flows to `published` that lead elsewhere; tells how many.
pub(crate) fn forget(published: &[Published]) -> Result<usize, NetlinkError> {
    let local: HashSet<Ipv4Addr> = link::addresses(&mut Netlink::route()?)?
        .into_iter()
        .map(|address| address.address)
        .collect();
    let mut netlink = Netlink::netfilter()?;
    let flows = netlink.dump("list the flows", message(ConntrackMessage::Get(Vec::new())))?;
    let stale: Vec<_> = flows
        .into_iter()
        .filter_map(Flow::read)
        .filter(|flow| {
            published
                .iter()
                .any(|published| flow.strays_from(published, &local))
        })
        .collect();
    for flow in &stale {
        let forgotten = netlink.apply(vec![Request {
            step: "forget a flow",
            flags: 0,
            payload: message(ConntrackMessage::Delete(vec![
                ConntrackAttribute::CtaTupleOrig(flow.original.clone()),
            ])),
        }]);
        match forgotten {
            // It ended by itself.
            Err(error) if error.errno() == Some(nix::libc::ENOENT) => {}
            outcome => outcome?,
        }
    }
    Ok(stale.len())
}

struct Flow {
    original: Vec<Tuple>,
    protocol: WireProtocol,
    /// Where the client sends to.
    destination: (Ipv4Addr, u16),
    /// Who answers.
    server: (Ipv4Addr, u16),
}

impl Flow {
    fn read(message: NetfilterMessage) -> Option<Self> {
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner
        else {
            return None;
        };
        let (mut original, mut reply) = (None, None);
        for attribute in attributes {
            match attribute {
                ConntrackAttribute::CtaTupleOrig(tuples) => original = Some(tuples),
                ConntrackAttribute::CtaTupleReply(tuples) => reply = Some(tuples),
                _ => {}
            }
        }
        let original = original?;
        let sent = Ends::read(&original);
        let answered = Ends::read(&reply?);
        Some(Self {
            protocol: sent.protocol?,
            destination: sent.destination?,
            server: answered.source?,
            original,
        })
    }

    /// `local` are the host's addresses: what passes through to the same port of
    /// another machine is somebody else's.
    fn strays_from(&self, (port, target): &Published, local: &HashSet<Ipv4Addr>) -> bool {
        let (address, number) = self.destination;
        let is_meant = if port.host_address.is_unspecified() {
            address.is_loopback() || local.contains(&address)
        } else {
            port.host_address == address
        };
        self.protocol == WireProtocol::Udp
            && concerns(port)
            && number == port.host_port
            && is_meant
            && self.server != (target.address, target.port)
    }
}

/// One direction of a flow.
#[derive(Default)]
struct Ends {
    protocol: Option<WireProtocol>,
    source: Option<(Ipv4Addr, u16)>,
    destination: Option<(Ipv4Addr, u16)>,
}

impl Ends {
    fn read(tuples: &[Tuple]) -> Self {
        let mut ends = Self::default();
        let (mut addresses, mut ports) = ((None, None), (None, None));
        for tuple in tuples {
            match tuple {
                Tuple::Ip(parts) => {
                    for part in parts {
                        match part {
                            IPTuple::SourceAddress(IpAddr::V4(address)) => {
                                addresses.0 = Some(*address);
                            }
                            IPTuple::DestinationAddress(IpAddr::V4(address)) => {
                                addresses.1 = Some(*address);
                            }
                            _ => {}
                        }
                    }
                }
                Tuple::Proto(parts) => {
                    for part in parts {
                        match part {
                            ProtoTuple::Protocol(protocol) => ends.protocol = Some(*protocol),
                            ProtoTuple::SourcePort(port) => ports.0 = Some(*port),
                            ProtoTuple::DestinationPort(port) => ports.1 = Some(*port),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        ends.source = addresses.0.zip(ports.0);
        ends.destination = addresses.1.zip(ports.1);
        ends
    }
}

fn message(message: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0),
        message,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_to_another_machine_is_none_of_a_published_ports() {
        let host = Ipv4Addr::new(192, 0, 2, 2);
        let local = HashSet::from([host]);
        let flow = |destination| Flow {
            original: Vec::new(),
            protocol: WireProtocol::Udp,
            destination: (destination, 53),
            server: (destination, 53),
        };
        let published = |host_address| {
            let port = PublishedPort {
                host_address,
                host_port: 53,
                container_port: 53,
                protocol: Protocol::Udp,
            };
            let target = Target {
                address: Ipv4Addr::new(10, 66, 0, 5),
                port: 53,
            };
            (port, target)
        };
        let everywhere = published(Ipv4Addr::UNSPECIFIED);
        assert!(flow(host).strays_from(&everywhere, &local));
        assert!(flow(Ipv4Addr::LOCALHOST).strays_from(&everywhere, &local));
        // A container that asks a name server elsewhere.
        assert!(!flow(Ipv4Addr::new(192, 0, 2, 9)).strays_from(&everywhere, &local));
        let on_loopback = published(Ipv4Addr::LOCALHOST);
        assert!(!flow(host).strays_from(&on_loopback, &local));
    }
}
