//! What a power cut does to layers that were not yet on the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gantry_image::error::ImageError;

use crate::archive::Archive;
use crate::fixture::{Fixture, TestLayer, publish};
use crate::registry::Registry;

fn layer_directories(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.join("layers")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Until the thread behind has brought all layers to the disk.
fn wait_until_settled(root: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while layer_directories(root)
        .iter()
        .any(|layer| layer.join("unsynced").exists())
    {
        assert!(Instant::now() < deadline, "layers are never settled");
        std::thread::yield_now();
    }
}

/// Two layers, the upper of which needs a file of the lower.
fn layers() -> [TestLayer; 2] {
    [
        TestLayer::gzip(
            Archive::new()
                .file("below", "content")
                .file("same", "1")
                .finish(),
        ),
        TestLayer::gzip(
            Archive::new()
                .hard_link("linked", "below")
                .file("above", "more")
                .finish(),
        ),
    ]
}

/// What a power cut leaves: names without content, and the marks of another boot.
fn cut_the_power(root: &Path) {
    for layer in layer_directories(root) {
        for entry in fs::read_dir(layer.join("fs")).unwrap() {
            let file = entry.unwrap().path();
            fs::File::options()
                .write(true)
                .open(file)
                .unwrap()
                .set_len(0)
                .unwrap();
        }
        fs::write(layer.join("unsynced"), "another boot").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_a_power_cut_left_in_doubt_are_unpacked_again() {
    let registry = Registry::start().await;
    publish(&registry, "v1", &layers());
    let fixture = Fixture::new();
    let reference = format!("{}/x:v1", registry.host);
    fixture.pull(&reference).await.unwrap();
    wait_until_settled(fixture.root.path());

    let fixture = fixture.reopen_after(cut_the_power);
    let (_, snapshot) = fixture.store.prepare("c", &reference, true).unwrap();
    let [upper, lower] = &snapshot.lower[..] else {
        panic!("two layers");
    };
    assert_eq!(fs::read(lower.join("below")).unwrap(), b"content");
    assert_eq!(fs::read(lower.join("same")).unwrap(), b"1");
    assert_eq!(fs::read(upper.join("linked")).unwrap(), b"content");
    assert_eq!(fs::read(upper.join("above")).unwrap(), b"more");
    wait_until_settled(fixture.root.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_this_boot_are_kept_as_they_are() {
    let registry = Registry::start().await;
    publish(&registry, "v1", &layers());
    let fixture = Fixture::new();
    fixture
        .pull(&format!("{}/x:v1", registry.host))
        .await
        .unwrap();
    wait_until_settled(fixture.root.path());
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let inode = |root: &Path| {
        layer_directories(root)
            .iter()
            .map(|layer| std::os::unix::fs::MetadataExt::ino(&fs::metadata(layer).unwrap()))
            .collect::<Vec<_>>()
    };
    let before = inode(fixture.root.path());
    let fixture = fixture.reopen_after(|root| {
        for layer in layer_directories(root) {
            fs::write(layer.join("unsynced"), &boot).unwrap();
        }
    });
    assert_eq!(inode(fixture.root.path()), before);
    wait_until_settled(fixture.root.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_had_again_says_so_and_is_put_right_by_a_pull() {
    let registry = Registry::start().await;
    publish(&registry, "v1", &layers());
    let fixture = Fixture::new();
    let reference = format!("{}/x:v1", registry.host);
    fixture.pull(&reference).await.unwrap();
    wait_until_settled(fixture.root.path());

    let fixture = fixture.reopen_after(|root| {
        cut_the_power(root);
        for layer in layers() {
            fs::remove_file(root.join("blobs/sha256").join(layer.digest().hex())).unwrap();
        }
    });
    let refused = fixture.store.prepare("c", &reference, true).unwrap_err();
    assert!(
        matches!(refused, ImageError::LayerMissing { .. }),
        "{refused}"
    );
    fixture.pull(&reference).await.unwrap();
    let (_, snapshot) = fixture.store.prepare("c", &reference, true).unwrap();
    assert_eq!(
        fs::read(snapshot.lower[0].join("linked")).unwrap(),
        b"content"
    );
}
