//! `/v2/<name>/blobs/uploads/`

use axum::body::Body;
use gantry_oci::{Algorithm, Digest, RepositoryName};
use http::header::{LOCATION, RANGE};
use http::{HeaderName, Request, Response, StatusCode};

use super::query::Query;
use super::range::chunk;
use super::{Answer, created, empty, received, set};
use crate::Registry;
use crate::error::RegistryError;
use crate::uploads::blocking;

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// POST: begins an upload, or takes a whole blob at once, or has it mounted from another repository.
pub(super) async fn begin(
    registry: &Registry,
    name: RepositoryName,
    query: &Query,
    request: Request<Body>,
) -> Answer {
    if let Some(digest) = query.get("mount") {
        let digest: Digest = digest.parse()?;
        let from = query.get("from").map(str::parse).transpose()?;
        if mount(registry, &name, &digest, from).await? {
            return Ok(created(&blob_location(&name, &digest), &digest));
        }
        // What can not be mounted the client uploads.
        let id = registry.uploads.begin(&name, digest.algorithm()).await?;
        return Ok(progress(StatusCode::ACCEPTED, &name, &id, 0));
    }
    if let Some(digest) = query.get("digest") {
        let digest: Digest = digest.parse()?;
        let chunk = chunk(request.headers())?;
        let id = registry.uploads.begin(&name, digest.algorithm()).await?;
        let finished = registry
            .uploads
            .finish(&name, &id, &digest, chunk, request.into_body())
            .await;
        if let Err(error) = finished {
            // The client was never told the id, so nobody can go on with it.
            registry.uploads.cancel(&name, &id).await.ok();
            return Err(error);
        }
        return Ok(created(&blob_location(&name, &digest), &digest));
    }
    let algorithm: Algorithm = match query.get("digest-algorithm") {
        Some(algorithm) => algorithm.parse()?,
        None => Algorithm::default(),
    };
    let id = registry.uploads.begin(&name, algorithm).await?;
    Ok(progress(StatusCode::ACCEPTED, &name, &id, 0))
}

/// GET: how far an upload is.
pub(super) async fn status(registry: &Registry, name: RepositoryName, id: String) -> Answer {
    let offset = registry.uploads.offset(&name, &id).await?;
    Ok(progress(StatusCode::NO_CONTENT, &name, &id, offset))
}

/// PATCH: takes the next chunk.
pub(super) async fn append(
    registry: &Registry,
    name: RepositoryName,
    id: String,
    request: Request<Body>,
) -> Answer {
    let chunk = chunk(request.headers())?;
    let offset = registry
        .uploads
        .append(&name, &id, chunk, request.into_body())
        .await?;
    Ok(progress(StatusCode::ACCEPTED, &name, &id, offset))
}

/// PUT: takes the last chunk, if there is one left, and ends the upload.
pub(super) async fn finish(
    registry: &Registry,
    name: RepositoryName,
    id: String,
    query: &Query,
    request: Request<Body>,
) -> Answer {
    let digest: Digest = query
        .get("digest")
        .ok_or(RegistryError::DigestMissing)?
        .parse()?;
    let chunk = chunk(request.headers())?;
    registry
        .uploads
        .finish(&name, &id, &digest, chunk, request.into_body())
        .await?;
    Ok(created(&blob_location(&name, &digest), &digest))
}

/// DELETE: throws an upload away.
pub(super) async fn cancel(registry: &Registry, name: RepositoryName, id: String) -> Answer {
    registry.uploads.cancel(&name, &id).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Puts a blob into the repository that another one has; says whether that could be done.
async fn mount(
    registry: &Registry,
    name: &RepositoryName,
    digest: &Digest,
    from: Option<RepositoryName>,
) -> Result<bool, RegistryError> {
    let store = registry.store.clone();
    let (name, digest) = (name.clone(), digest.clone());
    blocking(move || {
        let linking = store.linking();
        // Without a source any will do: whoever may read here may read everywhere,
        // so a digest gives away nothing that could not be fetched. This changes
        // with the first access rule.
        let there = match &from {
            Some(source) => store.layer_size(source, &digest).is_ok(),
            None => store.content().contains(&digest),
        };
        if !there {
            return Ok(false);
        }
        linking.link_layer(&name, &digest)?;
        Ok(true)
    })
    .await
}

fn blob_location(name: &RepositoryName, digest: &Digest) -> String {
    format!("/v2/{name}/blobs/{digest}")
}

fn progress(status: StatusCode, name: &RepositoryName, id: &str, offset: u64) -> Response<Body> {
    let mut response = empty(status);
    let headers = response.headers_mut();
    set(headers, LOCATION, &format!("/v2/{name}/blobs/uploads/{id}"));
    set(headers, RANGE, &received(offset));
    set(headers, UPLOAD_UUID, id);
    response
}
