//! Loading what other programs write.

use gantry_image::archive::{LoadOptions, Loaded};
use gantry_image::error::ImageError;
use gantry_oci::Digest;
use serde_json::{Value, json};

use crate::archive::{Archive, Head, gzip, zstd};
use crate::archives::{load, load_with, noise, trees, varied};
use crate::fixture::Fixture;

pub(crate) fn sha(bytes: &[u8]) -> String {
    Digest::sha256_of(bytes).hex().to_owned()
}

/// A configuration over layers.
pub(crate) fn config(name: &str, tars: &[&[u8]]) -> String {
    config_for(name, "amd64", tars)
}

fn config_for(name: &str, architecture: &str, tars: &[&[u8]]) -> String {
    let diff_ids: Vec<String> = tars
        .iter()
        .map(|tar| format!("sha256:{}", sha(tar)))
        .collect();
    json!({
        "architecture": architecture, "os": "linux", "created": "2024-05-06T07:08:09Z",
        "config": { "Cmd": [name] }, "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
}

/// A small layer and a large one.
fn layers() -> [Vec<u8>; 2] {
    [varied(1), Archive::new().file("small", b"x").finish()]
}

fn names(loaded: &[Loaded]) -> Vec<String> {
    loaded
        .iter()
        .flat_map(|l| &l.names)
        .map(ToString::to_string)
        .collect()
}

/// As Docker 1.10 to 24 writes them: the list last, layers shared by symlinks.
fn old_docker() -> (Vec<u8>, [String; 2]) {
    let [base, top] = layers();
    let (one, two) = (config("one", &[&base, &top]), config("two", &[&base]));
    let (a, b, c) = ("a".repeat(64), "b".repeat(64), "c".repeat(64));
    let list = json!([
        { "Config": format!("{}.json", sha(one.as_bytes())), "RepoTags": ["one:1", "one:2"],
          "Layers": [format!("{a}/layer.tar"), format!("{b}/layer.tar")] },
        { "Config": format!("{}.json", sha(two.as_bytes())), "RepoTags": null,
          "Layers": [format!("{c}/layer.tar")] },
    ]);
    let archive = Archive::new()
        .dir(format!("{b}/"))
        .file(format!("{b}/VERSION"), "1.0")
        .file(format!("{b}/json"), "{}")
        .file(format!("{b}/layer.tar"), &top)
        .file(format!("{}.json", sha(one.as_bytes())), &one)
        .dir(format!("{c}/"))
        .symlink(format!("{c}/layer.tar"), format!("../{a}/layer.tar"))
        .file(format!("{a}/layer.tar"), &base)
        .file(format!("{}.json", sha(two.as_bytes())), &two)
        .file("manifest.json", list.to_string())
        .file("repositories", "{}")
        .finish();
    (archive, [sha(one.as_bytes()), sha(two.as_bytes())])
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_s_old_archives_load_plain_and_packed() {
    let (archive, [one, two]) = old_docker();
    let [base, top] = layers();
    let mut seen = Vec::new();
    for archive in [archive.clone(), gzip(&archive), zstd(&archive)] {
        let fixture = Fixture::new();
        let loaded = load(&fixture, &archive).await.unwrap();
        assert_eq!(names(&loaded), ["one:1", "one:2"]);
        let ids: Vec<&str> = loaded.iter().map(|l| l.image.id().hex()).collect();
        assert_eq!(ids, [one.as_str(), two.as_str()]);
        let image = &loaded[0].image;
        // Packed as they came: plain tars.
        let digests: Vec<&str> = image
            .record
            .layers
            .iter()
            .map(|l| l.descriptor.digest.hex())
            .collect();
        assert_eq!(digests, [sha(&base), sha(&top)]);
        let raw: Value = serde_json::from_slice(&fixture.store.manifest(image).unwrap()).unwrap();
        assert_eq!(
            raw["layers"][0]["mediaType"],
            "application/vnd.oci.image.layer.v1.tar"
        );
        assert_eq!(trees(&fixture, image)[0].len(), 1);
        // Configurations, manifests, layers packed and unpacked, records: and no more.
        let files = fixture.content_files();
        assert_eq!(files.len(), 2 + 2 + 2 + 2 + 2, "{files:?}");
        seen.push((files, trees(&fixture, image)));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_named_by_their_content_and_packed_ones_load() {
    let [base, top] = layers();
    let text = config("podman", &[&base, &top]);
    let list = |layers: [String; 2]| {
        json!([{ "Config": "config.json", "RepoTags": ["docker.io/library/p:1"], "Layers": layers }])
            .to_string()
    };
    let by_content = Archive::new()
        .file(format!("{}.tar", sha(&base)), &base)
        .file(format!("{}.tar", sha(&top)), &top)
        .file("config.json", &text)
        .file(
            "manifest.json",
            list([&base, &top].map(|tar| format!("{}.tar", sha(tar)))),
        )
        .finish();
    let packed = Archive::new()
        .file("manifest.json", list(["./one".into(), "/two".into()]))
        .file("./one", gzip(&base))
        .hard_link("two", "three")
        .file("three", zstd(&top))
        .file("config.json", &text)
        .unfinished();
    for (archive, kind) in [(by_content, "tar"), (packed, "tar+gzip")] {
        let fixture = Fixture::new();
        let loaded = load(&fixture, &archive).await.unwrap();
        assert_eq!(names(&loaded), ["p:1"]);
        let media_type = &loaded[0].image.record.layers[0].descriptor.media_type;
        assert!(media_type.as_str().ends_with(kind), "{media_type}");
        // Once more: nothing changes.
        let before = fixture.content_files();
        load(&fixture, &archive).await.unwrap();
        assert_eq!(fixture.content_files(), before);
        assert_eq!(before.len(), 1 + 1 + 2 + 2 + 1, "{before:?}");
    }
}

/// An OCI layout in the making.
#[derive(Default)]
pub(crate) struct Layout {
    archive: Archive,
    entries: Vec<Value>,
}

impl Layout {
    pub(crate) fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let archive = std::mem::take(&mut self.archive);
        self.archive = archive.file(format!("blobs/sha256/{}", sha(bytes)), bytes);
        json!({ "mediaType": format!("application/vnd.oci.image.{media_type}"),
                "digest": format!("sha256:{}", sha(bytes)), "size": bytes.len() })
    }

    pub(crate) fn manifest(&mut self, config: &str, layers: &[(&str, Vec<u8>)]) -> Value {
        let layers: Vec<Value> = layers
            .iter()
            .map(|(kind, packed)| self.blob(&format!("layer.v1.{kind}"), packed))
            .collect();
        let config = self.blob("config.v1+json", config.as_bytes());
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        self.blob("manifest.v1+json", manifest.to_string().as_bytes())
    }

    pub(crate) fn list(&mut self, mut entry: Value, annotations: Value) {
        entry["annotations"] = annotations;
        self.entries.push(entry);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.archive
            .file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
            .file(
                "index.json",
                json!({ "schemaVersion": 2, "manifests": self.entries }).to_string(),
            )
            .finish()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layouts_load_with_whatever_names_their_writers_give() {
    let [base, top] = layers();
    let mut layout = Layout::default();
    for (n, annotations) in [
        json!({ "io.containerd.image.name": "docker.io/library/a:1", "org.opencontainers.image.ref.name": "1" }),
        json!({ "org.opencontainers.image.ref.name": "localhost/b:2" }),
        json!({ "org.opencontainers.image.ref.name": "latest" }),
        json!({ "org.opencontainers.image.ref.name": format!("c@sha256:{}", "0".repeat(64)) }),
    ]
    .into_iter()
    .enumerate()
    {
        let text = config(&n.to_string(), &[&base, &top]);
        let packed = [("tar+gzip", gzip(&base)), ("tar+zstd", zstd(&top))];
        let manifest = layout.manifest(&text, &packed);
        layout.list(manifest.clone(), annotations);
        if n == 0 {
            let more = json!({ "io.containerd.image.name": "docker.io/library/a:also" });
            layout.list(manifest, more);
        }
    }
    let fixture = Fixture::new();
    let loaded = load(&fixture, &layout.finish()).await.unwrap();
    assert_eq!(names(&loaded), ["a:1", "a:also", "localhost/b:2"]);
    assert_eq!(loaded.len(), 4);
    // One base and one top for all of them, each as it came and as files.
    let files = fixture.content_files();
    assert_eq!(files.len(), 4 * 3 + 2 + 2, "{files:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_image_for_several_platforms_the_right_one_is_loaded() {
    let tar = varied(5);
    let build = |present: &[&str], nested: bool| {
        let mut layout = Layout::default();
        let mut entries = Vec::new();
        for architecture in ["arm64", "amd64", "s390x"] {
            let text = config_for(architecture, architecture, &[&tar]);
            let mut part = Layout::default();
            let mut entry = part.manifest(&text, &[("tar", tar.clone())]);
            if present.contains(&architecture) {
                entry = layout.manifest(&text, &[("tar", tar.clone())]);
            }
            entry["platform"] = json!({ "os": "linux", "architecture": architecture });
            entries.push(entry);
        }
        if nested {
            let index = json!({ "schemaVersion": 2, "manifests": entries });
            let index = layout.blob("index.v1+json", index.to_string().as_bytes());
            layout.list(
                index,
                json!({ "io.containerd.image.name": "docker.io/library/m:1" }),
            );
        } else {
            for entry in entries {
                layout.list(entry, json!({}));
            }
        }
        layout.finish()
    };
    let wanting = |platform: &str| LoadOptions {
        platform: Some(platform.parse().unwrap()),
        ..LoadOptions::default()
    };
    let host = gantry_oci::Platform::host().architecture;
    let all = ["arm64", "amd64", "s390x"];
    for nested in [true, false] {
        let archive = build(&all, nested);
        let fixture = Fixture::new();
        let loaded = load(&fixture, &archive).await.unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].image.config.architecture, host);
        let loaded = load_with(&fixture, &archive, &wanting("linux/s390x"))
            .await
            .unwrap();
        assert_eq!(loaded[0].image.config.architecture, "s390x");
        let error = load_with(&fixture, &archive, &wanting("linux/riscv64"))
            .await
            .unwrap_err();
        assert!(matches!(error, ImageError::NoPlatform { .. }), "{error}");
    }
    // An archive of one platform's part, whichever it is, as Docker writes it.
    let fixture = Fixture::new();
    let loaded = load(&fixture, &build(&["s390x"], true)).await.unwrap();
    assert_eq!(loaded[0].image.config.architecture, "s390x");
    let error = load_with(&fixture, &build(&["s390x"], true), &wanting("linux/arm64"))
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::NoPlatform { .. }), "{error}");
}

/// Layers that need the ones below: a hard link, and directories without entries.
fn dependent(count: usize) -> Vec<Vec<u8>> {
    let bottom = Archive::new()
        .entry(Head::new(b'5', "tmp").mode(0o1777).owner(5, 6), b"")
        .file("tmp/base", noise(1, 100_000))
        .finish();
    let uppers = (1..count).map(|n| {
        Archive::new()
            .file(format!("tmp/f{n}"), noise(n as u32, 90_000))
            .hard_link(format!("link{n}"), "tmp/base")
            .finish()
    });
    std::iter::once(bottom).chain(uppers).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_need_the_ones_below_wait_for_the_list() {
    // More of them than may stand still at a time, the top-most first.
    let tars = dependent(14);
    let views: Vec<&[u8]> = tars.iter().map(Vec::as_slice).collect();
    let text = config("deep", &views);
    let archive = |pack: fn(&[u8]) -> Vec<u8>| {
        let mut archive = Archive::new();
        let mut paths: Vec<String> = Vec::new();
        for (n, tar) in tars.iter().enumerate().rev() {
            archive = archive.file(format!("{n}/layer.tar"), pack(tar));
            paths.insert(0, format!("{n}/layer.tar"));
        }
        let list = json!([{ "Config": "c", "RepoTags": ["deep:1"], "Layers": paths }]);
        archive
            .file("c", &text)
            .file("manifest.json", list.to_string())
            .finish()
    };
    let mut seen = Vec::new();
    for archive in [archive(<[u8]>::to_vec), archive(gzip)] {
        let fixture = Fixture::new();
        let loaded = load(&fixture, &archive).await.unwrap();
        let trees = trees(&fixture, &loaded[0].image);
        assert!(
            trees[0]["tmp"].starts_with("41777 5:6"),
            "{}",
            trees[0]["tmp"]
        );
        let base = trees[13]["tmp/base"].rsplit_once(' ').unwrap().1.to_owned();
        assert!(trees[0]["link13"].ends_with(&base));
        seen.push(trees);
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_layer_under_two_images_is_what_each_needs() {
    // The same tar above two bases is two directories.
    let tars = dependent(2);
    let other = Archive::new()
        .entry(Head::new(b'5', "tmp").mode(0o700), b"")
        .file("tmp/base", noise(9, 80_000))
        .finish();
    let (one, two) = (
        config("one", &[&tars[0], &tars[1]]),
        config("two", &[&other, &tars[1]]),
    );
    let list = json!([
        { "Config": "1", "RepoTags": ["one:1"], "Layers": ["a", "top"] },
        { "Config": "2", "RepoTags": ["two:1"], "Layers": ["b", "top"] },
    ]);
    let archive = Archive::new()
        .file("top", &tars[1])
        .file("a", &tars[0])
        .file("b", &other)
        .file("1", one)
        .file("2", two)
        .file("manifest.json", list.to_string())
        .finish();
    let fixture = Fixture::new();
    let loaded = load(&fixture, &archive).await.unwrap();
    let modes: Vec<String> = loaded
        .iter()
        .map(|loaded| trees(&fixture, &loaded.image)[0]["tmp"][..5].to_owned())
        .collect();
    assert_eq!(modes, ["41777", "40700"]);
}

/// What the fuzzer starts from, and what it has found: see `integration-tests/fuzz`.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_fuzzer_starts_from_is_loaded() {
    let seeds = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../integration-tests/fuzz/seeds/load"
    );
    let mut seen = 0;
    for seed in std::fs::read_dir(seeds).unwrap() {
        let path = seed.unwrap().path();
        let fixture = Fixture::new();
        let loaded = load(&fixture, &std::fs::read(&path).unwrap()).await;
        assert_eq!(loaded.map(|l| l.len()).ok(), Some(1), "{path:?}");
        seen += 1;
    }
    assert!(seen >= 6, "{seen} seeds");
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_only_a_lenient_reader_takes_are_loaded() {
    let layer = Archive::new().file("f", b"1").finish();
    let text = config("odd", &[&layer])
        .replace("\"config\"", "\"CONFIG\"")
        .replace("[\"odd\"]", "\"odd\"")
        .replace("\"os\"", "\"os\":\"plan9\",\"Os\"")
        .replace("\"type\":\"layers\"", "\"type\":null");
    let list = format!(
        r#"[{{"config":"config.json","REPOTAGS":["odd:1"],"layers":null,"Layers":["{}.tar"],"Parent":null}}]"#,
        sha(&layer)
    );
    let archive = Archive::new()
        .file(format!("{}.tar", sha(&layer)), &layer)
        .file("config.json", &text)
        .file("manifest.json", list)
        .finish();
    let fixture = Fixture::new();
    let loaded = load(&fixture, &archive).await.unwrap();
    assert_eq!(names(&loaded), ["odd:1"]);
    let image = &loaded[0].image;
    // The bytes decide what it is called, and are kept.
    assert_eq!(image.id().hex(), sha(text.as_bytes()));
    assert_eq!(image.config_raw, text.as_bytes());
    assert_eq!(
        image.config.config.cmd.as_deref(),
        Some(&["odd".to_owned()][..])
    );
    assert_eq!(image.config.os, "linux");
}
