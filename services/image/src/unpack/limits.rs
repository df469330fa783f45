//! How much one layer may be, so that a hostile one costs bounded time, memory and disk.

use serde::Deserialize;

/// Limits on one layer. All are inclusive.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of the archive once inflated; and bytes of its files, with their
    /// holes and with those that are copied from a layer below.
    pub unpacked_bytes: u64,
    /// Inflated bytes per compressed byte, looked at beyond the first gibibyte:
    /// deflate can reach 1,032, honest layers rarely 20.
    pub ratio: u64,
    /// Bytes of a path.
    pub path_bytes: u64,
    /// Directories in a path.
    pub path_depth: u64,
    /// Bytes of the names of all directories, which are kept in memory until
    /// the end because a directory's times must be set last.
    pub directory_table_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 1_000_000,
            unpacked_bytes: 256 << 30,
            ratio: 200,
            path_bytes: 4_096,
            path_depth: 256,
            directory_table_bytes: 32 << 20,
        }
    }
}

impl Limits {
    /// Inflated bytes up to which the ratio is not looked at.
    pub(super) const RATIO_FREE_BYTES: u64 = 1 << 30;
}
