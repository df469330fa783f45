//! Getting in: Basic, and tokens of a token service (distribution's "token authentication", and its OAuth 2 form).

use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use gantry_credentials::Credentials;
use gantry_oci::lenient::{self, Shape};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::challenge::Challenge;
use super::error::RegistryError;
use super::exchange::{EndpointKey, Exchange, Hop, Target, nothing};
use super::hosts::is_local;
use super::{Access, Repository, lock};

/// A token's life where its service does not say (distribution's token specification).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A token is not used in its last moments.
const MARGIN: Duration = Duration::from_secs(5);
const TOKEN_BODY_MAX: usize = 1 << 20;

/// What a token is good for.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct TokenKey {
    /// The host in its role, as it was configured when the token was given.
    endpoint: EndpointKey,
    namespace: Option<String>,
    name: String,
    access: Access,
    user: Option<String>,
    mount_from: Option<String>,
}

/// The value of an `Authorization` header, and until when it can be used.
pub(super) struct Token {
    header: HeaderValue,
    /// It was given for credentials, and is as good as they are.
    secret: bool,
    until: Option<Instant>,
    /// What the token service gave to be kept in place of a password.
    identity: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    refresh_token: String,
    /// Seconds. What is no number says nothing.
    expires_in: Option<serde_json::Value>,
}

/// The form of an [`Answer`].
const ANSWER: Shape = Shape::Record(&[
    ("token", &Shape::Text),
    ("access_token", &Shape::Text),
    ("refresh_token", &Shape::Text),
    ("expires_in", &Shape::Any),
]);

impl Answer {
    fn life(&self) -> Duration {
        let seconds = self.expires_in.as_ref().and_then(|value| match value {
            serde_json::Value::String(text) => text.trim().parse().ok(),
            number => number.as_f64(),
        });
        seconds
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .unwrap_or(DEFAULT_LIFE)
    }
}

impl Repository {
    fn token_key(&self) -> TokenKey {
        TokenKey {
            endpoint: self.site.endpoint(),
            namespace: self.site.namespace.clone(),
            name: self.name.clone(),
            access: self.access,
            user: self.credentials.as_ref().map(|c| match c {
                // The secret is part of it: a wrong password must not profit from a right one.
                Credentials::Password { username, password } => format!("{username}:{password}"),
                Credentials::Identity { token, .. } => token.clone(),
            }),
            mount_from: self.mount_from.clone(),
        }
    }

    /// What was let in before, and whether it is secret.
    pub(super) fn known_authorization(&self) -> Option<(HeaderValue, bool)> {
        let tokens = lock(&self.client.shared.tokens);
        let token = tokens.get(&self.token_key())?;
        let usable = token
            .until
            .is_none_or(|until| Instant::now() + MARGIN < until);
        usable.then(|| (token.header.clone(), token.secret))
    }

    fn remember(&self, token: Token) {
        let mut tokens = lock(&self.client.shared.tokens);
        tokens.retain(|_, token| token.until.is_none_or(|until| Instant::now() < until));
        tokens.insert(self.token_key(), token);
    }

    /// Meets a challenge; the next request then carries what it asks for.
    pub(super) async fn authenticate(
        &self,
        challenge: &Challenge,
        hop: Hop,
        what: &str,
    ) -> Result<(), RegistryError> {
        if hop.plain && !self.site.secrets_in_clear && self.credentials.is_some() {
            return Err(self.in_clear(what, &self.site.host));
        }
        match challenge {
            Challenge::Basic => {
                let Some(Credentials::Password { username, password }) = &self.credentials else {
                    return Err(self.denied(what, "it wants a name and a password"));
                };
                self.remember(Token {
                    header: basic(username, password),
                    secret: true,
                    until: None,
                    identity: None,
                });
                Ok(())
            }
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let (service, scope) = (service.as_deref(), scope.as_deref());
                self.fetch_token(realm, hop, service, scope, what).await
            }
        }
    }

    /// The scopes to ask for: our own, since a challenge names only what one request needed.
    fn scopes(&self, challenged: Option<&str>) -> Vec<String> {
        if self.name.is_empty() {
            return challenged.map(str::to_owned).into_iter().collect();
        }
        let actions = match self.access {
            Access::Pull | Access::Login => "pull",
            Access::Push => "pull,push",
        };
        let own = format!("repository:{}:{actions}", self.name);
        let mount = self.mount_from.as_ref();
        let mount = mount.map(|from| format!("repository:{from}:pull"));
        std::iter::once(own).chain(mount).collect()
    }

    async fn fetch_token(
        &self,
        realm: &str,
        hop: Hop,
        service: Option<&str>,
        challenged: Option<&str>,
        what: &str,
    ) -> Result<(), RegistryError> {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let scopes = self.scopes(challenged);
        let service = service.unwrap_or_default();
        let location = HeaderValue::from_str(realm)
            .map_err(|_| self.malformed(what, "the realm of its token service is not a URL"))?;
        let from = Target::Path("/".into());
        let Target::Absolute(realm) = self.resolve(&from, hop, &location, what)? else {
            return Err(self.malformed(what, "the realm of its token service is not a URL"));
        };
        self.check_realm(&realm, hop, what)?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let mut form = None;
        let mut query = format!("service={}", encode(service));
        for scope in &scopes {
            query.push_str("&scope=");
            query.push_str(&encode(scope));
        }
        match &self.credentials {
            Some(Credentials::Password { username, password }) => {
                query.push_str(&format!("&account={}&client_id=gantry", encode(username)));
                if self.access == Access::Login {
                    query.push_str("&offline_token=true");
                }
                headers.insert(AUTHORIZATION, basic(username, password));
            }
            Some(Credentials::Identity { token, .. }) => {
                headers.insert(
                    CONTENT_TYPE,
                    HeaderValue::from_static("application/x-www-form-urlencoded"),
                );
                form = Some(format!(
                    "grant_type=refresh_token&client_id=gantry&service={}&scope={}&refresh_token={}",
                    encode(service),
                    encode(&scopes.join(" ")),
                    encode(token)
                ));
            }
            None => {}
        }
        let uri: Uri = match &form {
            Some(_) => realm.clone(),
            None => {
                let glue = if realm.query().is_some() { '&' } else { '?' };
                format!("{realm}{glue}{query}").parse().map_err(|_| {
                    self.malformed(what, "the realm of its token service is not a URL")
                })?
            }
        };
        let make = |uri: Uri| {
            let body = match &form {
                Some(form) => Full::new(Bytes::from(form.clone()))
                    .map_err(|never| match never {})
                    .boxed_unsync(),
                None => nothing(),
            };
            let mut request = Request::new(body);
            *request.method_mut() = if form.is_some() {
                Method::POST
            } else {
                Method::GET
            };
            *request.uri_mut() = uri;
            *request.headers_mut() = headers.clone();
            Ok(request)
        };
        let target = Target::Absolute(uri);
        let elsewhere = self.elsewhere(&target)?;
        let site = elsewhere.as_ref().unwrap_or(&self.site);
        let host = site.host.clone();
        let response = self.client.send_once(site, &target, &make, what).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response, what, 1).await);
        }
        let body = Limited::new(response.into_body(), TOKEN_BODY_MAX)
            .collect()
            .await
            .map_err(|source| RegistryError::Broken {
                host,
                what: what.to_owned(),
                source,
            })?
            .to_bytes();
        let answer: Answer = lenient::read(&body, &ANSWER)
            .map_err(|_| self.malformed(what, "its token service gave no token"))?;
        let life = answer.life();
        let token = if answer.token.is_empty() {
            answer.access_token
        } else {
            answer.token
        };
        let mut header = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| self.malformed(what, "its token service gave an odd token"))?;
        header.set_sensitive(true);
        self.remember(Token {
            header,
            secret: self.credentials.is_some(),
            until: Some(Instant::now() + life.min(Duration::from_secs(3600))),
            identity: Some(answer.refresh_token).filter(|token| !token.is_empty()),
        });
        Ok(())
    }

    /// Whether the realm may be told the credentials, if there are any: over
    /// plain HTTP only where the host that gets them is declared insecure.
    fn check_realm(&self, realm: &Uri, hop: Hop, what: &str) -> Result<(), RegistryError> {
        if realm.scheme_str() == Some("https") || self.credentials.is_none() {
            return Ok(());
        }
        let host = realm.authority().map_or("", |a| a.as_str());
        let declared = if host == self.site.host {
            self.site.secrets_in_clear
        } else {
            let stays_here = hop.plain && is_local(host) && is_local(&self.site.host);
            stays_here || self.client.shared.hosts.is_declared_insecure(host)
        };
        if declared {
            Ok(())
        } else {
            Err(self.in_clear(what, host))
        }
    }

    fn in_clear(&self, what: &str, to: &str) -> RegistryError {
        RegistryError::InClear {
            host: self.site.host.clone(),
            what: what.to_owned(),
            to: to.to_owned(),
        }
    }

    /// Asks to be let in, whatever was known before. What the token service
    /// gave to be kept in place of the password, if it gave something.
    pub(super) async fn log_in(&self) -> Result<Option<String>, RegistryError> {
        let key = self.token_key();
        lock(&self.client.shared.tokens).remove(&key);
        self.ping().await?;
        let token = lock(&self.client.shared.tokens).remove(&key);
        Ok(token.and_then(|token| token.identity))
    }

    /// Asks the registry for nothing but to be let in.
    async fn ping(&self) -> Result<(), RegistryError> {
        self.ask(Exchange {
            method: Method::GET,
            target: Target::Path(format!("{}/", self.site.base)),
            headers: HeaderMap::new(),
            body: &nothing,
            what: "the registry itself".into(),
            expect: &[StatusCode::OK],
            retry: false,
        })
        .await
        .map(drop)
    }
}

fn basic(username: &str, password: &str) -> HeaderValue {
    let pair = format!("{username}:{password}");
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    // Base64 is always a valid header value.
    let mut header = HeaderValue::from_str(&format!("Basic {encoded}"))
        .unwrap_or_else(|_| HeaderValue::from_static(""));
    header.set_sensitive(true);
    header
}
