//! Answers that are errors, and errors about answers.

use std::time::Duration;

use bytes::Bytes;
use gantry_oci::lenient::{self, Shape};
use http::header::RETRY_AFTER;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;

use super::error::RegistryError;
use super::{Repository, patience};

/// Bytes of an error's body that are read.
const ERROR_BODY_MAX: usize = 64 << 10;

impl Repository {
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
            .and_then(patience::retry_after);
        let body = Limited::new(response.into_body(), ERROR_BODY_MAX).collect();
        let body = match tokio::time::timeout(Duration::from_secs(5), body).await {
            Ok(Ok(body)) => body.to_bytes(),
            _ => Bytes::new(),
        };
        let message = error_message(&body);
        let (host, what) = (self.site.host.clone(), what.to_owned());
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
                message,
                retry_after,
            },
            _ if status.is_server_error() => RegistryError::Busy {
                host,
                what,
                status,
                attempts: attempt,
                message,
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
            host: self.site.host.clone(),
            what: what.to_owned(),
            reason: reason.to_owned(),
        }
    }

    pub(super) fn denied(&self, what: &str, message: &str) -> RegistryError {
        RegistryError::Denied {
            host: self.site.host.clone(),
            what: what.to_owned(),
            message: message.to_owned(),
        }
    }
}

/// The first error of the specification's error document, in the registry's words.
fn error_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        #[serde(default)]
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    const FORM: Shape = Shape::Record(&[(
        "errors",
        &Shape::List(&Shape::Record(&[
            ("code", &Shape::Text),
            ("message", &Shape::Text),
        ])),
    )]);
    let Ok(document) = lenient::read::<Document>(body, &FORM) else {
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
