//! Trees of files as tar archives, and back.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`mod@write`] | entries of an archive, one after the other |
//! | [`pack`] | a file or a directory that is there becomes an archive |
//! | [`read`] | entries of an archive, as they come |
//! | [`arriving`] | an archive that comes in pieces |
//! | [`ids`] | users and groups that have other numbers here than in the archive |
//! | [`unpack`] | an archive becomes files in a directory that is there |
//!
//! Both ways work on trees that somebody else may change meanwhile, or that are
//! hostile: nothing is opened but beneath the directory that the caller gave,
//! and what was looked at is what is read (descriptors, never a path twice).
//! Archives of a layer have rules of their own, which are the image service's;
//! it shares [`mod@write`] and [`read::time`].
#![forbid(unsafe_code)]

pub mod arriving;
mod beneath;
pub mod ids;
pub mod pack;
pub mod read;
pub mod unpack;
pub mod write;

pub use tar_core::EntryType;

/// A path for an error line: readable, and not longer than a person reads.
#[must_use]
pub fn shown(path: &[u8]) -> String {
    const LIMIT: usize = 200;
    let text = String::from_utf8_lossy(path);
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    }
}
