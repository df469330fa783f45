//! `gantry.network.v1` on the domain: wire types in, domain types out.

use std::net::Ipv4Addr;
use std::sync::Arc;

use gantry_kit::fault::Fault;
use gantry_kit::pages::{self, PageAsked};
use gantry_proto::network::v1 as wire;
use gantry_proto::network::v1::network_service_server::NetworkService;
use tonic::{Code, Request, Response, Status};

use crate::endpoint::{
    ContainerId, Endpoint, EndpointRequest, PortRequest, Protocol, PublishedPort, Users,
};
use crate::error::{NetworkError, chain};
use crate::firewall::FirewallError;
use crate::network::Network;
use crate::ports::PortError;

const DOMAIN: &str = "gantry.network";
const BRIDGE: &str = "bridge";
const HOST: &str = "host";
const NONE: &str = "none";

/// The service as tonic sees it.
#[derive(Clone, Debug)]
pub struct NetworkGrpc {
    network: Arc<Network>,
}

impl NetworkGrpc {
    #[must_use]
    pub fn new(network: Arc<Network>) -> Self {
        Self { network }
    }

    /// Runs a step of the domain where it may block.
    async fn run<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Network) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, Status> {
        let network = Arc::clone(&self.network);
        let span = tracing::Span::current();
        tokio::task::spawn_blocking(move || span.in_scope(|| step(&network)))
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| status(&error))
    }
}

#[tonic::async_trait]
impl NetworkService for NetworkGrpc {
    async fn create_endpoint(
        &self,
        request: Request<wire::CreateEndpointRequest>,
    ) -> Result<Response<wire::CreateEndpointResponse>, Status> {
        let request = EndpointRequest::try_from(request.into_inner()).map_err(|e| status(&e))?;
        let endpoint = self.run(move |network| network.create(request)).await?;
        Ok(Response::new(wire::CreateEndpointResponse {
            endpoint: Some(endpoint.into()),
        }))
    }

    async fn delete_endpoint(
        &self,
        request: Request<wire::DeleteEndpointRequest>,
    ) -> Result<Response<wire::DeleteEndpointResponse>, Status> {
        let container = container_id(request.into_inner().container_id)?;
        let deleted = self.run(move |network| network.delete(&container)).await?;
        Ok(Response::new(wire::DeleteEndpointResponse { deleted }))
    }

    async fn get_endpoint(
        &self,
        request: Request<wire::GetEndpointRequest>,
    ) -> Result<Response<wire::GetEndpointResponse>, Status> {
        let container = container_id(request.into_inner().container_id)?;
        let endpoint = self
            .network
            .get(&container)
            .ok_or_else(|| status(&NetworkError::EndpointNotFound { container }))?;
        Ok(Response::new(wire::GetEndpointResponse {
            endpoint: Some(endpoint.into()),
        }))
    }

    async fn list_endpoints(
        &self,
        request: Request<wire::ListEndpointsRequest>,
    ) -> Result<Response<wire::ListEndpointsResponse>, Status> {
        let request = request.into_inner();
        let endpoints = match request.network.as_str() {
            "" | BRIDGE => self.network.list(),
            HOST | NONE => Vec::new(),
            name => {
                return Err(status(&NetworkError::UnknownNetwork {
                    name: name.to_owned(),
                }));
            }
        };
        let asked = PageAsked {
            size: request.page_size,
            token: &request.page_token,
        };
        let place = |endpoint: &Endpoint| endpoint.container.to_string();
        let page = pages::page(endpoints, asked, place, wire::Endpoint::from);
        Ok(Response::new(wire::ListEndpointsResponse {
            endpoints: page.entries,
            next_page_token: page.next_token,
        }))
    }

    async fn list_networks(
        &self,
        _request: Request<wire::ListNetworksRequest>,
    ) -> Result<Response<wire::ListNetworksResponse>, Status> {
        let bridge = self.network.overview();
        let without_addresses = |name: &str| wire::Network {
            name: name.to_owned(),
            driver: name.to_owned(),
            ..Default::default()
        };
        let networks = vec![
            wire::Network {
                name: BRIDGE.to_owned(),
                driver: BRIDGE.to_owned(),
                bridge: bridge.bridge,
                subnet: bridge.subnet.to_string(),
                gateway: bridge.gateway.to_string(),
                mtu: bridge.mtu,
                addresses_used: bridge.addresses_used,
                addresses_total: bridge.addresses_total,
            },
            without_addresses(HOST),
            without_addresses(NONE),
        ];
        Ok(Response::new(wire::ListNetworksResponse { networks }))
    }
}

impl TryFrom<wire::CreateEndpointRequest> for EndpointRequest {
    type Error = NetworkError;

    fn try_from(request: wire::CreateEndpointRequest) -> Result<Self, NetworkError> {
        match request.network.as_str() {
            "" | BRIDGE => {}
            HOST | NONE => {
                return Err(NetworkError::NoEndpoints {
                    name: request.network,
                });
            }
            _ => {
                return Err(NetworkError::UnknownNetwork {
                    name: request.network,
                });
            }
        }
        let address = match request.address.as_str() {
            "" => None,
            text => Some(address("the container", text)?),
        };
        Ok(Self {
            container: ContainerId::try_from(request.container_id)?,
            names: request.names,
            ports: request
                .ports
                .into_iter()
                .map(PortRequest::try_from)
                .collect::<Result<_, _>>()?,
            address,
            ephemeral: request.ephemeral,
            users: users(&request.uid_mappings, &request.gid_mappings)?,
            mac: match request.mac_address.as_str() {
                "" => None,
                text => Some(mac(text)?),
            },
        })
    }
}

impl TryFrom<wire::PortMapping> for PortRequest {
    type Error = NetworkError;

    fn try_from(mapping: wire::PortMapping) -> Result<Self, NetworkError> {
        let protocol = match mapping.protocol() {
            wire::Protocol::Udp => Protocol::Udp,
            wire::Protocol::Sctp => Protocol::Sctp,
            wire::Protocol::Tcp => Protocol::Tcp,
            wire::Protocol::Unspecified if mapping.protocol == 0 => Protocol::Tcp,
            wire::Protocol::Unspecified => {
                return Err(NetworkError::Protocol {
                    number: mapping.protocol,
                });
            }
        };
        Ok(Self {
            host_address: match mapping.host_ip.as_str() {
                "" => Ipv4Addr::UNSPECIFIED,
                text => address("a published port", text)?,
            },
            host_port: match mapping.host_port {
                0 => None,
                port => Some(port_number("the host", port)?),
            },
            container_port: port_number("the container", mapping.container_port)?,
            protocol,
        })
    }
}

fn users(
    uids: &[wire::IdMapping],
    gids: &[wire::IdMapping],
) -> Result<Option<Users>, NetworkError> {
    if uids.is_empty() != gids.is_empty() {
        return Err(NetworkError::HalfMapped);
    }
    let lines = |mappings: &[wire::IdMapping]| {
        let line = |mapping: &wire::IdMapping| {
            let wire::IdMapping {
                container_id,
                host_id,
                size,
            } = mapping;
            format!("{container_id} {host_id} {size}\n")
        };
        mappings.iter().map(line).collect()
    };
    Ok((!uids.is_empty()).then(|| Users {
        uids: lines(uids),
        gids: lines(gids),
    }))
}

fn address(what: &'static str, text: &str) -> Result<Ipv4Addr, NetworkError> {
    text.parse().map_err(|_| NetworkError::Address {
        what,
        text: text.to_owned(),
    })
}

/// Of one interface: not of a group of them, and not of none.
fn mac(text: &str) -> Result<[u8; 6], NetworkError> {
    let wrong = || NetworkError::Mac {
        text: text.to_owned(),
    };
    let mut bytes = [0; 6];
    let mut pairs = text.split(':');
    for byte in &mut bytes {
        let pair = pairs.next().filter(|pair| pair.len() == 2);
        let pair = pair.filter(|pair| pair.bytes().all(|digit| digit.is_ascii_hexdigit()));
        *byte = u8::from_str_radix(pair.ok_or_else(wrong)?, 16).map_err(|_| wrong())?;
    }
    if pairs.next().is_some() || bytes[0] & 1 == 1 || bytes == [0; 6] {
        return Err(wrong());
    }
    Ok(bytes)
}

fn port_number(what: &'static str, port: u32) -> Result<u16, NetworkError> {
    match u16::try_from(port) {
        Ok(number) if number != 0 => Ok(number),
        _ => Err(NetworkError::PortNumber { what, port }),
    }
}

fn container_id(text: String) -> Result<ContainerId, Status> {
    ContainerId::try_from(text).map_err(|error| status(&error.into()))
}

impl From<Endpoint> for wire::Endpoint {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            container_id: endpoint.container.to_string(),
            network: BRIDGE.to_owned(),
            netns_path: endpoint.namespace.to_string_lossy().into_owned(),
            userns_path: endpoint
                .user_namespace
                .map(|path| path.to_string_lossy().into_owned())
                .unwrap_or_default(),
            interface: endpoint.interface.to_owned(),
            address: format!("{}/{}", endpoint.address, endpoint.subnet.prefix()),
            gateway: endpoint.gateway.to_string(),
            mac_address: endpoint.mac.map(|byte| format!("{byte:02x}")).join(":"),
            ports: endpoint.ports.into_iter().map(Into::into).collect(),
            dns_servers: endpoint.servers.iter().map(ToString::to_string).collect(),
            dns_search: endpoint.search,
            created: Some(prost_types::Timestamp {
                seconds: (endpoint.created / 1000).cast_signed(),
                nanos: (endpoint.created % 1000) as i32 * 1_000_000,
            }),
        }
    }
}

impl From<PublishedPort> for wire::PortMapping {
    fn from(port: PublishedPort) -> Self {
        let protocol = match port.protocol {
            Protocol::Tcp => wire::Protocol::Tcp,
            Protocol::Udp => wire::Protocol::Udp,
            Protocol::Sctp => wire::Protocol::Sctp,
        };
        Self {
            host_ip: if port.host_address.is_unspecified() {
                String::new()
            } else {
                port.host_address.to_string()
            },
            host_port: port.host_port.into(),
            container_port: port.container_port.into(),
            protocol: protocol.into(),
        }
    }
}

/// An error of the domain as it crosses the edge.
fn status(error: &NetworkError) -> Status {
    let fault = |code, reason| Fault::new(code, DOMAIN, reason, chain(error));
    let fault = match error {
        NetworkError::ContainerId(_) => fault(Code::InvalidArgument, "INVALID_CONTAINER_ID"),
        NetworkError::UnknownNetwork { name } => {
            fault(Code::NotFound, "NETWORK_NOT_FOUND").with("network", name)
        }
        NetworkError::NoEndpoints { name } => {
            fault(Code::InvalidArgument, "NETWORK_HAS_NO_ENDPOINTS").with("network", name)
        }
        NetworkError::Address { text, .. } => {
            fault(Code::InvalidArgument, "INVALID_ADDRESS").with("address", text)
        }
        NetworkError::Mac { text } => {
            fault(Code::InvalidArgument, "INVALID_ADDRESS").with("address", text)
        }
        NetworkError::PortNumber { port, .. } => {
            fault(Code::InvalidArgument, "INVALID_PORT").with("port", port)
        }
        NetworkError::Protocol { number } => {
            fault(Code::InvalidArgument, "INVALID_PROTOCOL").with("protocol", number)
        }
        NetworkError::HalfMapped => fault(Code::InvalidArgument, "INVALID_ID_MAPPINGS"),
        NetworkError::EndpointExists { container } => {
            fault(Code::AlreadyExists, "ENDPOINT_EXISTS").with("container_id", container)
        }
        NetworkError::EndpointNotFound { container } => {
            fault(Code::NotFound, "ENDPOINT_NOT_FOUND").with("container_id", container)
        }
        NetworkError::EndpointBusy { container } => {
            fault(Code::Aborted, "ENDPOINT_BUSY").with("container_id", container)
        }
        NetworkError::AddressInUse { address } => {
            fault(Code::AlreadyExists, "ADDRESS_IN_USE").with("address", address)
        }
        NetworkError::AddressOutside { address, subnet } => {
            fault(Code::InvalidArgument, "ADDRESS_OUTSIDE_SUBNET")
                .with("address", address)
                .with("subnet", subnet)
        }
        NetworkError::PoolExhausted { subnet, total } => {
            fault(Code::ResourceExhausted, "POOL_EXHAUSTED")
                .with("subnet", subnet)
                .with("total", total)
        }
        NetworkError::BridgeFull { bridge, ports } => fault(Code::ResourceExhausted, "BRIDGE_FULL")
            .with("bridge", bridge)
            .with("ports", ports),
        NetworkError::Backlog { count, .. } => {
            fault(Code::ResourceExhausted, "REMOVAL_BACKLOG").with("count", count)
        }
        NetworkError::Port(PortError::InUse {
            address,
            port,
            protocol,
        })
        | NetworkError::Firewall(FirewallError::Published {
            address,
            port,
            protocol,
        }) => fault(Code::AlreadyExists, "PORT_IN_USE")
            .with("host_ip", address)
            .with("host_port", port)
            .with("protocol", protocol),
        NetworkError::Port(PortError::NoSuchAddress { address, .. }) => {
            fault(Code::InvalidArgument, "HOST_ADDRESS_NOT_FOUND").with("host_ip", address)
        }
        NetworkError::Port(PortError::NoneFree { .. }) => {
            fault(Code::ResourceExhausted, "NO_FREE_PORT")
        }
        NetworkError::Port(PortError::Hold { .. }) => fault(Code::Internal, "PORT_NOT_HELD"),
        NetworkError::Sandbox(_) => fault(Code::Internal, "SANDBOX_FAILED"),
        NetworkError::Firewall(FirewallError::Change { .. }) => {
            fault(Code::Internal, "FIREWALL_FAILED")
        }
        NetworkError::Firewall(
            FirewallError::Owned { table, .. } | FirewallError::Foreign { table, .. },
        ) => fault(Code::FailedPrecondition, "FIREWALL_OWNED").with("table", table),
        NetworkError::Store(_) => fault(Code::Internal, "STORE_FAILED"),
        NetworkError::Random { .. } => fault(Code::Internal, "NO_RANDOM_NUMBER"),
        NetworkError::Stopping => fault(Code::Unavailable, "STOPPING"),
    };
    if fault.code == Code::Internal {
        tracing::error!(
            error = fault.message,
            reason = fault.reason,
            "a call failed"
        );
    }
    fault.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping() -> wire::PortMapping {
        wire::PortMapping {
            container_port: 80,
            ..Default::default()
        }
    }

    fn refusal(mapping: wire::PortMapping) -> Fault {
        let error = PortRequest::try_from(mapping).unwrap_err();
        Fault::from_status(&status(&error))
    }

    #[test]
    fn a_mapping_without_more_is_tcp_on_any_free_port() {
        let request = PortRequest::try_from(mapping()).unwrap();
        assert_eq!(request.protocol, Protocol::Tcp);
        assert_eq!(request.host_port, None);
        assert!(request.host_address.is_unspecified());
    }

    #[test]
    fn wrong_mappings_are_refused_by_name() {
        let mut wrong = mapping();
        wrong.container_port = 65536;
        assert!(refusal(wrong).is("INVALID_PORT"));
        let mut wrong = mapping();
        wrong.host_ip = "::1".to_owned();
        assert!(refusal(wrong).is("INVALID_ADDRESS"));
        let mut wrong = mapping();
        wrong.protocol = 9;
        assert!(refusal(wrong).is("INVALID_PROTOCOL"));
    }

    #[test]
    fn a_hardware_address_is_of_one_interface() {
        assert_eq!(mac("02:42:0A:00:00:05").unwrap(), [2, 66, 10, 0, 0, 5]);
        for bad in [
            "02:42:0a:00:00",
            "02:42:0a:00:00:05:06",
            "+2:42:0a:00:00:05",
            "03:42:0a:00:00:05",
            "00:00:00:00:00:00",
        ] {
            assert!(mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_network_that_needs_no_endpoint_says_so() {
        for (name, reason) in [
            ("host", "NETWORK_HAS_NO_ENDPOINTS"),
            ("web", "NETWORK_NOT_FOUND"),
        ] {
            let request = wire::CreateEndpointRequest {
                container_id: "c".to_owned(),
                network: name.to_owned(),
                ..Default::default()
            };
            let error = EndpointRequest::try_from(request).unwrap_err();
            assert!(Fault::from_status(&status(&error)).is(reason));
        }
    }
}
