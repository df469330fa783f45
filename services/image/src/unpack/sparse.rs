//! Files with holes: only the regions of the map are written, the rest stays a hole.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use tar_core::SparseEntry;

use super::error::{UnpackError, shown};
use super::inflate::{Passing, TarStream};
use super::path::LayerPath;

/// Writes the regions one after the other as they come in the archive.
pub(super) fn write(
    stream: &mut TarStream<impl Passing>,
    file: &mut File,
    path: &LayerPath,
    map: &[SparseEntry],
    real_size: u64,
) -> Result<(), UnpackError> {
    let failed = |source| UnpackError::Write {
        path: shown(path.as_bytes()),
        step: "writing its content",
        source,
    };
    file.set_len(real_size).map_err(failed)?;
    for region in map {
        let mut offset = region.offset;
        let mut left = region.length;
        while left > 0 {
            let bytes = stream.peek()?;
            if bytes.is_empty() {
                return Err(super::unpacker::truncated(path));
            }
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            file.write_all_at(&bytes[..count], offset).map_err(failed)?;
            stream.advance(count);
            offset += count as u64;
            left -= count as u64;
        }
    }
    Ok(())
}
