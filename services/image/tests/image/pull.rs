//! Images come whole or not at all.

use std::time::Duration;

use gantry_image::config::Config;
use gantry_image::error::ImageError;
use gantry_image::pull::{Event, LayerState, PullOptions};
use gantry_image::registry_client::{Credentials, HostConfig, RegistryError};
use gantry_image::unpack::UnpackError;
use gantry_oci::Digest;

use crate::archive::{Archive, gzip, zstd};
use crate::fixture::{Fixture, INDEX, MANIFEST, TestLayer, config, publish, publish_as};
use crate::registry::{Fault, Registry};

fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

fn layer(n: u32) -> TestLayer {
    TestLayer::gzip(
        Archive::new()
            .dir("common")
            .file(format!("common/f{n}"), noise(n, 200_000))
            .file("top", n.to_string())
            .finish(),
    )
}

fn options(architecture: &str) -> PullOptions {
    PullOptions {
        platform: Some(format!("linux/{architecture}").parse().unwrap()),
        ..PullOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_verified_named_and_survives_a_restart() {
    let registry = Registry::start().await;
    let mut layers: Vec<TestLayer> = (1..=6).map(layer).collect();
    let tar = Archive::new().file("zstd", b"z").finish();
    layers.push(TestLayer {
        packed: zstd(&tar),
        diff_id: Digest::sha256_of(&tar),
    });
    let tar = Archive::new().file("plain", b"p").finish();
    layers.push(TestLayer {
        packed: tar.clone(),
        diff_id: Digest::sha256_of(&tar),
    });
    let image = publish(&registry, "v1", &layers);
    let fixture = Fixture::new();
    let reference = format!("{}/team/app:v1", registry.host);
    let pulled = fixture.pull(&reference).await.unwrap();
    assert!(pulled.updated);
    assert_eq!(pulled.digest, image.manifest);
    assert_eq!(*pulled.image.id(), image.config);
    assert_eq!(pulled.image.familiar_tags().join(" "), reference);
    let size: usize = layers.iter().map(|l| l.packed.len()).sum();
    let config_size = registry.blob(&image.config).unwrap().len();
    assert_eq!(pulled.bytes, (size + config_size) as u64);
    assert_eq!(fixture.read(&pulled, "top").unwrap(), b"6");
    assert_eq!(
        fixture.read(&pulled, "common/f2").unwrap(),
        noise(2, 200_000)
    );
    assert_eq!(fixture.read(&pulled, "zstd").unwrap(), b"z");
    assert_eq!(fixture.read(&pulled, "plain").unwrap(), b"p");
    let complete = |event: &Event| {
        matches!(
            event,
            Event::Layer {
                state: LayerState::Complete,
                ..
            }
        )
    };
    assert_eq!(
        fixture
            .events
            .lock()
            .unwrap()
            .iter()
            .filter(|e| complete(e))
            .count(),
        8
    );

    let fixture = fixture.reopen();
    let found = fixture.store.resolve(&reference).unwrap();
    assert_eq!(found.record, pulled.image.record);
    registry.take_requests();
    let again = fixture.pull(&reference).await.unwrap();
    assert!(!again.updated);
    assert_eq!(again.bytes, 0);
    assert_eq!(registry.take_requests(), ["GET /v2/team/app/manifests/v1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_gives_the_image_of_the_wanted_platform() {
    let registry = Registry::start().await;
    let entries: Vec<String> = ["amd64", "arm64"]
        .iter()
        .enumerate()
        .map(|(n, architecture)| {
            let image = publish_as(&registry, architecture, &[layer(n as u32)], architecture, |json| json);
            format!(
                r#"{{"mediaType":"{MANIFEST}","digest":"{}","size":{},"platform":{{"os":"linux","architecture":"{architecture}"}}}}"#,
                image.manifest, image.manifest_size
            )
        })
        .collect();
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#,
        entries.join(",")
    );
    let digest = registry.put_manifest("multi", INDEX, index);
    let fixture = Fixture::new();
    let reference = format!("{}/x:multi", registry.host);
    for architecture in ["arm64", "amd64"] {
        let pulled = fixture
            .store
            .pull(&reference, &options(architecture), fixture.watcher())
            .await
            .unwrap();
        assert_eq!(pulled.digest, digest);
        assert_eq!(pulled.image.platform().architecture, architecture);
        let by_digest = format!("{}/x@{digest}", registry.host);
        assert_eq!(
            fixture.store.resolve(&by_digest).unwrap().id(),
            pulled.image.id()
        );
    }
    let before = fixture.content_files();
    let error = fixture
        .store
        .pull(&reference, &options("riscv64"), fixture.watcher())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ImageError::NoPlatform { available, .. } if available.len() == 2),
        "{error}"
    );
    assert_eq!(fixture.content_files(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_or_not_an_image_leaves_no_trace() {
    let registry = Registry::start().await;
    let fixture = Fixture::new();
    let host = &registry.host;
    let error = fixture
        .pull(&format!("{host}/nothing:here"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ImageError::Registry(RegistryError::NotFound { .. })),
        "{error}"
    );
    let error = fixture.pull("lower/UPPER").await.unwrap_err();
    assert!(matches!(error, ImageError::Reference(_)), "{error}");
    let error = fixture.pull("127.0.0.1:1/a:b").await.unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Registry(RegistryError::Unreachable { .. })
        ),
        "{error}"
    );
    publish_as(&registry, "artifact", &[], "amd64", |json| {
        json.replace("image.config.v1", "something.else.v1")
    });
    let error = fixture
        .pull(&format!("{host}/x:artifact"))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Registry(RegistryError::NotAnImage { .. })
        ),
        "{error}"
    );
    registry.put_manifest("html", "text/html", "<html></html>");
    let error = fixture.pull(&format!("{host}/x:html")).await.unwrap_err();
    assert!(
        matches!(error, ImageError::Registry(RegistryError::Manifest { .. })),
        "{error}"
    );
    assert_eq!(fixture.content_files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_lie_are_refused_and_leave_no_trace() {
    let registry = Registry::start().await;
    let fixture = Fixture::new();
    let good = layer(1);
    let bad = layer(2);
    let reference = |tag: &str| format!("{}/x:{tag}", registry.host);

    // Altered in the middle; altered as a whole, so that only the digest tells; cut short for good.
    let mut altered = bad.packed.clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 0xff;
    publish(&registry, "altered", &[good.clone(), bad.clone()]);
    registry.alter_blob(&bad.digest(), altered);
    let error = fixture.pull(&reference("altered")).await.unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Layer { .. } | ImageError::LayerContent { .. }
        ),
        "{error:?}"
    );
    assert_eq!(fixture.content_files(), Vec::<String>::new());

    let mut other = bad.packed.clone();
    other[4] ^= 1; // The time in the gzip header: unpacks to the same.
    registry.alter_blob(&bad.digest(), other);
    let error = fixture.pull(&reference("altered")).await.unwrap_err();
    assert!(
        matches!(error, ImageError::LayerContent { .. }),
        "{error:?}"
    );
    assert_eq!(fixture.content_files(), Vec::<String>::new());

    registry.alter_blob(&bad.digest(), bad.packed[..1000].to_vec());
    let error = fixture.pull(&reference("altered")).await.unwrap_err();
    assert!(
        matches!(error, ImageError::Registry(RegistryError::Size { .. })),
        "{error:?}"
    );
    assert_eq!(fixture.content_files(), Vec::<String>::new());

    // The configuration promises another content.
    let liar = TestLayer {
        diff_id: Digest::sha256_of(b"other"),
        ..layer(3)
    };
    publish(&registry, "diff", &[good.clone(), liar]);
    let error = fixture.pull(&reference("diff")).await.unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Layer {
                source: UnpackError::DiffId { .. },
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(fixture.content_files(), Vec::<String>::new());

    // The descriptor's size is wrong, in both directions.
    let size = good.packed.len();
    for wrong in [size - 1, size + 1] {
        publish_as(
            &registry,
            "size",
            std::slice::from_ref(&good),
            "amd64",
            |json| {
                json.replace(
                    &format!("\"size\":{size}}}]"),
                    &format!("\"size\":{wrong}}}]"),
                )
            },
        );
        let error = fixture.pull(&reference("size")).await.unwrap_err();
        assert!(
            matches!(error, ImageError::Registry(RegistryError::Size { .. })),
            "{error:?}"
        );
    }
    let escape = TestLayer::gzip(Archive::new().file("../../escape", b"x").finish());
    publish(&registry, "escape", &[good, escape]);
    let error = fixture.pull(&reference("escape")).await.unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Layer {
                source: UnpackError::PathEscapes { .. },
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(fixture.content_files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_and_configurations_that_lie_are_refused() {
    let registry = Registry::start().await;
    let fixture = Fixture::new();
    let image = publish(&registry, "v1", &[layer(1)]);
    let reference = format!("{}/x@{}", registry.host, Digest::sha256_of(b"another"));
    registry.put_manifest(
        Digest::sha256_of(b"another").as_str(),
        MANIFEST,
        registry.manifest("v1").unwrap(),
    );
    let error = fixture.pull(&reference).await.unwrap_err();
    assert!(
        matches!(error, ImageError::Registry(RegistryError::Manifest { .. })),
        "{error}"
    );
    let reference = format!("{}/x:v1", registry.host);
    registry.alter_blob(
        &image.config,
        registry.blob(&image.config).unwrap().to_ascii_uppercase(),
    );
    let error = fixture.pull(&reference).await.unwrap_err();
    assert!(
        matches!(error, ImageError::Registry(RegistryError::Manifest { .. })),
        "{error}"
    );
    publish_as(&registry, "count", &[layer(1), layer(2)], "amd64", |json| {
        let second = json.rfind(",{").unwrap();
        format!("{}]}}", &json[..second])
    });
    let error = fixture
        .pull(&format!("{}/x:count", registry.host))
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Unusable { .. }), "{error}");
    assert_eq!(fixture.content_files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on_where_it_was() {
    let registry = Registry::start().await;
    let layers = [layer(1), layer(2)];
    publish(&registry, "v1", &layers);
    let total: usize = layers.iter().map(|l| l.packed.len()).sum();
    let cut = Fault {
        cut_after: Some(50_000),
        cuts: 4,
        ..Fault::default()
    };
    registry.fault(&layers[0].digest(), cut);
    let refusing = Fault {
        refusals: vec![429, 503, 500],
        ..Fault::default()
    };
    registry.fault(&layers[1].digest(), refusing);
    let fixture = Fixture::new();
    let pulled = fixture
        .pull(&format!("{}/x:v1", registry.host))
        .await
        .unwrap();
    assert_eq!(registry.served() - configs(&registry, &fixture), total);
    assert_eq!(
        fixture.read(&pulled, "common/f1").unwrap(),
        noise(1, 200_000)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_ranges_is_resumed_all_the_same() {
    let registry = Registry::start().await;
    let layers = [layer(1)];
    publish(&registry, "v1", &layers);
    let fault = Fault {
        cut_after: Some(90_000),
        cuts: 2,
        no_ranges: true,
        ..Fault::default()
    };
    registry.fault(&layers[0].digest(), fault);
    let fixture = Fixture::new();
    let pulled = fixture
        .pull(&format!("{}/x:v1", registry.host))
        .await
        .unwrap();
    assert_eq!(
        fixture.read(&pulled, "common/f1").unwrap(),
        noise(1, 200_000)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_the_network_ended_is_resumed_by_the_next_one_after_a_restart() {
    let registry = Registry::start().await;
    let layers = [layer(1), layer(2)];
    publish(&registry, "v1", &layers);
    let total: usize = layers.iter().map(|l| l.packed.len()).sum();
    // The third try reports that it goes on beyond 100,000, and is cancelled.
    let fault = Fault {
        cut_after: Some(60_000),
        cuts: 3,
        ..Fault::default()
    };
    registry.fault(&layers[1].digest(), fault);
    let fixture = Fixture::new();
    let reference = format!("{}/x:v1", registry.host);
    let options = PullOptions::default();
    let cancel = options.cancel.clone();
    let watcher = {
        let events = fixture.watcher();
        let second = layers[1].digest();
        std::sync::Arc::new(move |event: Event| {
            if let Event::Layer {
                digest,
                state: LayerState::Downloading,
                current,
                ..
            } = &event
                && *digest == second
                && *current > 100_000
            {
                cancel.cancel();
            }
            events(event);
        })
    };
    let error = fixture
        .store
        .pull(&reference, &options, watcher)
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Cancelled { .. }), "{error}");
    assert!(fixture.store.resolve(&reference).is_err());
    let unfinished = fixture.store.unfinished_downloads().unwrap();
    let key = format!("sha256-{}", layers[1].digest().hex());
    let second = unfinished.iter().find(|(name, _)| *name == key);
    assert!(
        second.is_some_and(|(_, offset)| *offset >= 120_000),
        "{unfinished:?}"
    );
    assert!(
        fixture
            .content_files()
            .iter()
            .all(|f| !f.starts_with("layers"))
    );

    let fixture = fixture.reopen();
    let pulled = fixture.pull(&reference).await.unwrap();
    let rest = total - 120_000 + pulled.image.config_raw.len();
    assert!(
        pulled.bytes <= rest as u64,
        "{} bytes came again",
        pulled.bytes
    );
    assert_eq!(
        fixture.read(&pulled, "common/f2").unwrap(),
        noise(2, 200_000)
    );
    assert_eq!(fixture.store.unfinished_downloads().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_rest_of_a_download_is_thrown_away_and_fetched_anew() {
    let registry = Registry::start().await;
    let layers = [layer(1)];
    publish(&registry, "v1", &layers);
    let fixture = Fixture::new();
    let ingest = fixture
        .root
        .path()
        .join("ingest")
        .join(format!("sha256-{}", layers[0].digest().hex()));
    std::fs::write(&ingest, vec![0x1f; 5_000]).unwrap();
    let pulled = fixture
        .pull(&format!("{}/x:v1", registry.host))
        .await
        .unwrap();
    assert_eq!(
        fixture.read(&pulled, "common/f1").unwrap(),
        noise(1, 200_000)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pulls_of_shared_layers_download_each_once() {
    let registry = Registry::start().await;
    let layers: Vec<TestLayer> = (1..=5).map(layer).collect();
    for fault in &layers {
        registry.fault(
            &fault.digest(),
            Fault {
                delay: Duration::from_millis(30),
                ..Fault::default()
            },
        );
    }
    publish(&registry, "a", &layers[..3]);
    publish(&registry, "b", &layers[1..4]);
    let reversed: Vec<TestLayer> = layers.iter().rev().cloned().collect();
    publish(&registry, "c", &reversed);
    let fixture = Fixture::new();
    let references: Vec<String> = ["a", "b", "c", "a", "b", "c"]
        .map(|tag| format!("{}/x:{tag}", registry.host))
        .to_vec();
    let pulls = references.iter().map(|reference| fixture.pull(reference));
    for pulled in futures::future::join_all(pulls).await {
        pulled.unwrap();
    }
    let total: usize = layers.iter().map(|l| l.packed.len()).sum();
    assert_eq!(registry.served() - configs(&registry, &fixture), total);
    assert_eq!(fixture.store.images().len(), 3);
    let directories = fixture
        .content_files()
        .iter()
        .filter(|f| f.starts_with("layers"))
        .count();
    assert_eq!(directories, 5);
}

/// Bytes of configurations, which the mock counts as blobs too.
fn configs(registry: &Registry, fixture: &Fixture) -> usize {
    let requests = registry.take_requests();
    let images = fixture.store.images();
    images
        .iter()
        .map(|image| {
            let path = format!("/blobs/{}", image.id());
            requests.iter().filter(|r| r.ends_with(&path)).count() * image.config_raw.len()
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_need_each_other_wait_and_keep_apart() {
    let registry = Registry::start().await;
    let base = TestLayer::gzip(Archive::new().file("tool", noise(9, 400_000)).finish());
    let other = TestLayer::gzip(Archive::new().file("tool", b"other").finish());
    let link = TestLayer::gzip(Archive::new().hard_link("link", "tool").finish());
    let slow = Fault {
        delay: Duration::from_millis(100),
        ..Fault::default()
    };
    registry.fault(&base.digest(), slow);
    publish(&registry, "a", &[base, link.clone()]);
    publish(&registry, "b", &[other, link.clone()]);
    publish(&registry, "c", &[layer(1), link]);
    let fixture = Fixture::new();
    let reference = |tag: &str| format!("{}/x:{tag}", registry.host);
    let (ra, rb) = (reference("a"), reference("b"));
    let (a, b) = tokio::join!(fixture.pull(&ra), fixture.pull(&rb));
    assert_eq!(
        fixture.read(&a.unwrap(), "link").unwrap(),
        noise(9, 400_000)
    );
    assert_eq!(fixture.read(&b.unwrap(), "link").unwrap(), b"other");
    let before = fixture.content_files();
    let error = fixture.pull(&reference("c")).await.unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Layer {
                source: UnpackError::LinkTargetMissing { .. },
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(fixture.content_files(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_hundred_and_twenty_seven_layers_work() {
    let registry = Registry::start().await;
    let layers: Vec<TestLayer> = (0..127)
        .map(|n| TestLayer::gzip(Archive::new().file(format!("f{n}"), n.to_string()).finish()))
        .collect();
    publish(&registry, "deep", &layers);
    let fixture = Fixture::new();
    let pulled = fixture
        .pull(&format!("{}/x:deep", registry.host))
        .await
        .unwrap();
    for n in [0, 63, 126] {
        assert_eq!(
            fixture.read(&pulled, &format!("f{n}")).unwrap(),
            n.to_string().as_bytes()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_to_know_who_asks_is_told() {
    let registry = Registry::start().await;
    publish(&registry, "v1", &[layer(1)]);
    registry.want_login("bob", "secret");
    registry.redirect_blobs();
    let fixture = Fixture::new();
    let reference = format!("{}/x:v1", registry.host);
    let error = fixture.pull(&reference).await.unwrap_err();
    assert!(
        matches!(error, ImageError::Registry(RegistryError::Denied { .. })),
        "{error}"
    );
    let login = |password: &str| PullOptions {
        credentials: Some(Credentials::Password {
            username: "bob".into(),
            password: password.into(),
        }),
        ..PullOptions::default()
    };
    let error = fixture
        .store
        .pull(&reference, &login("wrong"), fixture.watcher())
        .await
        .unwrap_err();
    assert!(
        matches!(error, ImageError::Registry(RegistryError::Denied { .. })),
        "{error}"
    );
    assert_eq!(fixture.content_files(), Vec::<String>::new());
    fixture
        .store
        .pull(&reference, &login("secret"), fixture.watcher())
        .await
        .unwrap();
    // The same from the configuration.
    let table = HostConfig {
        username: Some("bob".into()),
        password: Some("secret".into()),
        ..HostConfig::default()
    };
    let fixture = Fixture::with(Config {
        registry: [(registry.host.clone(), table)].into(),
        ..config()
    });
    fixture.pull(&reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_first_and_the_registry_for_what_they_have_not() {
    let (registry, mirror) = (Registry::start().await, Registry::start().await);
    let layers = [layer(1), layer(2)];
    publish(&registry, "v1", &layers);
    publish(&mirror, "v1", &layers[..1]);
    let table = HostConfig {
        mirrors: vec!["127.0.0.1:1".into(), mirror.host.as_str().into()],
        ..HostConfig::default()
    };
    let fixture = Fixture::with(Config {
        registry: [(registry.host.clone(), table)].into(),
        ..config()
    });
    // The mirror knows the manifest but lacks the second layer.
    mirror.put_manifest("v1", MANIFEST, registry.manifest("v1").unwrap());
    let config_digest = publish(&registry, "v1", &layers).config;
    mirror.put_blob(registry.blob(&config_digest).unwrap());
    let pulled = fixture
        .pull(&format!("{}/x:v1", registry.host))
        .await
        .unwrap();
    assert_eq!(fixture.read(&pulled, "top").unwrap(), b"2");
    assert_eq!(registry.served(), layers[1].packed.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_index_is_rebuilt_and_leftovers_go() {
    let registry = Registry::start().await;
    publish(&registry, "v1", &[layer(1)]);
    let fixture = Fixture::new();
    let reference = format!("{}/x:v1", registry.host);
    let pulled = fixture.pull(&reference).await.unwrap();
    fixture.store.prepare("kept", &reference, false).unwrap();
    let before = fixture.content_files();
    // What a killed process leaves, and a lost index.
    let root = fixture.root.path().to_owned();
    std::fs::create_dir_all(root.join("layers/.new-x/fs/a")).unwrap();
    std::fs::create_dir_all(root.join("writable/.new-y")).unwrap();
    std::fs::create_dir_all(root.join("writable/half/upper")).unwrap();
    std::fs::create_dir_all(root.join(format!("layers/{}/fs", "ab".repeat(32)))).unwrap();
    std::fs::create_dir_all(root.join("trash/z/deep")).unwrap();
    let store = fixture;
    let fixture = {
        let Fixture {
            root,
            store,
            events,
        } = store;
        drop(store);
        wait_until_closed(root.path());
        std::fs::remove_dir_all(root.path().join("index")).unwrap();
        let store = gantry_image::ImageStore::open(root.path(), config()).unwrap();
        Fixture {
            root,
            store,
            events,
        }
    };
    assert_eq!(
        fixture.store.resolve(&reference).unwrap().record,
        pulled.image.record
    );
    assert_eq!(
        fixture.store.get_snapshot("kept").unwrap().record.image,
        *pulled.image.id()
    );
    assert_eq!(fixture.content_files(), before);
}

fn wait_until_closed(root: &std::path::Path) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while gantry_kit::store::Sled::open(&root.join("index")).is_err() {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_without_anything_is_a_layer() {
    let registry = Registry::start().await;
    let long = TestLayer {
        packed: gzip(b""),
        diff_id: Digest::sha256_of(b""),
    };
    publish(&registry, "empty", &[long]);
    let fixture = Fixture::new();
    let pulled = fixture
        .pull(&format!("{}/x:empty", registry.host))
        .await
        .unwrap();
    assert_eq!(pulled.image.size(), 0);
}
