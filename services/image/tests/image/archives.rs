//! Saving images, and what loading makes of it; tools for the other tests of archives.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Mutex;

use bytes::Bytes;
use gantry_image::ImageStore;
use gantry_image::archive::{ArchiveError, LoadOptions, Loaded};
use gantry_image::error::ImageError;
use gantry_image::image::Image;
use gantry_image::pull::Watcher;
use gantry_oci::{Digest, Platform};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::archive::{Archive, Head, zstd};
use crate::fixture::{Fixture, TestLayer, publish};
use crate::life::gently;
use crate::registry::Registry;

/// Saves into memory.
pub(crate) fn save(fixture: &Fixture, references: &[&str]) -> Result<Vec<u8>, ImageError> {
    let references: Vec<String> = references.iter().map(ToString::to_string).collect();
    let mut archive = Vec::new();
    fixture.store.saving(&references, None)?.write(|piece| {
        archive.extend_from_slice(&piece);
        Ok(())
    })?;
    Ok(archive)
}

/// Loads from memory, in pieces.
pub(crate) async fn load(fixture: &Fixture, archive: &[u8]) -> Result<Vec<Loaded>, ImageError> {
    load_with(fixture, archive, &LoadOptions::default()).await
}

pub(crate) async fn load_with(
    fixture: &Fixture,
    archive: &[u8],
    options: &LoadOptions,
) -> Result<Vec<Loaded>, ImageError> {
    load_into(&fixture.store, archive, options, fixture.watcher()).await
}

pub(crate) async fn load_into(
    store: &ImageStore,
    archive: &[u8],
    options: &LoadOptions,
    watcher: Watcher,
) -> Result<Vec<Loaded>, ImageError> {
    let (sender, pieces) = mpsc::channel(2);
    let feed = async move {
        for piece in archive.chunks(70_001) {
            let piece = Ok(Bytes::copy_from_slice(piece));
            if sender.send(piece).await.is_err() {
                return;
            }
        }
    };
    let loaded = Mutex::new(Vec::new());
    let loading = store.load(options, pieces, watcher, |image| {
        loaded.lock().unwrap().push(image);
    });
    let (outcome, ()) = tokio::join!(loading, feed);
    outcome.map(|()| loaded.into_inner().unwrap())
}

/// Everything that overlayfs would show of an image, layer by layer.
pub(crate) fn trees(fixture: &Fixture, image: &Image) -> Vec<BTreeMap<String, String>> {
    let id = image.id().to_string();
    let (_, snapshot) = fixture.store.prepare("looker", &id, true).unwrap();
    fixture.store.delete_snapshot("looker").unwrap();
    snapshot
        .lower
        .iter()
        .map(|lower| {
            let mut tree = BTreeMap::new();
            look(lower, lower, &mut tree);
            tree
        })
        .collect()
}

fn look(root: &Path, directory: &Path, tree: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        let content = if meta.is_file() {
            Digest::sha256_of(&fs::read(&path).unwrap()).to_string()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else {
            String::new()
        };
        // A whiteout has the time at which it was made, and nobody sees it.
        let is_whiteout = meta.file_type().is_char_device() && meta.rdev() == 0;
        let what = format!(
            "{:o} {}:{} {} {} {} {content}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            if is_whiteout { 0 } else { meta.mtime() },
            meta.nlink(),
            meta.rdev(),
        );
        let name = path.strip_prefix(root).unwrap().display().to_string();
        tree.insert(name, what);
        if meta.is_dir() {
            look(root, &path, tree);
        }
    }
}

/// The files of an archive by their paths.
pub(crate) fn files(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut rest = archive;
    while rest.len() >= 512 && rest[0] != 0 {
        let (header, after) = rest.split_at(512);
        let text = |range: std::ops::Range<usize>| {
            let field = &header[range];
            let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
            String::from_utf8(field[..end].to_vec()).unwrap()
        };
        let size = usize::from_str_radix(text(124..136).trim(), 8).unwrap();
        if header[156] == b'0' {
            files.push((text(0..100), after[..size].to_vec()));
        }
        rest = &after[size.next_multiple_of(512)..];
    }
    files
}

pub(crate) fn document(archive: &[u8], path: &str) -> Value {
    let files = files(archive);
    let (_, raw) = files.iter().find(|(name, _)| name == path).unwrap();
    serde_json::from_slice(raw).unwrap()
}

/// A tar with some of everything, larger than what stays in memory.
pub(crate) fn varied(n: u32) -> Vec<u8> {
    Archive::new()
        .entry(Head::new(b'5', "etc").mode(0o750).owner(3, 4), b"")
        .file("etc/one", format!("one {n}"))
        .hard_link("etc/two", "etc/one")
        .symlink("etc/three", "../etc/one")
        .entry(Head::new(b'0', "tool").mode(0o4755).owner(7, 8), b"#!")
        .file(format!("large{n}"), noise(n, 300_000))
        .file("etc/.wh.gone", b"")
        .finish()
}

/// Bytes that do not compress.
pub(crate) fn noise(seed: u32, count: usize) -> Vec<u8> {
    let mut state = u64::from(seed) | 0x9e37_79b9_0000_0000;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn zstd_layer(tar: &[u8]) -> TestLayer {
    TestLayer {
        packed: zstd(tar),
        diff_id: Digest::sha256_of(tar),
    }
}

/// A store with the images app:1 and app:2 of one base, and zst:1.
async fn stocked() -> (Registry, Fixture) {
    let registry = Registry::start().await;
    let base = TestLayer::gzip(varied(1));
    publish(
        &registry,
        "one",
        &[base.clone(), TestLayer::gzip(varied(2))],
    );
    publish(
        &registry,
        "two",
        &[base.clone(), TestLayer::gzip(varied(3))],
    );
    publish(&registry, "zst", &[base, zstd_layer(&varied(4))]);
    let fixture = Fixture::new();
    for (tag, name) in [("one", "app:1"), ("two", "app:2"), ("zst", "zst:1")] {
        let pulled = format!("{}/x:{tag}", registry.host);
        fixture.pull(&pulled).await.unwrap();
        fixture.store.tag(&pulled, name).unwrap();
        fixture.store.remove(&pulled, &gently()).unwrap();
    }
    (registry, fixture)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_of_another_platform_is_neither_saved_nor_pushed() {
    let fixture = Fixture::new();
    let image = crate::life::imported(&fixture, "one:1", crate::life::tar(1)).await;
    let store = &fixture.store;
    let own = image.platform();
    let other = Platform::new("linux", "mips64le", None);
    // A repository stands for all its tags, whether or not it has "latest".
    for name in ["one:1", "one"] {
        let names = [name.to_owned()];
        assert!(store.saving(&names, Some(&own)).is_ok(), "{name}");
        let refused = store.saving(&names, Some(&other)).map(drop).unwrap_err();
        assert!(matches!(refused, ImageError::OtherPlatform { .. }));
    }
    for (name, all_tags) in [("one:1", false), ("one", true)] {
        assert!(store.check_push(name, all_tags, &own).is_ok(), "{name}");
        let refused = store.check_push(name, all_tags, &other).unwrap_err();
        assert!(matches!(refused, ImageError::OtherPlatform { .. }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_saved_loads_elsewhere_as_the_same_images() {
    let (_registry, here) = stocked().await;
    let there = Fixture::new();
    let archive = save(&here, &["app", "zst:1"]).unwrap();
    let loaded = load(&there, &archive).await.unwrap();
    let names: Vec<String> = loaded
        .iter()
        .flat_map(|l| &l.names)
        .map(ToString::to_string)
        .collect();
    assert_eq!(names, ["app:1", "app:2", "zst:1"]);
    for name in names {
        let (a, b) = (here.store.resolve(&name), there.store.resolve(&name));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!((a.id(), &a.config_raw), (b.id(), &b.config_raw));
        assert_eq!(
            here.store.manifest(&a).unwrap(),
            there.store.manifest(&b).unwrap()
        );
        assert_eq!(a.record.layers, b.record.layers);
        assert_eq!(a.record.tags, b.record.tags);
        assert_eq!(trees(&here, &a), trees(&there, &b));
        assert_eq!(trees(&here, &a).len(), 2);
    }
    // Nothing but the same blobs and layers, and the records.
    assert_eq!(here.content_files(), there.content_files());
    let there = there.reopen();
    assert_eq!(here.content_files(), there.content_files());
    assert_eq!(save(&there, &["zst:1", "app"]).unwrap(), archive);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_blob_is_in_the_archive_once_and_docker_gets_no_zstd() {
    let (_registry, fixture) = stocked().await;
    let archive = save(&fixture, &["app", "zst:1"]).unwrap();
    let files = files(&archive);
    let mut paths: Vec<&String> = files.iter().map(|(path, _)| path).collect();
    let count = paths.len();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), count);
    // Three manifests and configurations, one base, three layers, one of them twice.
    let blobs = files.iter().filter(|(path, _)| path.starts_with("blobs/"));
    let mut number = 0;
    for (path, content) in blobs {
        let hex = path.strip_prefix("blobs/sha256/").unwrap();
        assert_eq!(Digest::sha256_of(content).hex(), hex);
        number += 1;
    }
    assert_eq!(number, 3 + 3 + 1 + 3 + 1);

    let list = document(&archive, "manifest.json");
    assert_eq!(list[0]["RepoTags"], json!(["app:1"]));
    let image = fixture.store.resolve("zst:1").unwrap();
    let plain = format!("blobs/sha256/{}", Digest::sha256_of(&varied(4)).hex());
    let base = format!(
        "blobs/sha256/{}",
        image.record.layers[0].descriptor.digest.hex()
    );
    assert_eq!(list[2]["Layers"], json!([base, plain]));
    assert_eq!(
        list[2]["Config"],
        json!(format!("blobs/sha256/{}", image.id().hex()))
    );
    let index = document(&archive, "index.json");
    let entry = &index["manifests"][2];
    assert_eq!(entry["digest"], json!(image.record.manifest));
    assert_eq!(
        entry["annotations"],
        json!({
            "io.containerd.image.name": "docker.io/library/zst:1",
            "org.opencontainers.image.ref.name": "1",
        })
    );
    assert_eq!(
        document(&archive, "repositories")["app"]
            .as_object()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        document(&archive, "oci-layout"),
        json!({"imageLayoutVersion": "1.0.0"})
    );

    // With the layout taken away, Docker's half has to do.
    let docker_half = files
        .iter()
        .filter(|(path, _)| path != "index.json" && path != "oci-layout")
        .fold(Archive::new(), |tar, (path, content)| {
            tar.file(path, content)
        })
        .finish();
    let there = Fixture::new();
    load(&there, &docker_half).await.unwrap();
    let loaded = there.store.resolve("zst:1").unwrap();
    assert_eq!(loaded.id(), image.id());
    assert_eq!(trees(&there, &loaded), trees(&fixture, &image));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_saved_under_the_names_it_was_asked_for_by() {
    let (_registry, fixture) = stocked().await;
    fixture.store.tag("app:1", "app:also").unwrap();
    let image = fixture.store.resolve("app:1").unwrap();
    let tags = |references: &[&str]| {
        let archive = save(&fixture, references).unwrap();
        document(&archive, "manifest.json")
            .as_array()
            .unwrap()
            .iter()
            .map(|image| image["RepoTags"].clone())
            .collect::<Vec<_>>()
    };
    let id = image.id().to_string();
    assert_eq!(tags(&["app:1"]), [json!(["app:1"])]);
    assert_eq!(tags(&[&id]), [json!(null)]);
    assert_eq!(tags(&[&id[7..20], "app:also"]), [json!(["app:also"])]);
    assert_eq!(
        tags(&["app"]),
        [json!(["app:1", "app:also"]), json!(["app:2"])]
    );

    // Without a name it is loaded by its id alone.
    let there = Fixture::new();
    let loaded = load(&there, &save(&fixture, &[&id]).unwrap())
        .await
        .unwrap();
    assert!(loaded[0].names.is_empty() && loaded[0].image.record.tags.is_empty());
    assert_eq!(loaded[0].image.id(), image.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_saved_is_said_before_a_byte_is_written() {
    let (_registry, fixture) = stocked().await;
    let error = save(&fixture, &["app:1", "none:1"]).unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    let error = save(&fixture, &[]).unwrap_err();
    assert!(matches!(error, ImageError::Missing { .. }), "{error}");
    let image = fixture.store.resolve("app:2").unwrap();
    let digest = &image.record.layers[1].descriptor.digest;
    let blob = fixture.root.path().join("blobs/sha256").join(digest.hex());
    let mut content = Vec::new();
    fs::File::open(&blob)
        .unwrap()
        .read_to_end(&mut content)
        .unwrap();
    // Damaged on the disk: the archive ends with an error instead of a lie.
    content[1_000] ^= 1;
    fs::write(&blob, &content).unwrap();
    let error = save(&fixture, &["app:2"]).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    fs::remove_file(&blob).unwrap();
    let error = save(&fixture, &["app"]).unwrap_err();
    assert!(
        matches!(&error, ImageError::Archive(ArchiveError::NotPacked { reference, .. }) if reference == "app:2"),
        "{error}"
    );
    save(&fixture, &["app:1"]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_of_what_is_there_moves_names_and_unpacks_nothing() {
    let (_registry, fixture) = stocked().await;
    let archive = save(&fixture, &["app:1"]).unwrap();
    let before = fixture.content_files();
    let one = fixture.store.resolve("app:1").unwrap();
    let two = fixture.store.resolve("app:2").unwrap();
    fixture.store.tag("app:2", "app:1").unwrap();
    fixture.events.lock().unwrap().clear();
    let loaded = load(&fixture, &archive).await.unwrap();
    assert_eq!(loaded[0].image.id(), one.id());
    let taken: Vec<_> = loaded[0]
        .taken
        .iter()
        .map(|(name, id)| (name.to_string(), id))
        .collect();
    assert_eq!(taken, [("app:1".to_owned(), two.id())]);
    assert_eq!(fixture.store.resolve("app:1").unwrap().id(), one.id());
    assert_eq!(fixture.content_files(), before);
    let unpacked = fixture.events.lock().unwrap().iter().any(|event| {
        use gantry_image::pull::{Event, LayerState};
        matches!(
            event,
            Event::Layer {
                state: LayerState::Unpacking | LayerState::Complete,
                ..
            }
        )
    });
    assert!(!unpacked);
}
