//! Administration over gRPC: `gantry.registry.v1`. Thin: wire types in, domain calls, wire types out.

use std::sync::Arc;

use gantry_kit::fault::{Fault, chain};
use gantry_oci::RepositoryName;
use gantry_proto::registry::v1::registry_service_server::{RegistryService, RegistryServiceServer};
use gantry_proto::registry::v1::{
    CollectGarbageRequest, CollectGarbageResponse, DeleteManifestRequest, DeleteManifestResponse,
    DeleteRepositoryRequest, DeleteRepositoryResponse, ListRepositoriesRequest,
    ListRepositoriesResponse, ListTagsRequest, ListTagsResponse, StatusRequest, StatusResponse,
};
use tonic::{Code as Grpc, Request, Response, Status};

use crate::Registry;
use crate::error::{Code, RegistryError};
use crate::listen::Listening;
use crate::manifests::ManifestReference;
use crate::repositories::Page;
use crate::uploads::blocking;

/// The full name of the service, for health and reflection.
pub const SERVICE: &str = "gantry.registry.v1.RegistryService";

const DOMAIN: &str = "gantry.registry";
const PAGE_DEFAULT: usize = 1000;

/// The administration of a registry.
#[derive(Clone, Debug)]
pub struct Administration {
    registry: Registry,
    listening: Arc<Listening>,
}

impl Administration {
    /// `listening` is what is said of the network's side.
    #[must_use]
    pub const fn new(registry: Registry, listening: Arc<Listening>) -> Self {
        Self {
            registry,
            listening,
        }
    }

    /// The service for a gRPC server.
    #[must_use]
    pub fn into_server(self) -> RegistryServiceServer<Self> {
        RegistryServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl RegistryService for Administration {
    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let listening = StatusResponse {
            listen_addresses: self
                .listening
                .address()
                .iter()
                .map(ToString::to_string)
                .collect(),
            tls: self.listening.is_tls(),
            listen_error: self.listening.error(),
            ..StatusResponse::default()
        };
        if request.into_inner().listen_only {
            return Ok(Response::new(listening));
        }
        let registry = self.registry.clone();
        let (repositories, blobs, uploads) = blocking(move || {
            Ok((
                registry.store.repositories()?.len(),
                registry.store.content().list()?,
                registry.uploads.count()?,
            ))
        })
        .await?;
        Ok(Response::new(StatusResponse {
            repositories: repositories as u64,
            blobs: blobs.len() as u64,
            bytes: blobs.iter().map(|blob| blob.size).sum(),
            uploads: uploads as u64,
            ..listening
        }))
    }

    async fn list_repositories(
        &self,
        request: Request<ListRepositoriesRequest>,
    ) -> Result<Response<ListRepositoriesResponse>, Status> {
        let request = request.into_inner();
        let store = self.registry.store.clone();
        let all = blocking(move || store.repositories()).await?;
        let page = page(all, &request.after, request.page_size);
        Ok(Response::new(ListRepositoriesResponse {
            repositories: page.entries.into_iter().map(String::from).collect(),
            more: page.more,
        }))
    }

    async fn list_tags(
        &self,
        request: Request<ListTagsRequest>,
    ) -> Result<Response<ListTagsResponse>, Status> {
        let request = request.into_inner();
        let name = name(&request.repository)?;
        let store = self.registry.store.clone();
        let all = blocking(move || store.tags(&name)).await?;
        let page = page(all, &request.after, request.page_size);
        Ok(Response::new(ListTagsResponse {
            tags: page.entries.into_iter().map(String::from).collect(),
            more: page.more,
        }))
    }

    async fn delete_manifest(
        &self,
        request: Request<DeleteManifestRequest>,
    ) -> Result<Response<DeleteManifestResponse>, Status> {
        let request = request.into_inner();
        let name = name(&request.repository)?;
        let reference: ManifestReference = request.reference.parse()?;
        let store = self.registry.store.clone();
        blocking(move || match reference {
            ManifestReference::Tag(tag) => store.delete_tag(&name, &tag),
            ManifestReference::Digest(digest) => store.delete_manifest(&name, &digest),
        })
        .await?;
        Ok(Response::new(DeleteManifestResponse {}))
    }

    async fn delete_repository(
        &self,
        request: Request<DeleteRepositoryRequest>,
    ) -> Result<Response<DeleteRepositoryResponse>, Status> {
        let name = name(&request.into_inner().repository)?;
        let store = self.registry.store.clone();
        blocking(move || store.delete_repository(&name)).await?;
        Ok(Response::new(DeleteRepositoryResponse {}))
    }

    async fn collect_garbage(
        &self,
        request: Request<CollectGarbageRequest>,
    ) -> Result<Response<CollectGarbageResponse>, Status> {
        let dry_run = request.into_inner().dry_run;
        let store = self.registry.store.clone();
        let grace = self.registry.config.garbage_grace();
        let collected = blocking(move || store.collect_garbage(grace, dry_run)).await?;
        Ok(Response::new(CollectGarbageResponse {
            blobs_deleted: collected.blobs,
            bytes_freed: collected.bytes,
        }))
    }
}

fn name(text: &str) -> Result<RepositoryName, RegistryError> {
    Ok(text.parse::<RepositoryName>()?)
}

fn page<T: AsRef<str>>(all: Vec<T>, after: &str, size: u32) -> Page<T> {
    let limit = match usize::try_from(size) {
        Ok(0) | Err(_) => PAGE_DEFAULT,
        Ok(size) => size,
    };
    Page::of(all, Some(after).filter(|after| !after.is_empty()), limit)
}

impl From<RegistryError> for Status {
    fn from(error: RegistryError) -> Self {
        let code = error.code();
        let grpc = match code {
            Code::BlobUnknown
            | Code::BlobUploadUnknown
            | Code::ManifestUnknown
            | Code::NameUnknown
            | Code::NotFound => Grpc::NotFound,
            Code::BlobUploadInvalid
            | Code::DigestInvalid
            | Code::ManifestInvalid
            | Code::ManifestTooLarge
            | Code::NameInvalid
            | Code::SizeInvalid
            | Code::PaginationInvalid => Grpc::InvalidArgument,
            Code::BlobUploadRange | Code::RangeInvalid => Grpc::OutOfRange,
            Code::ManifestBlobUnknown => Grpc::FailedPrecondition,
            Code::Unsupported => Grpc::Unimplemented,
            Code::Denied => Grpc::PermissionDenied,
            Code::TooManyRequests => Grpc::Unavailable,
            Code::RequestTimeout => Grpc::DeadlineExceeded,
            Code::OutOfSpace => Grpc::ResourceExhausted,
            Code::Unknown => Grpc::Internal,
        };
        let message = chain(&error);
        if grpc == Grpc::Internal {
            tracing::error!("{message}");
        }
        let fault = Fault::new(grpc, DOMAIN, error.reason(), message);
        match &error {
            RegistryError::NameUnknown { name } => fault.with("repository", name),
            RegistryError::ManifestUnknown { name, reference } => {
                fault.with("repository", name).with("reference", reference)
            }
            _ => fault,
        }
        .into()
    }
}
