//! Ranges: of downloads (RFC 9110, section 14) and of chunks of an upload (distribution specification).

use http::HeaderMap;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, IF_RANGE, RANGE};

use crate::error::RegistryError;
use crate::uploads::{Chunk, ChunkRange};

/// Which bytes of a blob to send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wanted {
    /// All of it.
    Whole,
    /// From `start`, `length` of them.
    Part { start: u64, length: u64 },
}

impl Wanted {
    /// Reads the request. What is not understood (other units, several ranges)
    /// is ignored, as the RFC allows.
    pub(crate) fn of(headers: &HeaderMap, size: u64, etag: &str) -> Result<Self, RegistryError> {
        let text = |name| {
            headers
                .get(name)
                .and_then(|value: &http::HeaderValue| value.to_str().ok())
        };
        if text(IF_RANGE).is_some_and(|condition| condition != etag) {
            return Ok(Self::Whole);
        }
        let Some(spec) = text(RANGE).and_then(|range| range.trim().strip_prefix("bytes=")) else {
            return Ok(Self::Whole);
        };
        let Some((first, last)) = spec.trim().split_once('-') else {
            return Ok(Self::Whole);
        };
        let (start, end) = match (number(first), number(last)) {
            (Some(first), Some(last)) if last < first => return Ok(Self::Whole),
            (Some(first), Some(last)) => (first, last.saturating_add(1).min(size)),
            (Some(first), None) if last.trim().is_empty() => (first, size),
            (None, Some(count)) if first.trim().is_empty() && count > 0 => {
                (size.saturating_sub(count), size)
            }
            (None, Some(_)) if first.trim().is_empty() => {
                return Err(RegistryError::Range { size });
            }
            _ => return Ok(Self::Whole),
        };
        if start >= size {
            return Err(RegistryError::Range { size });
        }
        Ok(Self::Part {
            start,
            length: end - start,
        })
    }
}

/// What the headers say of a chunk of an upload.
pub(crate) fn chunk(headers: &HeaderMap) -> Result<Chunk, RegistryError> {
    let malformed = |header, value: &http::HeaderValue| RegistryError::UploadHeader {
        header,
        value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
    };
    let length = headers
        .get(CONTENT_LENGTH)
        .map(|value| {
            value
                .to_str()
                .ok()
                .and_then(number)
                .ok_or_else(|| malformed("Content-Length", value))
        })
        .transpose()?;
    let range = headers
        .get(CONTENT_RANGE)
        .map(|value| {
            value
                .to_str()
                .ok()
                .and_then(chunk_range)
                .ok_or_else(|| malformed("Content-Range", value))
        })
        .transpose()?;
    Ok(Chunk { range, length })
}

/// `0-1023`, or as RFC 9110 would have it `bytes 0-1023/2048`.
fn chunk_range(text: &str) -> Option<ChunkRange> {
    let text = text.trim();
    let text = text.strip_prefix("bytes").unwrap_or(text);
    let text = text.trim_start_matches([' ', '=']);
    let (range, _total) = text.split_once('/').unwrap_or((text, ""));
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(ChunkRange { first, last })
}

fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(range: &str) -> Result<Wanted, RegistryError> {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, range.parse().unwrap());
        Wanted::of(&headers, 100, "\"x\"")
    }

    #[test]
    fn ranges_are_cut_to_the_content() {
        let part = |start, length| Wanted::Part { start, length };
        assert_eq!(wanted("bytes=0-9").unwrap(), part(0, 10));
        assert_eq!(wanted("bytes=90-").unwrap(), part(90, 10));
        assert_eq!(wanted("bytes=90-1000").unwrap(), part(90, 10));
        assert_eq!(wanted("bytes=-30").unwrap(), part(70, 30));
        assert_eq!(wanted("bytes=-300").unwrap(), part(0, 100));
        assert_eq!(
            wanted("bytes=0-18446744073709551615").unwrap(),
            part(0, 100)
        );
    }

    #[test]
    fn ranges_outside_of_the_content_are_refused() {
        for range in ["bytes=100-", "bytes=200-300", "bytes=-0"] {
            assert!(
                matches!(wanted(range), Err(RegistryError::Range { size: 100 })),
                "{range}"
            );
        }
    }

    #[test]
    fn ranges_that_are_not_understood_are_ignored() {
        for range in [
            "items=0-1",
            "bytes=0-1,5-6",
            "bytes=9-1",
            "bytes=a-b",
            "bytes=-",
        ] {
            assert_eq!(wanted(range).unwrap(), Wanted::Whole, "{range}");
        }
    }

    #[test]
    fn a_range_of_other_content_is_ignored() {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, "bytes=0-9".parse().unwrap());
        headers.insert(IF_RANGE, "\"y\"".parse().unwrap());
        assert_eq!(Wanted::of(&headers, 100, "\"x\"").unwrap(), Wanted::Whole);
    }

    #[test]
    fn chunks_are_read_in_both_spellings() {
        let range = Some(ChunkRange { first: 5, last: 9 });
        assert_eq!(chunk_range("5-9"), range);
        assert_eq!(chunk_range("bytes 5-9/100"), range);
        for bad in ["", "5", "-5", "5-", "9-5", "a-b", "5-9-"] {
            assert_eq!(chunk_range(bad), None, "{bad:?}");
        }
    }
}
