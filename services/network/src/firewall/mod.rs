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

use gantry_kit::identity::{Identity, Mark};
use netlink_packet_netfilter::nftables::{ChainAttribute, NfTablesMessage, TableAttribute};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use crate::endpoint::{Protocol, PublishedPort};
use crate::netlink::{Netlink, NetlinkError};
use crate::ownership::Owner;

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
    #[error(
        "the firewall table {table:?} belongs to {owner}; configure another [network] table, or end that engine when it has no containers, or remove what is left of it with `nft delete table ip {table}`"
    )]
    Owned { table: String, owner: Owner },
    #[error(
        "the firewall table {table:?} exists, and its chain {chain:?} is none that an engine makes; configure another [network] table"
    )]
    Foreign { table: String, chain: String },
}

impl From<NetlinkError> for FirewallError {
    fn from(source: NetlinkError) -> Self {
        Self::Change { source }
    }
}

/// Fails if a table with this name is there and is not this engine's to change.
///
/// # Errors
/// The table is another engine's or a person's, or cannot be looked at.
pub(crate) fn check(table: &str, identity: &Identity) -> Result<(), FirewallError> {
    check_with(&mut Netlink::netfilter()?, table, identity)
}

fn check_with(
    netlink: &mut Netlink,
    table: &str,
    identity: &Identity,
) -> Result<(), FirewallError> {
    let step = "look at the firewall table";
    let found = match netlink.get(step, ruleset::table_query(table)) {
        Err(error) if error.errno() == Some(nix::libc::ENOENT) => return Ok(()),
        outcome => outcome?,
    };
    let mark = found.and_then(comment_of).unwrap_or_default();
    if let Some(owner) = Owner::by_mark(identity, &mark) {
        if owner.is_gone() {
            tracing::warn!(table, %owner, "the firewall table of an engine that is gone is taken over");
            return Ok(());
        }
        return Err(FirewallError::Owned {
            table: table.to_owned(),
            owner,
        });
    }
    if identity.read(&mark) == Mark::Own {
        return Ok(());
    }
    // A version without marks made it, or a person did.
    let chains = netlink.dump("list the chains of the firewall", ruleset::chains_query())?;
    match chains
        .into_iter()
        .filter_map(|message| chain_of(message, table))
        .find(|chain| !ruleset::is_own_chain(chain))
    {
        Some(chain) => Err(FirewallError::Foreign {
            table: table.to_owned(),
            chain,
        }),
        None => Ok(()),
    }
}

fn comment_of(message: NetfilterMessage) -> Option<String> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) = message.inner else {
        return None;
    };
    table
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TableAttribute::UserData(data) => ruleset::comment_of(data),
            _ => None,
        })
}

/// The name of a chain of `table`.
fn chain_of(message: NetfilterMessage, table: &str) -> Option<String> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(chain)) = message.inner else {
        return None;
    };
    let mut name = None;
    let mut own = false;
    for attribute in chain.attributes {
        match attribute {
            ChainAttribute::Table(found) => own = found == table,
            ChainAttribute::Name(found) => name = Some(found),
            _ => {}
        }
    }
    name.filter(|_| own)
}

/// The table.
#[derive(Debug)]
pub(crate) struct Firewall {
    table: String,
    identity: Identity,
    bounds: Bounds,
    session: Mutex<Session>,
}

#[derive(Debug)]
struct Session {
    netlink: Netlink,
    published: BTreeMap<PublishedPort, Target>,
}

impl Firewall {
    /// Takes the name of the table for this engine; one that exists and is this
    /// engine's stays as it is until [`Firewall::start`].
    pub(crate) fn claim(
        table: String,
        identity: Identity,
        bounds: Bounds,
    ) -> Result<Self, FirewallError> {
        let mut netlink = Netlink::netfilter()?;
        // Of two engines that start at the same moment one makes it.
        match commit(&mut netlink, ruleset::claim(&table, &bounds.mark)) {
            Err(error) if error.errno() == Some(nix::libc::EEXIST) => {
                check_with(&mut netlink, &table, &identity)?;
            }
            outcome => outcome?,
        }
        Ok(Self {
            table,
            identity,
            bounds,
            session: Mutex::new(Session {
                netlink,
                published: BTreeMap::new(),
            }),
        })
    }

    /// Puts the table in place, with these ports published.
    pub(crate) fn start(
        &self,
        published: BTreeMap<PublishedPort, Target>,
    ) -> Result<(), FirewallError> {
        let mut session = self.session();
        session.published = published;
        self.replace(&mut session)
    }

    /// Puts the whole table in place again.
    pub(crate) fn restore(&self) -> Result<(), FirewallError> {
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
            outcome => outcome.map_err(Into::into),
        };
        if outcome.is_err() {
            for (port, _) in &elements {
                session.published.remove(port);
            }
        }
        outcome
    }

    /// Leads these ports nowhere.
    pub(crate) fn unpublish(&self, ports: &[PublishedPort]) -> Result<(), FirewallError> {
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
            outcome => outcome.map_err(Into::into),
        }
    }

    /// Removes the table; another engine's that has its name stays.
    pub(crate) fn remove(&self) -> Result<(), FirewallError> {
        let mut session = self.session();
        check_with(&mut session.netlink, &self.table, &self.identity)?;
        commit(&mut session.netlink, ruleset::removal(&self.table))?;
        Ok(())
    }

    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// The address that our own changes are notified with.
    fn port(&self) -> u32 {
        self.session().netlink.port()
    }

    /// Never replaces the table of another engine: two would do it in turns.
    fn replace(&self, session: &mut Session) -> Result<(), FirewallError> {
        check_with(&mut session.netlink, &self.table, &self.identity)?;
        let elements: Vec<_> = session
            .published
            .iter()
            .map(|(port, target)| (*port, *target))
            .collect();
        commit(
            &mut session.netlink,
            ruleset::whole(&self.table, &self.bounds, &elements),
        )?;
        Ok(())
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
    use netlink_packet_netfilter::nftables::{RuleAttribute, SetAttribute, SetElementList};
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
