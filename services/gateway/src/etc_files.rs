//! /etc/hosts, /etc/hostname and /etc/resolv.conf as a container sees them.
//!
//! On a network of its own a container gets its own name and address, and the
//! network's name servers. On the host's network it gets the host's files. A
//! person's mount on the place of one of them wins.

use std::fmt::Write as _;
use std::fs;

use crate::container::{Endpoint, Record};
use crate::error::{Error, Result};
use crate::peers::EtcFile;
use crate::spec::mounts;
use crate::wanted::NetworkMode;

const HOSTS: &str = "/etc/hosts";
const HOSTNAME: &str = "/etc/hostname";
const RESOLV: &str = "/etc/resolv.conf";

/// The host's own list of names, begun with by every container.
const LOCALHOST: &str = "127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\n\
    ff00::0\tip6-mcastprefix\n\
    ff02::1\tip6-allnodes\n\
    ff02::2\tip6-allrouters\n";

/// The files for a container, `endpoint` being its address or that of the
/// container whose network it is in.
///
/// # Errors
/// An extra host is malformed.
pub fn files(record: &Record, endpoint: Option<&Endpoint>) -> Result<Vec<EtcFile>> {
    let on_host = record.wanted.network() == NetworkMode::Host;
    let all = [
        EtcFile {
            path: HOSTS,
            content: hosts(record, endpoint, on_host)?,
        },
        EtcFile {
            path: HOSTNAME,
            content: format!("{}\n", record.hostname()),
        },
        EtcFile {
            path: RESOLV,
            content: resolv(record, endpoint),
        },
    ];
    Ok(all
        .into_iter()
        .filter(|file| !mounts::covers(record.mounts(), file.path))
        .collect())
}

fn of_host(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn hosts(record: &Record, endpoint: Option<&Endpoint>, on_host: bool) -> Result<String> {
    let base = if on_host { of_host(HOSTS) } else { None };
    let mut text = base.unwrap_or_else(|| LOCALHOST.to_owned());
    if !text.ends_with('\n') {
        text.push('\n');
    }
    for extra in &record.wanted.extra_hosts {
        let (name, address) = extra_host(extra, endpoint)?;
        let _infallible = writeln!(text, "{address}\t{name}");
    }
    if !on_host && let Some(endpoint) = endpoint.filter(|endpoint| !endpoint.ip().is_empty()) {
        let hostname = record.hostname();
        let domain = &record.wanted.domainname;
        let names = if domain.is_empty() {
            hostname.to_owned()
        } else {
            format!("{hostname}.{domain} {hostname}")
        };
        let _infallible = writeln!(text, "{}\t{names}", endpoint.ip());
    }
    Ok(text)
}

/// "name:address"; "host-gateway" is the network's gateway, where the host is.
fn extra_host<'a>(extra: &'a str, endpoint: Option<&'a Endpoint>) -> Result<(&'a str, &'a str)> {
    let malformed = || {
        Error::invalid(
            "add-host",
            format!("{extra:?} is not of the form name:address"),
        )
    };
    let (name, address) = extra.split_once([':', '=']).ok_or_else(malformed)?;
    let address = match (address, endpoint) {
        ("host-gateway", Some(endpoint)) => endpoint.gateway.as_str(),
        ("host-gateway", None) => "127.0.0.1",
        (address, _) => address.trim_start_matches('[').trim_end_matches(']'),
    };
    if name.is_empty() || address.parse::<std::net::IpAddr>().is_err() {
        return Err(malformed());
    }
    Ok((name, address))
}

/// Refuses malformed extra hosts.
///
/// # Errors
/// One is malformed.
pub fn check(extra_hosts: &[String]) -> Result<()> {
    for extra in extra_hosts {
        extra_host(extra, None)?;
    }
    Ok(())
}

fn resolv(record: &Record, endpoint: Option<&Endpoint>) -> String {
    let wanted = &record.wanted;
    let host = of_host(RESOLV).unwrap_or_default();
    let network = endpoint.filter(|_| record.wanted.network() != NetworkMode::Host);
    let own = !wanted.dns_servers.is_empty()
        || !wanted.dns_search.is_empty()
        || !wanted.dns_options.is_empty();
    if network.is_none() && !own {
        return host;
    }
    let of_host = |key: &str| -> Vec<String> {
        host.lines()
            .filter_map(|line| line.strip_prefix(key)?.strip_prefix([' ', '\t']))
            .flat_map(str::split_whitespace)
            .map(str::to_owned)
            .collect()
    };
    let choose = |person: &[String], of_network: Option<&Vec<String>>, key: &str| {
        if !person.is_empty() {
            return person.to_vec();
        }
        match of_network {
            Some(list) if !list.is_empty() => list.clone(),
            _ => of_host(key),
        }
    };
    let servers = choose(
        &wanted.dns_servers,
        network.map(|endpoint| &endpoint.dns_servers),
        "nameserver",
    );
    let search = choose(
        &wanted.dns_search,
        network.map(|endpoint| &endpoint.dns_search),
        "search",
    );
    let options = choose(&wanted.dns_options, None, "options");
    let mut text = String::new();
    for server in servers {
        let _infallible = writeln!(text, "nameserver {server}");
    }
    // "." is how a person says: search nowhere.
    if !search.is_empty() && search != ["."] {
        let _infallible = writeln!(text, "search {}", search.join(" "));
    }
    if !options.is_empty() {
        let _infallible = writeln!(text, "options {}", options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::ContainerId;
    use crate::wanted::{Mount, Wanted};

    fn record(wanted: Wanted) -> Record {
        let id = ContainerId::try_from("b".repeat(64)).unwrap();
        Record::new(id, "web".to_owned(), wanted)
    }

    fn endpoint() -> Endpoint {
        Endpoint {
            address: "10.66.0.5/16".to_owned(),
            gateway: "10.66.0.1".to_owned(),
            dns_servers: vec!["10.66.0.1".to_owned()],
            ..Endpoint::default()
        }
    }

    fn content(record: &Record, path: &str) -> String {
        let all = files(record, Some(&endpoint())).unwrap();
        all.into_iter()
            .find(|file| file.path == path)
            .unwrap()
            .content
    }

    #[test]
    fn a_container_finds_itself_and_extra_hosts() {
        let record = record(Wanted {
            domainname: "example.org".to_owned(),
            extra_hosts: vec![
                "db:10.0.0.9".to_owned(),
                "six:[fd00::1]".to_owned(),
                "host:host-gateway".to_owned(),
            ],
            ..Wanted::default()
        });
        let hosts = content(&record, HOSTS);
        assert!(hosts.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(hosts.contains("10.0.0.9\tdb\n"));
        assert!(hosts.contains("fd00::1\tsix\n"));
        assert!(hosts.contains("10.66.0.1\thost\n"));
        assert!(hosts.ends_with("10.66.0.5\tbbbbbbbbbbbb.example.org bbbbbbbbbbbb\n"));
        assert_eq!(content(&record, HOSTNAME), "bbbbbbbbbbbb\n");
    }

    #[test]
    fn a_persons_name_servers_win_over_the_networks() {
        let plain = content(&record(Wanted::default()), RESOLV);
        assert!(plain.starts_with("nameserver 10.66.0.1\n"), "{plain}");
        let own = content(
            &record(Wanted {
                dns_servers: vec!["9.9.9.9".to_owned()],
                dns_search: vec![".".to_owned()],
                dns_options: vec!["ndots:2".to_owned()],
                ..Wanted::default()
            }),
            RESOLV,
        );
        assert_eq!(own, "nameserver 9.9.9.9\noptions ndots:2\n");
    }

    #[test]
    fn a_mount_on_a_files_place_wins() {
        let record = record(Wanted {
            mounts: vec![Mount {
                source: "/tmp".to_owned(),
                target: "/etc/hosts".to_owned(),
                ..Mount::default()
            }],
            ..Wanted::default()
        });
        let all = files(&record, None).unwrap();
        assert!(all.iter().all(|file| file.path != HOSTS));
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn malformed_extra_hosts_are_refused() {
        for bad in ["db", "db:", ":10.0.0.1", "db:tenten"] {
            assert!(check(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
