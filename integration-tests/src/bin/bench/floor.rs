//! What a pull of the large image cannot do without on this machine: inflating
//! its layers, hashing what is packed and unpacked, and writing its files. Each
//! on all processors, one thing after the other, with nothing else to do; their
//! sum is what a pull is compared with.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_integration_tests::image::{Blob, Image};
use sha2::{Digest, Sha256};

const BLOCK: usize = 512;
const CHUNK: usize = 256 << 10;

/// How long each takes.
pub(crate) struct Floor {
    pub(crate) inflate: Duration,
    pub(crate) hash: Duration,
    pub(crate) write: Duration,
}

impl Floor {
    pub(crate) fn sum(&self) -> Duration {
        self.inflate + self.hash + self.write
    }
}

/// # Errors
/// A layer cannot be read, or a file not written.
pub(crate) fn measure(image: &Image) -> Result<Floor> {
    let layers: Vec<&Blob> = image
        .blobs
        .iter()
        .filter(|blob| blob.media_type.contains("layer"))
        .collect();
    ensure!(!layers.is_empty(), "the large image has no layers");
    let inflate = on_all_processors(&layers, |_, layer| {
        let mut decoder = flate2::bufread::MultiGzDecoder::new(layer.bytes.as_slice());
        let mut chunk = vec![0; CHUNK];
        while decoder.read(&mut chunk)? > 0 {}
        Ok(())
    })?;
    let hash = on_all_processors(&layers, |_, layer| {
        // As many bytes as the unpacked layer has; what they are does not matter.
        let unpacked = usize::try_from(unpacked_bytes(layer)?)?;
        let mut hasher = Sha256::new();
        for left in [layer.bytes.len(), unpacked] {
            let mut left = left;
            while left > 0 {
                let count = left.min(CHUNK);
                hasher.update(&layer.bytes[..count]);
                left -= count;
            }
        }
        std::hint::black_box(hasher.finalize());
        Ok(())
    })?;
    let directory = tempfile::Builder::new()
        .prefix("gt-floor-")
        .tempdir_in("/var/tmp")?;
    let sizes: Vec<Vec<usize>> = layers
        .iter()
        .map(|layer| file_sizes(layer))
        .collect::<Result<_>>()?;
    let write = on_all_processors(&layers, |position, layer| {
        write_files(
            &directory.path().join(position.to_string()),
            &sizes[position],
            layer,
        )
    })?;
    Ok(Floor {
        inflate,
        hash,
        write,
    })
}

/// Runs `work` on each layer, as many at a time as there are processors.
fn on_all_processors(
    layers: &[&Blob],
    work: impl Fn(usize, &Blob) -> Result<()> + Sync,
) -> Result<Duration> {
    let threads = std::thread::available_parallelism()?.get();
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let position = next.fetch_add(1, Ordering::Relaxed);
                        let Some(layer) = layers.get(position) else {
                            return Ok::<(), anyhow::Error>(());
                        };
                        work(position, layer)?;
                    }
                })
            })
            .collect();
        for worker in workers {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        Ok::<(), anyhow::Error>(())
    })?;
    Ok(began.elapsed())
}

/// The last four bytes of a gzip member (RFC 1952, "ISIZE").
fn unpacked_bytes(layer: &Blob) -> Result<u32> {
    let tail = layer.bytes.last_chunk::<4>().context("an empty layer")?;
    Ok(u32::from_le_bytes(*tail))
}

/// The sizes of a layer's files, in order. A directory is told by `usize::MAX`.
fn file_sizes(layer: &Blob) -> Result<Vec<usize>> {
    let mut tar = Vec::new();
    flate2::bufread::MultiGzDecoder::new(layer.bytes.as_slice()).read_to_end(&mut tar)?;
    let mut sizes = Vec::new();
    let mut at = 0;
    while let Some(header) = tar.get(at..at + BLOCK) {
        if header[0] == 0 {
            break;
        }
        let octal = std::str::from_utf8(&header[124..135])?;
        let size = usize::from_str_radix(octal.trim_matches(['\0', ' ']), 8)?;
        sizes.push(if header[156] == b'5' {
            usize::MAX
        } else {
            size
        });
        at += BLOCK + size.next_multiple_of(BLOCK);
    }
    Ok(sizes)
}

fn write_files(directory: &Path, sizes: &[usize], layer: &Blob) -> Result<()> {
    fs::create_dir(directory)?;
    let mut current = directory.to_owned();
    for (number, &size) in sizes.iter().enumerate() {
        if size == usize::MAX {
            current = directory.join(format!("d{number}"));
            fs::create_dir(&current)?;
            continue;
        }
        let mut file = File::create(current.join(number.to_string()))?;
        let mut left = size;
        while left > 0 {
            let count = left.min(CHUNK).min(layer.bytes.len());
            file.write_all(&layer.bytes[..count])?;
            left -= count;
        }
    }
    Ok(())
}
