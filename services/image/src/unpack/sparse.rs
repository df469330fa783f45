//! Files with holes: only the regions that have content are written, the rest stays a hole.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;

use gantry_archive::write::next_region;
use rustix::fs::SeekFrom;
use tar_core::SparseEntry;

use super::error::{UnpackError, shown};
use super::inflate::{Passing, TarStream};
use super::path::LayerPath;
use crate::tree_record::{ContentFormat, ContentHash, ContentHasher};

/// Writes the regions one after the other as they come in the archive. The hash
/// of the whole content.
pub(super) fn write(
    stream: &mut TarStream<impl Passing>,
    file: &mut File,
    path: &LayerPath,
    map: &[SparseEntry],
    real_size: u64,
) -> Result<ContentHash, UnpackError> {
    let failed = |source| UnpackError::Write {
        path: shown(path.as_bytes()),
        step: "writing its content",
        source,
    };
    file.set_len(real_size).map_err(failed)?;
    let mut hasher = ContentHasher::new(ContentFormat::Blocks);
    let mut position = 0;
    for region in map {
        // The map is in order: see `check_sparse`.
        hasher.skip(region.offset.saturating_sub(position));
        let mut offset = region.offset;
        let mut left = region.length;
        while left > 0 {
            let bytes = stream.peek()?;
            if bytes.is_empty() {
                return Err(super::unpacker::truncated(path));
            }
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            file.write_all_at(&bytes[..count], offset).map_err(failed)?;
            hasher.update(&bytes[..count]);
            stream.advance(count);
            offset += count as u64;
            left -= count as u64;
        }
        position = offset;
    }
    hasher.skip(real_size.saturating_sub(position));
    Ok(hasher.finish())
}

/// Copies a file's content; its holes stay holes.
pub(crate) fn copy_content(from: &File, to: &File) -> io::Result<()> {
    let size = from.metadata()?.len();
    let mut position = 0;
    while let Some((data, end)) = next_region(from, position, size)? {
        rustix::fs::seek(from, SeekFrom::Start(data))?;
        rustix::fs::seek(to, SeekFrom::Start(data))?;
        // Within the kernel where it can.
        let (mut source, mut target) = (from.take(end - data), to);
        io::copy(&mut source, &mut target)?;
        position = end;
    }
    to.set_len(size)
}
