//! The large image: 24,000 files, 1.2 GB, 525 MB in four gzip layers. The same
//! bytes on every machine, made once and kept beside the binaries.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use gantry_integration_tests::image::{Blob, Builder, Image, Packing};
use gantry_integration_tests::tar::{Member, append};
use serde_json::Value;

const LAYERS: u64 = 4;
const DIRECTORIES: u64 = 60;
const FILES_EACH: u64 = 100;
/// Bytes of a file, on average; sizes go from nothing to twice of it.
const FILE_BYTES: u64 = 51_200;
/// Of 100 blocks, so many are noise: that makes gzip's ratio 2.3.
const NOISE_PERCENT: u64 = 40;
const BLOCK: usize = 512;

/// # Errors
/// It cannot be made, or kept.
pub(crate) fn load() -> Result<Image> {
    let program = std::env::current_exe()?;
    let directory: PathBuf = program
        .parent()
        .context("no directory")?
        .join("bench-image");
    if !directory.join("manifest").exists() {
        eprintln!("bench: making the large image (once)");
        fs::create_dir_all(&directory)?;
        let image = make()?;
        for (number, blob) in image.blobs.iter().enumerate() {
            fs::write(directory.join(number.to_string()), &blob.bytes)?;
            fs::write(directory.join(format!("{number}.type")), &blob.media_type)?;
        }
        fs::write(directory.join("manifest.type"), &image.manifest.media_type)?;
        fs::write(directory.join("manifest"), &image.manifest.bytes)?;
    }
    let read = |name: &str| -> Result<Blob> {
        let media_type = fs::read_to_string(directory.join(format!("{name}.type")))?;
        Ok(Blob::new(&media_type, fs::read(directory.join(name))?))
    };
    let mut blobs = Vec::new();
    for number in 0..=LAYERS {
        blobs.push(read(&number.to_string())?);
    }
    let manifest = read("manifest")?;
    let compressed: usize = blobs.iter().map(|blob| blob.bytes.len()).sum();
    eprintln!("bench: the large image has {} MB", compressed / 1_000_000);
    Ok(Image { blobs, manifest })
}

/// Another image with the same layers: its configuration names an author.
///
/// # Errors
/// The image is not one of ours.
pub(crate) fn sibling(image: &Image) -> Result<Image> {
    let is_config = |blob: &&Blob| blob.media_type.contains("config");
    let config = image.blobs.iter().find(is_config).context("no config")?;
    let mut json: Value = serde_json::from_slice(&config.bytes)?;
    json["author"] = "a sibling".into();
    let other = Blob::new(&config.media_type, serde_json::to_vec(&json)?);
    let mut manifest: Value = serde_json::from_slice(&image.manifest.bytes)?;
    manifest["config"] = other.descriptor();
    Ok(Image {
        blobs: vec![other],
        manifest: Blob::new(&image.manifest.media_type, serde_json::to_vec(&manifest)?),
    })
}

fn make() -> Result<Image> {
    let mut builder = Builder::default();
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    for layer in 0..LAYERS {
        let mut tar = Vec::new();
        for directory in 0..DIRECTORIES {
            let path = format!("data{layer}/d{directory}");
            append(&mut tar, &Member::directory(&path));
            for file in 0..FILES_EACH {
                let size = noise.next() % (2 * FILE_BYTES);
                let member = Member::file(
                    &format!("{path}/f{file}"),
                    contents(&mut noise, usize::try_from(size)?),
                );
                append(&mut tar, &member);
            }
        }
        tar.resize(tar.len() + 2 * BLOCK, 0);
        builder = builder.packed_layer(tar, Packing::Gzip);
    }
    Ok(builder.build()?)
}

/// Noise and text in blocks, as a mixture of programs and documents has.
fn contents(noise: &mut Noise, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + BLOCK);
    while bytes.len() < size {
        if noise.next() % 100 < NOISE_PERCENT {
            for _ in 0..BLOCK / 8 {
                bytes.extend_from_slice(&noise.next().to_le_bytes());
            }
        } else {
            let number = noise.next() % 1000;
            bytes.extend_from_slice(
                format!("{number:>8} a line of text that a compressor makes short\n")
                    .repeat(8)
                    .as_bytes(),
            );
        }
    }
    bytes.truncate(size);
    bytes
}

/// xorshift64: enough to be incompressible, and the same everywhere.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
