//! Which name servers a container is told of.
//!
//! A server on the host's loopback (systemd-resolved's stub, dnsmasq) is not
//! there for a container, whose loopback is its own: those are left out. Where
//! none remains, public ones stand in, as Docker does.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

const HOST: &str = "/etc/resolv.conf";
/// Where systemd-resolved writes the servers behind its stub.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
const PUBLIC: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)),
    IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4)),
];
/// More are ignored by the resolver of every C library (MAXNS, resolv.conf(5)).
const SERVERS_MAX: usize = 3;

/// Where the answer comes from.
#[derive(Clone, Debug)]
pub struct Resolver {
    configured: Vec<IpAddr>,
}

/// What a container's resolv.conf shall say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
}

impl Resolver {
    #[must_use]
    pub fn new(configured: Vec<IpAddr>) -> Self {
        Self { configured }
    }

    /// The answer of this moment: the host's file may change under way.
    #[must_use]
    pub fn names(&self) -> Names {
        let mut names = read(Path::new(HOST));
        if names.servers.is_empty() {
            names.servers = read(Path::new(BEHIND_STUB)).servers;
        }
        if !self.configured.is_empty() {
            names.servers.clone_from(&self.configured);
        }
        if names.servers.is_empty() {
            names.servers = PUBLIC.to_vec();
        }
        names
    }
}

fn read(path: &Path) -> Names {
    parse(&fs::read_to_string(path).unwrap_or_default())
}

fn parse(text: &str) -> Names {
    let mut names = Names {
        servers: Vec::new(),
        search: Vec::new(),
    };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let server = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                // Endpoints have IPv4 alone for now.
                if let Some(server) = server
                    && server.is_ipv4()
                    && !server.is_loopback()
                    && names.servers.len() < SERVERS_MAX
                {
                    names.servers.push(server);
                }
            }
            // The last of these lines holds (resolv.conf(5)).
            Some("search" | "domain") => names.search = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_the_hosts_loopback_are_left_out() {
        let names =
            parse("# x\nnameserver 127.0.0.53\nnameserver 192.0.2.1 \nsearch a.example b\n");
        assert_eq!(names.servers, [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))]);
        assert_eq!(names.search, ["a.example", "b"]);
    }

    #[test]
    fn configured_servers_win() {
        let server = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));
        assert_eq!(Resolver::new(vec![server]).names().servers, [server]);
    }

    #[test]
    fn there_is_always_a_server() {
        assert!(!Resolver::new(Vec::new()).names().servers.is_empty());
    }
}
