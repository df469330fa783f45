//! Manifests and blobs, down.

use std::time::Duration;

use bytes::Bytes;
use gantry_oci::manifest::MANIFEST_MAX;
use gantry_oci::{Descriptor, Digest, Document, ManifestError, MediaType};
use http::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE,
};
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;

use super::Repository;
use super::error::RegistryError;
use super::exchange::{Exchange, nothing};

/// How long a body may pause.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The bytes of a blob as they come.
#[derive(Debug)]
pub struct BlobStream {
    body: Incoming,
    host: String,
    what: String,
    /// The offset in the blob of the next byte.
    pub position: u64,
}

impl Repository {
    /// Fetches a manifest or an index by tag or digest.
    pub async fn manifest(&self, reference: &str, what: &str) -> Result<Document, RegistryError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(MediaType::MANIFEST_ACCEPT));
        let response = self
            .ask(Exchange {
                method: Method::GET,
                target: self.target(&format!("manifests/{reference}")),
                headers,
                body: &nothing,
                what: what.to_owned(),
                expect: &[],
                retry: true,
            })
            .await?;
        let declared = response.headers().get(CONTENT_TYPE);
        let declared = declared
            .and_then(|v| v.to_str().ok())
            .map(MediaType::from_header);
        let promised = response.headers().get("docker-content-digest");
        let promised: Option<Digest> = promised
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse().ok());
        let bytes = self
            .collect(response.into_body(), MANIFEST_MAX, what)
            .await?;
        let unusable = |source: ManifestError| RegistryError::Manifest {
            host: self.site.host.clone(),
            what: what.to_owned(),
            source,
        };
        let asked: Option<Digest> = reference.parse().ok();
        match asked.or(promised) {
            Some(digest) => Document::parse_verified(bytes, declared.as_ref(), &digest, None),
            None => Document::parse(bytes, declared.as_ref()),
        }
        .map_err(unusable)
    }

    pub(super) async fn collect(
        &self,
        body: Incoming,
        limit: usize,
        what: &str,
    ) -> Result<Bytes, RegistryError> {
        let collected =
            tokio::time::timeout(STALL_TIMEOUT, Limited::new(body, limit).collect()).await;
        match collected {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(source)) if source.is::<http_body_util::LengthLimitError>() => {
                Err(self.malformed(what, &format!("it has more than {limit} bytes")))
            }
            Ok(Err(source)) => Err(RegistryError::Broken {
                host: self.site.host.clone(),
                what: what.to_owned(),
                source,
            }),
            Err(_) => Err(RegistryError::Stalled {
                host: self.site.host.clone(),
                what: what.to_owned(),
                after: STALL_TIMEOUT,
            }),
        }
    }

    /// Fetches a small blob whole and verifies it.
    pub async fn small_blob(
        &self,
        descriptor: &Descriptor,
        limit: usize,
    ) -> Result<Bytes, RegistryError> {
        let what = format!("blob {}", descriptor.digest);
        let unusable = |source| RegistryError::Manifest {
            host: self.site.host.clone(),
            what: what.clone(),
            source,
        };
        if descriptor.size > limit as u64 {
            return Err(unusable(ManifestError::TooLarge {
                size: descriptor.size,
                limit: limit as u64,
            }));
        }
        let stream = self.blob(&descriptor.digest, descriptor.size, 0).await?;
        let bytes = self.collect(stream.body, limit, &what).await?;
        descriptor.verify(&bytes).map_err(unusable)?;
        Ok(bytes)
    }

    /// Opens a blob of `size` bytes from `offset` on. The registry may begin
    /// earlier: look at [`BlobStream::position`].
    pub async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        let what = format!("blob {digest}");
        let mut headers = HeaderMap::new();
        if offset > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={offset}-"))
        {
            headers.insert(RANGE, range);
        }
        let response = self
            .ask(Exchange {
                method: Method::GET,
                target: self.target(&format!("blobs/{digest}")),
                headers,
                body: &nothing,
                what: what.clone(),
                expect: &[],
                retry: true,
            })
            .await?;
        let position = if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = response.headers().get(CONTENT_RANGE);
            let start = range.and_then(|v| v.to_str().ok()).and_then(range_start);
            match start {
                Some(start) if start <= offset => start,
                _ => {
                    return Err(
                        self.malformed(&what, "it answered with another range than asked for")
                    );
                }
            }
        } else {
            0
        };
        let length = response.headers().get(CONTENT_LENGTH);
        let length: Option<u64> = length
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse().ok());
        if let Some(length) = length
            && position + length != size
        {
            return Err(RegistryError::Size {
                host: self.site.host.clone(),
                what,
                expected: size,
                found: position + length,
            });
        }
        Ok(BlobStream {
            body: response.into_body(),
            host: self.site.host.clone(),
            what,
            position,
        })
    }
}

/// The first byte of `bytes 100-199/200`.
fn range_start(value: &str) -> Option<u64> {
    let range = value.trim().strip_prefix("bytes")?.trim_start();
    range.split('-').next()?.trim().parse().ok()
}

impl BlobStream {
    /// The next bytes; `None` at the end of what the registry sends.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let frame = match tokio::time::timeout(STALL_TIMEOUT, self.body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(source))) => {
                    return Err(RegistryError::Broken {
                        host: self.host.clone(),
                        what: self.what.clone(),
                        source: Box::new(source),
                    });
                }
                Err(_) => {
                    return Err(RegistryError::Stalled {
                        host: self.host.clone(),
                        what: self.what.clone(),
                        after: STALL_TIMEOUT,
                    });
                }
            };
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                self.position += data.len() as u64;
                return Ok(Some(data));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::range_start;

    #[test]
    fn the_start_of_a_range_is_read() {
        assert_eq!(range_start("bytes 100-199/200"), Some(100));
        assert_eq!(range_start("bytes 0-0/*"), Some(0));
        assert_eq!(range_start("items 1-2/3"), None);
        assert_eq!(range_start("bytes */200"), None);
    }
}
