//! Transfers that break and go on, of many tags, and of images in another packing.

use std::io::Read as _;
use std::sync::Arc;

use gantry_image::error::ImageError;
use gantry_image::import::ImportOptions;
use gantry_image::pull::{Event, LayerState, PullOptions};
use gantry_image::registry_client::RegistryError;
use gantry_oci::Digest;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::archive::{Archive, zstd};
use crate::fixture::{Fixture, MANIFEST, TestLayer, publish, publish_as};
use crate::life::by_force;
use crate::proxy::Cutter;
use crate::registry::{Fault, Registry};

/// A layer of so many bytes, which do not compress.
fn noise(length: usize) -> TestLayer {
    let mut content = vec![0; length];
    let mut source = std::fs::File::open("/dev/urandom").unwrap();
    source.read_exact(&mut content).unwrap();
    TestLayer::gzip(Archive::new().file("f", content).finish())
}

fn layer(text: &str) -> TestLayer {
    TestLayer::gzip(Archive::new().file(text, text).finish())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_all_the_time_cost_hardly_a_byte_more() {
    let registry = Registry::start().await;
    let layers = [noise(3_000_000), noise(1_000_000)];
    publish(&registry, "v1", &layers);
    let total: usize = layers.iter().map(|l| l.packed.len()).sum();
    let cutter = Cutter::before(&registry.host, 256 << 10).await;
    let fixture = Fixture::new();
    let pulled = fixture
        .pull(&format!("{}/x:v1", cutter.host))
        .await
        .unwrap();
    assert!(cutter.cuts() >= 14, "{} cuts", cutter.cuts());
    let limit = total * 105 / 100;
    assert!(cutter.carried() <= limit, "{} bytes", cutter.carried());
    let bytes = usize::try_from(pulled.bytes).unwrap();
    assert_eq!(bytes, total + pulled.image.config_raw.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_tags_of_a_repository_are_pulled_page_by_page() {
    let registry = Registry::start().await;
    for tag in ["a", "b", "c", "d", "e"] {
        publish(&registry, tag, &[layer("base"), layer(tag)]);
    }
    registry.page(2);
    let fixture = Fixture::new();
    let repository = format!("{}/team/app", registry.host);
    let options = PullOptions::default();
    let last = fixture
        .store
        .pull_all(&repository, &options, fixture.watcher())
        .await
        .unwrap();
    assert_eq!(last.image.familiar_tags(), [format!("{repository}:e")]);
    assert_eq!(fixture.store.images().len(), 5);
    let order: Vec<String> = fixture
        .events
        .lock()
        .unwrap()
        .iter()
        .filter_map(|event| match event {
            Event::Resolved { reference, .. } => Some(format!("begin {reference}")),
            Event::Pulled(pulled) => Some(format!("end {}", pulled.image.familiar_tags()[0])),
            _ => None,
        })
        .collect();
    let expected = ["a", "b", "c", "d", "e"]
        .map(|tag| {
            [
                format!("begin {repository}:{tag}"),
                format!("end {repository}:{tag}"),
            ]
        })
        .concat();
    assert_eq!(order, expected[..9]);
    for name in [
        format!("{repository}:a"),
        format!("{repository}@{}", last.digest),
    ] {
        let error = fixture
            .store
            .pull_all(&name, &options, fixture.watcher())
            .await
            .unwrap_err();
        assert!(
            matches!(error, ImageError::NotARepository { .. }),
            "{error}"
        );
    }
    // One that cannot be had ends it; what came before stays.
    registry.put_manifest("b", "text/html", "<html>");
    let fixture = Fixture::new();
    let error = fixture
        .store
        .pull_all(&repository, &options, fixture.watcher())
        .await
        .unwrap_err();
    assert!(
        matches!(error, ImageError::Registry(RegistryError::Manifest { .. })),
        "{error}"
    );
    assert_eq!(fixture.store.images().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_tags_of_a_repository_are_pushed_and_no_others() {
    let (from, to) = (Registry::start().await, Registry::start().await);
    let fixture = Fixture::new();
    let repository = format!("{}/team/app", to.host);
    for tag in ["a", "b", "c"] {
        publish(&from, tag, &[layer("base"), layer(tag)]);
        let source = format!("{}/x:{tag}", from.host);
        fixture.pull(&source).await.unwrap();
        let target = if tag == "c" {
            format!("{repository}-other:c")
        } else {
            format!("{repository}:{tag}")
        };
        fixture.store.tag(&source, &target).unwrap();
    }
    let cancel = CancellationToken::new();
    let push = async |name: &str| {
        let watcher = fixture.watcher();
        fixture.store.push_all(name, None, &cancel, watcher).await
    };
    let last = push(&repository).await.unwrap();
    assert_eq!(last.reference.familiar(), format!("{repository}:b"));
    let before = |event: &Event| match event {
        Event::Pushed(pushed) => Some(pushed.reference.familiar()),
        _ => None,
    };
    let pushed: Vec<String> = fixture
        .events
        .lock()
        .unwrap()
        .iter()
        .filter_map(before)
        .collect();
    assert_eq!(pushed, [format!("{repository}:a")]);
    assert!(to.manifest("a").is_some() && to.manifest("b").is_some());
    assert!(to.manifest("c").is_none());
    let error = push(&format!("{repository}:a")).await.unwrap_err();
    assert!(
        matches!(error, ImageError::NotARepository { .. }),
        "{error}"
    );
    let error = push(&format!("{}/unknown", to.host)).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
}

/// Pulls an image and gives it a name in another registry.
async fn pulled_for(fixture: &Fixture, from: &Registry, tag: &str, to: &Registry) -> String {
    let source = format!("{}/x:{tag}", from.host);
    fixture.pull(&source).await.unwrap();
    let target = format!("{}/mine/app:{tag}", to.host);
    fixture.store.tag(&source, &target).unwrap();
    target
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_goes_on_where_the_registry_has_it() {
    let (from, to) = (Registry::start().await, Registry::start().await);
    let big = noise(1_000_000);
    publish(&from, "v1", std::slice::from_ref(&big));
    let fixture = Fixture::new();
    let target = pulled_for(&fixture, &from, "v1", &to).await;
    let breaking = Fault {
        takes: 300_000,
        breaks: 3,
        ..Fault::default()
    };
    to.fault_of_uploads(breaking);
    let cancel = CancellationToken::new();
    fixture
        .store
        .push(&target, None, &cancel, fixture.watcher())
        .await
        .unwrap();
    assert_eq!(to.blob(&big.digest()).unwrap(), big.packed);
    let requests = to.take_requests();
    let count = |what: &str| requests.iter().filter(|r| r.starts_with(what)).count();
    assert!(count("PATCH ") >= 2, "{requests:?}");
    // One for the layer, one for the configuration.
    let begun = requests.iter().filter(|r| r.starts_with("POST ")).count();
    assert!(begun <= 3, "{requests:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_the_registry_forgot_begins_anew() {
    let (from, to) = (Registry::start().await, Registry::start().await);
    let big = noise(500_000);
    publish(&from, "v1", std::slice::from_ref(&big));
    let fixture = Fixture::new();
    let target = pulled_for(&fixture, &from, "v1", &to).await;
    to.forget_broken_uploads();
    let breaking = Fault {
        takes: 100_000,
        breaks: 2,
        ..Fault::default()
    };
    to.fault_of_uploads(breaking);
    let cancel = CancellationToken::new();
    fixture
        .store
        .push(&target, None, &cancel, fixture.watcher())
        .await
        .unwrap();
    assert_eq!(to.blob(&big.digest()).unwrap(), big.packed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_brings_nothing_is_given_up_and_leaves_nothing() {
    let (from, to) = (Registry::start().await, Registry::start().await);
    let tar = Archive::new().file("plain", vec![7; 50_000]).finish();
    let plain = TestLayer {
        diff_id: Digest::sha256_of(&tar),
        packed: tar,
    };
    publish_as(&from, "v1", &[plain], "amd64", |json| {
        json.replace("tar+gzip", "tar")
    });
    let fixture = Fixture::new();
    let target = pulled_for(&fixture, &from, "v1", &to).await;
    let before = fixture.content_files();
    let breaking = Fault {
        breaks: usize::MAX,
        ..Fault::default()
    };
    to.fault_of_uploads(breaking);
    let cancel = CancellationToken::new();
    let error = fixture
        .store
        .push(&target, None, &cancel, fixture.watcher())
        .await
        .unwrap_err();
    assert!(
        matches!(error, ImageError::Registry(RegistryError::Busy { .. })),
        "{error}"
    );
    assert_eq!(fixture.content_files(), before);
    assert!(to.manifest("v1").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_layers_are_packed_on_their_way_and_the_image_stays_the_same() {
    let (from, to) = (Registry::start().await, Registry::start().await);
    let tar = Archive::new().file("plain", vec![7; 50_000]).finish();
    let plain = TestLayer {
        diff_id: Digest::sha256_of(&tar),
        packed: tar.clone(),
    };
    let docker = |json: String| {
        json.replace("oci.image.manifest.v1", "docker.distribution.manifest.v2")
            .replace("oci.image.config.v1", "docker.container.image.v1")
            .replace(
                "oci.image.layer.v1.tar+gzip",
                "docker.image.rootfs.diff.tar",
            )
    };
    publish_as(
        &from,
        "oci",
        std::slice::from_ref(&plain),
        "amd64",
        |json| json.replace("tar+gzip", "tar"),
    );
    publish_as(
        &from,
        "docker",
        &[layer("x"), plain.clone()],
        "amd64",
        |json| {
            docker(json).replace(
                MANIFEST,
                "application/vnd.docker.distribution.manifest.v2+json",
            )
        },
    );
    for tag in ["oci", "docker"] {
        let fixture = Fixture::new();
        if tag == "docker" {
            let raw = from.manifest("docker").unwrap();
            let docker = "application/vnd.docker.distribution.manifest.v2+json";
            from.put_manifest("docker", docker, raw);
        }
        let target = pulled_for(&fixture, &from, tag, &to).await;
        let id = fixture.store.resolve(&target).unwrap().id().clone();
        let cancel = CancellationToken::new();
        let push = || {
            fixture
                .store
                .push(&target, None, &cancel, fixture.watcher())
        };
        let pushed = push().await.unwrap();
        let manifest: serde_json::Value =
            serde_json::from_slice(&to.manifest(tag).unwrap()).unwrap();
        let top = manifest["layers"]
            .as_array()
            .unwrap()
            .last()
            .unwrap()
            .clone();
        let kind = top["mediaType"].as_str().unwrap();
        assert!(kind.ends_with("gzip") && kind.contains(tag), "{manifest}");
        assert!(
            manifest["mediaType"].as_str().unwrap().contains(tag),
            "{manifest}"
        );
        let blob = to
            .blob(&top["digest"].as_str().unwrap().parse().unwrap())
            .unwrap();
        assert!(blob.len() < 2_000);
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&blob[..])
            .read_to_end(&mut unpacked)
            .unwrap();
        assert_eq!(unpacked, tar);
        // Once, and then it is known; also after a restart, and by its new digest.
        assert_eq!(push().await.unwrap().bytes, 0);
        let fixture = fixture.reopen();
        let by_digest = format!("{}/mine/app@{}", to.host, pushed.digest);
        let image = fixture.store.resolve(&by_digest).unwrap();
        assert_eq!(*image.id(), id);
        assert_eq!(image.record.manifest, pushed.digest);
        assert!(fixture.store.manifest(&image).is_ok());
        for name in [format!("{}/x:{tag}", from.host), target.clone()] {
            fixture.store.remove(&name, &by_force()).ok();
        }
        fixture.store.remove(id.as_str(), &by_force()).ok();
        assert_eq!(fixture.content_files(), Vec::<String>::new());
    }
}

/// Two images of one layer: in one packing, and in another.
async fn in_two_packings(from: &Registry, other: &Registry) -> (TestLayer, TestLayer) {
    let tar = Archive::new().file("f", vec![9; 20_000]).finish();
    let first = TestLayer::gzip(tar.clone());
    let second = TestLayer {
        packed: zstd(&tar),
        diff_id: first.diff_id.clone(),
    };
    publish(from, "first", std::slice::from_ref(&first));
    publish_as(
        other,
        "second",
        std::slice::from_ref(&second),
        "amd64",
        |json| json.replace("tar+gzip", "tar+zstd"),
    );
    (first, second)
}

/// What a disk may do.
fn forget_blob(fixture: &Fixture, digest: &gantry_oci::Digest) {
    let blobs = fixture.root.path().join("blobs/sha256");
    std::fs::remove_file(blobs.join(digest.hex())).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_was_here_in_another_packing_is_pushed_in_that() {
    let (from, other, to) = (
        Registry::start().await,
        Registry::start().await,
        Registry::start().await,
    );
    let (first, second) = in_two_packings(&from, &other).await;
    let fixture = Fixture::new();
    let one = format!("{}/x:first", from.host);
    fixture.pull(&one).await.unwrap();
    let target = pulled_for(&fixture, &other, "second", &to).await;
    assert!(!other.asked_for(&second.digest()));
    let cancel = CancellationToken::new();
    fixture
        .store
        .push(&target, None, &cancel, fixture.watcher())
        .await
        .unwrap();
    assert!(to.blob(&first.digest()).is_some());
    assert!(!other.asked_for(&second.digest()));
    let manifest = String::from_utf8(to.manifest("second").unwrap().to_vec()).unwrap();
    assert!(manifest.contains("tar+gzip"), "{manifest}");
    let elsewhere = Fixture::new();
    let pulled = elsewhere.pull(&target).await.unwrap();
    assert_eq!(elsewhere.read(&pulled, "f").unwrap(), vec![9; 20_000]);
    // The image it had the packing from may go.
    fixture.store.remove(&one, &by_force()).unwrap();
    assert!(!other.asked_for(&second.digest()));
    let again = format!("{}/mine/again:1", to.host);
    fixture.store.tag(&target, &again).unwrap();
    fixture
        .store
        .push(&again, None, &cancel, fixture.watcher())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packing_that_nobody_has_here_is_fetched_from_where_the_image_came_from() {
    let (from, other, to) = (
        Registry::start().await,
        Registry::start().await,
        Registry::start().await,
    );
    let (first, second) = in_two_packings(&from, &other).await;
    let fixture = Fixture::new();
    let one = format!("{}/x:first", from.host);
    fixture.pull(&one).await.unwrap();
    let target = pulled_for(&fixture, &other, "second", &to).await;
    fixture.store.remove(&one, &by_force()).unwrap();
    forget_blob(&fixture, &first.digest());
    let cut = Fault {
        cut_after: Some(second.packed.len() / 2),
        cuts: 1,
        ..Fault::default()
    };
    other.fault(&second.digest(), cut);
    let cancel = CancellationToken::new();
    let push = || {
        fixture
            .store
            .push(&target, None, &cancel, fixture.watcher())
    };
    let pushed = push().await.unwrap();
    assert!(to.blob(&second.digest()).is_some());
    assert_eq!(to.manifest("second"), other.manifest("second"));
    assert_eq!(fixture.store.unfinished_downloads().unwrap(), []);
    let image = fixture.store.resolve(&target).unwrap();
    assert_eq!(image.record.manifest, pushed.digest);

    // Where it is nowhere any more, that is said.
    let fixture = Fixture::new();
    fixture.pull(&one).await.unwrap();
    let target = pulled_for(&fixture, &other, "second", &to).await;
    fixture.store.remove(&one, &by_force()).unwrap();
    forget_blob(&fixture, &first.digest());
    let gone = Fault {
        refusals: vec![404; 100],
        ..Fault::default()
    };
    other.fault(&second.digest(), gone.clone());
    to.fault(&second.digest(), gone);
    let error = fixture
        .store
        .push(&target, None, &cancel, fixture.watcher())
        .await
        .unwrap_err();
    assert!(
        matches!(error, ImageError::PackedMissing { .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_imported_is_pushed_as_it_was_packed() {
    let to = Registry::start().await;
    let fixture = Fixture::new();
    let (sender, pieces) = mpsc::channel(1);
    let tar = Archive::new().file("f", b"x").finish();
    tokio::spawn(async move { sender.send(Ok(tar.into())).await });
    let target = format!("{}/mine/app:v1", to.host);
    let options = ImportOptions {
        reference: Some(target.clone()),
        ..ImportOptions::default()
    };
    let image = fixture.store.import(&options, pieces).await.unwrap();
    let cancel = CancellationToken::new();
    let states = Arc::clone(&fixture.events);
    let pushed = fixture
        .store
        .push(&target, None, &cancel, fixture.watcher())
        .await
        .unwrap();
    assert_eq!(pushed.digest, image.record.manifest);
    let complete = states.lock().unwrap().iter().any(|event| {
        matches!(
            event,
            Event::Layer {
                state: LayerState::Complete,
                ..
            }
        )
    });
    assert!(complete);
}
