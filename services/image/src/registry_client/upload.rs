//! Blobs and manifests, up.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use gantry_oci::{Descriptor, Digest, Document};
use http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE,
};
use http::{Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;

use super::Repository;
use super::error::RegistryError;
use super::exchange::{Exchange, Hop, Target, nothing};
use super::patience::Pauses;
use super::transport::Body;

/// Bytes read from the store at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Attempts at an upload that bring no further.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);

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
    /// it if the registry has it elsewhere, else by sending it: in one request,
    /// and where that breaks, from where the registry has it on. `progress` is
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
        let Some(mut session) = self
            .begin_upload(digest, self.mount_from.as_deref())
            .await?
        else {
            return Ok(Upload::Mounted);
        };
        let blob = OpenBlob::open(descriptor, source, &what)?;
        let mut pauses = Pauses::from(FIRST_PAUSE);
        let (mut offset, mut fruitless) = (0, 0);
        loop {
            let sent = self.send(&session, &blob, offset, &progress).await;
            let error = match sent {
                Ok(()) => return Ok(Upload::Sent),
                Err(error) => error,
            };
            if !error.is_transient() && !is_lost(&error) {
                return Err(error);
            }
            fruitless += 1;
            let pause = pauses.next_after(error.retry_after());
            let Some(pause) = pause.filter(|_| fruitless < ATTEMPTS) else {
                return Err(error);
            };
            tracing::debug!(%error, %digest, offset, "the upload is taken up again");
            tokio::time::sleep(pause).await;
            match self.how_far(&session, &what).await? {
                Some((location, there)) if there <= descriptor.size => {
                    if there > offset {
                        (fruitless, pauses) = (0, Pauses::from(FIRST_PAUSE));
                    }
                    (session, offset) = (location, there);
                }
                _ => {
                    // The registry has all of it, and its answer was lost, or nothing.
                    if self.has_blob(digest).await? {
                        return Ok(Upload::Sent);
                    }
                    match self.begin_upload(digest, None).await? {
                        Some(location) => (session, offset) = (location, 0),
                        None => return Ok(Upload::Mounted),
                    }
                }
            }
        }
    }

    /// Begins an upload; where to send it to. `None`: the blob was mounted.
    async fn begin_upload(
        &self,
        digest: &Digest,
        mount_from: Option<&str>,
    ) -> Result<Option<Target>, RegistryError> {
        let what = format!("blob {digest}");
        let mut path = "blobs/uploads/".to_owned();
        if let Some(from) = mount_from {
            path.push_str(&format!("?mount={digest}&from={from}"));
        }
        let start = self.target(&path);
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
            return Ok(None);
        }
        self.location(&start, &response, &what)
            .and_then(|location| {
                location
                    .ok_or_else(|| self.malformed(&what, "it did not say where to upload to"))
                    .map(Some)
            })
    }

    fn location(
        &self,
        from: &Target,
        response: &Response<Incoming>,
        what: &str,
    ) -> Result<Option<Target>, RegistryError> {
        let location = response.headers().get(LOCATION);
        location
            .map(|location| self.resolve(from, Hop::of(response), location, what))
            .transpose()
    }

    /// Sends the blob from `offset` on: in one request, or what is left of it
    /// and then the end.
    async fn send(
        &self,
        session: &Target,
        blob: &OpenBlob<'_>,
        offset: u64,
        progress: &Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<(), RegistryError> {
        let (digest, size) = (&blob.descriptor.digest, blob.descriptor.size);
        let put = |session: Target| {
            with_digest(session, digest)
                .ok_or_else(|| self.malformed(&blob.what, "its Location is not a URL"))
        };
        let mut headers = HeaderMap::new();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        headers.insert(CONTENT_LENGTH, HeaderValue::from(size - offset));
        let body = || blob.body(offset, Arc::clone(progress));
        let mut exchange = Exchange {
            method: Method::PUT,
            target: session.clone(),
            headers,
            body: &body,
            what: blob.what.clone(),
            expect: &[],
            // What has arrived is asked for first.
            retry: false,
        };
        if offset == 0 {
            exchange.target = put(session.clone())?;
            return self.ask(exchange).await.map(drop);
        }
        let mut session = session.clone();
        if offset < size {
            exchange.method = Method::PATCH;
            let range = format!("{offset}-{}", size - 1);
            if let Ok(range) = HeaderValue::from_str(&range) {
                exchange.headers.insert(CONTENT_RANGE, range);
            }
            let response = self.ask(exchange).await?;
            let next = self.location(&session, &response, &blob.what)?;
            session = next.unwrap_or(session);
        }
        self.ask(Exchange {
            method: Method::PUT,
            target: put(session)?,
            headers: no_content(),
            body: &nothing,
            what: blob.what.clone(),
            expect: &[],
            retry: false,
        })
        .await
        .map(drop)
    }

    /// Where to go on with an upload, and how many bytes of it arrived. `None`:
    /// the registry does not know, and it has to begin anew.
    async fn how_far(
        &self,
        session: &Target,
        what: &str,
    ) -> Result<Option<(Target, u64)>, RegistryError> {
        let response = self
            .ask(Exchange {
                method: Method::GET,
                target: session.clone(),
                headers: HeaderMap::new(),
                body: &nothing,
                what: what.to_owned(),
                expect: &[],
                retry: true,
            })
            .await;
        let response = match response {
            Ok(response) => response,
            // Some throw away an upload that broke.
            Err(error) if !error.is_transient() => return Ok(None),
            Err(error) => return Err(error),
        };
        let range = response.headers().get(RANGE);
        let last = range
            .and_then(|value| value.to_str().ok())
            .and_then(last_of);
        // "0-0" means one byte, and is also said of none.
        let Some(last) = last.filter(|last| *last > 0) else {
            return Ok(None);
        };
        let location = self.location(session, &response, what)?;
        Ok(Some((
            location.unwrap_or_else(|| session.clone()),
            last + 1,
        )))
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

/// The last byte of `0-1023`.
fn last_of(range: &str) -> Option<u64> {
    let range = range.trim();
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let (first, last) = range.split_once('-')?;
    (first.trim() == "0").then(|| last.trim().parse().ok())?
}

/// Whether a refusal says that the registry's idea of the upload is another than ours.
fn is_lost(error: &RegistryError) -> bool {
    match error {
        RegistryError::NotFound { .. } => true,
        RegistryError::Unexpected { status, .. } => *status == StatusCode::RANGE_NOT_SATISFIABLE,
        _ => false,
    }
}

/// A blob that can be read from anywhere, more than once.
struct OpenBlob<'a> {
    descriptor: &'a Descriptor,
    what: String,
    bytes: OpenSource,
}

enum OpenSource {
    Memory(Bytes),
    File(Arc<File>),
}

impl<'a> OpenBlob<'a> {
    fn open(
        descriptor: &'a Descriptor,
        source: &BlobSource,
        what: &str,
    ) -> Result<Self, RegistryError> {
        let bytes = match source {
            BlobSource::Memory(bytes) => OpenSource::Memory(bytes.clone()),
            BlobSource::File(path) => {
                let file = File::open(path).map_err(|source| RegistryError::Local {
                    what: what.to_owned(),
                    source,
                })?;
                OpenSource::File(Arc::new(file))
            }
        };
        Ok(Self {
            descriptor,
            what: what.to_owned(),
            bytes,
        })
    }

    /// What is left from `offset` on.
    fn body(&self, offset: u64, progress: Arc<dyn Fn(u64) + Send + Sync>) -> Body {
        match &self.bytes {
            OpenSource::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                full(bytes.slice(start.min(bytes.len())..))
            }
            OpenSource::File(file) => {
                file_body(Arc::clone(file), offset, self.descriptor.size, progress)
            }
        }
    }
}

/// A file as a body, read as fast as it is taken.
fn file_body(
    file: Arc<File>,
    offset: u64,
    size: u64,
    progress: Arc<dyn Fn(u64) + Send + Sync>,
) -> Body {
    let chunks = stream::try_unfold(offset, move |offset| {
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

#[cfg(test)]
mod tests {
    use super::last_of;

    #[test]
    fn how_far_an_upload_is_is_read() {
        assert_eq!(last_of("0-1023"), Some(1023));
        assert_eq!(last_of("bytes=0-5"), Some(5));
        assert_eq!(last_of("7-9"), None);
        assert_eq!(last_of("0-x"), None);
        assert_eq!(last_of(""), None);
    }
}
