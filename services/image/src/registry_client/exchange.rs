//! One request and its answer, with all that may lie in between: the choice of
//! HTTPS or HTTP, authentication, redirects, retries.

use std::error::Error as StdError;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, USER_AGENT, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;

use super::challenge::Challenge;
use super::error::RegistryError;
use super::hosts::is_own;
use super::patience::Pauses;
use super::site::{Site, Tls};
use super::transport::{self, Body, HttpClient};
use super::{Client, Repository, lock};

/// How long a registry may take to begin its answer. Some hash what was uploaded first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// The same for the engine's own registry, where nothing is uploaded.
const OWN_ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long connections are remembered after their last use.
const ENDPOINT_LIFE: Duration = Duration::from_secs(600);
/// Attempts at a request that fails for reasons that pass.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const REDIRECTS: u32 = 6;

/// How a host is reached.
#[derive(Clone)]
pub(super) struct Endpoint {
    client: HttpClient,
    /// Which of the schemes that the configuration leaves open worked last.
    scheme: Option<&'static str>,
    used: Instant,
}

/// Connections that are made alike are shared: to the same host, in a role that
/// is configured alike. What is learnt about a host in one role says nothing of
/// another, nor of the same role under another configuration.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct EndpointKey {
    host: String,
    scheme: Option<&'static str>,
    secrets_in_clear: bool,
    socket: Option<PathBuf>,
    tls: Tls,
}

/// How an answer came, kept in its extensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hop {
    /// Over plain HTTP, where others can read and change it.
    pub(super) plain: bool,
}

impl Hop {
    pub(super) fn of<T>(response: &Response<T>) -> Self {
        let known = response.extensions().get().copied();
        known.unwrap_or(Self { plain: false })
    }
}

impl Site {
    pub(super) fn endpoint(&self) -> EndpointKey {
        EndpointKey {
            host: self.host.clone(),
            scheme: self.scheme,
            secrets_in_clear: self.secrets_in_clear,
            socket: self.socket.clone(),
            tls: self.tls.clone(),
        }
    }
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
    fn endpoint(&self, site: &Site) -> Result<Endpoint, RegistryError> {
        let key = site.endpoint();
        if let Some(endpoint) = lock(&self.shared.endpoints).get_mut(&key) {
            endpoint.used = Instant::now();
            return Ok(endpoint.clone());
        }
        let endpoint = Endpoint {
            client: match &site.socket {
                Some(socket) => transport::socket_client(socket),
                None => transport::client(&site.host, &site.tls)?,
            },
            scheme: None,
            used: Instant::now(),
        };
        let mut endpoints = lock(&self.shared.endpoints);
        // Of files that changed the older connections are not wanted any more.
        endpoints.retain(|other, endpoint| {
            let is_older = other.host == key.host && other.tls.is_older_than(&key.tls);
            !is_older && endpoint.used.elapsed() < ENDPOINT_LIFE
        });
        endpoints.insert(key, endpoint.clone());
        Ok(endpoint)
    }

    fn remember_scheme(&self, site: &Site, scheme: Option<&'static str>) {
        if let Some(endpoint) = lock(&self.shared.endpoints).get_mut(&site.endpoint()) {
            endpoint.scheme = scheme;
        }
    }

    /// Sends one request to a host, over HTTPS or, where that is allowed, HTTP.
    /// `make` is told the address, and leaves out what is secret where that is
    /// not to be read by others. The answer's [`Hop`] is in its extensions.
    pub(super) async fn send_once(
        &self,
        site: &Site,
        target: &Target,
        make: &(dyn Fn(Uri) -> Result<Request<Body>, RegistryError> + Send + Sync),
        what: &str,
    ) -> Result<Response<Incoming>, RegistryError> {
        let endpoint = self.endpoint(site)?;
        let host = site.host.as_str();
        let path = match target {
            Target::Absolute(uri) => {
                let answer = self
                    .attempt(&endpoint, site, make(uri.clone())?, what)
                    .await;
                return answer.map_err(|failure| failure.into_error(site));
            }
            Target::Path(path) => path,
        };
        let allowed = site.schemes();
        let known = allowed
            .iter()
            .filter(|scheme| Some(**scheme) == endpoint.scheme);
        let schemes: Vec<&'static str> = match known.clone().count() {
            0 => allowed.to_vec(),
            _ => known.copied().collect(),
        };
        let mut last = None;
        for scheme in schemes {
            let uri = format!("{scheme}://{host}{path}");
            let uri: Uri = uri.parse().map_err(|error| RegistryError::Malformed {
                host: host.to_owned(),
                what: what.to_owned(),
                reason: format!("{uri:?} is not a URL: {error}"),
            })?;
            match self.attempt(&endpoint, site, make(uri)?, what).await {
                Ok(response) => {
                    self.remember_scheme(site, Some(scheme));
                    return Ok(response);
                }
                Err(failure @ Failure::Connect(_)) => last = Some(failure),
                Err(failure) => return Err(failure.into_error(site)),
            }
        }
        // It may come back speaking the other one.
        self.remember_scheme(site, None);
        Err(match last {
            Some(failure) => failure.into_error(site),
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
        site: &Site,
        mut request: Request<Body>,
        what: &str,
    ) -> Result<Response<Incoming>, Failure> {
        let host = site.host.as_str();
        let plain = !is_https(request.uri());
        let sends = matches!(*request.method(), Method::PUT | Method::PATCH);
        let limit = match site.socket {
            Some(_) if !sends => OWN_ANSWER_TIMEOUT,
            _ => ANSWER_TIMEOUT,
        };
        let agent = concat!("gantry/", env!("CARGO_PKG_VERSION"));
        request
            .headers_mut()
            .insert(USER_AGENT, HeaderValue::from_static(agent));
        match tokio::time::timeout(limit, endpoint.client.request(request)).await {
            Ok(Ok(mut response)) => {
                response.extensions_mut().insert(Hop { plain });
                Ok(response)
            }
            Ok(Err(error)) if error.is_connect() => Err(Failure::Connect(Box::new(error))),
            Ok(Err(error)) => Err(Failure::Other(RegistryError::Broken {
                host: host.to_owned(),
                what: what.to_owned(),
                source: Box::new(error),
            })),
            Err(_) => Err(Failure::Other(RegistryError::Stalled {
                host: host.to_owned(),
                what: what.to_owned(),
                after: limit,
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
    fn into_error(self, site: &Site) -> RegistryError {
        match self {
            Self::Other(error) => error,
            Self::Connect(error) => {
                let host = site.host.clone();
                let source = shortest_cause(error);
                if let Some(socket) = &site.socket {
                    let socket = socket.display().to_string();
                    return RegistryError::NotRunning {
                        host,
                        socket,
                        source,
                    };
                }
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
        let mut pauses = Pauses::from(FIRST_PAUSE);
        let mut attempt = 1;
        loop {
            let error = match self.ask_once(&exchange, attempt).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            // Nobody there: a second look is enough to get over a restart.
            let hopeless = match error {
                RegistryError::Unreachable { .. } | RegistryError::NotRunning { .. } => {
                    attempt >= 2
                }
                RegistryError::Stalled { .. } => self.site.socket.is_some(),
                _ => false,
            };
            if !exchange.retry || attempt == ATTEMPTS || hopeless || !error.is_transient() {
                return Err(error);
            }
            let Some(pause) = pauses.next_after(error.retry_after()) else {
                return Err(error);
            };
            tracing::debug!(%error, attempt, "asking the registry again");
            tokio::time::sleep(pause).await;
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
            let elsewhere = self.elsewhere(&target)?;
            let ours = elsewhere.is_none();
            let site = elsewhere.as_ref().unwrap_or(&self.site);
            let authorization = if ours {
                self.known_authorization()
            } else {
                None
            };
            let make = |uri: Uri| {
                let unread = is_https(&uri) || self.site.secrets_in_clear;
                let mut request = Request::new((exchange.body)());
                *request.method_mut() = exchange.method.clone();
                *request.uri_mut() = uri;
                *request.headers_mut() = exchange.headers.clone();
                let headers = request.headers_mut();
                if ours {
                    headers.extend(self.site.headers.iter().cloned());
                }
                if let Some((value, _)) = authorization
                    .as_ref()
                    .filter(|(_, secret)| unread || !secret)
                {
                    headers.insert(AUTHORIZATION, value.clone());
                }
                Ok(request)
            };
            let response = self
                .client
                .send_once(site, &target, &make, &exchange.what)
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
                let hop = Hop::of(&response);
                self.authenticate(&challenge, hop, &exchange.what).await?;
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
                let hop = Hop::of(&response);
                target = self.resolve(&target, hop, location, &exchange.what)?;
                continue;
            }
            return Err(self.refusal(response, &exchange.what, attempt).await);
        }
    }

    /// The host a target is on where that is not the registry itself, whose
    /// credentials and headers go to nobody else.
    pub(super) fn elsewhere(&self, target: &Target) -> Result<Option<Site>, RegistryError> {
        let Target::Absolute(uri) = target else {
            return Ok(None);
        };
        let host = uri.authority().map_or("", |a| a.as_str());
        if host == self.site.host {
            return Ok(None);
        }
        self.client.shared.hosts.site(host).map(Some)
    }

    /// Where a `Location` leads that came with an answer. An absolute one may
    /// leave the host. It may not leave HTTPS, unless for a host that is declared
    /// insecure, and it may not lead to the engine's own registry.
    pub(super) fn resolve(
        &self,
        from: &Target,
        hop: Hop,
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
        let host = uri.authority().map_or("", |a| a.as_str());
        if host.contains('@') {
            return Err(self.malformed(what, "its Location has a user name"));
        }
        if self.site.socket.is_none() && uri.host().is_some_and(is_own) {
            return Err(self.malformed(what, "its Location is the engine's own registry"));
        }
        match uri.scheme_str() {
            Some("https") => Ok(Target::Absolute(uri)),
            Some("http") if self.may_go_plain(hop, host) => Ok(Target::Absolute(uri)),
            Some("http") => Err(RegistryError::Downgrade {
                host: self.site.host.clone(),
                what: what.to_owned(),
                to: host.to_owned(),
            }),
            _ => Err(self.malformed(what, "its Location is not a URL of HTTP")),
        }
    }

    /// Whether an answer may lead on to a host over plain HTTP.
    fn may_go_plain(&self, hop: Hop, host: &str) -> bool {
        if host == self.site.host {
            return self.site.may_be_plain();
        }
        if hop.plain {
            // What is read and sent was plain before; credentials go to nobody else.
            return true;
        }
        // That a registry on this machine may be plain is for those that a person
        // names, and not for whatever an answer names.
        self.client.shared.hosts.is_declared_insecure(host)
    }
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}
