//! Images of odd layers: one that is there twice, empty ones, hundreds of them; files of holes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use gantry_image::commit::CommitOptions;
use gantry_image::error::ImageError;
use gantry_image::unpack::UnpackError;
use gantry_image::volumes::{ImageWish, Part, Wishes};
use serde_json::{Value, json};

use crate::archive::{Archive, Head, gzip, header_block, seal};
use crate::archives::load;
use crate::checking::assert_clean;
use crate::fixture::Fixture;
use crate::loads::config;
use crate::overlay::{Overlay, tree};
use crate::umoci::{assert_same, mounted, unpacked_by_umoci};

/// A Docker archive of one image, given its configuration.
pub(crate) fn docker(config: &str, layers: &[Vec<u8>], names: Value) -> Vec<u8> {
    let mut archive = Archive::new();
    let mut paths = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let path = format!("layer{number}/layer.tar");
        archive = archive.file(&path, layer);
        paths.push(path);
    }
    let list = json!([{ "Config": "config.json", "RepoTags": names, "Layers": paths }]);
    archive
        .file("config.json", config)
        .file("manifest.json", list.to_string())
        .finish()
}

async fn loaded(fixture: &Fixture, name: &str, layers: &[Vec<u8>]) -> String {
    let tars: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let reference = format!("{name}:1");
    let archive = docker(&config(name, &tars), layers, json!([&reference]));
    load(fixture, &archive).await.unwrap();
    reference
}

fn file(name: &str, content: &str) -> Vec<u8> {
    Archive::new().file(name, content).finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_an_image_has_twice_gives_what_applying_it_twice_gives() {
    let base = Archive::new()
        .entry(Head::new(b'5', "./").mode(0o755), b"")
        .dir("d")
        .file("d/below", b"1")
        .finish();
    let one = Archive::new()
        .dir("d")
        .file("d/x", b"1")
        .file("top", b"1")
        .finish();
    let two = Archive::new()
        .dir("d")
        .file("d/x", b"2")
        .file("d/y", b"2")
        .finish();
    let gone = Archive::new()
        .file(".wh.top", b"")
        .dir("d")
        .file("d/.wh.x", b"")
        .finish();
    let opaque = Archive::new()
        .dir("d")
        .file("d/.wh..wh..opq", b"")
        .file("d/z", b"")
        .finish();
    let empty = Archive::new().finish();
    let fixture = Fixture::new();
    for (name, layers) in [
        ("twice", [&base, &one, &two, &one].as_slice()),
        ("restored", &[&base, &one, &gone, &one]),
        ("gone-twice", &[&base, &one, &gone, &one, &gone]),
        ("emptied", &[&base, &opaque, &two, &opaque]),
        ("empty", &[&empty, &base, &empty, &one, &empty, &empty]),
        ("nothing", &[&empty, &empty]),
    ] {
        let layers: Vec<Vec<u8>> = layers.iter().map(|layer| (*layer).clone()).collect();
        let reference = loaded(&fixture, name, &layers).await;
        let image = fixture.store.resolve(&reference).unwrap();
        let (_, snapshot) = fixture.store.prepare(name, &reference, true).unwrap();
        let mut once = snapshot.lower.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), snapshot.lower.len(), "{name}");
        let overlay = Overlay::mount(&snapshot, &[]);
        let wanted = tree(&overlay.path());
        if name != "nothing" && name != "empty" {
            assert_same(&unpacked_by_umoci(&fixture, &image), &wanted, name);
        }
        // What is done to a container of it is listed and committed as of any other.
        overlay.sh("echo 3 > new");
        let mut changes = Vec::new();
        let mut take = |more| {
            changes.extend(more);
            true
        };
        fixture.store.diff(name, &mut take).unwrap();
        assert_eq!(changes.len(), 1, "{name}: {changes:?}");
        let wanted = tree(&overlay.path());
        let options = CommitOptions::default();
        let committed = fixture.store.commit(name, &options).await.unwrap();
        assert_same(&mounted(&fixture, &committed), &wanted, name);
        let mut exported = Vec::new();
        let export = |piece: bytes::Bytes| {
            exported.extend_from_slice(&piece);
            true
        };
        fixture.store.export(name, export).unwrap();
        let names: Vec<String> = crate::archives::files(&exported)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert!(names.iter().any(|name| name == "new"), "{names:?}");
        // As the files of another container.
        let wishes = Wishes {
            images: vec![ImageWish {
                image: reference.clone(),
                target: "/mnt".to_owned(),
                ..ImageWish::default()
            }],
            ..Wishes::default()
        };
        let (_, _, found) = fixture
            .store
            .prepare_with("with", &reference, true, &wishes)
            .unwrap();
        let Part::Image { layers, .. } = &found[0].part else {
            panic!("{found:?}");
        };
        let mut once = layers.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), layers.len(), "{name}");
        fixture.store.delete_snapshot("with").unwrap();
    }
    assert_clean(&fixture.store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_hundreds_of_layers_is_read_and_committed() {
    let layers: Vec<Vec<u8>> = (0..260)
        .map(|n| file(&format!("f{}", n % 130), &n.to_string()))
        .collect();
    let fixture = Fixture::new();
    let reference = loaded(&fixture, "many", &layers).await;
    let (_, snapshot) = fixture.store.prepare("c", &reference, true).unwrap();
    assert_eq!(snapshot.lower.len(), 260);
    fs::write(snapshot.upper.join("own"), "x").unwrap();
    let committed = fixture
        .store
        .commit("c", &CommitOptions::default())
        .await
        .unwrap();
    assert_eq!(committed.record.layers.len(), 261);
    let mut exported = Vec::new();
    let export = |piece: bytes::Bytes| {
        exported.extend_from_slice(&piece);
        true
    };
    fixture.store.export("c", export).unwrap();
    let files = crate::archives::files(&exported);
    assert_eq!(files.len(), 131);
    for (name, content) in files {
        if let Some(n) = name.strip_prefix('f') {
            let n: usize = n.parse().unwrap();
            assert_eq!(content, (n + 130).to_string().as_bytes());
        }
    }
}

/// GNU's old format: a file of so many bytes, all of them a hole.
fn hole(name: &str, size: u64) -> Archive {
    let mut block = header_block(&Head::new(b'S', name), 0);
    block[257..265].copy_from_slice(b"ustar  \0");
    block[329..345].fill(0);
    let number = |value: u64| {
        let mut field = [0; 12];
        field[0] = 0x80;
        field[4..].copy_from_slice(&value.to_be_bytes());
        field
    };
    block[386..398].copy_from_slice(&number(size));
    block[398..410].copy_from_slice(&number(0));
    block[483..495].copy_from_slice(&number(size));
    seal(&mut block);
    Archive::new().raw(&block)
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_cost_nothing_and_count() {
    let fixture = Fixture::new();
    // If they were read or written, this would take minutes.
    let layer = hole("hole", 200 << 30).finish();
    assert!(gzip(&layer).len() < 300);
    let reference = loaded(&fixture, "holes", &[layer]).await;
    let image = fixture.store.resolve(&reference).unwrap();
    assert_eq!(image.size(), 200 << 30);
    assert_clean(&fixture.store).await;
    // A second name copies nothing but the hole.
    let linked = Archive::new().hard_link("again", "hole").finish();
    let below = hole("hole", 200 << 30).finish();
    let reference = loaded(&fixture, "linked", &[below.clone(), linked.clone()]).await;
    let image = fixture.store.resolve(&reference).unwrap();
    let key = &image.record.layers[1].key;
    let again = fixture
        .root
        .path()
        .join("layers")
        .join(key)
        .join("fs/again");
    let again = fs::metadata(again).unwrap();
    assert_eq!((again.len(), again.blocks()), (200 << 30, 0));
    // The limit is on what the files hold, whatever the archive's size.
    for layers in [
        vec![hole("hole", 1 << 40).finish()],
        vec![
            hole("a", 200 << 30)
                .raw(&hole("b", 200 << 30).unfinished())
                .finish(),
        ],
        vec![
            below,
            hole("other", 100 << 30).hard_link("again", "hole").finish(),
        ],
    ] {
        let tars: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
        let archive = docker(&config("much", &tars), &layers, json!(["much:1"]));
        let error = load(&fixture, &archive).await.unwrap_err();
        let is_limit = matches!(
            &error,
            ImageError::Layer {
                source: UnpackError::Limit { .. },
                ..
            }
        );
        assert!(is_limit, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_hole_of_a_container_is_not_in_the_layer_of_its_commit() {
    let fixture = Fixture::new();
    let base = Archive::new().entry(Head::new(b'5', "./").mode(0o755), b"");
    let reference = loaded(&fixture, "base", &[base.finish()]).await;
    let (_, snapshot) = fixture.store.prepare("c", &reference, true).unwrap();
    let overlay = Overlay::mount(&snapshot, &[]);
    overlay.sh("truncate -s 100G big; truncate -s 1M small; mkdir d");
    overlay.sh("truncate -s 100M d/some; printf x | dd of=d/some bs=1 seek=70000000 conv=notrunc");
    let committed = fixture
        .store
        .commit("c", &CommitOptions::default())
        .await
        .unwrap();
    let layer = &committed.record.layers[1];
    assert!(layer.descriptor.size < 2 << 20, "{layer:?}");
    assert_eq!(layer.size, (100 << 30) + (1 << 20) + (100 << 20));
    let (_, again) = fixture
        .store
        .prepare("second", committed.id().as_str(), true)
        .unwrap();
    let again = Overlay::mount(&again, &[]);
    assert_eq!(
        fs::metadata(again.path().join("big")).unwrap().len(),
        100 << 30
    );
    assert_clean(&fixture.store).await;
    // Others read the format as well.
    overlay.sh("rm big");
    let wanted = tree(&overlay.path());
    let committed = fixture
        .store
        .commit("c", &CommitOptions::default())
        .await
        .unwrap();
    assert!(committed.record.layers[1].descriptor.size < 2 << 20);
    assert_same(&mounted(&fixture, &committed), &wanted, "mounted");
    assert_same(&unpacked_by_umoci(&fixture, &committed), &wanted, "umoci");
}
