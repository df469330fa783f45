//! The firewall: one nftables table of our own, by netlink.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`expression`] | the words of a rule |
//! | [`ruleset`] | the table: maps, chains, rules, as messages |
//! | [`flows`] | flows from before a port was published |
//! | [`watch`] | notices when somebody else removes a part of it |
//!
//! A published port is an element of a map, so that the number of ports costs a
//! packet nothing. Every change is one batch, which the kernel takes as a whole
//! or not at all; the whole table is replaced the same way, at the start and
//! when a part of it was removed, without a moment in between.
//!
//! # Limits
//! An `accept` holds in our table alone: where another table drops what is
//! forwarded (Docker's does), it is dropped. IPv4 only.
//!
//! # Locking
//! One lock over the socket and the account of what is published, held for one
//! batch (tens of microseconds).

mod expression;
pub(crate) mod flows;
mod ruleset;
mod watch;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use crate::endpoint::{Protocol, PublishedPort};
use crate::netlink::{Netlink, NetlinkError};

pub(crate) use ruleset::Bounds;
pub(crate) use watch::Watch;

/// `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nfnetlink.h): what a batch is about.
const SUBSYSTEM_NFTABLES: u16 = 10;

/// Where a published port leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
}

/// A firewall that cannot be changed as asked.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    #[error("port {port}/{protocol} of the host address {address} is already published")]
    Published {
        address: Ipv4Addr,
        port: u16,
        protocol: Protocol,
    },
    #[error("cannot change the firewall")]
    Change { source: NetlinkError },
}

/// The table.
#[derive(Debug)]
pub(crate) struct Firewall {
    table: String,
    bounds: Bounds,
    session: Mutex<Session>,
}

#[derive(Debug)]
struct Session {
    netlink: Netlink,
    published: BTreeMap<PublishedPort, Target>,
}

impl Firewall {
    /// Puts the table in place, with these ports published.
    pub(crate) fn start(
        table: String,
        bounds: Bounds,
        published: BTreeMap<PublishedPort, Target>,
    ) -> Result<Self, NetlinkError> {
        let firewall = Self {
            table,
            bounds,
            session: Mutex::new(Session {
                netlink: Netlink::netfilter()?,
                published,
            }),
        };
        firewall.restore()?;
        Ok(firewall)
    }

    /// Puts the whole table in place again.
    pub(crate) fn restore(&self) -> Result<(), NetlinkError> {
        self.replace(&mut self.session())
    }

    /// Leads these ports to `address`.
    pub(crate) fn publish(
        &self,
        ports: &[PublishedPort],
        address: Ipv4Addr,
    ) -> Result<(), FirewallError> {
        if ports.is_empty() {
            return Ok(());
        }
        let mut session = self.session();
        if let Some(port) = ports
            .iter()
            .find(|port| session.published.contains_key(port))
        {
            return Err(FirewallError::Published {
                address: port.host_address,
                port: port.host_port,
                protocol: port.protocol,
            });
        }
        let elements: Vec<_> = ports
            .iter()
            .map(|port| {
                let target = Target {
                    address,
                    port: port.container_port,
                };
                (*port, target)
            })
            .collect();
        let added = commit(
            &mut session.netlink,
            ruleset::addition(&self.table, &elements),
        );
        session.published.extend(elements.iter().copied());
        let outcome = match added {
            // The table, or the map, is gone or was changed: somebody did that.
            Err(error) if is_foreign_change(&error) => {
                tracing::warn!(
                    table = self.table,
                    "the firewall table was changed by somebody; it is restored"
                );
                self.replace(&mut session)
            }
            outcome => outcome,
        };
        if outcome.is_err() {
            for (port, _) in &elements {
                session.published.remove(port);
            }
        }
        outcome.map_err(|source| FirewallError::Change { source })
    }

    /// Leads these ports nowhere.
    pub(crate) fn unpublish(&self, ports: &[PublishedPort]) -> Result<(), NetlinkError> {
        if ports.is_empty() {
            return Ok(());
        }
        let mut session = self.session();
        for port in ports {
            session.published.remove(port);
        }
        match commit(
            &mut session.netlink,
            ruleset::subtraction(&self.table, ports),
        ) {
            Err(error) if is_foreign_change(&error) => self.replace(&mut session),
            outcome => outcome,
        }
    }

    /// Removes the table.
    pub(crate) fn remove(&self) -> Result<(), NetlinkError> {
        commit(&mut self.session().netlink, ruleset::removal(&self.table))
    }

    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// The address that our own changes are notified with.
    fn port(&self) -> u32 {
        self.session().netlink.port()
    }

    fn replace(&self, session: &mut Session) -> Result<(), NetlinkError> {
        let elements: Vec<_> = session
            .published
            .iter()
            .map(|(port, target)| (*port, *target))
            .collect();
        commit(
            &mut session.netlink,
            ruleset::whole(&self.table, &self.bounds, &elements),
        )
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the table is not what we left it as.
fn is_foreign_change(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(nix::libc::ENOENT | nix::libc::EEXIST))
}

fn commit(netlink: &mut Netlink, requests: Vec<ruleset::Message>) -> Result<(), NetlinkError> {
    let frame = |message| {
        NetfilterMessage::new(
            NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM_NFTABLES),
            message,
        )
    };
    netlink.transact(
        frame(ControlMessage::BatchBegin),
        requests,
        frame(ControlMessage::BatchEnd),
    )
}

/// Whether a notification says that a part of `table` was removed.
fn removes_part_of(message: &NfTablesMessage, table: &str) -> bool {
    use netlink_packet_netfilter::nftables::{
        ChainAttribute, RuleAttribute, SetAttribute, SetElementList, TableAttribute,
    };
    match message {
        NfTablesMessage::DeleteTable(message) => message
            .attributes
            .iter()
            .any(|attribute| matches!(attribute, TableAttribute::Name(name) if name == table)),
        NfTablesMessage::DeleteChain(message) => message
            .attributes
            .iter()
            .any(|attribute| matches!(attribute, ChainAttribute::Table(name) if name == table)),
        NfTablesMessage::DeleteRule(message) => message
            .attributes
            .iter()
            .any(|attribute| matches!(attribute, RuleAttribute::Table(name) if name == table)),
        NfTablesMessage::DeleteSet(message) => message
            .attributes
            .iter()
            .any(|attribute| matches!(attribute, SetAttribute::Table(name) if name == table)),
        NfTablesMessage::DeleteSetElement(message) => message
            .attributes
            .iter()
            .any(|attribute| matches!(attribute, SetElementList::Table(name) if name == table)),
        _ => false,
    }
}
