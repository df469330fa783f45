//! Blobs that are said to hold a layer and hold another one.

use std::fs;
use std::path::Path;

use gantry_image::error::ImageError;
use gantry_image::unpack::UnpackError;
use gantry_oci::Digest;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::archive::{Archive, gzip, zstd};
use crate::archives::{files, load, noise, save};
use crate::checking::{assert_clean, check};
use crate::fixture::{Fixture, TestLayer, publish};
use crate::life::gently;
use crate::loads::{config, sha};
use crate::registry::Registry;
use crate::stacks::docker;

/// The layer that is promised, and another one.
fn good() -> Vec<u8> {
    Archive::new().file("f", noise(1, 200_000)).finish()
}

fn foreign() -> Vec<u8> {
    Archive::new().file("f", noise(2, 200_000)).finish()
}

fn is_foreign(error: &ImageError) -> bool {
    matches!(
        error,
        ImageError::Layer {
            source: UnpackError::DiffId { .. },
            ..
        } | ImageError::WrongPacking {
            source: UnpackError::DiffId { .. },
            ..
        }
    )
}

/// An archive as Podman writes it, where a layer is named by its diff ID.
fn named(name: &str, tar: &[u8], packed: &[u8]) -> Vec<u8> {
    let text = config(name, &[tar]);
    let layer = format!("{}.tar", sha(tar));
    let list =
        json!([{ "Config": "config.json", "RepoTags": [format!("{name}:1")], "Layers": [&layer] }]);
    Archive::new()
        .file(&layer, packed)
        .file("config.json", &text)
        .file("manifest.json", list.to_string())
        .finish()
}

/// The layers of a saved archive, inflated.
fn saved_layers(archive: &[u8]) -> Vec<Digest> {
    let entries = files(archive);
    let find = |path: &str| {
        let found = entries.iter().find(|(name, _)| name == path);
        found.map(|(_, content)| content.clone()).unwrap()
    };
    let list: Value = serde_json::from_slice(&find("manifest.json")).unwrap();
    let layers = list[0]["Layers"].as_array().unwrap();
    layers
        .iter()
        .map(|path| {
            let bytes = find(path.as_str().unwrap());
            match bytes.starts_with(&[0x1f, 0x8b]) {
                true => {
                    let mut tar = Vec::new();
                    let mut inflate = flate2::read::GzDecoder::new(bytes.as_slice());
                    std::io::Read::read_to_end(&mut inflate, &mut tar).unwrap();
                    Digest::sha256_of(&tar)
                }
                false => Digest::sha256_of(&bytes),
            }
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_with_other_bytes_for_a_layer_that_is_here_is_refused() {
    let (good, foreign) = (good(), foreign());
    let fixture = Fixture::new();
    load(&fixture, &named("someone", &good, &good))
        .await
        .unwrap();
    let before = fixture.content_files();
    for packed in [foreign.clone(), gzip(&foreign), zstd(&foreign)] {
        for name in ["bad", "someone"] {
            let error = load(&fixture, &named(name, &good, &packed)).await;
            let error = error.unwrap_err();
            assert!(is_foreign(&error), "{name}: {error}");
            // Docker's own archives do not name a layer by its diff ID.
            let docker = docker(
                &config(name, &[&good]),
                std::slice::from_ref(&packed),
                json!([format!("{name}:1")]),
            );
            let error = load(&fixture, &docker).await.unwrap_err();
            assert!(is_foreign(&error), "{name}: {error}");
        }
        assert_eq!(fixture.content_files(), before);
    }
    // Another packing of the right bytes is as good as the first.
    for packed in [gzip(&good), zstd(&good), good.clone()] {
        load(&fixture, &named("other", &good, &packed))
            .await
            .unwrap();
        let saved = save(&fixture, &["other:1"]).unwrap();
        assert!(!saved_layers(&saved).is_empty());
        fixture.store.remove("other:1", &gently()).unwrap();
    }
    assert_clean(&fixture.store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_came_as_another_layer_is_not_taken_for_one_that_is_here() {
    let registry = Registry::start().await;
    let (good, foreign) = (TestLayer::gzip(good()), TestLayer::gzip(foreign()));
    let lie = TestLayer {
        packed: foreign.packed.clone(),
        diff_id: good.diff_id.clone(),
    };
    publish(&registry, "good", std::slice::from_ref(&good));
    publish(&registry, "foreign", std::slice::from_ref(&foreign));
    publish(&registry, "lie", &[lie]);
    let reference = |tag: &str| format!("{}/x:{tag}", registry.host);
    // Both are here: the claim is compared.
    let fixture = Fixture::new();
    fixture.pull(&reference("good")).await.unwrap();
    fixture.pull(&reference("foreign")).await.unwrap();
    let error = fixture.pull(&reference("lie")).await.unwrap_err();
    assert!(is_foreign(&error), "{error}");
    // The layer is here and its alleged blob is not: that comes later, by another image.
    let fixture = Fixture::new();
    fixture.pull(&reference("good")).await.unwrap();
    fixture.pull(&reference("lie")).await.unwrap();
    fixture.pull(&reference("foreign")).await.unwrap();
    for tag in ["good", "lie"] {
        let saved = save(&fixture, &[&reference(tag)]).unwrap();
        assert_eq!(
            saved_layers(&saved),
            std::slice::from_ref(&good.diff_id),
            "{tag}"
        );
    }
    let target = Registry::start().await;
    let name = format!("{}/y:lie", target.host);
    fixture.store.tag(&reference("lie"), &name).unwrap();
    let cancel = CancellationToken::new();
    let pushed = fixture.store.push(&name, None, &cancel, fixture.watcher());
    pushed.await.unwrap();
    let other = Fixture::new();
    let pulled = other.pull(&name).await.unwrap();
    assert_eq!(pulled.image.record.layers[0].diff_id, good.diff_id);
}

/// Makes a store as an older version could: the image's record and manifest name
/// a blob that holds another layer.
fn falsify(root: &Path, image: &Digest, blob: &[u8]) {
    let put = |bytes: &[u8]| {
        let digest = Digest::sha256_of(bytes);
        fs::write(root.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        digest
    };
    let blob_digest = put(blob);
    let path = root.join("images").join(format!("{}.json", image.hex()));
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let manifest: Digest = record["manifest"].as_str().unwrap().parse().unwrap();
    let manifest = fs::read(root.join("blobs/sha256").join(manifest.hex())).unwrap();
    let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
    for layer in [
        &mut manifest["layers"][0],
        &mut record["layers"][0]["descriptor"],
    ] {
        layer["digest"] = blob_digest.to_string().into();
        layer["size"] = blob.len().into();
    }
    record["manifest"] = put(manifest.to_string().as_bytes()).to_string().into();
    fs::write(&path, record.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_with_foreign_blobs_is_found_and_repaired_where_it_can_be() {
    let registry = Registry::start().await;
    let (good, foreign) = (good(), foreign());
    publish(&registry, "good", &[TestLayer::gzip(good.clone())]);
    let reference = format!("{}/x:good", registry.host);
    let fixture = Fixture::new();
    let bad = load(&fixture, &named("bad", &good, &good)).await.unwrap();
    let bad = bad[0].image.id().clone();
    let fixture = fixture.reopen_after(|root| falsify(root, &bad, &gzip(&foreign)));
    // Nothing else has the layer: it is told, and never handed out.
    for repair in [false, true] {
        let (checked, found) = check(&fixture.store, repair).await;
        let problem = format!("not layer {}", Digest::sha256_of(&good));
        let finding = found
            .iter()
            .find(|finding| finding.problem.contains(&problem));
        let finding = finding.unwrap_or_else(|| panic!("{found:#?}"));
        assert_eq!(finding.needed_by, ["bad:1"]);
        assert!(!checked.is_clean());
        if repair {
            assert!(
                finding.problem.contains("pull or load it again"),
                "{finding:?}"
            );
        }
    }
    let error = save(&fixture, &["bad:1"]).unwrap_err();
    assert!(is_foreign(&error), "{error}");
    // An image that has the layer is not given the foreign blob.
    fixture.pull(&reference).await.unwrap();
    let error = save(&fixture, &["bad:1"]).unwrap_err();
    assert!(is_foreign(&error), "{error}");
    // Its registry has the layer: with that both are right again.
    let (checked, found) = check(&fixture.store, true).await;
    assert!(checked.is_clean(), "{found:#?}");
    assert_clean(&fixture.store).await;
    let fixture = fixture.reopen();
    for name in ["bad:1", &reference] {
        let saved = save(&fixture, &[name]).unwrap();
        assert_eq!(saved_layers(&saved), [Digest::sha256_of(&good)], "{name}");
    }
    assert!(!fixture.store.images().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_verified_is_remembered_over_a_restart() {
    let registry = Registry::start().await;
    publish(&registry, "good", &[TestLayer::gzip(good())]);
    let reference = format!("{}/x:good", registry.host);
    let fixture = Fixture::new();
    fixture.pull(&reference).await.unwrap();
    let fixture = fixture.reopen();
    // A limit that no inflating passes: it is not inflated again.
    let blob = fixture.store.resolve(&reference).unwrap();
    let blob = blob.record.layers[0].descriptor.digest.clone();
    let path = fixture.root.path().join("blobs/sha256").join(blob.hex());
    let packed = fs::read(&path).unwrap();
    fs::write(&path, vec![0; packed.len()]).unwrap();
    let pulled = fixture.pull(&reference).await.unwrap();
    assert!(!pulled.updated);
    fs::write(&path, packed).unwrap();
    assert_clean(&fixture.store).await;
}
