//! Published ports: `[[IP:][HOST]:]CONTAINER[/PROTOCOL]`, each a port or a
//! range, an IPv6 address in brackets.

use std::net::IpAddr;

use gantry_proto::network::v1::{PortMapping, Protocol};

use super::{ParseError, Parsed};

/// All ports that one `-p` publishes.
pub(crate) fn published(text: &str) -> Parsed<Vec<PortMapping>> {
    let wrong = |what: &str| {
        ParseError::new(format!(
            "{text:?}: {what}; say [[IP:]HOST_PORT:]CONTAINER_PORT[/tcp|udp|sctp], as in 8080:80"
        ))
    };
    let (rest, protocol) = protocol(text).map_err(|what| wrong(&what))?;
    let (address, rest) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest
                .split_once("]:")
                .ok_or_else(|| wrong("the address in brackets does not end"))?;
            (address, rest)
        }
        None if rest.matches(':').count() >= 2 => {
            let (address, _) = rest.split_once(':').unwrap_or_default();
            (address, &rest[address.len() + 1..])
        }
        None => ("", rest),
    };
    if !address.is_empty() && address.parse::<IpAddr>().is_err() {
        return Err(wrong(&format!("{address:?} is not an IP address")));
    }
    let (host, container) = rest.rsplit_once(':').unwrap_or(("", rest));
    let container = range(container).map_err(|what| wrong(&what))?;
    let host = if host.is_empty() {
        None
    } else {
        Some(range(host).map_err(|what| wrong(&what))?)
    };
    if let Some((first, last)) = host
        && last - first != container.1 - container.0
    {
        return Err(wrong("the two ranges differ in length"));
    }
    Ok((container.0..=container.1)
        .enumerate()
        .map(|(offset, port)| PortMapping {
            host_ip: address.to_owned(),
            host_port: host.map_or(0, |(first, _)| first + offset as u32),
            container_port: port,
            protocol: protocol.into(),
        })
        .collect())
}

/// Checks `--expose`: "80", "53/udp", "7000-7010/tcp"; one entry per port.
pub(crate) fn exposed(text: &str) -> Parsed<Vec<String>> {
    let wrong = |what: &str| ParseError::new(format!("{text:?}: {what}; say PORT[/tcp|udp|sctp]"));
    let (rest, protocol) = protocol(text).map_err(|what| wrong(&what))?;
    let (first, last) = range(rest).map_err(|what| wrong(&what))?;
    Ok((first..=last)
        .map(|port| format!("{port}/{}", protocol_name(protocol)))
        .collect())
}

/// "tcp", "udp" or "sctp".
pub(crate) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Unspecified | Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

fn protocol(text: &str) -> Result<(&str, Protocol), String> {
    let Some((rest, name)) = text.split_once('/') else {
        return Ok((text, Protocol::Tcp));
    };
    let protocol = match name.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return Err(format!("unknown protocol {name:?}")),
    };
    Ok((rest, protocol))
}

fn range(text: &str) -> Result<(u32, u32), String> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 && !text.starts_with('+') => Ok(u32::from(port)),
        _ => Err(format!("{text:?} is not a port (1-65535)")),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if last < first {
        return Err(format!("the range {text:?} ends before it begins"));
    }
    Ok((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        published(text)
            .unwrap()
            .iter()
            .map(|port| {
                format!(
                    "{}|{}|{}|{}",
                    port.host_ip,
                    port.host_port,
                    port.container_port,
                    protocol_name(port.protocol())
                )
            })
            .collect()
    }

    #[test]
    fn every_form_of_a_published_port() {
        for (text, expected) in [
            ("80", vec!["|0|80|tcp"]),
            ("8080:80", vec!["|8080|80|tcp"]),
            ("8080:80/udp", vec!["|8080|80|udp"]),
            ("127.0.0.1:8080:80", vec!["127.0.0.1|8080|80|tcp"]),
            ("127.0.0.1::80", vec!["127.0.0.1|0|80|tcp"]),
            ("[::1]:8080:80/TCP", vec!["::1|8080|80|tcp"]),
            (":80", vec!["|0|80|tcp"]),
            (
                "8000-8001:9000-9001",
                vec!["|8000|9000|tcp", "|8001|9001|tcp"],
            ),
            ("7000-7001/sctp", vec!["|0|7000|sctp", "|0|7001|sctp"]),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_port_is_refused() {
        for text in [
            "",
            "0",
            "65536",
            "x",
            "80:",
            "80/icmp",
            "1.2.3:80:80",
            "80-70",
            "1-2:1-3",
            "[::1:80:80",
            "1:2:3:4",
            "-1",
            "+80",
        ] {
            assert!(published(text).is_err(), "{text}");
        }
    }

    #[test]
    fn exposed_ports_are_listed_one_by_one() {
        assert_eq!(exposed("53-54/udp").unwrap(), ["53/udp", "54/udp"]);
        assert!(exposed("8080:80").is_err());
    }
}
