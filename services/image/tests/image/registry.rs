//! A registry in the test process, which serves what it is given and misbehaves on request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt as _;
use gantry_oci::Digest;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;
use tokio::net::TcpListener;

/// How a blob is served.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fault {
    /// The connection breaks after this many bytes of an answer, so often.
    pub(crate) cut_after: Option<usize>,
    pub(crate) cuts: usize,
    /// Answers that come first: a status each.
    pub(crate) refusals: Vec<u16>,
    /// Ranges are not understood.
    pub(crate) no_ranges: bool,
    /// Pause before each answer.
    pub(crate) delay: Duration,
}

#[derive(Default)]
struct Content {
    manifests: HashMap<String, (String, Bytes)>,
    blobs: HashMap<String, Bytes>,
    faults: HashMap<String, Fault>,
    uploads: HashMap<String, Vec<u8>>,
    requests: Vec<String>,
    /// Name, password: wanted through a token service.
    login: Option<(String, String)>,
    redirect_blobs: bool,
}

/// The registry. Its server ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Registry {
    pub(crate) host: String,
    content: Arc<Mutex<Content>>,
    served: Arc<AtomicUsize>,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Self {
            host: listener.local_addr().unwrap().to_string(),
            content: Arc::default(),
            served: Arc::default(),
        };
        let app = axum::Router::new()
            .fallback(answer)
            .with_state(registry.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        registry
    }

    fn content(&self) -> std::sync::MutexGuard<'_, Content> {
        self.content.lock().unwrap()
    }

    pub(crate) fn put_blob(&self, bytes: impl Into<Bytes>) -> (Digest, u64) {
        let bytes = bytes.into();
        let digest = Digest::sha256_of(&bytes);
        let size = bytes.len() as u64;
        self.content().blobs.insert(digest.to_string(), bytes);
        (digest, size)
    }

    /// Serves other bytes under a digest.
    pub(crate) fn alter_blob(&self, digest: &Digest, bytes: impl Into<Bytes>) {
        self.content()
            .blobs
            .insert(digest.to_string(), bytes.into());
    }

    pub(crate) fn put_manifest(
        &self,
        name: &str,
        media_type: &str,
        json: impl Into<Bytes>,
    ) -> Digest {
        let bytes = json.into();
        let digest = Digest::sha256_of(&bytes);
        let mut content = self.content();
        for reference in [name, digest.as_str()] {
            content
                .manifests
                .insert(reference.to_owned(), (media_type.to_owned(), bytes.clone()));
        }
        digest
    }

    pub(crate) fn manifest(&self, name: &str) -> Option<Bytes> {
        self.content()
            .manifests
            .get(name)
            .map(|(_, bytes)| bytes.clone())
    }

    pub(crate) fn blob(&self, digest: &Digest) -> Option<Bytes> {
        self.content().blobs.get(digest.as_str()).cloned()
    }

    pub(crate) fn fault(&self, digest: &Digest, fault: Fault) {
        self.content().faults.insert(digest.to_string(), fault);
    }

    pub(crate) fn want_login(&self, name: &str, password: &str) {
        self.content().login = Some((name.to_owned(), password.to_owned()));
    }

    pub(crate) fn redirect_blobs(&self) {
        self.content().redirect_blobs = true;
    }

    /// Whether a blob was asked for.
    pub(crate) fn asked_for(&self, digest: &Digest) -> bool {
        let content = self.content();
        content
            .requests
            .iter()
            .any(|request| request.ends_with(digest.as_str()))
    }

    /// "GET /v2/…" of all requests so far; the list begins anew.
    pub(crate) fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.content().requests)
    }

    /// Bytes of blobs sent so far.
    pub(crate) fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }
}

fn plain(status: u16) -> Response {
    let code = match status {
        404 => "MANIFEST_UNKNOWN",
        429 => "TOOMANYREQUESTS",
        _ => "UNKNOWN",
    };
    let json = format!(r#"{{"errors":[{{"code":"{code}","message":"the mock says {status}"}}]}}"#);
    Response::builder()
        .status(status)
        .header("retry-after", "0")
        .body(Body::from(json))
        .unwrap()
}

async fn answer(State(registry): State<Registry>, request: Request) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let headers = request.headers().clone();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let delay = {
        let mut content = registry.content();
        content.requests.push(format!("{method} {path}"));
        let digest = path.rsplit('/').next().unwrap_or_default();
        content
            .faults
            .get(digest)
            .map(|fault| fault.delay)
            .unwrap_or_default()
    };
    tokio::time::sleep(delay).await;
    registry.respond(&method, &path, &query, &headers, body)
}

impl Registry {
    fn respond(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Response {
        let mut content = self.content();
        let authorization = headers.get("authorization").and_then(|v| v.to_str().ok());
        if path == "/token" {
            // "bob:secret"
            return if authorization == Some("Basic Ym9iOnNlY3JldA==")
                && query.contains("service=mock")
            {
                Response::new(Body::from(r#"{"token":"let-me-in","expires_in":300}"#))
            } else {
                plain(401)
            };
        }
        if let Some(rest) = path.strip_prefix("/elsewhere/") {
            assert!(
                authorization.is_none(),
                "a token must not leave its registry"
            );
            let bytes = content.blobs[rest].clone();
            return self.send_blob(&mut content, rest, bytes, headers);
        }
        if content.login.is_some() && authorization != Some("Bearer let-me-in") {
            let realm = format!(
                r#"Bearer realm="http://{}/token",service="mock",scope="x""#,
                self.host
            );
            return Response::builder()
                .status(401)
                .header("www-authenticate", realm)
                .body(Body::empty())
                .unwrap();
        }
        let Some(rest) = path.strip_prefix("/v2/") else {
            return plain(404);
        };
        if rest.is_empty() {
            return Response::new(Body::empty());
        }
        if let Some((_, reference)) = rest.split_once("/manifests/") {
            if method == Method::PUT {
                let media_type = headers["content-type"].to_str().unwrap().to_owned();
                let digest = Digest::sha256_of(&body);
                for name in [reference, digest.as_str()] {
                    content
                        .manifests
                        .insert(name.to_owned(), (media_type.clone(), body.clone()));
                }
                return Response::builder().status(201).body(Body::empty()).unwrap();
            }
            return match content.manifests.get(reference) {
                Some((media_type, bytes)) => Response::builder()
                    .header("content-type", media_type)
                    .body(Body::from(bytes.clone()))
                    .unwrap(),
                None => plain(404),
            };
        }
        if let Some((_, upload)) = rest.split_once("/blobs/uploads/") {
            return self.upload(&mut content, method, path, upload, query, body);
        }
        let Some((_, digest)) = rest.split_once("/blobs/") else {
            return plain(404);
        };
        let Some(bytes) = content.blobs.get(digest).cloned() else {
            return plain(404);
        };
        if method == Method::HEAD {
            return Response::new(Body::empty());
        }
        if content.redirect_blobs {
            // The same server under another name.
            let port = self.host.rsplit(':').next().unwrap();
            return Response::builder()
                .status(307)
                .header(
                    "location",
                    format!("http://localhost:{port}/elsewhere/{digest}"),
                )
                .body(Body::empty())
                .unwrap();
        }
        self.send_blob(&mut content, digest, bytes, headers)
    }

    fn upload(
        &self,
        content: &mut Content,
        method: &Method,
        path: &str,
        upload: &str,
        query: &str,
        body: Bytes,
    ) -> Response {
        let parameter = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .into_iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.to_owned())
        };
        if method == Method::POST {
            if let Some(digest) = parameter("mount")
                && parameter("from").as_deref() == Some("mountable")
                && content.blobs.contains_key(&digest)
            {
                return Response::builder().status(201).body(Body::empty()).unwrap();
            }
            return Response::builder()
                .status(202)
                .header("location", format!("{}u1?state=x", path))
                .body(Body::empty())
                .unwrap();
        }
        assert_eq!((method, upload), (&Method::PUT, "u1"));
        let digest = parameter("digest").unwrap();
        if Digest::sha256_of(&body).as_str() != digest {
            return plain(400);
        }
        content.uploads.insert(digest.clone(), body.to_vec());
        content.blobs.insert(digest, body);
        Response::builder().status(201).body(Body::empty()).unwrap()
    }

    fn send_blob(
        &self,
        content: &mut Content,
        digest: &str,
        bytes: Bytes,
        headers: &HeaderMap,
    ) -> Response {
        let mut fault = Fault::default();
        let mut cut = None;
        if let Some(known) = content.faults.get_mut(digest) {
            if !known.refusals.is_empty() {
                return plain(known.refusals.remove(0));
            }
            if known.cuts > 0 {
                known.cuts -= 1;
                cut = known.cut_after;
            }
            fault = known.clone();
        }
        let start: usize = headers
            .get("range")
            .filter(|_| !fault.no_ranges)
            .and_then(|value| {
                value
                    .to_str()
                    .ok()?
                    .strip_prefix("bytes=")?
                    .strip_suffix('-')?
                    .parse()
                    .ok()
            })
            .unwrap_or(0);
        let rest = bytes.slice(start..);
        let mut response = Response::builder().header("content-length", rest.len());
        if start > 0 {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header("content-range", range);
        }
        let sent = cut.map_or(rest.len(), |cut| cut.min(rest.len()));
        self.served.fetch_add(sent, Ordering::SeqCst);
        let whole = sent == rest.len();
        let pieces: Vec<Bytes> = rest
            .slice(..sent)
            .chunks(30_000)
            .map(Bytes::copy_from_slice)
            .collect();
        let broken = futures::stream::iter((!whole).then_some(())).then(|()| async {
            // What was sent so far is flushed when the body is not ready.
            tokio::task::yield_now().await;
            Err(std::io::Error::other("cut"))
        });
        let pieces = futures::stream::iter(pieces.into_iter().map(Ok)).chain(broken);
        response.body(Body::from_stream(pieces)).unwrap()
    }
}
