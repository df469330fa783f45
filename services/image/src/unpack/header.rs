//! The headers of an archive, one after the other.

use gantry_archive::read::{HEAD_BYTES_MAX, More, more};
use tar_core::SparseEntry;
use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};

use super::error::UnpackError;
use super::inflate::{Passing, TarStream};

/// What comes next in an archive.
pub(crate) enum Header<T> {
    /// An entry, as the caller has read it; the stream stands at its content.
    Entry(T),
    /// Nothing that makes a file.
    Other,
    End,
}

/// Reads the headers of one archive.
pub(crate) struct Headers {
    parser: Parser,
}

impl Headers {
    pub(crate) fn new(path_bytes: u64) -> Self {
        let mut parser = Parser::new(Limits {
            max_metadata_size: 1 << 20,
            max_path_len: u32::try_from(path_bytes).ok(),
            ..Limits::default()
        });
        // Times may be negative and fractional, which tar-core refuses or cuts;
        // `entry` reads these values itself and refuses what is no number.
        parser.set_ignore_pax_errors(true);
        Self { parser }
    }

    /// The next header. `read` makes of an entry what the caller wants of it;
    /// of a file with holes it gets the regions that have content, and the size.
    pub(crate) fn next<H: Passing, T, E: From<UnpackError>>(
        &mut self,
        stream: &mut TarStream<H>,
        read: impl FnOnce(&ParsedEntry<'_>, Option<(Vec<SparseEntry>, u64)>) -> Result<T, E>,
    ) -> Result<Header<T>, E> {
        let mut wanted = tar_core::HEADER_SIZE;
        loop {
            let position = stream.position();
            let input = stream.peek_at_least(wanted)?;
            let available = input.len();
            if available == 0 {
                // Many writers leave out the two blocks that end an archive.
                return Ok(Header::End);
            }
            let damaged = |source| UnpackError::Archive { position, source };
            let (consumed, header) = match self.parser.parse(input).map_err(damaged)? {
                ParseEvent::NeedData { min_bytes } => {
                    match more(min_bytes, wanted, available) {
                        More::Bytes(count) => wanted = count,
                        More::Ended if input.iter().all(|&b| b == 0) => return Ok(Header::End),
                        More::Ended => {
                            let during = "a header".into();
                            return Err(UnpackError::Truncated { during }.into());
                        }
                        More::TooMany => {
                            return Err(UnpackError::Limit {
                                what: "bytes before the content of one entry",
                                limit: HEAD_BYTES_MAX as u64,
                            }
                            .into());
                        }
                    }
                    continue;
                }
                ParseEvent::Entry { consumed, entry } => {
                    (consumed, Header::Entry(read(&entry, None)?))
                }
                ParseEvent::SparseEntry {
                    consumed,
                    entry,
                    sparse_map,
                    real_size,
                } => {
                    let sparse = Some((sparse_map, real_size));
                    (consumed, Header::Entry(read(&entry, sparse)?))
                }
                // Defaults for all entries, which git writes a comment into and Docker ignores too.
                ParseEvent::GlobalExtensions { consumed, .. } => (consumed, Header::Other),
                ParseEvent::End { consumed } => (consumed, Header::End),
            };
            stream.advance(consumed);
            return Ok(header);
        }
    }
}
