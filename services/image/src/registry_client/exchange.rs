//! One request and its answer, with all that may lie in between: the choice of
//! HTTPS or HTTP, authentication, redirects, retries.

use std::error::Error as StdError;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE,
};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;

use super::challenge::Challenge;
use super::error::RegistryError;
use super::transport::{self, Body, HttpClient, Trust};
use super::{Client, Repository, lock};

/// How long a registry may take to begin its answer. Some hash what was uploaded first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Attempts at a request that fails for reasons that pass.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause that a registry may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const REDIRECTS: u32 = 6;
/// Bytes of an error's body that are read.
const ERROR_BODY_MAX: usize = 64 << 10;

/// How a host is reached.
#[derive(Clone)]
pub(super) struct Endpoint {
    client: HttpClient,
    insecure: bool,
    /// What worked last.
    scheme: Option<&'static str>,
}

/// A request, in a form that can be sent more than once.
pub(super) struct Exchange<'a> {
    pub(super) method: Method,
    pub(super) target: Target,
    pub(super) headers: HeaderMap,
    pub(super) body: &'a (dyn Fn() -> Body + Send + Sync),
    /// The object in words, for errors.
    pub(super) what: String,
    /// Answers that the caller understands besides those that mean success.
    pub(super) expect: &'a [StatusCode],
    /// False: the first failure is the answer.
    pub(super) retry: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Target {
    /// A path of the registry's API.
    Path(String),
    /// Wherever the registry sent us.
    Absolute(Uri),
}

pub(super) fn nothing() -> Body {
    Empty::<Bytes>::new()
        .map_err(|never| match never {})
        .boxed_unsync()
}

impl Client {
    pub(super) fn endpoint(&self, host: &str) -> Result<Endpoint, RegistryError> {
        if let Some(endpoint) = lock(&self.shared.endpoints).get(host) {
            return Ok(endpoint.clone());
        }
        let table = self.shared.hosts.table(host);
        let insecure = self.shared.hosts.is_insecure(host);
        let trust = if insecure {
            Trust::Anybody
        } else {
            Trust::Authorities
        };
        let endpoint = Endpoint {
            client: transport::client(host, &table, trust)?,
            insecure,
            scheme: (!insecure).then_some("https"),
        };
        lock(&self.shared.endpoints).insert(host.to_owned(), endpoint.clone());
        Ok(endpoint)
    }

    fn remember_scheme(&self, host: &str, scheme: Option<&'static str>) {
        if let Some(endpoint) = lock(&self.shared.endpoints).get_mut(host)
            && endpoint.insecure
        {
            endpoint.scheme = scheme;
        }
    }

    /// Sends one request to a host, over HTTPS or, where that is allowed, HTTP.
    pub(super) async fn send_once(
        &self,
        host: &str,
        target: &Target,
        make: &(dyn Fn(Uri) -> Result<Request<Body>, RegistryError> + Send + Sync),
        what: &str,
    ) -> Result<Response<Incoming>, RegistryError> {
        let endpoint = self.endpoint(host)?;
        let path = match target {
            Target::Absolute(uri) => {
                let answer = self
                    .attempt(&endpoint, host, make(uri.clone())?, what)
                    .await;
                return answer.map_err(|failure| failure.into_error(host));
            }
            Target::Path(path) => path,
        };
        let schemes: &[&'static str] = match endpoint.scheme {
            Some("http") => &["http"],
            Some(_) => &["https"],
            None => &["https", "http"],
        };
        let mut last = None;
        for scheme in schemes {
            let uri = format!("{scheme}://{host}{path}");
            let uri: Uri = uri.parse().map_err(|error| RegistryError::Malformed {
                host: host.to_owned(),
                what: what.to_owned(),
                reason: format!("{uri:?} is not a URL: {error}"),
            })?;
            match self.attempt(&endpoint, host, make(uri)?, what).await {
                Ok(response) => {
                    self.remember_scheme(host, Some(scheme));
                    return Ok(response);
                }
                Err(failure @ Failure::Connect(_)) => last = Some(failure),
                Err(failure) => return Err(failure.into_error(host)),
            }
        }
        // It may come back speaking the other one.
        self.remember_scheme(host, None);
        Err(match last {
            Some(failure) => failure.into_error(host),
            None => RegistryError::Malformed {
                host: host.to_owned(),
                what: what.to_owned(),
                reason: "there is no way to reach it".into(),
            },
        })
    }

    async fn attempt(
        &self,
        endpoint: &Endpoint,
        host: &str,
        mut request: Request<Body>,
        what: &str,
    ) -> Result<Response<Incoming>, Failure> {
        let agent = concat!("gantry/", env!("CARGO_PKG_VERSION"));
        request
            .headers_mut()
            .insert(USER_AGENT, HeaderValue::from_static(agent));
        match tokio::time::timeout(ANSWER_TIMEOUT, endpoint.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => Err(Failure::Connect(Box::new(error))),
            Ok(Err(error)) => Err(Failure::Other(RegistryError::Broken {
                host: host.to_owned(),
                what: what.to_owned(),
                source: Box::new(error),
            })),
            Err(_) => Err(Failure::Other(RegistryError::Stalled {
                host: host.to_owned(),
                what: what.to_owned(),
                after: ANSWER_TIMEOUT,
            })),
        }
    }
}

enum Failure {
    /// No connection came about, so nothing was sent.
    Connect(Box<hyper_util::client::legacy::Error>),
    Other(RegistryError),
}

impl Failure {
    fn into_error(self, host: &str) -> RegistryError {
        match self {
            Self::Other(error) => error,
            Self::Connect(error) => {
                let host = host.to_owned();
                let source = shortest_cause(error);
                let plain = source
                    .downcast_ref::<rustls::Error>()
                    .is_some_and(|e| matches!(e, rustls::Error::InvalidMessage(_)));
                if plain {
                    RegistryError::NotHttps { host, source }
                } else {
                    RegistryError::Unreachable { host, source }
                }
            }
        }
    }
}

/// The innermost cause that says something: "Connection refused", "certificate
/// has expired". What is around it repeats that something could not be done.
pub(super) fn shortest_cause(
    error: Box<hyper_util::client::legacy::Error>,
) -> Box<dyn StdError + Send + Sync> {
    let mut cause: &(dyn StdError + 'static) = error.as_ref();
    while let Some(next) = inner(cause) {
        cause = next;
    }
    if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
        return Box::new(tls.clone());
    }
    let text = cause.to_string();
    drop(error);
    text.into()
}

/// `source()`, and what an I/O error carries, which its `source()` skips.
fn inner<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref)
    {
        Some(carried) => Some(carried),
        None => error.source(),
    }
}

impl Repository {
    /// Asks and gets an answer that means success, or is among those expected.
    pub(super) async fn ask(
        &self,
        exchange: Exchange<'_>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let error = match self.ask_once(&exchange, attempt).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            if !exchange.retry || attempt == ATTEMPTS || !error.is_transient() {
                return Err(error);
            }
            let asked = match &error {
                RegistryError::Busy { retry_after, .. } => *retry_after,
                // Nobody there: a second look is enough to get over a restart.
                RegistryError::Unreachable { .. } if attempt >= 2 => return Err(error),
                _ => None,
            };
            tracing::debug!(%error, attempt, "asking the registry again");
            tokio::time::sleep(asked.unwrap_or(pause).min(LONGEST_PAUSE)).await;
            pause *= 2;
            attempt += 1;
        }
    }

    async fn ask_once(
        &self,
        exchange: &Exchange<'_>,
        attempt: u32,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut target = exchange.target.clone();
        let mut redirects = 0;
        let mut authenticated = false;
        loop {
            let (host, ours) = self.host_of(&target);
            let authorization = if ours {
                self.known_authorization()
            } else {
                None
            };
            let make = |uri: Uri| {
                let mut request = Request::new((exchange.body)());
                *request.method_mut() = exchange.method.clone();
                *request.uri_mut() = uri;
                *request.headers_mut() = exchange.headers.clone();
                if let Some(value) = &authorization {
                    request.headers_mut().insert(AUTHORIZATION, value.clone());
                }
                Ok(request)
            };
            let response = self
                .client
                .send_once(&host, &target, &make, &exchange.what)
                .await?;
            let status = response.status();
            if status.is_success() || exchange.expect.contains(&status) {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && ours && !authenticated {
                let challenge = Challenge::read(
                    response
                        .headers()
                        .get_all(WWW_AUTHENTICATE)
                        .iter()
                        .filter_map(|value| value.to_str().ok()),
                );
                let refusal =
                    || self.denied(&exchange.what, "it wants credentials of an unknown kind");
                let challenge = challenge.ok_or_else(refusal)?;
                self.authenticate(&challenge, &exchange.what).await?;
                authenticated = true;
                continue;
            }
            let follow =
                matches!(exchange.method, Method::GET | Method::HEAD) && status.is_redirection();
            if follow && let Some(location) = response.headers().get(LOCATION) {
                redirects += 1;
                if redirects > REDIRECTS {
                    return Err(self.malformed(&exchange.what, "it redirects in a circle"));
                }
                target = self.resolve(&target, location, &exchange.what)?;
                continue;
            }
            return Err(self.refusal(response, &exchange.what, attempt).await);
        }
    }

    /// The host a target is on, and whether it is the registry itself, whose
    /// credentials go to nobody else.
    fn host_of(&self, target: &Target) -> (String, bool) {
        match target {
            Target::Path(_) => (self.host.clone(), true),
            Target::Absolute(uri) => {
                let host = uri.authority().map_or("", |a| a.as_str());
                (host.to_owned(), host == self.host)
            }
        }
    }

    /// Where a `Location` leads. An absolute one may leave the host; it may not
    /// leave HTTPS unless the registry itself was not reached by it.
    pub(super) fn resolve(
        &self,
        from: &Target,
        location: &HeaderValue,
        what: &str,
    ) -> Result<Target, RegistryError> {
        let text = location
            .to_str()
            .map_err(|_| self.malformed(what, "its Location is not text"))?;
        if text.starts_with('/') && !text.starts_with("//") {
            return match from {
                Target::Path(_) => Ok(Target::Path(text.to_owned())),
                Target::Absolute(uri) => {
                    let mut parts = uri.clone().into_parts();
                    parts.path_and_query = text.parse().ok();
                    Uri::from_parts(parts)
                        .map(Target::Absolute)
                        .map_err(|_| self.malformed(what, "its Location is not a URL"))
                }
            };
        }
        let uri: Uri = text
            .parse()
            .map_err(|_| self.malformed(what, "its Location is not a URL"))?;
        match uri.scheme_str() {
            Some("https") => Ok(Target::Absolute(uri)),
            Some("http") if self.client.endpoint(&self.host)?.insecure => Ok(Target::Absolute(uri)),
            Some("http") => Err(self.malformed(what, "it redirects from HTTPS to HTTP")),
            _ => Err(self.malformed(what, "its Location is not a URL of HTTP")),
        }
    }

    /// The error in an answer that is one.
    pub(super) async fn refusal(
        &self,
        response: Response<Incoming>,
        what: &str,
        attempt: u32,
    ) -> RegistryError {
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.trim().parse().ok())
            .map(Duration::from_secs);
        let body = Limited::new(response.into_body(), ERROR_BODY_MAX).collect();
        let body = match tokio::time::timeout(Duration::from_secs(5), body).await {
            Ok(Ok(body)) => body.to_bytes(),
            _ => Bytes::new(),
        };
        let message = error_message(&body);
        let (host, what) = (self.host.clone(), what.to_owned());
        match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound {
                host,
                what,
                message,
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied {
                host,
                what,
                message,
            },
            StatusCode::TOO_MANY_REQUESTS => RegistryError::Busy {
                host,
                what,
                status,
                attempts: attempt,
                retry_after,
            },
            _ if status.is_server_error() => RegistryError::Busy {
                host,
                what,
                status,
                attempts: attempt,
                retry_after,
            },
            _ => RegistryError::Unexpected {
                host,
                what,
                status,
                message,
            },
        }
    }

    pub(super) fn malformed(&self, what: &str, reason: &str) -> RegistryError {
        RegistryError::Malformed {
            host: self.host.clone(),
            what: what.to_owned(),
            reason: reason.to_owned(),
        }
    }

    pub(super) fn denied(&self, what: &str, message: &str) -> RegistryError {
        RegistryError::Denied {
            host: self.host.clone(),
            what: what.to_owned(),
            message: message.to_owned(),
        }
    }
}

/// The first error of the specification's error document, in the registry's words.
fn error_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(document) = serde_json::from_slice::<Document>(body) else {
        return String::new();
    };
    let text = document
        .errors
        .into_iter()
        .next()
        .map_or_else(String::new, |entry| {
            if entry.message.is_empty() {
                entry.code
            } else {
                entry.message
            }
        });
    // One line, of a length that a person reads.
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(200)
        .collect()
}
