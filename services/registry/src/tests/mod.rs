//! The registry as clients see it: requests against the router, and against real sockets.

mod blobs;
mod garbage;
mod leftovers;
mod listen;
mod listings;
mod manifests;

use axum::body::Body;
use bytes::Bytes;
use gantry_oci::{Descriptor, Digest, MediaType};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;

use crate::http::Side;
use crate::{Config, Registry};

/// A registry in a temporary directory.
struct Fixture {
    root: tempfile::TempDir,
    registry: Registry,
}

/// A response, read to its end.
#[derive(Debug)]
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Fixture {
    fn new() -> Self {
        Self::with(Config {
            delete_enabled: true,
            ..Config::default()
        })
    }

    fn with(config: Config) -> Self {
        let root = tempfile::tempdir().unwrap();
        let registry = Registry::open(root.path().join("registry"), config).unwrap();
        Self { root, registry }
    }

    /// The same files in a new process, as it were.
    fn restarted(self) -> Self {
        let config = (*self.registry.config).clone();
        drop(self.registry);
        let registry = Registry::open(self.root.path().join("registry"), config).unwrap();
        Self {
            root: self.root,
            registry,
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Reply {
        self.send_from(Side::Network, method, path, headers, body)
            .await
    }

    async fn send_from(
        &self,
        side: Side,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.into()).unwrap();
        let response = crate::http::router(self.registry.clone(), side)
            .oneshot(request)
            .await
            .unwrap();
        let (parts, body) = response.into_parts();
        Reply {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], Body::empty()).await
    }

    async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, &[], Body::empty()).await
    }

    /// Begins an upload and returns its location.
    async fn begin(&self, name: &str) -> String {
        let path = format!("/v2/{name}/blobs/uploads/");
        let reply = self.send(Method::POST, &path, &[], Body::empty()).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");
        reply.header("location").to_owned()
    }

    /// Pushes a blob in one request.
    async fn push(&self, name: &str, content: &[u8]) -> Digest {
        let digest = Digest::sha256_of(content);
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        let reply = self.send(Method::POST, &path, &[], content.to_vec()).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
        digest
    }

    /// Pushes a manifest under a tag or digest.
    async fn put(&self, name: &str, reference: &str, kind: &MediaType, text: &str) -> Reply {
        let path = format!("/v2/{name}/manifests/{reference}");
        let headers = [("content-type", kind.as_str())];
        self.send(Method::PUT, &path, &headers, text.to_owned())
            .await
    }

    /// Pushes an image of one layer and returns the manifest's digest.
    async fn image(&self, name: &str, tag: &str, layer: &[u8]) -> Digest {
        self.push(name, b"{}").await;
        self.push(name, layer).await;
        let text = manifest(layer, "");
        let reply = self.put(name, tag, &MediaType::OciManifest, &text).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
        Digest::sha256_of(text.as_bytes())
    }
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no header {name} in {self:?}"))
            .to_str()
            .unwrap()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Checks that this is an error of the catalogue.
    fn refused(&self, status: u16, code: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.json()["errors"][0]["code"], code);
        assert_ne!(self.json()["errors"][0]["message"], "");
    }
}

/// A manifest with the configuration `{}` and one layer, and whatever else.
fn manifest(layer: &[u8], extra: &str) -> String {
    let config = Descriptor::of(MediaType::OciConfig, b"{}");
    let layer = Descriptor::of(MediaType::OciLayer, layer);
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{}]{extra}}}"#,
        MediaType::OciManifest,
        serde_json::to_string(&config).unwrap(),
        serde_json::to_string(&layer).unwrap(),
    )
}
