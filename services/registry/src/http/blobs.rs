//! `/v2/<name>/blobs/<digest>`

use gantry_oci::{Digest, RepositoryName};
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::range::Wanted;
use super::{Answer, DOCKER_CONTENT_DIGEST, Front, bare, empty, is_cached, set};
use crate::Registry;
use crate::error::RegistryError;
use crate::send;
use crate::uploads::blocking;

pub(super) async fn get(
    registry: &Registry,
    name: RepositoryName,
    digest: Digest,
    method: &Method,
    headers: &HeaderMap,
) -> Answer {
    let is_head = *method == Method::HEAD;
    let (store, wanted) = (registry.store.clone(), digest.clone());
    let (file, size) = blocking(move || {
        if is_head {
            // Who asks whether a blob is there may leave it out of a push.
            let size = store.layer_size(&name, &wanted)?;
            store.claim_layer(&name, &wanted);
            Ok((None, size))
        } else {
            let (file, size) = store.open_layer(&name, &wanted)?;
            Ok((Some(file), size))
        }
    })
    .await?;

    let etag = format!("\"{digest}\"");
    let part = Wanted::of(headers, size, &etag)?;
    let mut response = bare(match part {
        _ if is_cached(headers, &etag) => StatusCode::NOT_MODIFIED,
        Wanted::Whole => StatusCode::OK,
        Wanted::Part { .. } => StatusCode::PARTIAL_CONTENT,
    });
    let headers = response.headers_mut();
    set(headers, DOCKER_CONTENT_DIGEST, digest.as_str());
    set(headers, ETAG, &etag);
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("max-age=31536000, immutable"),
    );
    if *response.status_mut() == StatusCode::NOT_MODIFIED {
        return Ok(response);
    }
    let headers = response.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    let (start, length) = match part {
        Wanted::Whole => (0, size),
        Wanted::Part { start, length } => {
            let last = start + length - 1;
            set(
                headers,
                CONTENT_RANGE,
                &format!("bytes {start}-{last}/{size}"),
            );
            (start, length)
        }
    };
    set(headers, CONTENT_LENGTH, &length.to_string());
    if let Some(file) = file {
        *response.body_mut() = send::body(file, start, length);
    }
    Ok(response)
}

pub(super) async fn delete(front: &Front, name: RepositoryName, digest: Digest) -> Answer {
    if !front.may_delete() {
        return Err(RegistryError::DeleteDisabled);
    }
    let store = front.registry.store.clone();
    blocking(move || store.delete_layer(&name, &digest)).await?;
    Ok(empty(StatusCode::ACCEPTED))
}
