//! A network in the shape of Docker's `NetworkInspect`.

use gantry_proto::gateway::v1::ContainerDetail;
use gantry_proto::network::v1::Network;

use crate::format::{Data, Nil};

/// What Docker calls the driver of a network.
pub(crate) fn driver(network: &Network) -> &str {
    match network.driver.as_str() {
        "none" => "null",
        driver => driver,
    }
}

pub(crate) fn document(network: &Network, containers: &[ContainerDetail]) -> Data {
    let pool = (!network.subnet.is_empty()).then(|| {
        Data::fields([
            ("Subnet", network.subnet.as_str().into()),
            ("Gateway", network.gateway.as_str().into()),
        ])
    });
    let on_it = containers.iter().filter_map(|detail| {
        let summary = detail.summary.as_ref()?;
        let endpoint = detail.endpoint.clone().unwrap_or_default();
        let member = Data::fields([
            ("Name", summary.name.as_str().into()),
            ("EndpointID", "".into()),
            ("MacAddress", endpoint.mac_address.into()),
            ("IPv4Address", endpoint.address.into()),
            ("IPv6Address", "".into()),
        ]);
        Some((summary.id.clone(), member))
    });
    let options = [
        ("com.docker.network.bridge.name", network.bridge.clone()),
        ("com.docker.network.driver.mtu", network.mtu.to_string()),
    ];
    let options = options
        .into_iter()
        .filter(|_| !network.bridge.is_empty())
        .map(|(key, value)| (key.to_owned(), value));
    Data::fields([
        ("Name", network.name.as_str().into()),
        // A network has no other name here.
        ("Id", network.name.as_str().into()),
        ("Scope", "local".into()),
        ("Driver", driver(network).into()),
        ("EnableIPv6", false.into()),
        (
            "IPAM",
            Data::fields([
                ("Driver", "default".into()),
                ("Options", Data::Nil(Nil::Map)),
                ("Config", Data::list(pool)),
            ]),
        ),
        ("Internal", false.into()),
        ("Attachable", false.into()),
        ("Ingress", false.into()),
        ("ConfigFrom", Data::fields([("Network", Data::from(""))])),
        ("ConfigOnly", false.into()),
        ("Containers", Data::map(on_it)),
        ("Options", Data::map(options)),
        ("Labels", Data::map::<String>([])),
    ])
}
