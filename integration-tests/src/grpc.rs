//! A program's view of an engine: gRPC calls on its sockets.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use gantry_kit::client;
use gantry_proto::registry::v1::StatusRequest;
use gantry_proto::registry::v1::registry_service_client::RegistryServiceClient;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::http::runtime;

const DEADLINE: Duration = Duration::from_secs(10);

/// Whether the service on `socket` answers its health check with SERVING.
#[must_use]
pub fn is_serving(socket: &Path) -> bool {
    health(socket, "").is_ok_and(|status| status == ServingStatus::Serving)
}

/// The health of one gRPC service on `socket`; an empty name asks for the
/// whole process.
///
/// # Errors
/// Nobody answers.
pub fn health(socket: &Path, service: &str) -> Result<ServingStatus> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let reply = block(async {
        let mut client = HealthClient::new(client::channel(socket));
        Ok(client.check(request).await?)
    })?;
    Ok(reply.into_inner().status())
}

/// The services that reflection on `socket` lists.
///
/// # Errors
/// Nobody answers.
pub fn reflected_services(socket: &Path) -> Result<Vec<String>> {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    block(async {
        let mut client = ServerReflectionClient::new(client::channel(socket));
        let mut answers = client
            .server_reflection_info(tokio_stream::once(request))
            .await?
            .into_inner();
        let answer = answers.message().await?.context("no answer")?;
        match answer.message_response {
            Some(MessageResponse::ListServicesResponse(list)) => {
                Ok(list.service.into_iter().map(|s| s.name).collect())
            }
            other => anyhow::bail!("reflection answered {other:?}"),
        }
    })
}

/// Address of the engine's own registry: "127.0.0.1:PORT".
///
/// # Errors
/// The registry service does not answer, or does not listen.
pub fn registry_address(socket: &Path) -> Result<String> {
    let status = block(async {
        let mut client = RegistryServiceClient::new(client::connect(socket));
        Ok(client.status(StatusRequest::default()).await?.into_inner())
    })?;
    status
        .listen_addresses
        .first()
        .cloned()
        .context("the registry service listens nowhere")
}

fn block<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    runtime().block_on(async {
        tokio::time::timeout(DEADLINE, call)
            .await
            .context("no answer")?
    })
}
