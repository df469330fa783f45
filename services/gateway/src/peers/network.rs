//! The network service: endpoints.

use gantry_kit::client::{Client, MESSAGE_LIMIT};
use gantry_kit::pages::ANY_SIZE;
use gantry_proto::network::v1 as wire;
use wire::network_service_client::NetworkServiceClient;

use super::refused;
use crate::container::{ContainerId, Endpoint};
use crate::error::{Error, Peer, Result};
use crate::own_ids::OwnIds;
use crate::wanted::PortMapping;
use crate::wire as common;

/// An endpoint that a container is to have.
#[derive(Clone, Debug, Default)]
pub struct EndpointWanted {
    pub network: String,
    pub ports: Vec<PortMapping>,
    /// Empty: the next of the pool.
    pub address: String,
    /// Empty: one that follows from the address.
    pub mac: String,
    pub ephemeral: bool,
    /// Users and groups of the container's own. None: the host's.
    pub own_ids: Option<OwnIds>,
    /// The container's own name first.
    pub names: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Networks {
    networks: NetworkServiceClient<Client>,
}

fn error(status: &tonic::Status) -> Error {
    refused(Peer::Network, status)
}

fn endpoint(wire: wire::Endpoint) -> Endpoint {
    Endpoint {
        network: wire.network,
        netns: wire.netns_path,
        userns: wire.userns_path,
        interface: wire.interface,
        address: wire.address,
        gateway: wire.gateway,
        mac: wire.mac_address,
        ports: wire.ports.into_iter().map(common::port).collect(),
        dns_servers: wire.dns_servers,
        dns_search: wire.dns_search,
        created: wire.created.as_ref().map(common::timestamp),
    }
}

fn id_mappings(own: Option<OwnIds>) -> Vec<wire::IdMapping> {
    let mapping = |ids: OwnIds| wire::IdMapping {
        container_id: 0,
        host_id: ids.first,
        size: ids.count,
    };
    own.into_iter().map(mapping).collect()
}

impl Networks {
    pub(super) fn new(channel: Client) -> Self {
        Self {
            networks: NetworkServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT),
        }
    }

    /// Gives a container a namespace with an address and its published ports.
    ///
    /// # Errors
    /// A port or the address is taken, the pool is empty, or the service fails.
    pub async fn create(&self, id: &ContainerId, wanted: EndpointWanted) -> Result<Endpoint> {
        let request = wire::CreateEndpointRequest {
            container_id: id.to_string(),
            network: wanted.network,
            ports: wanted.ports.iter().map(common::to_port).collect(),
            address: wanted.address,
            mac_address: wanted.mac,
            ephemeral: wanted.ephemeral,
            names: wanted.names,
            uid_mappings: id_mappings(wanted.own_ids),
            gid_mappings: id_mappings(wanted.own_ids),
        };
        let answer = self.networks.clone().create_endpoint(request).await;
        let answer = answer.map_err(|status| error(&status))?.into_inner();
        Ok(endpoint(answer.endpoint.unwrap_or_default()))
    }

    /// Releases a container's endpoint, if there is one.
    ///
    /// # Errors
    /// The service fails.
    pub async fn delete(&self, id: &str) -> Result<()> {
        let request = wire::DeleteEndpointRequest {
            container_id: id.to_owned(),
        };
        let answer = self.networks.clone().delete_endpoint(request).await;
        answer.map(|_deleted| ()).map_err(|status| error(&status))
    }

    /// Owners of all endpoints.
    ///
    /// # Errors
    /// The service fails.
    pub async fn owners(&self) -> Result<Vec<String>> {
        let mut client = self.networks.clone();
        let mut request = wire::ListEndpointsRequest {
            page_size: ANY_SIZE,
            ..wire::ListEndpointsRequest::default()
        };
        let mut owners = Vec::new();
        loop {
            let answer = client.list_endpoints(request.clone()).await;
            let page = answer.map_err(|status| error(&status))?.into_inner();
            owners.extend(page.endpoints.into_iter().map(|found| found.container_id));
            if page.next_page_token.is_empty() {
                return Ok(owners);
            }
            request.page_token = page.next_page_token;
        }
    }
}
