//! `/v2/<name>/manifests/<reference>`

use axum::body::Body;
use gantry_oci::manifest::MANIFEST_MAX;
use gantry_oci::{Document, MediaType, RepositoryName, Tag};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use http::{HeaderMap, HeaderName, Request, StatusCode};

use super::query::Query;
use super::{Answer, DOCKER_CONTENT_DIGEST, Front, bare, created, empty, is_cached, set};
use crate::Registry;
use crate::error::RegistryError;
use crate::manifests::ManifestReference;
use crate::receive::gather;
use crate::uploads::blocking;

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

pub(super) async fn get(
    registry: &Registry,
    name: RepositoryName,
    reference: &str,
    headers: &HeaderMap,
) -> Answer {
    let reference = existing(&name, reference)?;
    let store = registry.store.clone();
    let stored = blocking(move || store.manifest(&name, &reference)).await?;
    let etag = format!("\"{}\"", stored.digest);
    if is_cached(headers, &etag) {
        let mut response = bare(StatusCode::NOT_MODIFIED);
        set(response.headers_mut(), ETAG, &etag);
        set(
            response.headers_mut(),
            DOCKER_CONTENT_DIGEST,
            stored.digest.as_str(),
        );
        return Ok(response);
    }
    let mut response = bare(StatusCode::OK);
    let headers = response.headers_mut();
    set(headers, CONTENT_TYPE, stored.media_type.as_str());
    set(headers, CONTENT_LENGTH, &stored.raw.len().to_string());
    set(headers, DOCKER_CONTENT_DIGEST, stored.digest.as_str());
    set(headers, ETAG, &etag);
    *response.body_mut() = Body::from(stored.raw);
    Ok(response)
}

pub(super) async fn put(
    front: &Front,
    name: RepositoryName,
    reference: &str,
    query: &Query,
    request: Request<Body>,
) -> Answer {
    let reference: ManifestReference = reference.parse()?;
    let mut tags = query
        .all("tag")
        .map(str::parse)
        .collect::<Result<Vec<Tag>, _>>()?;
    let declared = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(MediaType::from_header);
    let raw = gather(request.into_body(), MANIFEST_MAX).await?;
    let document = match &reference {
        ManifestReference::Digest(digest) => {
            Document::parse_verified(raw, declared.as_ref(), digest, None)?
        }
        ManifestReference::Tag(_) => Document::parse(raw, declared.as_ref())?,
    };

    let mut response = created(
        &format!("/v2/{name}/manifests/{}", document.digest()),
        document.digest(),
    );
    if let Some(subject) = document.subject() {
        set(response.headers_mut(), OCI_SUBJECT, subject.digest.as_str());
    }
    if !tags.is_empty() {
        let names: Vec<&str> = tags.iter().map(Tag::as_str).collect();
        set(response.headers_mut(), OCI_TAG, &names.join(", "));
    }
    if let ManifestReference::Tag(tag) = reference {
        tags.push(tag);
    }
    let (store, authority) = (front.registry.store.clone(), front.authority());
    blocking(move || store.put_manifest(&name, &document, &tags, authority)).await?;
    Ok(response)
}

pub(super) async fn delete(front: &Front, name: RepositoryName, reference: &str) -> Answer {
    if !front.may_delete() {
        return Err(RegistryError::DeleteDisabled);
    }
    let reference = existing(&name, reference)?;
    let store = front.registry.store.clone();
    blocking(move || match reference {
        ManifestReference::Tag(tag) => store.delete_tag(&name, &tag),
        ManifestReference::Digest(digest) => store.delete_manifest(&name, &digest),
    })
    .await?;
    Ok(empty(StatusCode::ACCEPTED))
}

/// A reference to what should be there: what can not be a tag is no tag of any manifest.
fn existing(name: &RepositoryName, reference: &str) -> Result<ManifestReference, RegistryError> {
    match reference.parse() {
        Err(RegistryError::TagInvalid { .. }) => Err(RegistryError::ManifestUnknown {
            name: name.clone(),
            reference: reference.to_owned(),
        }),
        other => other,
    }
}
