//! A file at a URL, for `import`: no registry, but the same connections.

use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderValue, LOCATION, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::error::RegistryError;
use super::exchange::nothing;
use super::hosts::is_own;
use super::transport;
use super::{Client, exchange};

/// How long a server may take to begin its answer, and to go on with it.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
const REDIRECTS: u32 = 10;

/// Why a file could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A text that is not the URL of a file on a server.
    #[error("it is not a URL of the form http://HOST/PATH or https://HOST/PATH ({reason})")]
    Url { reason: String },
    /// Nobody answers.
    #[error("{host} cannot be reached")]
    Unreachable {
        host: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection broke in the middle.
    #[error("the connection to {host} broke")]
    Broken {
        host: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing came for a long time.
    #[error("{host} sent nothing for {} seconds", STALL_TIMEOUT.as_secs())]
    Stalled { host: String },
    /// The server does not give it.
    #[error("{host} answered {status}")]
    Status { host: String, status: StatusCode },
    /// It leads from one place to the next, and never to a file.
    #[error("it was redirected more than {REDIRECTS} times")]
    Circle,
    /// It leads where nobody may follow.
    #[error("{host} redirects to {location:?}, {reason}")]
    Redirect {
        host: String,
        location: String,
        reason: &'static str,
    },
    /// No connection can be made at all.
    #[error(transparent)]
    Client(#[from] RegistryError),
}

/// The bytes of a file as they come.
#[derive(Debug)]
pub struct SourceStream {
    body: Incoming,
    host: String,
}

impl Client {
    /// Begins to fetch the file at a URL. Redirects are followed, but not out of HTTPS.
    pub async fn fetch_source(&self, url: &str) -> Result<SourceStream, SourceError> {
        let mut uri = parse(url)?;
        for _ in 0..=REDIRECTS {
            let host = uri.authority().map_or("", |a| a.as_str()).to_owned();
            let mut tls = self.shared.hosts.site(&host)?.tls;
            // A file has no digest that would tell who gave it.
            tls.anybody = false;
            let client = transport::client(&host, &tls)?;
            let mut request = Request::new(nothing());
            *request.uri_mut() = uri.clone();
            request.headers_mut().insert(
                USER_AGENT,
                HeaderValue::from_static(concat!("gantry/", env!("CARGO_PKG_VERSION"))),
            );
            let answer = tokio::time::timeout(STALL_TIMEOUT, client.request(request)).await;
            let response = match answer {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => {
                    let connecting = error.is_connect();
                    let source = exchange::shortest_cause(Box::new(error));
                    return Err(if connecting {
                        SourceError::Unreachable { host, source }
                    } else {
                        SourceError::Broken { host, source }
                    });
                }
                Err(_) => return Err(SourceError::Stalled { host }),
            };
            let status = response.status();
            if status.is_success() {
                let body = response.into_body();
                return Ok(SourceStream { body, host });
            }
            match response.headers().get(LOCATION) {
                Some(location) if status.is_redirection() => {
                    uri = follow(&uri, location, &host)?;
                }
                _ => return Err(SourceError::Status { host, status }),
            }
        }
        Err(SourceError::Circle)
    }
}

fn parse(url: &str) -> Result<Uri, SourceError> {
    let wrong = |reason: String| SourceError::Url { reason };
    // What follows a '#' is for who shows the file, and never sent.
    let url = url.split('#').next().unwrap_or_default();
    let uri: Uri = url.parse().map_err(|error| wrong(format!("{error}")))?;
    match uri.scheme_str() {
        Some("http" | "https") => {}
        _ => return Err(wrong("another scheme".into())),
    }
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            Err(wrong("it has a user name".into()))
        }
        Some(authority) if is_own(authority.host()) => Err(wrong(
            "the engine's own registry has images and not files".into(),
        )),
        Some(_) => Ok(uri),
        None => Err(wrong("no host".into())),
    }
}

/// Where a `Location` leads (RFC 9110, section 10.2.2).
fn follow(from: &Uri, location: &HeaderValue, host: &str) -> Result<Uri, SourceError> {
    let text = String::from_utf8_lossy(location.as_bytes()).into_owned();
    let refused = |reason| SourceError::Redirect {
        host: host.to_owned(),
        // What follows may be a signature, which is as good as a password.
        location: text.split('?').next().unwrap_or_default().to_owned(),
        reason,
    };
    let scheme = from.scheme_str().unwrap_or("http");
    let absolute = if text.contains("://") {
        text.clone()
    } else if text.starts_with("//") {
        format!("{scheme}:{text}")
    } else if text.starts_with('/') {
        format!("{scheme}://{host}{text}")
    } else {
        let path = from.path();
        let directory = path.rfind('/').map_or("/", |slash| &path[..=slash]);
        format!("{scheme}://{host}{directory}{text}")
    };
    let uri = parse(&absolute).map_err(|_| refused("which is not a URL of a file"))?;
    if from.scheme_str() == Some("https") && uri.scheme_str() != Some("https") {
        return Err(refused("out of HTTPS"));
    }
    Ok(uri)
}

impl SourceStream {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            let host = || self.host.clone();
            let frame = match tokio::time::timeout(STALL_TIMEOUT, self.body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    return Err(SourceError::Broken {
                        host: host(),
                        source: Box::new(error),
                    });
                }
                Err(_) => return Err(SourceError::Stalled { host: host() }),
            };
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_read_from_where_it_was_given() {
        let from = |location: &'static str| {
            let base = "http://h:1/a/b?q=1".parse().unwrap();
            follow(&base, &HeaderValue::from_static(location), "h:1").map(|uri| uri.to_string())
        };
        assert_eq!(from("/x").unwrap(), "http://h:1/x");
        assert_eq!(from("c").unwrap(), "http://h:1/a/c");
        assert_eq!(from("//other/x").unwrap(), "http://other/x");
        assert_eq!(from("https://o/x").unwrap(), "https://o/x");
        assert!(from("ftp://o/x").is_err());
        let secure = "https://h/a".parse().unwrap();
        assert!(follow(&secure, &HeaderValue::from_static("http://h/a"), "h").is_err());
    }

    #[test]
    fn what_is_not_the_url_of_a_file_is_refused() {
        for bad in [
            "",
            "x",
            "ftp://h/x",
            "http://",
            "http://u:p@h/x",
            "/x",
            "file:///x",
            "http://gantry.localhost/x",
        ] {
            assert!(matches!(parse(bad), Err(SourceError::Url { .. })), "{bad}");
        }
        assert_eq!(parse("http://h/x#part").unwrap().path(), "/x");
    }
}
