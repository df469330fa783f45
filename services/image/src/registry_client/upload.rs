//! Blobs and manifests, up.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use gantry_oci::{Descriptor, Digest, Document};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use http::{Method, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};

use super::Repository;
use super::error::RegistryError;
use super::exchange::{Exchange, Target, nothing};
use super::transport::Body;

/// Bytes read from the store at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Where the bytes of a blob come from.
#[derive(Clone, Debug)]
pub enum BlobSource {
    Memory(Bytes),
    File(PathBuf),
}

/// How a blob came to be in the registry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Upload {
    /// The repository had it already.
    Existed,
    /// The registry had it in another repository.
    Mounted,
    /// It went over the wire.
    Sent,
}

impl Repository {
    /// Whether the repository has a blob.
    async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let response = self
            .ask(Exchange {
                method: Method::HEAD,
                target: self.target(&format!("blobs/{digest}")),
                headers: HeaderMap::new(),
                body: &nothing,
                what: format!("blob {digest}"),
                expect: &[StatusCode::NOT_FOUND],
                retry: true,
            })
            .await?;
        Ok(response.status().is_success())
    }

    /// Brings a blob to the repository: not at all if it is there, by mounting
    /// it if the registry has it elsewhere, else by sending it. `progress` is
    /// told how many bytes went.
    pub async fn upload_blob(
        &self,
        descriptor: &Descriptor,
        source: &BlobSource,
        progress: Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<Upload, RegistryError> {
        let digest = &descriptor.digest;
        let what = format!("blob {digest}");
        if self.has_blob(digest).await? {
            return Ok(Upload::Existed);
        }
        let mut path = format!("/v2/{}/blobs/uploads/", self.name);
        if let Some(from) = &self.mount_from {
            path.push_str(&format!("?mount={digest}&from={from}"));
        }
        let start = Target::Path(path);
        let response = self
            .ask(Exchange {
                method: Method::POST,
                target: start.clone(),
                headers: no_content(),
                body: &nothing,
                what: what.clone(),
                expect: &[],
                retry: true,
            })
            .await?;
        if response.status() == StatusCode::CREATED {
            return Ok(Upload::Mounted);
        }
        let location = response
            .headers()
            .get(LOCATION)
            .ok_or_else(|| self.malformed(&what, "it did not say where to upload to"))?;
        let target = with_digest(self.resolve(&start, location, &what)?, digest)
            .ok_or_else(|| self.malformed(&what, "its Location is not a URL"))?;
        let mut headers = HeaderMap::new();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        headers.insert(CONTENT_LENGTH, HeaderValue::from(descriptor.size));
        let file = match source {
            BlobSource::Memory(_) => None,
            BlobSource::File(path) => {
                let file = File::open(path).map_err(|source| RegistryError::Local {
                    what: what.clone(),
                    source,
                })?;
                Some(Arc::new(file))
            }
        };
        let size = descriptor.size;
        let body = || match (&file, source) {
            (Some(file), _) => file_body(Arc::clone(file), size, Arc::clone(&progress)),
            (None, BlobSource::Memory(bytes)) => full(bytes.clone()),
            (None, BlobSource::File(_)) => nothing(),
        };
        self.ask(Exchange {
            method: Method::PUT,
            target,
            headers,
            body: &body,
            what,
            expect: &[],
            // The upload it belongs to may be gone with a failed attempt.
            retry: false,
        })
        .await?;
        Ok(Upload::Sent)
    }

    /// Puts a manifest under a tag or its digest.
    pub async fn upload_manifest(
        &self,
        document: &Document,
        reference: &str,
    ) -> Result<(), RegistryError> {
        let what = format!("manifest {reference}");
        let mut headers = HeaderMap::new();
        let media_type = HeaderValue::from_str(document.media_type().as_str())
            .map_err(|_| self.malformed(&what, "its media type is odd"))?;
        headers.insert(CONTENT_TYPE, media_type);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(document.raw().len()));
        let raw = document.raw().clone();
        self.ask(Exchange {
            method: Method::PUT,
            target: self.target(&format!("manifests/{reference}")),
            headers,
            body: &|| full(raw.clone()),
            what,
            expect: &[],
            retry: true,
        })
        .await
        .map(drop)
    }
}

fn no_content() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    headers
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Adds `digest=…` to an upload's location, which may have a query already.
fn with_digest(target: Target, digest: &Digest) -> Option<Target> {
    let add = |text: &str| {
        let glue = if text.contains('?') { '&' } else { '?' };
        format!("{text}{glue}digest={digest}")
    };
    Some(match target {
        Target::Path(path) => Target::Path(add(&path)),
        Target::Absolute(uri) => Target::Absolute(add(&uri.to_string()).parse().ok()?),
    })
}

/// A file as a body, read as fast as it is taken.
fn file_body(file: Arc<File>, size: u64, progress: Arc<dyn Fn(u64) + Send + Sync>) -> Body {
    let chunks = stream::try_unfold(0u64, move |offset| {
        let file = Arc::clone(&file);
        let progress = Arc::clone(&progress);
        async move {
            if offset >= size {
                return Ok(None);
            }
            let chunk = tokio::task::spawn_blocking(move || read_chunk(&file, offset, size))
                .await
                .map_err(io::Error::other)??;
            let next = offset + chunk.len() as u64;
            progress(next);
            Ok::<_, io::Error>(Some((Frame::data(chunk), next)))
        }
    });
    StreamBody::new(chunks).boxed_unsync()
}

fn read_chunk(file: &File, offset: u64, size: u64) -> io::Result<Bytes> {
    let wanted = usize::try_from(size - offset)
        .unwrap_or(usize::MAX)
        .min(CHUNK_BYTES);
    let mut chunk = vec![0; wanted];
    file.read_exact_at(&mut chunk, offset)?;
    Ok(Bytes::from(chunk))
}
