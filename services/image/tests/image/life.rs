//! Images in the store: imported, named, listed, pushed, used and removed.

use std::sync::Arc;

use bytes::Bytes;
use gantry_image::ImageStore;
use gantry_image::error::ImageError;
use gantry_image::image::Image;
use gantry_image::import::ImportOptions;
use gantry_image::list::Filter;
use gantry_image::pull::{Event, LayerState};
use gantry_image::registry_client::RegistryError;
use gantry_image::remove::RemoveOptions;
use gantry_oci::{Digest, ImageConfig};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::archive::{Archive, Head, gzip, zstd};
use crate::fixture::{Fixture, TestLayer, publish};
use crate::registry::Registry;

pub(crate) async fn import_pieces(
    store: &ImageStore,
    options: &ImportOptions,
    bytes: Vec<u8>,
) -> Result<Arc<Image>, ImageError> {
    let (sender, pieces) = mpsc::channel(2);
    let feed = async move {
        for piece in bytes.chunks(70_000) {
            if sender
                .send(Ok(Bytes::copy_from_slice(piece)))
                .await
                .is_err()
            {
                return;
            }
        }
    };
    let (imported, ()) = tokio::join!(store.import(options, pieces), feed);
    imported
}

pub(crate) async fn import_bytes(
    fixture: &Fixture,
    options: &ImportOptions,
    bytes: Vec<u8>,
) -> Result<Arc<Image>, ImageError> {
    import_pieces(&fixture.store, options, bytes).await
}

pub(crate) async fn imported(fixture: &Fixture, reference: &str, tar: Vec<u8>) -> Arc<Image> {
    let options = ImportOptions {
        reference: Some(reference.to_owned()),
        ..ImportOptions::default()
    };
    import_bytes(fixture, &options, tar).await.unwrap()
}

pub(crate) fn gently() -> RemoveOptions {
    RemoveOptions::default()
}

pub(crate) fn by_force() -> RemoveOptions {
    RemoveOptions {
        force: true,
        ..RemoveOptions::default()
    }
}

pub(crate) fn tar(n: u32) -> Vec<u8> {
    Archive::new()
        .file("f", vec![n as u8; 300_000])
        .file(format!("n{n}"), b"x")
        .finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_in_any_packing_becomes_an_image_with_the_asked_configuration() {
    let fixture = Fixture::new();
    let options = ImportOptions {
        reference: Some("tool:1".into()),
        changes: vec![r#"CMD ["/f"]"#.into(), "ENV A=b".into()],
        message: "made here".into(),
        platform: Some("linux/arm64".parse().unwrap()),
    };
    let diff_id = Digest::sha256_of(&tar(1));
    for bytes in [tar(1), gzip(&tar(1)), zstd(&tar(1))] {
        let image = import_bytes(&fixture, &options, bytes).await.unwrap();
        assert_eq!(image.config.rootfs.diff_ids, std::slice::from_ref(&diff_id));
        assert_eq!(image.config.config.cmd.as_deref().unwrap(), ["/f"]);
        assert_eq!(image.config.config.env, ["A=b"]);
        assert_eq!(
            image.config.history[0].comment.as_deref(),
            Some("made here")
        );
        assert_eq!(image.platform().to_string(), "linux/arm64");
        assert_eq!(image.size(), 300_001);
        assert_eq!(image.id(), &Digest::sha256_of(&image.config_raw));
        let raw: ImageConfig = serde_json::from_slice(&image.config_raw).unwrap();
        assert_eq!(raw, image.config);
        assert_eq!(fixture.store.resolve("tool:1").unwrap().id(), image.id());
    }
    // Three configurations (their times differ), one layer, one name.
    assert_eq!(fixture.store.images().len(), 3);
    let layers = fixture
        .content_files()
        .iter()
        .filter(|f| f.starts_with("layers"))
        .count();
    assert_eq!(layers, 1);
    assert_eq!(fixture.store.unfinished_downloads().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_fails_leaves_nothing() {
    let fixture = Fixture::new();
    let plain = ImportOptions::default();
    let bad_change = ImportOptions {
        changes: vec!["RUN x".into()],
        ..ImportOptions::default()
    };
    let error = import_bytes(&fixture, &bad_change, tar(1))
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Change { .. }), "{error}");
    let bad_name = ImportOptions {
        reference: Some("Bad Name".into()),
        ..ImportOptions::default()
    };
    let error = import_bytes(&fixture, &bad_name, tar(1)).await.unwrap_err();
    assert!(matches!(error, ImageError::Reference(_)), "{error}");
    let error = import_bytes(&fixture, &plain, tar(1)[..9_000].to_vec())
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Layer { .. }), "{error}");
    let error = import_bytes(&fixture, &plain, b"no archive at all".to_vec())
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Layer { .. }), "{error}");
    let escape = Archive::new().file("../x", vec![0; 2_000_000]).finish();
    let error = import_bytes(&fixture, &plain, escape).await.unwrap_err();
    assert!(matches!(error, ImageError::Layer { .. }), "{error}");
    let (sender, pieces) = mpsc::channel(2);
    sender.send(Ok(Bytes::from(tar(1)))).await.unwrap();
    sender.send(Err("the caller left".into())).await.unwrap();
    let error = fixture.store.import(&plain, pieces).await.unwrap_err();
    assert!(
        matches!(&error, ImageError::Stream { reason } if reason == "the caller left"),
        "{error}"
    );
    assert_eq!(fixture.content_files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_sends_what_the_registry_lacks_and_can_be_pulled_back() {
    let (registry, other) = (Registry::start().await, Registry::start().await);
    registry.want_login("bob", "secret");
    let fixture = Fixture::new();
    let layer = TestLayer::gzip(tar(2));
    publish(&other, "v1", std::slice::from_ref(&layer));
    fixture
        .pull(&format!("{}/team/app:v1", other.host))
        .await
        .unwrap();
    let target = format!("{}/mine/app:2", registry.host);
    fixture
        .store
        .tag(&format!("{}/team/app:v1", other.host), &target)
        .unwrap();
    let cancel = CancellationToken::new();
    let error = fixture
        .store
        .push(&target, None, &cancel, fixture.watcher())
        .await
        .unwrap_err();
    assert!(
        matches!(error, ImageError::Registry(RegistryError::Denied { .. })),
        "{error}"
    );
    let bob = || {
        Some(gantry_image::registry_client::Credentials::Password {
            username: "bob".into(),
            password: "secret".into(),
        })
    };
    let pushed = fixture
        .store
        .push(&target, bob(), &cancel, fixture.watcher())
        .await
        .unwrap();
    let image = fixture.store.resolve(&target).unwrap();
    assert_eq!(pushed.digest, image.record.manifest);
    assert_eq!(
        pushed.bytes as usize,
        layer.packed.len() + image.config_raw.len()
    );
    assert_eq!(registry.blob(&layer.digest()).unwrap(), layer.packed);
    assert_eq!(
        Digest::sha256_of(&registry.manifest("2").unwrap()),
        pushed.digest
    );
    let again = fixture
        .store
        .push(&target, bob(), &cancel, fixture.watcher())
        .await
        .unwrap();
    assert_eq!(again.bytes, 0);
    let exists = |event: &Event| {
        matches!(
            event,
            Event::Layer {
                state: LayerState::Exists,
                ..
            }
        )
    };
    assert!(fixture.events.lock().unwrap().iter().any(exists));
    assert_eq!(
        fixture
            .store
            .resolve(&format!("{}/mine/app@{}", registry.host, pushed.digest))
            .unwrap()
            .id(),
        image.id()
    );
    let error = fixture
        .store
        .push("nothing:here", None, &cancel, fixture.watcher())
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");

    let elsewhere = Fixture::new();
    let options = gantry_image::pull::PullOptions {
        credentials: bob(),
        ..Default::default()
    };
    let pulled = elsewhere
        .store
        .pull(&target, &options, elsewhere.watcher())
        .await
        .unwrap();
    assert_eq!(pulled.image.id(), image.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_removed_one_by_one_and_the_image_with_the_last() {
    let fixture = Fixture::new();
    let a = imported(&fixture, "a:1", tar(1)).await;
    let b = imported(&fixture, "b:1", tar(2)).await;
    fixture.store.tag("a:1", "a:2").unwrap();
    fixture.store.tag("a:1", "other/a").unwrap();
    let error = fixture.store.remove(a.id().short(), &gently()).unwrap_err();
    assert!(matches!(error, ImageError::SeveralNames { .. }), "{error}");
    let removed = fixture.store.remove("a:2", &gently()).unwrap();
    assert_eq!(
        (removed.untagged, removed.deleted),
        (vec!["a:2".to_owned()], vec![])
    );
    // A tag moves, and what had it is dangling.
    fixture.store.tag("a:1", "b:1").unwrap();
    assert_eq!(fixture.store.resolve("b:1").unwrap().id(), a.id());
    assert!(
        fixture
            .store
            .resolve(b.id().as_str())
            .unwrap()
            .record
            .tags
            .is_empty()
    );
    let removed = fixture.store.remove(b.id().as_str(), &gently()).unwrap();
    let diff_id = Digest::sha256_of(&tar(2)).to_string();
    assert_eq!(removed.deleted, [b.id().to_string(), diff_id]);
    let removed = fixture.store.remove(a.id().short(), &by_force()).unwrap();
    assert_eq!(removed.untagged, ["a:1", "b:1", "other/a:latest"]);
    assert_eq!(fixture.content_files(), Vec::<String>::new());
    let error = fixture.store.remove("a:1", &by_force()).unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_layers_stay_until_nobody_has_them() {
    let registry = Registry::start().await;
    let (base, top) = (TestLayer::gzip(tar(1)), TestLayer::gzip(tar(2)));
    publish(&registry, "base", std::slice::from_ref(&base));
    publish(&registry, "both", &[base, top]);
    let fixture = Fixture::new();
    let (b, t) = (
        format!("{}/x:base", registry.host),
        format!("{}/x:both", registry.host),
    );
    fixture.pull(&b).await.unwrap();
    fixture.pull(&t).await.unwrap();
    let removed = fixture.store.remove(&b, &gently()).unwrap();
    assert_eq!(removed.untagged.len(), 2);
    assert_eq!(removed.deleted.len(), 1);
    let pulled = fixture.pull(&t).await.unwrap();
    assert_eq!(fixture.read(&pulled, "n1").unwrap(), b"x");
    assert_eq!(
        fixture.store.remove(&t, &gently()).unwrap().deleted.len(),
        3
    );
    assert_eq!(fixture.content_files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writable_layer_keeps_its_image_and_goes_without_a_trace() {
    let fixture = Fixture::new();
    let root = Archive::new()
        .entry(Head::new(b'5', "./").mode(0o701).owner(5, 6), b"")
        .file("f", b"x")
        .finish();
    let image = imported(&fixture, "a:1", root).await;
    let before = fixture.content_files();
    let (found, snapshot) = fixture.store.prepare("c1", "a:1", false).unwrap();
    assert_eq!(found.id(), image.id());
    assert_eq!(std::fs::read(snapshot.lower[0].join("f")).unwrap(), b"x");
    let meta = std::fs::metadata(&snapshot.upper).unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        (0o701, 5, 6)
    );
    assert!(snapshot.work.is_dir());
    let error = fixture.store.prepare("c1", "a:1", true).unwrap_err();
    assert!(
        matches!(error, ImageError::SnapshotExists { .. }),
        "{error}"
    );
    for id in ["", "../x", ".hidden", "a/b", &"x".repeat(65)] {
        let error = fixture.store.prepare(id, "a:1", true).unwrap_err();
        assert!(matches!(error, ImageError::ContainerId { .. }), "{error}");
    }
    let error = fixture.store.prepare("c2", "a:2", true).unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    let error = fixture.store.remove("a:1", &gently()).unwrap_err();
    assert!(
        matches!(&error, ImageError::InUse { container, .. } if container == "c1"),
        "{error}"
    );

    let fixture = fixture.reopen();
    let again = fixture.store.get_snapshot("c1").unwrap();
    assert_eq!(
        (again.upper, again.lower.clone()),
        (snapshot.upper.clone(), snapshot.lower)
    );
    std::fs::create_dir_all(snapshot.upper.join("deep/er")).unwrap();
    // By force the image goes, and what the container stands on stays.
    fixture.store.remove("a:1", &by_force()).unwrap();
    assert!(again.lower[0].join("f").exists());
    assert!(fixture.store.delete_snapshot("c1").unwrap());
    assert!(!fixture.store.delete_snapshot("c1").unwrap());
    assert!(matches!(
        fixture.store.get_snapshot("c1"),
        Err(ImageError::SnapshotNotFound { .. })
    ));
    assert_eq!(fixture.content_files(), Vec::<String>::new());
    assert!(!before.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trash_is_emptied_however_deep_it_is() {
    let fixture = Fixture::new();
    imported(&fixture, "a:1", tar(1)).await;
    let (_, snapshot) = fixture.store.prepare("c1", "a:1", true).unwrap();
    let mut directory: std::os::fd::OwnedFd = std::fs::File::open(&snapshot.upper).unwrap().into();
    for _ in 0..3_000 {
        rustix::fs::mkdirat(&directory, "d", rustix::fs::Mode::RWXU).unwrap();
        directory = rustix::fs::openat(
            &directory,
            "d",
            rustix::fs::OFlags::PATH,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
    }
    drop(directory);
    fixture.store.delete_snapshot("c1").unwrap();
    let trash = fixture.root.path().join("trash");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while std::fs::read_dir(&trash).unwrap().next().is_some() {
        assert!(std::time::Instant::now() < deadline, "the trash stays");
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_come_and_go_at_once_without_a_leak() {
    let fixture = Fixture::new();
    imported(&fixture, "a:1", tar(1)).await;
    let before = fixture.content_files();
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let store = fixture.store.clone();
            std::thread::spawn(move || {
                for n in 0..50 {
                    let id = format!("c{thread}-{n}");
                    store.prepare(&id, "a:1", true).unwrap();
                    assert!(store.delete_snapshot(&id).unwrap());
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(fixture.content_files(), before);
    assert!(fixture.store.list_snapshots().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_choose_images() {
    let fixture = Fixture::new();
    let labelled = |label: &str, reference: &str| ImportOptions {
        reference: Some(reference.into()),
        changes: vec![format!("LABEL {label}")],
        ..ImportOptions::default()
    };
    let old = import_bytes(&fixture, &labelled("kind=tool", "team/old:1"), tar(1))
        .await
        .unwrap();
    let new = import_bytes(&fixture, &labelled("kind=app", "team/new:1"), tar(2))
        .await
        .unwrap();
    let newest = import_bytes(&fixture, &labelled("x=y", "team/new:1"), tar(3))
        .await
        .unwrap();
    let list = |filters: &[(&str, &str)]| {
        let filters: Vec<Filter> = filters
            .iter()
            .map(|(key, value)| Filter {
                key: (*key).into(),
                value: (*value).into(),
            })
            .collect();
        let images = fixture.store.list(false, &filters)?;
        Ok::<_, ImageError>(
            images
                .iter()
                .map(|image| image.id().clone())
                .collect::<Vec<_>>(),
        )
    };
    let ids = |images: &[&Arc<Image>]| {
        images
            .iter()
            .map(|image| image.id().clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(list(&[]).unwrap(), ids(&[&newest, &new, &old]));
    assert_eq!(list(&[("label", "kind")]).unwrap(), ids(&[&new, &old]));
    assert_eq!(
        list(&[("label", "kind=app"), ("label", "x=y")]).unwrap(),
        []
    );
    assert_eq!(
        list(&[("reference", "team/old"), ("reference", "team/new")]).unwrap(),
        ids(&[&newest, &old])
    );
    assert_eq!(list(&[("until", "1h")]).unwrap(), []);
    let at = old.created().unwrap().to_string();
    assert_eq!(list(&[("until", &at)]).unwrap(), ids(&[&old]));
    assert_eq!(list(&[("dangling", "true")]).unwrap(), ids(&[&new]));
    assert_eq!(
        list(&[("reference", "team/*:1"), ("label", "kind")]).unwrap(),
        ids(&[&old])
    );
    assert_eq!(
        list(&[("before", "team/new:1")]).unwrap(),
        ids(&[&new, &old])
    );
    assert_eq!(
        list(&[("since", "team/old:1")]).unwrap(),
        ids(&[&newest, &new])
    );
    for bad in [
        ("dangling", "maybe"),
        ("colour", "red"),
        ("reference", ""),
        ("until", "soon"),
        ("label!", "x"),
    ] {
        assert!(
            matches!(list(&[bad]), Err(ImageError::Filter { .. })),
            "{bad:?}"
        );
    }
}
