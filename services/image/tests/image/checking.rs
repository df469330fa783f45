//! Damage to the store: found, told, and put right.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use gantry_image::ImageStore;
use gantry_image::check::{CheckEvent, Checked, Finding};
use gantry_oci::Digest;
use tokio_util::sync::CancellationToken;

use crate::account::settled;
use crate::archive::Archive;
use crate::fixture::{Fixture, TestLayer, publish};
use crate::life::{gently, imported, tar};
use crate::registry::Registry;

/// What is done to a file or a directory of the store.
type Damage = fn(&Path);

pub(crate) async fn check(store: &ImageStore, repair: bool) -> (Checked, Vec<Finding>) {
    let found: Arc<Mutex<Vec<Finding>>> = Arc::default();
    let watcher = {
        let found = Arc::clone(&found);
        Arc::new(move |event| {
            if let CheckEvent::Finding(finding) = event {
                found.lock().unwrap().push(finding);
            }
        })
    };
    let checked = store
        .check(repair, CancellationToken::new(), watcher)
        .await
        .unwrap();
    let found = found.lock().unwrap().clone();
    assert_eq!(checked.findings, found.len() as u64);
    (checked, found)
}

pub(crate) async fn assert_clean(store: &ImageStore) {
    let (checked, found) = check(store, false).await;
    assert_eq!(found, [], "{checked:?}");
}

/// What is found is put right by a repair, and then there is nothing to find.
async fn found_and_repaired(store: &ImageStore, object: &str, problem: &str) -> Finding {
    let (_, found) = check(store, false).await;
    let is_it =
        |finding: &&Finding| finding.object.contains(object) && finding.problem.contains(problem);
    let finding = found.iter().find(is_it).cloned();
    let finding = finding.unwrap_or_else(|| panic!("{object}, {problem}: {found:#?}"));
    assert_eq!(finding.repaired, "");
    let (checked, found) = check(store, true).await;
    assert!(checked.is_clean(), "{found:#?}");
    assert!(found.iter().any(|finding| is_it(&finding)), "{found:#?}");
    assert_clean(store).await;
    finding
}

/// A fixture with a pulled image of two layers, and the registry it came from.
async fn pulled() -> (Registry, Fixture, String) {
    let registry = Registry::start().await;
    let lower = Archive::new()
        .dir("d")
        .file("d/one", b"1")
        .file("d/two", vec![2; 100_000])
        .file("gone", b"x")
        .finish();
    publish(
        &registry,
        "v1",
        &[TestLayer::gzip(lower), TestLayer::gzip(tar(1))],
    );
    let fixture = Fixture::new();
    let reference = format!("{}/x:v1", registry.host);
    fixture.pull(&reference).await.unwrap();
    (registry, fixture, reference)
}

fn layer_directory(fixture: &Fixture, reference: &str, position: usize) -> PathBuf {
    let image = fixture.store.resolve(reference).unwrap();
    let key = &image.record.layers[position].key;
    fixture.root.path().join("layers").join(key)
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_at_rest_is_clean() {
    let (_registry, fixture, reference) = pulled().await;
    imported(&fixture, "a:1", tar(3)).await;
    fixture.store.prepare("c1", &reference, false).unwrap();
    fixture.store.prepare("c2", "a:1", true).unwrap();
    let (checked, found) = check(&fixture.store, false).await;
    assert_eq!(found, []);
    // Records, 7 blobs, 3 packed layers, 2 images, 3 layers, leftovers.
    assert_eq!(checked.objects, 17);
    assert!(checked.bytes > 700_000, "{checked:?}");
    let fixture = fixture.reopen();
    assert_clean(&fixture.store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_damage_to_a_layer_is_found_and_mended() {
    let damage: [(&str, Damage); 9] = [
        ("d/two has another content", |layer| {
            let path = layer.join("fs/d/two");
            let before = fs::metadata(&path).unwrap().modified().unwrap();
            flip(&path, 50_000);
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_modified(before).unwrap();
        }),
        ("d/one is missing", |layer| {
            fs::remove_file(layer.join("fs/d/one")).unwrap()
        }),
        ("d/new does not belong there", |layer| {
            fs::create_dir_all(layer.join("fs/d/new/deep")).unwrap();
        }),
        ("d has another mode", |layer| {
            fs::set_permissions(layer.join("fs/d"), fs::Permissions::from_mode(0o700)).unwrap();
        }),
        ("gone has another kind", |layer| {
            fs::remove_file(layer.join("fs/gone")).unwrap();
            fs::create_dir(layer.join("fs/gone")).unwrap();
        }),
        ("d has another kind", |layer| {
            fs::remove_dir_all(layer.join("fs/d")).unwrap();
            fs::write(layer.join("fs/d"), "a file").unwrap();
        }),
        ("record of its files is damaged", |layer| {
            flip(&layer.join("tree"), 10)
        }),
        ("layer.json is missing", |layer| {
            fs::remove_file(layer.join("layer.json")).unwrap()
        }),
        ("opening it", |layer| {
            fs::remove_dir_all(layer.join("fs")).unwrap()
        }),
    ];
    for (problem, damage) in damage {
        let (_registry, fixture, reference) = pulled().await;
        let layer = layer_directory(&fixture, &reference, 0);
        let problem = if problem == "opening it" {
            "No such file"
        } else {
            problem
        };
        damage(&layer);
        let finding = found_and_repaired(&fixture.store, "layer sha256:", problem).await;
        assert_eq!(finding.needed_by, std::slice::from_ref(&reference));
        assert_eq!(fs::read(layer.join("fs/d/one")).unwrap(), b"1");
        let fixture = fixture.reopen();
        assert_clean(&fixture.store).await;
        settled(&fixture);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_mended_under_a_container_that_has_it_mounted() {
    let (_registry, fixture, reference) = pulled().await;
    let (_, snapshot) = fixture.store.prepare("c1", &reference, false).unwrap();
    let merged = tempfile::TempDir::new().unwrap();
    let lower: Vec<String> = snapshot
        .lower
        .iter()
        .map(|l| l.display().to_string())
        .collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        snapshot.upper.display(),
        snapshot.work.display()
    );
    let mount = |arguments: &[&str]| {
        let done = std::process::Command::new("mount").args(arguments).status();
        assert!(done.unwrap().success(), "{arguments:?}");
    };
    let at = merged.path().to_str().unwrap();
    mount(&["-t", "overlay", "overlay", "-o", &options, at]);
    let _unmount = Unmount(merged.path().to_owned());
    let open = fs::File::open(merged.path().join("d/two")).unwrap();
    let layer = layer_directory(&fixture, &reference, 0);
    flip(&layer.join("fs/d/two"), 99_999);
    fs::remove_file(layer.join("fs/d/one")).unwrap();
    let finding = found_and_repaired(&fixture.store, "layer", "d/two has another").await;
    assert_eq!(finding.needed_by, [reference, "c1".to_owned()]);
    // What was open goes on; what is looked up is whole.
    let mut byte = [0];
    open.read_exact_at(&mut byte, 10).unwrap();
    assert_eq!(byte, [2]);
    assert_eq!(fs::read(layer.join("fs/d/two")).unwrap(), vec![2; 100_000]);
    fs::write(merged.path().join("d/written"), "still works").unwrap();
    assert!(snapshot.upper.join("d/written").exists());
    assert_eq!(fs::read(merged.path().join("gone")).unwrap(), b"x");
}

pub(crate) struct Unmount(pub(crate) PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let done = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
        assert!(done.is_ok_and(|status| status.success()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_missing_content_is_fetched_again() {
    let (_registry, fixture, reference) = pulled().await;
    let image = fixture.store.resolve(&reference).unwrap();
    let blob = |digest: &Digest| fixture.root.path().join("blobs/sha256").join(digest.hex());
    let parts = [
        image.record.layers[0].descriptor.digest.clone(),
        image.record.manifest.clone(),
        image.id().clone(),
    ];
    for digest in &parts {
        flip(&blob(digest), 20);
        found_and_repaired(&fixture.store, digest.as_str(), "it is damaged").await;
        fs::remove_file(blob(digest)).unwrap();
        let finding = found_and_repaired(&fixture.store, digest.as_str(), "it is missing").await;
        assert_eq!(finding.needed_by, std::slice::from_ref(&reference));
    }
    // One that nobody needs is removed.
    let orphan = fixture
        .root
        .path()
        .join("blobs/sha256")
        .join("ab".repeat(32));
    fs::write(&orphan, "not that").unwrap();
    found_and_repaired(&fixture.store, &"ab".repeat(32), "it is damaged").await;
    assert!(!orphan.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_registry_has_is_told_and_the_rest_repaired() {
    let fixture = Fixture::new();
    let image = imported(&fixture, "a:1", tar(1)).await;
    let layer = &image.record.layers[0];
    let packed = fixture
        .root
        .path()
        .join("blobs/sha256")
        .join(layer.descriptor.digest.hex());
    fs::remove_file(packed).unwrap();
    let (checked, found) = check(&fixture.store, true).await;
    assert_eq!((checked.findings, checked.repaired), (1, 0), "{found:?}");
    assert!(
        found[0].problem.contains("did not come from a registry"),
        "{found:?}"
    );
    assert_eq!(found[0].needed_by, ["a:1"]);
    // The image still runs, and can be removed.
    fixture.store.prepare("c1", "a:1", true).unwrap();
    fixture.store.delete_snapshot("c1").unwrap();
    fixture.store.remove("a:1", &gently()).unwrap();
    assert_clean(&fixture.store).await;
    assert_eq!(fixture.content_files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_configuration_was_lost_keeps_its_layers_and_comes_back() {
    let (_registry, fixture, reference) = pulled().await;
    let id = fixture.store.resolve(&reference).unwrap().id().clone();
    let fixture = fixture.reopen_after(|root| flip(&root.join("blobs/sha256").join(id.hex()), 5));
    assert!(fixture.store.resolve(&reference).is_err());
    assert_eq!(
        fs::read_dir(fixture.root.path().join("layers"))
            .unwrap()
            .count(),
        2
    );
    settled(&fixture);
    found_and_repaired(
        &fixture.store,
        &reference,
        "its configuration cannot be read",
    )
    .await;
    assert_eq!(fixture.store.resolve(&reference).unwrap().id(), &id);
    let fixture = fixture.reopen();
    assert_eq!(fixture.store.resolve(&reference).unwrap().id(), &id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_configuration_was_lost_can_be_removed_and_pulled_anew() {
    let (_registry, fixture, reference) = pulled().await;
    let id = fixture.store.resolve(&reference).unwrap().id().clone();
    let damage = |root: &Path| flip(&root.join("blobs/sha256").join(id.hex()), 5);
    let fixture = fixture.reopen_after(damage);
    let removed = fixture.store.remove(&reference, &gently()).unwrap();
    assert_eq!(removed.deleted[0], id.to_string());
    assert_eq!(fixture.content_files(), Vec::<String>::new());
    fixture.pull(&reference).await.unwrap();
    let fixture = fixture.reopen_after(damage);
    fixture.pull(&reference).await.unwrap();
    assert_clean(&fixture.store).await;
    let fixture = fixture.reopen();
    assert_eq!(fixture.store.resolve(&reference).unwrap().id(), &id);
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_files_are_told_of_and_never_touched() {
    let (_registry, fixture, _) = pulled().await;
    let mine = [
        "notes.txt",
        "layers/mine",
        "blobs/sha256/mine",
        "images/mine.txt",
    ];
    let fixture = fixture.reopen_after(|root| {
        for name in mine {
            fs::write(root.join(name), "x").unwrap();
        }
        fs::create_dir_all(root.join("writable/mine/upper/sub")).unwrap();
    });
    let (checked, found) = check(&fixture.store, true).await;
    assert_eq!((checked.findings, checked.repaired), (5, 0), "{found:#?}");
    assert!(
        found
            .iter()
            .all(|finding| finding.problem.contains("none of the store's"))
    );
    for name in mine {
        assert!(fixture.root.path().join(name).exists(), "{name}");
    }
    assert!(fixture.root.path().join("writable/mine/upper/sub").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_a_writable_layer_are_looked_at() {
    let (_registry, fixture, reference) = pulled().await;
    let (_, snapshot) = fixture.store.prepare("c1", &reference, false).unwrap();
    let store = &fixture.store;
    fs::remove_dir(&snapshot.work).unwrap();
    found_and_repaired(store, "writable layer c1", "overlayfs works in").await;
    let record = snapshot.upper.with_file_name("snapshot.json");
    fs::write(&record, "{").unwrap();
    found_and_repaired(store, "writable layer c1", "its record is missing").await;
    fs::remove_dir(&snapshot.upper).unwrap();
    let (checked, found) = check(store, true).await;
    assert_eq!((checked.findings, checked.repaired), (1, 0), "{found:#?}");
    assert!(
        found[0].problem.contains("remove the container"),
        "{found:#?}"
    );
    store.delete_snapshot("c1").unwrap();
    assert_clean(store).await;
}

/// What the store knows, for comparison.
fn known(fixture: &Fixture) -> Vec<String> {
    let images = fixture.store.images();
    let mut known: Vec<String> = images
        .iter()
        .map(|image| format!("{:?}", image.record))
        .collect();
    let snapshots = fixture.store.list_snapshots();
    known.extend(
        snapshots
            .iter()
            .map(|snapshot| format!("{:?}", snapshot.record)),
    );
    known.sort();
    known
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_lost_cut_or_overwritten_is_rebuilt_from_the_files() {
    let damage: [(&str, Damage); 6] = [
        ("deleted", |index| fs::remove_dir_all(index).unwrap()),
        ("its file deleted", |index| {
            fs::remove_file(index.join("db")).unwrap()
        }),
        ("cut", |index| {
            let file = fs::OpenOptions::new()
                .write(true)
                .open(index.join("db"))
                .unwrap();
            let length = file.metadata().unwrap().len();
            file.set_len(length / 2 + 7).unwrap();
        }),
        ("emptied", |index| fs::write(index.join("db"), b"").unwrap()),
        ("overwritten", |index| {
            let length = fs::metadata(index.join("db")).unwrap().len();
            let garbage: Vec<u8> = (0..length).map(|n| (n * 31 % 251) as u8).collect();
            fs::write(index.join("db"), garbage).unwrap();
        }),
        ("a file in its place", |index| {
            fs::remove_dir_all(index).unwrap();
            fs::write(index, "no index").unwrap();
        }),
    ];
    for (what, damage) in damage {
        let (_registry, fixture, reference) = pulled().await;
        imported(&fixture, "a:1", tar(3)).await;
        fixture.store.tag("a:1", "b:1").unwrap();
        fixture.store.prepare("c1", &reference, false).unwrap();
        let before = known(&fixture);
        let fixture = fixture.reopen_after(|root| damage(&root.join("index")));
        assert_eq!(known(&fixture), before, "{what}");
        assert_clean(&fixture.store).await;
        settled(&fixture);
        // And the new one works.
        fixture.store.tag("a:1", "c:1").unwrap();
        let before = known(&fixture);
        let fixture = fixture.reopen();
        assert_eq!(known(&fixture), before, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_records_that_are_lost_or_damaged_are_written_from_the_index() {
    let (_registry, fixture, reference) = pulled().await;
    imported(&fixture, "a:1", tar(3)).await;
    fixture.store.prepare("c1", &reference, false).unwrap();
    let before = known(&fixture);
    let fixture = fixture.reopen_after(|root| {
        for (n, entry) in fs::read_dir(root.join("images")).unwrap().enumerate() {
            let path = entry.unwrap().path();
            if n == 0 {
                fs::remove_file(path).unwrap();
            } else {
                fs::write(path, "no record").unwrap();
            }
        }
        fs::remove_file(root.join("writable/c1/snapshot.json")).unwrap();
    });
    assert_eq!(known(&fixture), before);
    // The damaged one is kept for a look, and told of until somebody has looked.
    let (checked, found) = check(&fixture.store, false).await;
    assert_eq!(checked.findings, 1, "{found:#?}");
    assert!(found[0].problem.contains("set aside"), "{found:#?}");
    settled(&fixture);
    let (checked, _) = check(&fixture.store, true).await;
    assert!(checked.is_clean());
    assert_clean(&fixture.store).await;
    let fixture = fixture.reopen_after(|root| fs::remove_dir_all(root.join("index")).unwrap());
    assert_eq!(known(&fixture), before, "the files were written");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_record_named_is_kept_until_a_person_gives_it_up() {
    let (_registry, fixture, reference) = pulled().await;
    let image = imported(&fixture, "a:1", tar(3)).await;
    let hex = image.id().hex().to_owned();
    let layer = format!("layers/{}", image.record.layers[0].key);
    let mut fixture = fixture.reopen_after(|root| {
        fs::remove_dir_all(root.join("index")).unwrap();
        fs::write(root.join("images").join(format!("{hex}.json")), "{}").unwrap();
    });
    for _ in 0..2 {
        assert!(fixture.store.resolve("a:1").is_err());
        assert!(fixture.store.resolve(&reference).is_ok());
        // Not even a repair or a prune takes what it named, nor the file itself.
        let (checked, found) = check(&fixture.store, true).await;
        assert_eq!((checked.findings, checked.repaired), (1, 0), "{found:#?}");
        let everything = gantry_image::prune::PruneOptions {
            all: true,
            ..Default::default()
        };
        fixture.store.prune(&everything).unwrap();
        assert!(fixture.root.path().join(&layer).exists());
        fixture.pull(&reference).await.unwrap();
        fixture = fixture.reopen();
    }
    let fixture = fixture.reopen_after(|root| fs::remove_dir_all(root.join("damaged")).unwrap());
    assert!(!fixture.root.path().join(&layer).exists());
    assert!(fixture.store.resolve(&reference).is_ok());
    settled(&fixture);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writable_layer_whose_record_is_damaged_is_kept_until_its_container_goes() {
    let (_registry, fixture, reference) = pulled().await;
    for container in ["written", "empty"] {
        fixture.store.prepare(container, &reference, false).unwrap();
    }
    let fixture = fixture.reopen_after(|root| {
        fs::write(root.join("writable/written/upper/file"), "precious").unwrap();
        fs::remove_dir_all(root.join("index")).unwrap();
        for container in ["written", "empty"] {
            fs::write(root.join(format!("writable/{container}/snapshot.json")), "").unwrap();
        }
    });
    let (_, found) = check(&fixture.store, true).await;
    assert_eq!(found.len(), 2, "{found:#?}");
    // Which volumes and layers are theirs is not known.
    let refused = fixture.store.prune_volumes(true, &[]).unwrap_err();
    assert!(refused.to_string().contains("empty"), "{refused}");
    fixture.store.remove(&reference, &gently()).unwrap();
    assert!(
        fs::read_dir(fixture.root.path().join("layers"))
            .unwrap()
            .count()
            > 0
    );
    let damaged = fixture.store.damaged_snapshots();
    assert_eq!(damaged.len(), 2);
    for container in damaged {
        let directory = fixture.root.path().join("writable").join(&container);
        assert!(directory.join("upper").exists(), "{container}");
        assert!(fixture.store.delete_snapshot(&container).unwrap());
        assert!(!directory.exists(), "{container}");
        assert!(!fixture.store.delete_snapshot(&container).unwrap());
    }
    fixture.store.prune_volumes(true, &[]).unwrap();
    let fixture = fixture.reopen();
    assert!(fixture.store.damaged_snapshots().is_empty());
    assert_clean(&fixture.store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_two_files_belongs_to_the_one_that_was_written_last() {
    let fixture = Fixture::new();
    let old = imported(&fixture, "a:1", tar(1)).await;
    let new = imported(&fixture, "b:1", tar(2)).await;
    // As a kill in the middle of `tag b:1 a:1` leaves it, with the index lost too.
    let fixture = fixture.reopen_after(|root| {
        fs::remove_dir_all(root.join("index")).unwrap();
        let file = root.join("images").join(format!("{}.json", new.id().hex()));
        let record = fs::read_to_string(&file).unwrap();
        fs::write(&file, record.replace("library/b:1", "library/a:1")).unwrap();
    });
    assert_eq!(fixture.store.resolve("a:1").unwrap().id(), new.id());
    let old = fixture.store.resolve(old.id().as_str()).unwrap();
    assert!(old.record.tags.is_empty());
    assert_clean(&fixture.store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_found_while_images_and_containers_come_and_go() {
    let registry = Registry::start().await;
    publish(
        &registry,
        "v1",
        &[TestLayer::gzip(tar(1)), TestLayer::gzip(tar(2))],
    );
    let fixture = Fixture::new();
    let store = fixture.store.clone();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let checking = tokio::spawn(async move {
        let mut looks = 0;
        while !stopped.is_cancelled() {
            assert_clean(&store).await;
            looks += 1;
        }
        looks
    });
    let reference = format!("{}/x:v1", registry.host);
    for round in 0..15 {
        fixture.pull(&reference).await.unwrap();
        imported(&fixture, "a:1", tar(round)).await;
        fixture.store.prepare("c1", &reference, true).unwrap();
        fixture.store.tag(&reference, "b:1").unwrap();
        fixture.store.delete_snapshot("c1").unwrap();
        fixture.store.remove("b:1", &gently()).unwrap();
        fixture.store.remove(&reference, &gently()).unwrap();
        fixture.store.remove("a:1", &gently()).unwrap();
    }
    stop.cancel();
    assert!(checking.await.unwrap() > 0);
    assert_eq!(fixture.content_files(), Vec::<String>::new());
}
