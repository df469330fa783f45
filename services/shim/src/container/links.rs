//! Network devices and their addresses, in one network namespace.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::netlink::{self, Answer, CREATE, DUMP, Request, Socket};

/// `struct ifinfomsg`: family u8, u8, type u16, index i32, flags u32, change u32.
const LINK: usize = 16;
/// `struct ifaddrmsg`: family u8, prefix length u8, flags u8, scope u8, index u32.
const ADDRESS: usize = 8;

const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFF_UP: u32 = 1;

const IFA_LABEL: u16 = 3;
const IFA_FLAGS: u16 = 8;
/// What of an address is as it was wherever it goes: address, local, broadcast, lifetimes, metric and origin.
const KEPT: [u16; 6] = [1, 2, 4, 6, 9, 11];
const IFA_F_PERMANENT: u32 = 0x80;
/// Flags that were asked for, and are not the kernel's account of the address' state: no duplicate detection, a home
/// address, temporary addresses beside it, no route for its prefix, and joining its multicast group.
const ASKED: u32 = 0x02 | 0x10 | 0x100 | 0x200 | 0x400;
const RT_SCOPE_UNIVERSE: u8 = 0;

/// The loopback device is the first of every namespace.
pub(super) const LOOPBACK: u32 = 1;

/// The devices of the network namespace in which this was opened.
#[derive(Debug)]
pub(super) struct Links {
    socket: Socket,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
}

/// An address that goes where its device goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    family: u8,
    prefix: u8,
    flags: u32,
    /// What the label has behind the device's name.
    label: Option<String>,
    kept: Vec<(u16, Vec<u8>)>,
}

impl Links {
    /// In the calling process' network namespace.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            socket: Socket::open()?,
        })
    }

    /// The device of that name, if there is one.
    pub(super) fn find(&self, name: &str) -> io::Result<Option<Link>> {
        self.get(|| {
            Request::new(RTM_GETLINK, 0, &link_header(0, 0, 0)).with_text(IFLA_IFNAME, name)
        })
    }

    /// The device of that number, if there is one.
    pub(super) fn at(&self, index: u32) -> io::Result<Option<Link>> {
        self.get(|| Request::new(RTM_GETLINK, 0, &link_header(index, 0, 0)))
    }

    fn get(&self, request: impl Fn() -> Request) -> io::Result<Option<Link>> {
        match self.socket.ask(request) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            other => Ok(other?.first().and_then(Link::read)),
        }
    }

    pub(super) fn set_up(&self, index: u32, up: bool) -> io::Result<()> {
        let flags = if up { IFF_UP } else { 0 };
        self.change(|| Request::new(RTM_SETLINK, 0, &link_header(index, flags, IFF_UP)))
    }

    /// Where the name has `%d` the kernel puts the first number that makes it unique. The device must be down.
    pub(super) fn rename(&self, index: u32, name: &str) -> io::Result<()> {
        self.change(|| {
            Request::new(RTM_SETLINK, 0, &link_header(index, 0, 0)).with_text(IFLA_IFNAME, name)
        })
    }

    /// Moves a device, which must be down, to another network namespace under another name. It loses its addresses and
    /// may have another number there. When this fails it may have been moved and not renamed.
    pub(super) fn send_away(&self, index: u32, to: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        self.change(|| {
            Request::new(RTM_SETLINK, 0, &link_header(index, 0, 0))
                .with(IFLA_NET_NS_FD, &to.as_raw_fd().to_ne_bytes())
                .with_text(IFLA_IFNAME, name)
        })
    }

    fn change(&self, request: impl Fn() -> Request) -> io::Result<()> {
        self.socket.ask(request).map(drop)
    }

    /// The addresses of a device that are its own for good: permanent, and valid everywhere.
    pub(super) fn addresses(&self, link: &Link) -> io::Result<Vec<Address>> {
        let all = self
            .socket
            .ask(|| Request::new(RTM_GETADDR, DUMP, &[0; ADDRESS]))?;
        Ok(all
            .iter()
            .filter_map(|answer| Address::read(answer, link))
            .collect())
    }

    /// Gives a device an address; having it already is no error.
    pub(super) fn add(&self, link: &Link, address: &Address) -> io::Result<()> {
        match self.change(|| address.request(link)) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }
}

fn link_header(index: u32, flags: u32, change: u32) -> [u8; LINK] {
    let mut header = [0; LINK];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

impl Link {
    fn read(answer: &Answer) -> Option<Self> {
        let header = answer.header::<LINK>()?;
        Some(Self {
            index: netlink::number(&header, 4)?,
            name: netlink::text(answer.attribute(LINK, IFLA_IFNAME)?),
            up: netlink::number(&header, 8)? & IFF_UP != 0,
        })
    }
}

impl Address {
    fn read(answer: &Answer, link: &Link) -> Option<Self> {
        let header = answer.header::<ADDRESS>()?;
        let [family, prefix, short_flags, scope, ..] = header;
        let flags = match answer.attribute(ADDRESS, IFA_FLAGS) {
            Some(value) => netlink::number(value, 0)?,
            None => u32::from(short_flags),
        };
        let stays = netlink::number(&header, 4)? != link.index
            || scope != RT_SCOPE_UNIVERSE
            || flags & IFA_F_PERMANENT == 0;
        if stays {
            return None;
        }
        Some(Self {
            family,
            prefix,
            flags: flags & ASKED,
            label: answer
                .attribute(ADDRESS, IFA_LABEL)
                .and_then(|value| Some(netlink::text(value).strip_prefix(&link.name)?.to_owned()))
                .filter(|rest| !rest.is_empty()),
            kept: answer
                .attributes(ADDRESS)
                .filter(|(kind, _)| KEPT.contains(kind))
                .map(|(kind, value)| (kind, value.to_vec()))
                .collect(),
        })
    }

    fn request(&self, link: &Link) -> Request {
        let mut header = [0; ADDRESS];
        header[..4].copy_from_slice(&[self.family, self.prefix, 0, RT_SCOPE_UNIVERSE]);
        header[4..].copy_from_slice(&link.index.to_ne_bytes());
        let mut request =
            Request::new(RTM_NEWADDR, CREATE, &header).with(IFA_FLAGS, &self.flags.to_ne_bytes());
        for (kind, value) in &self.kept {
            request = request.with(*kind, value);
        }
        // A label that has no room with a longer name is the one thing that is let go.
        match &self.label {
            Some(rest) if link.name.len() + rest.len() <= super::net_devices::LONGEST_NAME => {
                request.with_text(IFA_LABEL, &format!("{}{rest}", link.name))
            }
            _ => request,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_namespace_has_its_loopback_device_first() {
        let links = Links::open().unwrap();
        let link = links.find("lo").unwrap().unwrap();
        assert_eq!(link.index, LOOPBACK);
        assert_eq!(links.at(LOOPBACK).unwrap(), Some(link.clone()));
        assert_eq!(links.find("no-such-device").unwrap(), None);
        // Valid on this host alone.
        let local = |address: &Address| address.kept.contains(&(2, vec![127, 0, 0, 1]));
        assert!(!links.addresses(&link).unwrap().iter().any(local));
    }
}
