//! Where a container is on the network, in the shape of Docker's
//! `NetworkSettings`.

use std::collections::BTreeMap;

use gantry_proto::gateway::v1::{ContainerConfig, ContainerDetail, ContainerSummary};
use gantry_proto::network::v1::PortMapping;

use crate::format::{Data, Field, Nil};
use crate::parse::ports::protocol_name;

pub(super) fn network_settings(
    detail: &ContainerDetail,
    config: &ContainerConfig,
    summary: &ContainerSummary,
) -> Data {
    let held = detail.endpoint.as_ref();
    let endpoint = held.cloned().unwrap_or_default();
    let (address, prefix) = endpoint
        .address
        .split_once('/')
        .unwrap_or((endpoint.address.as_str(), "0"));
    let prefix: u64 = prefix.parse().unwrap_or(0);
    let mut ports = BTreeMap::new();
    // Docker has them as long as it runs.
    if held.is_some() {
        for port in &summary.exposed_ports {
            ports.insert(port.clone(), Data::Nil(Nil::List));
        }
        ports.extend(port_bindings(&endpoint.ports, true));
    }
    let network = |name: &str| {
        let of_it = Data::fields([
            ("IPAMConfig", Data::POINTER),
            ("Links", Data::Nil(Nil::List)),
            ("Aliases", Data::Nil(Nil::List)),
            ("MacAddress", endpoint.mac_address.clone().into()),
            ("DriverOpts", Data::Nil(Nil::Map)),
            ("NetworkID", "".into()),
            ("EndpointID", "".into()),
            ("Gateway", endpoint.gateway.clone().into()),
            ("IPAddress", address.into()),
            ("IPPrefixLen", prefix.into()),
            ("IPv6Gateway", "".into()),
            ("GlobalIPv6Address", "".into()),
            ("GlobalIPv6PrefixLen", 0.into()),
            ("DNSNames", Data::Nil(Nil::List)),
        ]);
        (name.to_owned(), of_it)
    };
    let networks = match config.network_mode.as_str() {
        "" | "default" => Some("bridge"),
        // It is on those of the other.
        mode if mode.starts_with("container:") => None,
        mode => Some(mode),
    };
    Data::fields([
        ("Bridge", "".into()),
        ("SandboxID", "".into()),
        ("SandboxKey", endpoint.netns_path.clone().into()),
        ("Ports", Data::Map(ports)),
        ("HairpinMode", false.into()),
        ("LinkLocalIPv6Address", "".into()),
        ("LinkLocalIPv6PrefixLen", 0.into()),
        ("SecondaryIPAddresses", Data::Nil(Nil::List)),
        ("SecondaryIPv6Addresses", Data::Nil(Nil::List)),
        ("EndpointID", "".into()),
        ("Gateway", endpoint.gateway.clone().into()),
        ("GlobalIPv6Address", "".into()),
        ("GlobalIPv6PrefixLen", 0.into()),
        ("IPAddress", address.into()),
        ("IPPrefixLen", prefix.into()),
        ("IPv6Gateway", "".into()),
        ("MacAddress", endpoint.mac_address.clone().into()),
        ("Networks", Data::map(networks.map(network))),
    ])
}

pub(super) fn port_name(port: &PortMapping) -> String {
    format!("{}/{}", port.container_port, protocol_name(port.protocol()))
}

/// "80/tcp" → where it is published.
pub(super) fn port_bindings(ports: &[PortMapping], bound: bool) -> BTreeMap<String, Data> {
    let mut bindings: BTreeMap<String, Vec<Data>> = BTreeMap::new();
    for port in ports {
        let ip = match port.host_ip.as_str() {
            "" if bound => "0.0.0.0",
            ip => ip,
        };
        let host_port = match port.host_port {
            0 => String::new(),
            number => number.to_string(),
        };
        let binding = Data::fields([
            Field::from(("HostIp", ip.into())),
            ("HostPort", host_port.into()).into(),
        ]);
        bindings.entry(port_name(port)).or_default().push(binding);
    }
    bindings
        .into_iter()
        .map(|(port, list)| (port, Data::List(list)))
        .collect()
}
