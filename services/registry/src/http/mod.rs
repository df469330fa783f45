//! The distribution API: requests in, domain calls, responses out.
//!
//! Repository names have slashes in them, and come before the fixed part of a
//! path, so paths are read from their end by `Route` and not by the router.

use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};

use crate::Registry;
use crate::error::RegistryError;
use crate::manifests::Authority;

mod blobs;
mod listings;
mod manifests;
mod query;
mod range;
mod route;
mod uploads;

use query::Query;
use route::Route;

pub(crate) const DOCKER_CONTENT_DIGEST: HeaderName =
    HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// What a handler answers.
pub(crate) type Answer = Result<Response<Body>, RegistryError>;

/// Where requests come from, which says what they may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The service's Unix socket: root and the engine's group. They may do
    /// everything, and what they push is kept from the network's clients.
    Socket,
    /// The network: whoever can connect.
    Network,
}

/// A registry as it is seen from one side.
#[derive(Clone, Debug)]
struct Front {
    registry: Registry,
    side: Side,
}

impl Front {
    /// Whether clients may delete, and replace what others pushed.
    fn may_delete(&self) -> bool {
        self.side == Side::Socket || self.registry.config.delete_enabled
    }

    fn authority(&self) -> Authority {
        match self.side {
            Side::Socket => Authority::Owner,
            Side::Network if self.may_delete() => Authority::Trusted,
            Side::Network => Authority::Guest,
        }
    }
}

/// The whole API as a router, for a listener or a test.
pub fn router(registry: Registry, side: Side) -> Router {
    let front = Front { registry, side };
    Router::new().fallback(handle).with_state(front)
}

async fn handle(State(front): State<Front>, request: Request<Body>) -> Response<Body> {
    if is_grpc(request.headers()) {
        // A method that the gRPC services on the same socket do not have.
        return tonic::Status::unimplemented("there is no such method").into_http();
    }
    let began = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = match dispatch(&front, request).await {
        Ok(response) => response,
        Err(error) => refusal(&error),
    };
    response
        .headers_mut()
        .insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    tracing::debug!(
        %method,
        path,
        status = response.status().as_u16(),
        elapsed = ?began.elapsed(),
        "answered"
    );
    response
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

async fn dispatch(front: &Front, request: Request<Body>) -> Answer {
    let registry = &front.registry;
    let route = Route::parse(request.uri().path())?;
    let query = Query::parse(request.uri().query().unwrap_or_default());
    // HEAD is GET without a body, which the connection leaves out by itself.
    let method = request.method().clone();
    let not_allowed = |allow| RegistryError::Method {
        method: method.clone(),
        allow,
    };
    let is_get = method == Method::GET || method == Method::HEAD;
    match route {
        Route::Base if is_get => Ok(json(StatusCode::OK, "{}".to_owned())),
        Route::Catalog if is_get => listings::catalog(registry, &query).await,
        Route::Search if is_get => listings::search(registry, &query).await,
        Route::Tags { name } if is_get => listings::tags(registry, name, &query).await,
        Route::Referrers { name, subject } if is_get => {
            listings::referrers(registry, name, subject, &query).await
        }
        Route::Base
        | Route::Catalog
        | Route::Search
        | Route::Tags { .. }
        | Route::Referrers { .. } => Err(not_allowed("GET, HEAD")),

        Route::Blob { name, digest } => match method {
            Method::GET | Method::HEAD => {
                blobs::get(registry, name, digest, &method, request.headers()).await
            }
            Method::DELETE => blobs::delete(front, name, digest).await,
            _ => Err(not_allowed("GET, HEAD, DELETE")),
        },
        Route::Manifest { name, reference } => match method {
            Method::GET | Method::HEAD => {
                manifests::get(registry, name, &reference, request.headers()).await
            }
            Method::PUT => manifests::put(front, name, &reference, &query, request).await,
            Method::DELETE => manifests::delete(front, name, &reference).await,
            _ => Err(not_allowed("GET, HEAD, PUT, DELETE")),
        },
        Route::Uploads { name } => match method {
            Method::POST => uploads::begin(registry, name, &query, request).await,
            _ => Err(not_allowed("POST")),
        },
        Route::Upload { name, id } => match method {
            Method::GET | Method::HEAD => uploads::status(registry, name, id).await,
            Method::PATCH => uploads::append(registry, name, id, request).await,
            Method::PUT => uploads::finish(registry, name, id, &query, request).await,
            Method::DELETE => uploads::cancel(registry, name, id).await,
            _ => Err(not_allowed("GET, HEAD, PATCH, PUT, DELETE")),
        },
    }
}

/// An error as the specification wants it ("Error Codes").
fn refusal(error: &RegistryError) -> Response<Body> {
    let code = error.code();
    let message = gantry_kit::fault::chain(error);
    if code.status().is_server_error() {
        tracing::error!(code = code.as_str(), "{message}");
    } else {
        tracing::debug!(code = code.as_str(), "{message}");
    }
    let body = serde_json::json!({
        "errors": [{ "code": code.as_str(), "message": message, "detail": detail(error) }]
    });
    let mut response = json(code.status(), body.to_string());
    let headers = response.headers_mut();
    match error {
        RegistryError::Method { allow, .. } => {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        RegistryError::UploadRange { offset, .. } => {
            set(headers, RANGE, &received(*offset));
        }
        RegistryError::Range { size } => {
            set(
                headers,
                http::header::CONTENT_RANGE,
                &format!("bytes */{size}"),
            );
        }
        RegistryError::UploadBusy { .. } => {
            headers.insert(http::header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        _ => {}
    }
    response
}

/// The operands of those errors that a program may want to act on.
fn detail(error: &RegistryError) -> serde_json::Value {
    match error {
        RegistryError::NameUnknown { name } => serde_json::json!({ "name": name }),
        RegistryError::BlobUnknown { name, digest } => {
            serde_json::json!({ "name": name, "digest": digest })
        }
        RegistryError::ManifestUnknown { name, reference } => {
            serde_json::json!({ "name": name, "reference": reference })
        }
        RegistryError::References { name, missing } => {
            serde_json::json!({ "name": name, "digests": missing })
        }
        RegistryError::DigestMismatch { expected, found } => {
            serde_json::json!({ "expected": expected, "found": found })
        }
        RegistryError::UploadRange { offset, start, .. } => {
            serde_json::json!({ "offset": offset, "start": start })
        }
        _ => serde_json::Value::Null,
    }
}

/// How much of an upload has come, as clients expect it: of nothing, too, the end is 0.
fn received(offset: u64) -> String {
    format!("0-{}", offset.saturating_sub(1))
}

pub(crate) fn json(status: StatusCode, text: String) -> Response<Body> {
    let mut response = bare(status);
    set(
        response.headers_mut(),
        CONTENT_LENGTH,
        &text.len().to_string(),
    );
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *response.body_mut() = Body::from(text);
    response
}

/// A response without a body, and that says so.
pub(crate) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = bare(status);
    if status != StatusCode::NO_CONTENT {
        response
            .headers_mut()
            .insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    response
}

pub(crate) fn bare(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

pub(crate) fn created(location: &str, digest: &gantry_oci::Digest) -> Response<Body> {
    let mut response = empty(StatusCode::CREATED);
    set(response.headers_mut(), LOCATION, location);
    set(
        response.headers_mut(),
        DOCKER_CONTENT_DIGEST,
        digest.as_str(),
    );
    response
}

/// Sets a header. Values are made of digests, names and numbers, all of them
/// visible ASCII; one that is not would be a fault of ours, and is left out.
pub(crate) fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) => {
            headers.insert(name, value);
        }
        Err(error) => tracing::error!(%name, value, %error, "a header's value is not valid"),
    }
}

/// Whether the client has this content already (RFC 9110, "If-None-Match").
pub(crate) fn is_cached(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(http::header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == "*" || tag == etag)
}
