//! The account of the disk, and that a prune frees what the account says.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use gantry_image::account::{Account, FreedBy, OwnerKind};
use gantry_image::error::ImageError;
use gantry_image::list::Filter;
use gantry_image::prune::{PruneOptions, Pruned};
use gantry_oci::content::{IngestKey, Store};

use crate::archive::Archive;
use crate::fixture::{Fixture, TestLayer, publish};
use crate::life::{by_force, gently, imported, tar};
use crate::registry::{Fault, Registry};

/// What `du` says of a directory, in bytes.
pub(crate) fn du(path: &Path) -> u64 {
    let said = Command::new("du")
        .args(["-s", "--block-size=1"])
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8(said.stdout).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// The account, when the disk is at rest: the index writes on for a moment, and
/// the trash is emptied behind the caller's back.
pub(crate) fn settled(fixture: &Fixture) -> Account {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let before = du(fixture.root.path());
        let account = fixture.store.account().unwrap();
        let after = du(fixture.root.path());
        if (before, account.total) == (after, after) && is_at_rest(fixture) {
            return account;
        }
        assert!(
            Instant::now() < deadline,
            "the account says {}, the disk {before} and then {after}: {account:#?}",
            account.total
        );
    }
}

/// Whether all layers are on the disk, which is noted a moment after a pull.
fn is_at_rest(fixture: &Fixture) -> bool {
    let layers = std::fs::read_dir(fixture.root.path().join("layers")).unwrap();
    layers
        .map(|layer| layer.unwrap().path())
        .all(|layer| !layer.join("unsynced").exists())
}

fn sum(account: &Account, freed_by: &[FreedBy]) -> u64 {
    let owners = account.owners.iter();
    owners
        .filter(|owner| freed_by.contains(&owner.freed_by))
        .map(|owner| owner.bytes)
        .sum()
}

fn of_kind(account: &Account, kind: OwnerKind) -> Vec<&gantry_image::account::Owner> {
    let owners = account.owners.iter();
    owners.filter(|owner| owner.kind == kind).collect()
}

fn prune(fixture: &Fixture, all: bool, filters: &[(&str, &str)]) -> Result<Pruned, ImageError> {
    let filters = filters.iter().map(|(key, value)| Filter {
        key: (*key).into(),
        value: (*value).into(),
    });
    fixture.store.prune(&PruneOptions {
        all,
        filters: filters.collect(),
        dry_run: false,
    })
}

/// Images of every kind: named, nameless, used, sharing layers; a partial
/// download; a foreign file; a container that wrote something.
async fn furnished(registry: &Registry) -> Fixture {
    let fixture = Fixture::new();
    let layer = |n: u32| TestLayer::gzip(tar(n));
    publish(registry, "one", &[layer(1), layer(2)]);
    publish(registry, "two", &[layer(1), layer(3)]);
    for tag in ["one", "two"] {
        let reference = format!("{}/x:{tag}", registry.host);
        fixture.pull(&reference).await.unwrap();
    }
    imported(&fixture, "named:1", tar(4)).await;
    imported(&fixture, "moved:1", tar(5)).await;
    imported(&fixture, "moved:1", tar(6)).await;
    let (_, snapshot) = fixture
        .store
        .prepare("c1", &format!("{}/x:two", registry.host), false)
        .unwrap();
    std::fs::write(snapshot.upper.join("written"), vec![7; 200_000]).unwrap();
    // A layer that does not come whole.
    let broken = layer(7);
    let fault = Fault {
        cut_after: Some(200),
        cuts: 1000,
        no_ranges: true,
        ..Fault::default()
    };
    registry.fault(&broken.digest(), fault);
    publish(registry, "broken", &[broken]);
    fixture
        .pull(&format!("{}/x:broken", registry.host))
        .await
        .unwrap_err();
    std::fs::write(fixture.root.path().join("mine"), b"not the store's").unwrap();
    fixture
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_under_the_root_has_one_owner() {
    let registry = Registry::start().await;
    let fixture = furnished(&registry).await;
    let account = settled(&fixture);
    assert_eq!(
        account.owners.iter().map(|owner| owner.bytes).sum::<u64>(),
        account.total
    );
    let mut names: Vec<_> = account.owners.iter().map(|o| (o.kind, &o.name)).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), account.owners.len(), "an owner is listed once");
    assert_eq!(of_kind(&account, OwnerKind::Layer).len(), 6);
    assert_eq!(of_kind(&account, OwnerKind::PackedLayer).len(), 6);
    let partial = of_kind(&account, OwnerKind::PartialDownload);
    assert_eq!(partial.len(), 1, "{account:#?}");
    assert!(partial[0].name.starts_with("sha256:"), "{partial:?}");
    assert_eq!(of_kind(&account, OwnerKind::Foreign)[0].name, "mine");
    let writable = of_kind(&account, OwnerKind::WritableLayer);
    assert_eq!(
        (writable[0].name.as_str(), writable[0].freed_by),
        ("c1", FreedBy::ContainerRemoval)
    );
    assert!(writable[0].bytes >= 200_000);
    assert_eq!(account.snapshots[0].size, 200_000);
    assert_eq!(account.snapshots[0].image_size, 600_002);
    // Two images have layer 1; it counts once.
    assert_eq!(account.layers_size, 6 * 300_001);
    let shared: Vec<_> = account
        .images
        .iter()
        .filter(|image| image.shared > 0)
        .map(|image| (image.shared, image.unique))
        .collect();
    assert_eq!(shared, [(300_001, 300_001); 2]);
    let kept = of_kind(&account, OwnerKind::Layer)
        .into_iter()
        .find(|layer| layer.kept_by.len() == 3)
        .expect("two images and a container keep layer 1");
    assert!(kept.kept_by.contains(&"c1".to_owned()), "{kept:?}");
    // Again, from what is remembered.
    assert_eq!(settled(&fixture).total, account.total);
}

/// Bytes of what a prune is about, on the disk: not the index, and not the directories.
fn content(fixture: &Fixture) -> u64 {
    let said = Command::new("find")
        .arg(fixture.root.path())
        .args(["-path", "*/index", "-prune", "-o"])
        .args([
            "(",
            "-type",
            "d",
            "-regex",
            ".*/\\(layers\\|writable\\)/.*",
            "-o",
        ])
        .args(["!", "-type", "d", ")"])
        .args(["-printf", "%i %b\\n"])
        .output()
        .unwrap();
    let text = String::from_utf8(said.stdout).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    let blocks = lines.iter().map(|line| line.split_once(' ').unwrap().1);
    blocks
        .map(|blocks| blocks.parse::<u64>().unwrap() * 512)
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_frees_what_the_account_said_and_says_what_it_freed() {
    let registry = Registry::start().await;
    let fixture = furnished(&registry).await;
    for (all, frees) in [
        (false, &[FreedBy::Prune, FreedBy::ImagePrune][..]),
        (
            true,
            &[FreedBy::Prune, FreedBy::ImagePrune, FreedBy::ImagePruneAll],
        ),
    ] {
        let promised = sum(&settled(&fixture), frees);
        let options = PruneOptions {
            all,
            dry_run: true,
            ..PruneOptions::default()
        };
        let foretold = fixture.store.prune(&options).unwrap();
        let before = content(&fixture);
        let pruned = prune(&fixture, all, &[]).unwrap();
        let freed = before - content(&fixture);
        assert!(promised > 0);
        assert_eq!(
            (pruned.reclaimed, foretold.reclaimed, freed),
            (promised, promised, promised),
            "{all}"
        );
        assert_eq!(sum(&settled(&fixture), frees), 0, "{all}");
        assert_eq!(
            std::fs::read_dir(fixture.root.path().join("trash"))
                .unwrap()
                .count(),
            0
        );
    }
    // What the container was made from is there, whatever was pruned.
    assert_eq!(fixture.store.images().len(), 1);
    assert_eq!(fixture.store.unfinished_downloads().unwrap(), []);
    assert!(fixture.root.path().join("mine").exists());
    fixture.store.delete_snapshot("c1").unwrap();
    let pruned = prune(&fixture, true, &[]).unwrap();
    assert_eq!(pruned.untagged.len(), 2, "{pruned:?}");
    assert_eq!(fixture.content_files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_spare_images_and_leftovers() {
    let registry = Registry::start().await;
    let fixture = furnished(&registry).await;
    let images = fixture.store.images().len();
    for (filters, all) in [
        (&[("until", "1h"), ("label!", "tag")][..], true),
        (&[("label", "nobody-has-this")], true),
    ] {
        let pruned = prune(&fixture, all, filters).unwrap();
        assert_eq!(pruned, Pruned::default(), "{filters:?}");
    }
    assert_eq!(fixture.store.images().len(), images);
    assert_eq!(fixture.store.unfinished_downloads().unwrap().len(), 1);
    // The one image with the label that no container uses.
    let pruned = prune(&fixture, true, &[("label", "tag=one")]).unwrap();
    assert_eq!(pruned.untagged.len(), 2, "{pruned:?}");
    let pruned = prune(&fixture, false, &[("dangling", "false"), ("label!", "tag")]).unwrap();
    assert_eq!(pruned.untagged.len(), 2, "{pruned:?}");
    assert_eq!(fixture.store.images().len(), 1);
    for bad in [("reference", "x"), ("until", "soon"), ("dangling", "x")] {
        let error = prune(&fixture, false, &[bad]).unwrap_err();
        assert!(matches!(error, ImageError::Filter { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_written_is_no_leftover() {
    let fixture = Fixture::new();
    imported(&fixture, "a:1", tar(1)).await;
    // Another process' download, as it is when the service was killed.
    let key = IngestKey::for_digest(&gantry_oci::Digest::sha256_of(b"x"));
    let mut writer = Store::open(fixture.root.path())
        .unwrap()
        .writer(&key)
        .unwrap();
    writer.write(&[1; 10_000]).unwrap();
    writer.flush().unwrap();
    // Its lock is held: it is listed as abandoned, and not taken.
    assert_eq!(prune(&fixture, false, &[]).unwrap(), Pruned::default());
    drop(writer);
    let pruned = prune(&fixture, false, &[]).unwrap();
    assert_eq!(
        pruned.deleted,
        [gantry_oci::Digest::sha256_of(b"x").to_string()]
    );
    assert!(pruned.reclaimed >= 10_000);
    // An import under way.
    let (sender, pieces) = tokio::sync::mpsc::channel(1);
    let store = fixture.store.clone();
    let importing = tokio::spawn(async move {
        let options = gantry_image::import::ImportOptions::default();
        store.import(&options, pieces).await
    });
    let archive = Archive::new().file("big", vec![3; 3_000_000]).finish();
    let half = archive.len() / 2;
    for piece in archive[..half].chunks(100_000) {
        let piece = bytes::Bytes::copy_from_slice(piece);
        sender.send(Ok(piece)).await.unwrap();
    }
    assert_eq!(prune(&fixture, true, &[]).unwrap().untagged, ["a:1"]);
    for piece in archive[half..].chunks(100_000) {
        let piece = bytes::Bytes::copy_from_slice(piece);
        sender.send(Ok(piece)).await.unwrap();
    }
    drop(sender);
    let image = importing.await.unwrap().unwrap();
    assert_eq!(image.size(), 3_000_000);
    let removed = fixture
        .store
        .remove(image.id().as_str(), &gently())
        .unwrap();
    assert_eq!(removed.deleted.len(), 2);
    assert_eq!(fixture.content_files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_drawn_up_while_images_come_and_go() {
    let fixture = Fixture::new();
    let store = fixture.store.clone();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let watching = std::thread::spawn(move || {
        let mut looks = 0;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let account = store.account().unwrap();
            assert!(
                account.owners.iter().all(|o| o.kind != OwnerKind::Foreign),
                "{account:?}"
            );
            looks += 1;
        }
        looks
    });
    for round in 0..20 {
        let image = imported(&fixture, "a:1", tar(round)).await;
        fixture.store.prepare("c1", "a:1", true).unwrap();
        fixture
            .store
            .remove(image.id().as_str(), &by_force())
            .unwrap();
        fixture.store.delete_snapshot("c1").unwrap();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(watching.join().unwrap() > 0);
    assert_eq!(fixture.content_files(), Vec::<String>::new());
}
