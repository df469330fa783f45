//! Plain HTTP requests and servers for the tests, on one runtime of the crate's
//! own, so that a test reads from top to bottom without an `await`.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tokio::runtime::Runtime;

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Response {
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The runtime that this crate's clients and servers live on.
///
/// # Panics
/// The machine gives the process no threads.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    #[expect(
        clippy::expect_used,
        reason = "a test process without threads is of no use"
    )]
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("tokio runtime")
    })
}

/// Sends one request and reads the whole answer.
///
/// # Errors
/// No connection, no answer within 30 s, or one that breaks off.
pub fn request(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Result<Response> {
    static CLIENT: OnceLock<Client<HttpConnector, Full<Bytes>>> = OnceLock::new();
    let client = CLIENT.get_or_init(|| Client::builder(TokioExecutor::new()).build_http());
    let mut request = Request::builder().method(method.clone()).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body.into()))?;
    let exchange = async {
        let response = client.request(request).await?;
        let (head, body) = response.into_parts();
        Ok(Response {
            status: head.status,
            headers: head.headers,
            body: body.collect().await?.to_bytes(),
        })
    };
    runtime()
        .block_on(async { tokio::time::timeout(Duration::from_secs(30), exchange).await })
        .with_context(|| format!("{method} {url}: no answer"))?
        .map_err(|error: anyhow::Error| error.context(format!("{method} {url}")))
}

/// # Errors
/// As [`request`].
pub fn get(url: &str) -> Result<Response> {
    request(Method::GET, url, &[], Bytes::new())
}
