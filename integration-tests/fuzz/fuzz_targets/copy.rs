//! An archive that is copied into a container: it is unpacked or refused, and
//! nothing is made but in the directory, whatever links the archive makes there.
#![no_main]

use std::fs;
use std::io::Cursor;
use std::os::fd::AsFd as _;

use gantry_archive::ids::Ids;
use gantry_archive::unpack::{Destination, Owner, unpack};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

#[path = "../tar_mutator.rs"]
mod tar_mutator;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    tar_mutator::mutate(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let cage = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let inside = cage.path().join("inside");
    fs::create_dir(&inside).expect("the directory");
    fs::write(cage.path().join("outside"), "untouched").expect("a file beside it");
    // What somebody else may have put there: ways out.
    std::os::unix::fs::symlink("..", inside.join("up")).expect("a link");
    std::os::unix::fs::symlink("../outside", inside.join("a")).expect("a link");
    let directory = fs::File::open(&inside).expect("the directory");
    // Into a directory of the host's, and into the root of a container: refused or
    // not, the rest holds.
    for destination in [
        Destination::Beneath(directory.as_fd()),
        Destination::InRoot {
            root: directory.as_fd(),
            path: b"/",
        },
    ] {
        let _ = unpack(destination, Cursor::new(data), Owner::Maker, &Ids::default());
    }
    let beside = fs::read_dir(cage.path()).expect("the cage").count();
    assert_eq!(beside, 2, "something was made beside the directory");
    let outside = fs::read(cage.path().join("outside")).expect("the file beside it");
    assert_eq!(outside, b"untouched");
});
