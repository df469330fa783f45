//! Bounds on what a call carries in HTTP/2 headers and trailers.
//!
//! Callers share connections: the gateway has one to each service. An endpoint
//! whose peer sends headers that are far too long ends the whole connection
//! (h2 does so at four times its limit), and with it everybody's calls. And what
//! goes into a status is often what a caller sent: a filter's value, a name, a
//! path. So every server passes its answers through [`BoundMetadata`], which
//!
//! - refuses a call whose own metadata is longer than [`REQUEST_BYTES`], and
//! - shortens a status that is longer than [`STATUS_BYTES`]: the message in its
//!   middle, then the operands in its details.
//!
//! Both ends accept [`HEADERS_ACCEPTED`], so that what one lets pass the next
//! takes.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderName, Request, Response};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::fault::Fault;

/// Header list that a connection accepts, in bytes as HTTP/2 counts them.
pub const HEADERS_ACCEPTED: u32 = 64 << 10;

/// Metadata of a call that is served.
pub const REQUEST_BYTES: usize = 16 << 10;

/// A status with its details, as HTTP/2 counts it. gRPC's own recommendation for
/// all metadata of a call is 8 KiB, and some clients take no more.
pub const STATUS_BYTES: usize = 8 << 10;

/// A shortened status' message, in bytes, also after percent-encoding.
const MESSAGE_BYTES: usize = 2 << 10;

/// All operands in a shortened status' details.
const OPERANDS_BYTES: usize = 1 << 10;

/// What HTTP/2 counts for each header beside its name and value.
const HEADER_OVERHEAD: usize = 32;

const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// `text` of at most `limit` bytes: its beginning and its end, and between them
/// how many bytes are left out.
#[must_use]
pub fn shortened(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let left_out = |bytes| format!("… ({bytes} bytes left out) …");
    let kept = limit.saturating_sub(left_out(text.len()).len());
    let head = floor(text, kept - kept / 2);
    let tail = ceil(text, text.len() - kept / 2);
    let note = left_out(tail - head);
    format!("{}{note}{}", &text[..head], &text[tail..])
}

/// The last boundary of a character at or before `index`.
fn floor(text: &str, index: usize) -> usize {
    let boundary = |index: &usize| text.is_char_boundary(*index);
    (0..=index).rev().find(boundary).unwrap_or(0)
}

/// The first boundary of a character at or after `index`.
fn ceil(text: &str, index: usize) -> usize {
    let boundary = |index: &usize| text.is_char_boundary(*index);
    (index..=text.len()).find(boundary).unwrap_or(text.len())
}

/// As [`shortened`], where `limit` is that of the percent-encoded text.
fn shortened_encoded(text: &str, limit: usize) -> String {
    let encoded = |text: &str| {
        text.bytes()
            .map(|byte| match byte {
                b' '..=b'~' if !b"\"#%<>`?{}".contains(&byte) => 1,
                _ => 3,
            })
            .sum::<usize>()
    };
    let mut text = shortened(text, limit);
    while encoded(&text) > limit {
        let half = text.len() * 3 / 4;
        text = shortened(&text, half);
    }
    text
}

/// Bytes of a header list as HTTP/2 counts them.
#[must_use]
pub fn header_bytes(headers: &HeaderMap) -> usize {
    let bytes = |(name, value): (&HeaderName, &http::HeaderValue)| {
        name.as_str().len() + value.len() + HEADER_OVERHEAD
    };
    headers.iter().map(bytes).sum()
}

/// Shortens the status in `headers`, where there is one and it is too long.
pub fn bound_status(headers: &mut HeaderMap) {
    if !headers.contains_key(STATUS) || header_bytes(headers) <= STATUS_BYTES {
        return;
    }
    if !headers.get(DETAILS).is_none_or(is_base64) {
        headers.remove(DETAILS);
    }
    let Some(status) = Status::from_header_map(headers) else {
        return;
    };
    let mut fault = Fault::from_status(&status);
    fault.message = shortened_encoded(&fault.message, MESSAGE_BYTES);
    bound_operands(&mut fault);
    let bounded = if fault.reason.is_empty() {
        Status::new(fault.code, fault.message)
    } else {
        Status::from(fault)
    };
    // What else it carries goes where that is what is too long.
    let mut rest = headers.clone();
    for name in [STATUS, MESSAGE, DETAILS] {
        rest.remove(name);
    }
    headers.clear();
    if header_bytes(&rest) <= STATUS_BYTES / 4 {
        *headers = rest;
    } else if let Some(kind) = rest.remove(http::header::CONTENT_TYPE) {
        headers.insert(http::header::CONTENT_TYPE, kind);
    }
    if bounded.add_header(headers).is_err() {
        // A message is encoded so that it can be a header.
        headers.insert(STATUS, http::HeaderValue::from(Code::Unknown as i32));
    }
}

/// Keeps the operands of an error within [`OPERANDS_BYTES`], all of them as long as
/// there is room: the short ones say what kind of thing went wrong.
fn bound_operands(fault: &mut Fault) {
    let bytes = |fault: &Fault| -> usize {
        let operands = fault.metadata.iter();
        operands.map(|(name, value)| name.len() + value.len()).sum()
    };
    if bytes(fault) > OPERANDS_BYTES {
        for value in fault.metadata.values_mut() {
            *value = shortened(value, OPERANDS_BYTES / 8);
        }
    }
    while bytes(fault) > OPERANDS_BYTES {
        let longest = fault.metadata.iter().max_by_key(|(name, _)| name.len());
        let Some(name) = longest.map(|(name, _)| name.clone()) else {
            return;
        };
        fault.metadata.remove(&name);
    }
    fault.reason = shortened(&fault.reason, OPERANDS_BYTES / 8);
    fault.domain = shortened(&fault.domain, OPERANDS_BYTES / 8);
}

fn is_base64(value: &http::HeaderValue) -> bool {
    let bytes = value.as_bytes();
    let digits = bytes.trim_ascii_end().strip_suffix(b"==").unwrap_or(bytes);
    let digits = digits.strip_suffix(b"=").unwrap_or(digits);
    digits.len() % 4 != 1
        && digits
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(byte))
}

/// Bounds the metadata of every call that a server answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct BoundMetadata;

impl<S> Layer<S> for BoundMetadata {
    type Service = BoundedMetadata<S>;

    fn layer(&self, service: S) -> BoundedMetadata<S> {
        BoundedMetadata { service }
    }
}

/// See [`BoundMetadata`].
#[derive(Clone, Debug)]
pub struct BoundedMetadata<S> {
    service: S,
}

impl<S, B> Service<Request<B>> for BoundedMetadata<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let bytes = header_bytes(request.headers()) + request.uri().path().len();
        if bytes > REQUEST_BYTES {
            let refused = too_long(bytes).into_http();
            return Box::pin(async { Ok(refused) });
        }
        let answer = self.service.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            // An error before any message is in the headers.
            bound_status(response.headers_mut());
            Ok(response.map(|body| Body::new(BoundedTrailers(body))))
        })
    }
}

fn too_long(bytes: usize) -> Status {
    Fault::new(
        Code::ResourceExhausted,
        "gantry",
        "METADATA_TOO_LONG",
        format!("the call's metadata has {bytes} bytes; at most {REQUEST_BYTES} are taken"),
    )
    .into()
}

/// The body of an answer, whose trailers are bounded.
#[derive(Debug)]
struct BoundedTrailers(Body);

impl http_body::Body for BoundedTrailers {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.0).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            frame.map(|mut frame| {
                if let Some(trailers) = frame.trailers_mut() {
                    bound_status(trailers);
                }
                frame
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
    }
}

/// Bounds a status where it is made, for a server that has no layers.
#[must_use]
pub fn bounded(status: Status) -> Status {
    let mut headers = HeaderMap::new();
    if status.add_header(&mut headers).is_err() || header_bytes(&headers) <= STATUS_BYTES {
        return status;
    }
    bound_status(&mut headers);
    Status::from_header_map(&headers).unwrap_or_else(|| {
        let message = shortened(status.message(), MESSAGE_BYTES);
        Status::with_metadata(status.code(), message, MetadataMap::new())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_shortened_in_its_middle_between_characters() {
        assert_eq!(shortened("short", 10), "short");
        for character in ['x', 'é', '\u{1f600}'] {
            let text: String = std::iter::repeat_n(character, 5000).collect();
            for limit in [40, 41, 42, 43, 100, 2048] {
                let short = shortened(&text, limit);
                assert!(short.len() <= limit, "{limit}: {short}");
                assert!(short.starts_with(character) && short.ends_with(character) || limit < 50);
                assert!(short.contains("bytes left out"), "{short}");
            }
        }
    }

    fn carried(status: &Status) -> (HeaderMap, Status) {
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        bound_status(&mut headers);
        let status = Status::from_header_map(&headers).unwrap();
        (headers, status)
    }

    #[test]
    fn a_status_keeps_its_reason_however_long_its_operands_are() {
        for value in ["x".repeat(3 << 20), "é%\n".repeat(1 << 20)] {
            let mut fault = Fault::new(
                Code::InvalidArgument,
                "gantry.image",
                "INVALID_FILTER",
                format!("no filter {value}"),
            )
            .with("filter", &value)
            .with("field", "filters");
            for number in 0..100 {
                fault = fault.with(&format!("operand-{number}-{}", "n".repeat(300)), "v");
            }
            let (headers, status) = carried(&fault.into());
            assert!(header_bytes(&headers) <= STATUS_BYTES);
            assert_eq!(status.code(), Code::InvalidArgument);
            let fault = Fault::from_status(&status);
            assert_eq!(fault.reason, "INVALID_FILTER");
            assert_eq!(fault.metadata["field"], "filters");
            assert!(fault.message.starts_with("no filter "), "{fault}");
            assert!(fault.message.contains("bytes left out"), "{fault}");
        }
    }

    #[test]
    fn a_status_without_details_and_one_with_broken_details_are_bounded() {
        let (headers, status) = carried(&Status::internal("y".repeat(1 << 20)));
        assert!(header_bytes(&headers) <= STATUS_BYTES);
        assert_eq!(status.code(), Code::Internal);
        let mut headers = HeaderMap::new();
        Status::internal("y".repeat(1 << 16))
            .add_header(&mut headers)
            .unwrap();
        headers.insert(DETAILS, http::HeaderValue::from_static("not base64!"));
        bound_status(&mut headers);
        assert!(Status::from_header_map(&headers).is_some());
    }

    #[test]
    fn a_short_status_stays_as_it_is() {
        let fault = Fault::new(Code::NotFound, "gantry.image", "IMAGE_NOT_FOUND", "no é")
            .with("reference", "é");
        let status = Status::from(fault.clone());
        let (_, carried) = carried(&status);
        assert_eq!(Fault::from_status(&carried), fault);
        assert_eq!(Fault::from_status(&bounded(status)), fault);
    }
}
