//! A registry in the test process, which serves what it is given and misbehaves on request.

mod tokens;

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
    /// When no cut is left, there is nothing any more.
    pub(crate) gone_after_cuts: bool,
    /// An upload takes so many bytes of a request and no more, so often.
    pub(crate) takes: usize,
    pub(crate) breaks: usize,
}

#[derive(Default)]
struct Content {
    manifests: HashMap<String, (String, Bytes)>,
    blobs: HashMap<String, Bytes>,
    faults: HashMap<String, Fault>,
    uploads: HashMap<String, Vec<u8>>,
    requests: Vec<String>,
    /// What came after the question mark.
    queries: Vec<String>,
    /// Name, password: wanted through a token service.
    login: Option<(String, String)>,
    /// Where the token service is said to be. Absent: here.
    realm: Option<String>,
    /// What goes before the paths in Location and Link: "http://elsewhere".
    leads_to: String,
    /// The values of Authorization that came.
    authorizations: Vec<String>,
    /// Tokens that were given: for which scope, and for how many requests they are good.
    tokens: HashMap<String, (String, usize)>,
    /// How many requests a token is good for.
    token_life: usize,
    redirect_blobs: bool,
    /// The value of Retry-After.
    retry_after: String,
    /// Tags on one page.
    page: usize,
    /// An upload that broke is thrown away.
    forgetful: bool,
    /// Uploads that were begun so far: none has the name of another.
    begun: usize,
    /// What `/v1/search` answers. Absent: it is not there.
    search: Option<String>,
    repositories: Vec<String>,
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
            content: Arc::new(Mutex::new(Content {
                token_life: usize::MAX,
                retry_after: "0".to_owned(),
                page: usize::MAX,
                ..Content::default()
            })),
            served: Arc::default(),
        };
        let app = registry.app();
        tokio::spawn(async move { axum::serve(listener, app).await });
        registry
    }

    fn app(&self) -> axum::Router {
        axum::Router::new()
            .fallback(answer)
            .with_state(self.clone())
    }

    /// Serves the same on a Unix socket.
    pub(crate) fn listen_on(&self, socket: &std::path::Path) {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let app = self.app();
        tokio::spawn(async move { axum::serve(listener, app).await });
    }

    /// The port it listens on.
    pub(crate) fn port(&self) -> &str {
        self.host.rsplit(':').next().unwrap()
    }

    /// Names a token service elsewhere.
    pub(crate) fn realm(&self, url: &str) {
        self.content().realm = Some(url.to_owned());
    }

    /// Lets the addresses of uploads and of further pages begin so.
    pub(crate) fn lead_to(&self, base: &str) {
        self.content().leads_to = base.to_owned();
    }

    /// All values of Authorization so far; the list begins anew.
    pub(crate) fn take_authorizations(&self) -> Vec<String> {
        std::mem::take(&mut self.content().authorizations)
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

    /// Lets uploads break, whichever blob they are of.
    pub(crate) fn fault_of_uploads(&self, fault: Fault) {
        self.content().faults.insert("upload".to_owned(), fault);
    }

    pub(crate) fn want_login(&self, name: &str, password: &str) {
        self.content().login = Some((name.to_owned(), password.to_owned()));
    }

    /// Lets each token be good for so many requests only.
    pub(crate) fn token_life(&self, requests: usize) {
        self.content().token_life = requests;
    }

    /// The scopes that tokens were given for.
    pub(crate) fn scopes(&self) -> Vec<String> {
        let content = self.content();
        let scopes = content.tokens.values().map(|(scope, _)| scope.clone());
        scopes.collect()
    }

    pub(crate) fn retry_after(&self, value: &str) {
        self.content().retry_after = value.to_owned();
    }

    pub(crate) fn page(&self, tags: usize) {
        self.content().page = tags;
    }

    pub(crate) fn forget_broken_uploads(&self) {
        self.content().forgetful = true;
    }

    pub(crate) fn answer_search(&self, json: &str) {
        self.content().search = Some(json.to_owned());
    }

    pub(crate) fn list_repositories(&self, names: &[&str]) {
        self.content().repositories = names.iter().map(|name| (*name).to_owned()).collect();
    }

    /// All queries so far; the list begins anew.
    pub(crate) fn take_queries(&self) -> Vec<String> {
        std::mem::take(&mut self.content().queries)
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

fn parameter(query: &str, name: &str) -> Option<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut named = pairs.filter(|(key, _)| *key == name);
    let (_, value) = named.next()?;
    let value = percent_encoding::percent_decode_str(value).decode_utf8();
    Some(value.unwrap().into_owned())
}

fn empty(status: u16, headers: &[(&str, &str)]) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Body::empty()).unwrap()
}

fn plain(status: u16) -> Response {
    refusal(status, "0")
}

fn refusal(status: u16, retry_after: &str) -> Response {
    let code = match status {
        404 => "MANIFEST_UNKNOWN",
        429 => "TOOMANYREQUESTS",
        _ => "UNKNOWN",
    };
    let json = format!(r#"{{"errors":[{{"code":"{code}","message":"the mock says {status}"}}]}}"#);
    Response::builder()
        .status(status)
        .header("retry-after", retry_after)
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
        content.queries.push(query.clone());
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
        content
            .authorizations
            .extend(authorization.map(str::to_owned));
        if path == "/token" {
            return self.token(&mut content, method, query, authorization, &body);
        }
        if let Some(rest) = path.strip_prefix("/elsewhere/") {
            assert!(
                authorization.is_none(),
                "a token must not leave its registry"
            );
            let bytes = content.blobs[rest].clone();
            return self.send_blob(&mut content, rest, bytes, headers);
        }
        if content.login.is_some() && !tokens::lets_in(&mut content, authorization, path) {
            let here = format!("http://{}/token", self.host);
            let realm = content.realm.as_ref().unwrap_or(&here);
            let realm = format!(r#"Bearer realm="{realm}",service="mock",scope="x""#);
            return Response::builder()
                .status(401)
                .header("www-authenticate", realm)
                .body(Body::empty())
                .unwrap();
        }
        if path == "/v1/search" {
            return match &content.search {
                Some(json) => Response::new(Body::from(json.clone())),
                None => plain(404),
            };
        }
        let Some(rest) = path.strip_prefix("/v2/") else {
            return plain(404);
        };
        if let Some(name) = rest.strip_suffix("/tags/list") {
            let mut tags: Vec<String> = content.manifests.keys().cloned().collect();
            tags.retain(|tag| !tag.contains(':'));
            return paged(
                &content,
                path,
                query,
                &format!(r#""name":"{name}","tags""#),
                tags,
            );
        }
        if rest == "_catalog" {
            let names = content.repositories.clone();
            return paged(&content, path, query, r#""repositories""#, names);
        }
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
            return self.upload(&mut content, method, path, upload, query, headers, body);
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

    #[allow(clippy::too_many_arguments, reason = "they are the request")]
    fn upload(
        &self,
        content: &mut Content,
        method: &Method,
        path: &str,
        upload: &str,
        query: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Response {
        let parameter = |name: &str| parameter(query, name);
        if method == Method::POST {
            if let Some(digest) = parameter("mount")
                && parameter("from").as_deref() == Some("mountable")
                && content.blobs.contains_key(&digest)
            {
                return empty(201, &[]);
            }
            content.begun += 1;
            let name = format!("u{}", content.begun);
            content.uploads.insert(name.clone(), Vec::new());
            let location = format!("{}{path}{name}?state=x", content.leads_to);
            return empty(202, &[("location", &location)]);
        }
        if !content.uploads.contains_key(upload) {
            return plain(404);
        }
        let there = content.uploads[upload].len();
        let location = format!("{path}?state=x");
        if method == Method::GET {
            let range = format!("0-{}", there.saturating_sub(1));
            return empty(204, &[("location", &location), ("range", &range)]);
        }
        let range = headers.get("content-range").map(|v| v.to_str().unwrap());
        let expected = format!("{there}-{}", (there + body.len()).saturating_sub(1));
        if method == Method::PATCH && range != Some(expected.as_str()) {
            return plain(416);
        }
        let digest = parameter("digest");
        // Which blob it is going to be only the end of it tells: faults are for any.
        let fault = content.faults.get_mut("upload").filter(|f| f.breaks > 0);
        if let Some(fault) = fault
            && !body.is_empty()
        {
            fault.breaks -= 1;
            let taken = body.slice(..fault.takes.min(body.len()));
            content.uploads.get_mut(upload).unwrap().extend(taken);
            if content.forgetful {
                content.uploads.remove(upload);
            }
            return plain(503);
        }
        let session = content.uploads.get_mut(upload).unwrap();
        session.extend_from_slice(&body);
        if method == Method::PATCH {
            let range = format!("0-{}", session.len() - 1);
            return empty(202, &[("location", &location), ("range", &range)]);
        }
        assert_eq!(method, Method::PUT);
        let (digest, bytes) = (digest.unwrap(), session.clone());
        if Digest::sha256_of(&bytes).as_str() != digest {
            return plain(400);
        }
        content.blobs.insert(digest, bytes.into());
        empty(201, &[])
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
                let status = known.refusals.remove(0);
                return refusal(status, &content.retry_after);
            }
            if known.gone_after_cuts && known.cuts == 0 {
                return plain(404);
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

/// One page of a list, with a link to the next.
fn paged(
    content: &Content,
    path: &str,
    query: &str,
    before: &str,
    mut all: Vec<String>,
) -> Response {
    all.sort();
    if let Some(last) = parameter(query, "last") {
        all.retain(|entry| *entry > last);
    }
    let page: Vec<&String> = all.iter().take(content.page).collect();
    let json = format!("{{{before}:{}}}", serde_json::to_string(&page).unwrap());
    let mut response = Response::builder();
    if page.len() < all.len() {
        let last = page.last().unwrap();
        let base = &content.leads_to;
        let link = format!(r#"<{base}{path}?last={last}>; rel="next""#);
        response = response.header("link", link);
    }
    response.body(Body::from(json)).unwrap()
}
