//! A layer's archive, plain or packed, whatever is in it: it is unpacked or
//! refused, nothing is made beside the layer, and what it costs is bounded.
#![no_main]

use std::fs;
use std::io::Cursor;

use gantry_image::unpack::{Limits, Nothing, unpack};
use gantry_oci::Algorithm;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

#[path = "../tar_mutator.rs"]
mod tar_mutator;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    tar_mutator::mutate(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let cage = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let layer = cage.path().join("layer");
    fs::create_dir(&layer).expect("the layer");
    fs::write(cage.path().join("outside"), "untouched").expect("a file beside it");
    let limits = Limits {
        entries: 200,
        unpacked_bytes: 1 << 20,
        ..Limits::default()
    };
    let directory = fs::File::open(&layer).expect("the layer").into();
    let source = Cursor::new(data.to_vec());
    if let Ok(unpacked) = unpack(source, directory, Algorithm::Sha256, &limits, &mut Nothing) {
        assert!(unpacked.tar_bytes <= limits.unpacked_bytes + (1 << 19));
        assert!(unpacked.entries <= limits.entries);
    }
    let beside = fs::read_dir(cage.path()).expect("the cage").count();
    assert_eq!(beside, 2, "something was made beside the layer");
    let outside = fs::read(cage.path().join("outside")).expect("the file beside it");
    assert_eq!(outside, b"untouched");
});
