//! Loads of hostile archives, and of archives with something wrong.

use gantry_image::unpack::Limits;
use serde_json::json;

use crate::archive::{Archive, Head, gzip};
use crate::archives::{load, noise, varied};
use crate::fixture::{Fixture, config as usual};
use crate::loads::{Layout, config};

/// A Docker archive of one image of one layer, with what is to be wrong with it.
pub(crate) fn docker(
    layer: &[u8],
    list: Option<&str>,
    more: impl Fn(Archive) -> Archive,
) -> Vec<u8> {
    let text = config("x", &[&varied(1)]);
    let usual = json!([{ "Config": "c.json", "RepoTags": ["x:1"], "Layers": ["l"] }]).to_string();
    more(Archive::new().file("l", layer).file("c.json", text))
        .file("manifest.json", list.unwrap_or(&usual))
        .finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_lie_are_refused_and_leave_nothing() {
    let good = varied(1);
    let plain = |tar: Archive| tar;
    let escaping = Archive::new().file("../evil", noise(1, 200_000)).finish();
    let list = |text: &str| docker(&good, Some(text), plain);
    let hex = "0".repeat(64);
    let named = |name: &str| {
        json!([{ "Config": "c.json", "RepoTags": [name], "Layers": ["l"] }]).to_string()
    };
    let layered = |layers: &[&str]| {
        json!([{ "Config": "c.json", "RepoTags": ["x:1"], "Layers": layers }]).to_string()
    };
    let mut missing = Layout::default();
    let entry = missing.manifest(&config("x", &[&good]), &[("tar", good.clone())]);
    let mut lying = Layout::default();
    let mut sized = lying.manifest(&config("x", &[&good]), &[("tar", good.clone())]);
    sized["size"] = json!(5);
    lying.list(sized, json!({}));
    let mut elsewhere = Layout::default();
    elsewhere.list(entry, json!({}));
    let mut artifact = Layout::default();
    let blob = artifact.blob("manifest.v1+json", br#"{"schemaVersion":2,"config":{"mediaType":"application/x","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#);
    artifact.list(blob, json!({}));
    let cut = docker(&good, None, plain)[..100_000].to_vec();
    let packed_cut = {
        let packed = gzip(&docker(&good, None, plain));
        packed[..packed.len() / 2].to_vec()
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", Vec::new(), "empty"),
        ("no tar", noise(3, 100_000), "not usable"),
        ("a tar that ends", cut, "ends in the middle"),
        ("a gzip that ends", packed_cut, "gzip data is damaged"),
        (
            "a file system",
            Archive::new().dir("etc").file("etc/x", b"").finish(),
            "gantry import",
        ),
        (
            "Docker 1.9",
            Archive::new().file("repositories", b"{}").finish(),
            "before 1.10",
        ),
        (
            "no index",
            Archive::new().file("oci-layout", b"{}").finish(),
            "index.json",
        ),
        ("no JSON", list("["), "manifest.json"),
        ("no images", list("[]"), "lists none"),
        (
            "too many images",
            list(&format!(
                "[{}]",
                vec![r#"{"Config":"c"}"#; 10_001].join(",")
            )),
            "10000",
        ),
        (
            "a huge list",
            list(&" ".repeat(5 << 20)),
            "more than the 4194304",
        ),
        (
            "no configuration",
            list(r#"[{"Config":"none","Layers":[]}]"#),
            "\"none\"",
        ),
        (
            "a directory",
            docker(&good, Some(&layered(&["d"])), |tar| tar.dir("d")),
            "directory",
        ),
        ("a layer too many", list(&layered(&["l", "l"])), "2 layers"),
        ("a layer missing", list(&layered(&["m"])), "\"m\""),
        (
            "a path that leads out",
            list(&layered(&["../../etc/passwd"])),
            "leads out",
        ),
        (
            "a link that leads out",
            docker(&good, None, |tar| tar.symlink("z", "../../etc")),
            "leads out",
        ),
        (
            "links in a circle",
            docker(&good, Some(&layered(&["y"])), |tar| {
                tar.symlink("y", "z").symlink("z", "y")
            }),
            "leads to no file",
        ),
        (
            "a device",
            docker(&good, None, |tar| tar.entry(Head::new(b'3', "null"), b"")),
            "neither a file",
        ),
        (
            "an entry that leads out",
            docker(&good, None, |tar| tar.file("../../x", b"")),
            "leads out",
        ),
        (
            "two contents",
            docker(&good, None, |tar| tar.file("l", b"other")),
            "more than once",
        ),
        ("no name", list(&named("UPPER")), "UPPER"),
        (
            "a digest for a name",
            list(&named(&format!("x@sha256:{hex}"))),
            "NAME:TAG",
        ),
        ("another layer", docker(&varied(2), None, plain), "promises"),
        (
            "a layer that leads out",
            docker(&escaping, None, plain),
            "../evil",
        ),
        (
            "a packed layer that leads out",
            docker(&gzip(&escaping), None, plain),
            "../evil",
        ),
        (
            "a layer that is none",
            docker(&noise(4, 300_000), None, plain),
            "cannot be unpacked",
        ),
        (
            "a small layer that is none",
            docker(b"x", None, plain),
            "cannot be unpacked",
        ),
        (
            "a blob that lies",
            Archive::new()
                .file(format!("blobs/sha256/{hex}"), &good)
                .finish(),
            "damaged",
        ),
        (
            "a small blob that lies",
            Archive::new()
                .file(format!("blobs/sha256/{hex}"), b"x")
                .finish(),
            "damaged",
        ),
        (
            "a configuration that lies",
            {
                let list =
                    json!([{ "Config": format!("{hex}.json"), "Layers": ["l"] }]).to_string();
                docker(&good, Some(&list), |tar| {
                    tar.file(format!("{hex}.json"), config("x", &[&varied(1)]))
                })
            },
            "damaged",
        ),
        ("a size that lies", lying.finish(), "promises 5"),
        ("a manifest missing", elsewhere.finish(), "blobs/sha256"),
        ("no image at all", artifact.finish(), "no image"),
        (
            "more than is there",
            Archive::new()
                .entry(
                    Head {
                        size: Some(1 << 40),
                        ..Head::new(b'0', "big")
                    },
                    b"x",
                )
                .finish(),
            "ends in the middle",
        ),
        (
            "a file with holes",
            Archive::new().raw(&sparse_header()).finish(),
            "holes",
        ),
    ];
    for (what, archive, part) in cases {
        let fixture = Fixture::new();
        let error = load(&fixture, &archive).await.expect_err(what);
        let text = gantry_kit::fault::chain(&error);
        assert!(text.contains(part), "{what}: {text}");
        assert!(!text.contains('\n'), "{what}: {text}");
        assert_eq!(fixture.content_files(), Vec::<String>::new(), "{what}");
        let loads = std::fs::read_dir(fixture.root.path().join("loads"));
        assert_eq!(loads.into_iter().flatten().count(), 0, "{what}");
    }
}

/// An old GNU header of a file with holes.
fn sparse_header() -> [u8; 512] {
    let mut block = crate::archive::header_block(&Head::new(b'S', "sparse"), 0);
    block[257..265].copy_from_slice(b"ustar  \0");
    block[345..].fill(0);
    block[483..494].copy_from_slice(b"00000000000");
    crate::archive::seal(&mut block);
    block
}

#[tokio::test(flavor = "multi_thread")]
async fn what_costs_too_much_is_refused_in_time() {
    let fixture = Fixture::with(gantry_image::config::Config {
        limits: Limits {
            unpacked_bytes: 4 << 20,
            ..Limits::default()
        },
        ..usual()
    });
    let bomb = gzip(&vec![0; 8 << 20]);
    let zeros = Archive::new().file("z", vec![0; 5 << 20]).finish();
    for archive in [bomb, gzip(&zeros), zeros] {
        load(&fixture, &archive).await.unwrap_err();
        assert_eq!(fixture.content_files(), Vec::<String>::new());
    }
    let fixture = Fixture::new();
    let mut many = Archive::new();
    for n in 0..200_001 {
        many = many.file(n.to_string(), b"");
    }
    let error = load(&fixture, &gzip(&many.finish())).await.unwrap_err();
    assert!(error.to_string().contains("200000 entries"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_before_the_failing_one_stay_and_nothing_else() {
    let (good, bad) = (varied(1), varied(2));
    let text = config("good", &[&good]);
    let list = json!([
        { "Config": "1", "RepoTags": ["good:1"], "Layers": ["a"] },
        { "Config": "2", "RepoTags": ["bad:1"], "Layers": ["b", "a"] },
    ]);
    let wrong = config("bad", &[&bad, &varied(3)]);
    let archive = Archive::new()
        .file("a", &good)
        .file("b", &bad)
        .file("1", &text)
        .file("2", wrong)
        .file("manifest.json", list.to_string())
        .finish();
    let fixture = Fixture::new();
    load(&fixture, &archive).await.unwrap_err();
    assert_eq!(fixture.store.images().len(), 1);
    assert!(fixture.store.resolve("good:1").is_ok());
    let files = fixture.content_files();
    assert_eq!(files.len(), 5, "{files:?}");
}
