//! The same image, unpacked by another program layer after layer.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use gantry_image::image::Image;
use tempfile::TempDir;

use crate::archive::{Archive, Head};
use crate::fixture::{Fixture, TestLayer, publish};
use crate::overlay::{Overlay, tree};
use crate::registry::Registry;

/// What an image's files are when the kernel mounts them.
pub(crate) fn mounted(fixture: &Fixture, image: &Image) -> BTreeMap<String, String> {
    let id = image.id().to_string();
    let (_, snapshot) = fixture.store.prepare("again", &id, true).unwrap();
    let files = tree(&Overlay::mount(&snapshot, &[]).path());
    fixture.store.delete_snapshot("again").unwrap();
    files
}

/// What umoci makes of an image.
pub(crate) fn unpacked_by_umoci(fixture: &Fixture, image: &Image) -> BTreeMap<String, String> {
    let layout = TempDir::new().unwrap();
    let at = layout.path();
    fs::write(at.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let manifest = fixture.store.manifest(image).unwrap();
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"x"}}}}]}}"#,
        image.record.manifest_media_type,
        image.record.manifest,
        manifest.len()
    );
    fs::write(at.join("index.json"), index).unwrap();
    let copied = Command::new("cp")
        .arg("-r")
        .arg(fixture.root.path().join("blobs"))
        .arg(at)
        .status()
        .unwrap();
    assert!(copied.success());
    let root = at.join("root");
    let done = Command::new("umoci")
        .args(["raw", "unpack", "--image"])
        .arg(format!("{}:x", at.display()))
        .arg(&root)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    tree(&root)
}

pub(crate) fn assert_same(
    found: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
    what: &str,
) {
    for path in found.keys().chain(wanted.keys()) {
        assert_eq!(found.get(path), wanted.get(path), "{what}: {path:?}");
    }
}

/// Layers that speak of the ones below in every way there is. Directories that
/// no archive has an entry for are left out: umoci gives them the time of day.
fn layers() -> Vec<Vec<u8>> {
    let big = |n: u8| vec![n; 700_000];
    let base = Archive::new()
        .entry(Head::new(b'5', "./").mode(0o755), b"")
        .dir("etc")
        .file("etc/passwd", b"root")
        .entry(Head::new(b'0', "etc/shadow").mode(0o600).owner(0, 42), b"x")
        .dir("usr")
        .dir("usr/lib")
        .file("usr/lib/a", big(1))
        .hard_link("usr/lib/a.so", "usr/lib/a")
        .file(
            "usr/lib/single",
            b"one name, for overlayfs parts the others",
        )
        .symlink("lib", "usr/lib")
        .dir("opt")
        .dir("opt/old")
        .file("opt/old/1", b"1")
        .file("opt/old/2", b"2")
        .dir("var")
        .entry(Head::new(b'5', "var/tmp").mode(0o1777), b"")
        .file("turns", b"into a directory")
        .dir("shrinks")
        .file("shrinks/f", b"f")
        .entry(Head::new(b'6', "pipe").owner(3, 4), b"")
        .entry(Head::new(b'0', "suid").mode(0o4755).owner(7, 8), b"s");
    let second = Archive::new()
        .hard_link("etc/alias", "etc/passwd")
        .file("etc/.wh.shadow", b"")
        .dir("opt/old")
        .file("opt/old/.wh..wh..opq", b"")
        .file("opt/old/3", big(3))
        .file(".wh.turns", b"")
        .dir("turns")
        .file("turns/inside", b"i")
        .entry(Head::new(b'5', "var").mode(0o700).owner(1, 1), b"");
    let third = Archive::new()
        .file("shrinks", b"into a file")
        .hard_link("usr/lib/b.so", "usr/lib/single")
        .file("opt/old/.wh.3", b"")
        .file("opt/old/4", b"4")
        .entry(
            Head::new(b'0', "ping").pax("SCHILY.xattr.user.note", b"value"),
            b"p",
        )
        .file("usr/lib/c", big(9))
        .dir(format!("{}/", "n".repeat(120)))
        .file(format!("{}/f", "n".repeat(120)), b"l")
        .file(".wh.pipe", b"");
    [base, second, third].map(Archive::finish).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_in_parallel_gives_what_a_sequential_unpack_gives() {
    let registry = Registry::start().await;
    let layers: Vec<TestLayer> = layers().into_iter().map(TestLayer::gzip).collect();
    for count in 1..=layers.len() {
        publish(&registry, "tree", &layers[..count]);
        let fixture = Fixture::new();
        let pulled = fixture.pull(&format!("{}/x:tree", registry.host)).await;
        let image = pulled.unwrap().image;
        let wanted = unpacked_by_umoci(&fixture, &image);
        assert!(wanted.len() > 10, "{wanted:?}");
        let what = format!("{count} layers");
        assert_same(&mounted(&fixture, &image), &wanted, &what);
    }
}
