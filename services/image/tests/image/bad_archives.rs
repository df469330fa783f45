//! Loads that fail: hostile archives, callers that go away, processes that are killed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gantry_image::archive::LoadOptions;
use gantry_image::error::ImageError;
use gantry_image::grpc::{ImageGrpc, SERVICES};
use gantry_image::unpack::Limits;
use gantry_kit::client::{Client, connect};
use gantry_kit::fault::Fault;
use gantry_kit::service::{Service, serve};
use gantry_proto::image::v1::archive_service_client::ArchiveServiceClient;
use gantry_proto::image::v1::load_request::Part;
use gantry_proto::image::v1::load_response::Event;
use gantry_proto::image::v1::{LoadHeader, LoadRequest, SaveRequest};
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::archive::{Archive, Head, gzip};
use crate::archives::{load, noise, save, varied};
use crate::fixture::{Fixture, config as usual};
use crate::loads::{Layout, config, sha};

/// A Docker archive of one image of one layer, with what is to be wrong with it.
fn docker(layer: &[u8], list: Option<&str>, more: impl Fn(Archive) -> Archive) -> Vec<u8> {
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

/// An archive whose list never comes, with layers that were begun.
fn unfinished() -> Vec<u8> {
    let waiting = Archive::new()
        .file("tmp/x", noise(7, 200_000))
        .hard_link("y", "not/here")
        .finish();
    Archive::new()
        .file("a", gzip(&varied(1)))
        .file("b", &waiting)
        .file("c", gzip(&noise(8, 5 << 20)))
        .file("d", varied(2))
        .unfinished()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_is_cancelled_or_breaks_leaves_nothing() {
    for broken in [true, false] {
        let fixture = Fixture::new();
        let options = LoadOptions::default();
        let (sender, pieces) = mpsc::channel(1);
        let feed = async {
            for piece in unfinished().chunks(100_000) {
                sender
                    .send(Ok(Bytes::copy_from_slice(piece)))
                    .await
                    .unwrap();
            }
            if broken {
                sender
                    .send(Err("the caller left".to_owned()))
                    .await
                    .unwrap();
            } else {
                options.cancel.cancel();
                // Whoever cancels ends the stream, too.
                sender.send(Err("given up".to_owned())).await.ok();
            }
        };
        let loading = fixture
            .store
            .load(&options, pieces, fixture.watcher(), |_| {});
        let (outcome, ()) = tokio::join!(loading, feed);
        let error = outcome.unwrap_err();
        assert!(
            matches!(
                error,
                ImageError::Stream { .. } | ImageError::Cancelled { .. }
            ),
            "{error}"
        );
        assert_eq!(fixture.content_files(), Vec::<String>::new());
    }
}

fn start(fixture: &Fixture) -> Client {
    let socket = fixture.root.path().join("image.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let stopping = CancellationToken::new();
    let services = ImageGrpc::new(fixture.store.clone(), stopping.clone());
    let service = Service::new(services.routes(), SERVICES);
    tokio::spawn(serve(service, listener, stopping, Duration::from_secs(1)));
    connect(&socket)
}

fn messages(archive: &[u8], header: bool) -> Vec<LoadRequest> {
    let part = |part| LoadRequest { part: Some(part) };
    let chunks = archive.chunks(50_000);
    let chunks = chunks.map(|chunk| part(Part::Chunk(Bytes::copy_from_slice(chunk))));
    let header = header.then(|| part(Part::Header(LoadHeader::default())));
    header.into_iter().chain(chunks).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_saves_and_loads_without_anybody_else() {
    let fixture = Fixture::new();
    let mut archives = ArchiveServiceClient::new(start(&fixture));
    let archive = docker(&varied(1), None, |tar| tar);
    for (archive, reason) in [
        (b"no tar".to_vec(), "ARCHIVE_UNUSABLE"),
        (docker(&varied(2), None, |tar| tar), "LAYER_UNUSABLE"),
    ] {
        let requests = futures::stream::iter(messages(&archive, true));
        let mut events = archives.load(requests).await.unwrap().into_inner();
        let status = loop {
            match events.message().await {
                Ok(event) => assert!(event.is_some()),
                Err(status) => break status,
            }
        };
        assert_eq!(Fault::from_status(&status).reason, reason, "{status}");
    }
    for header in [true, false] {
        let requests = futures::stream::iter(messages(&archive, header));
        let mut events = archives.load(requests).await.unwrap().into_inner();
        let mut loaded = Vec::new();
        while let Some(response) = events.message().await.unwrap() {
            if let Some(Event::Loaded(image)) = response.event {
                loaded.push(image);
            }
        }
        assert_eq!(loaded[0].names, ["x:1"]);
        assert_eq!(loaded[0].image.as_ref().unwrap().tags, ["x:1"]);
    }
    let request = SaveRequest {
        references: vec!["x".into()],
    };
    let mut pieces = archives.save(request).await.unwrap().into_inner();
    let mut saved = Vec::new();
    while let Some(piece) = pieces.message().await.unwrap() {
        saved.extend_from_slice(&piece.chunk);
    }
    assert_eq!(saved, save(&fixture, &["x:1"]).unwrap());
    let request = SaveRequest {
        references: vec!["none".into()],
    };
    let status = archives.save(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_leaves_nothing_of_its_load() {
    let fixture = Fixture::new();
    let mut archives = ArchiveServiceClient::new(start(&fixture));
    let (sender, waiting) = mpsc::channel(100);
    for message in messages(&unfinished(), true) {
        sender.try_send(message).unwrap_or(());
    }
    let requests = tokio_stream::wrappers::ReceiverStream::new(waiting);
    let mut events = archives.load(requests).await.unwrap().into_inner();
    // Until something of it is there.
    events.message().await.unwrap().unwrap();
    assert_ne!(left(fixture.root.path()), Vec::<String>::new());
    drop((events, sender));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !left(fixture.root.path()).is_empty() {
        let files = left(fixture.root.path());
        assert!(Instant::now() < deadline, "{files:?}");
        tokio::task::yield_now().await;
    }
}

/// The service as a process of its own, to be killed.
struct Process {
    root: tempfile::TempDir,
    child: std::process::Child,
}

impl Process {
    fn start(root: tempfile::TempDir) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_gantry-image"))
            .arg("--root")
            .arg(root.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { root, child }
    }

    async fn client(&self) -> ArchiveServiceClient<Client> {
        let socket = self.root.path().join("run/image.sock");
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "the service does not start");
            tokio::task::yield_now().await;
        }
        let mut archives = ArchiveServiceClient::new(connect(&socket));
        // The socket is there before the store is open; an answer is not.
        let references = vec!["none".into()];
        let answer = archives.save(SaveRequest { references }).await;
        assert_eq!(answer.unwrap_err().code(), Code::NotFound);
        archives
    }

    fn kill(mut self) -> tempfile::TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.root
    }

    fn files(&self) -> Vec<String> {
        left(&self.root.path().join("lib/image"))
    }
}

/// What a store holds, though it changes while one looks.
fn left(store: &Path) -> Vec<String> {
    let places = [
        "blobs/sha256",
        "ingest",
        "pending",
        "layers",
        "images",
        "loads",
    ];
    let mut files = Vec::new();
    for directory in places {
        for entry in std::fs::read_dir(store.join(directory))
            .into_iter()
            .flatten()
        {
            files.push(format!(
                "{directory}/{}",
                entry.unwrap().file_name().display()
            ));
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_is_killed_leaves_nothing_after_the_restart() {
    let mut archive = docker(&varied(1), None, |tar| {
        tar.file("big", gzip(&noise(5, 3 << 20)))
    });
    let whole = archive.clone();
    // In the middle of an entry, between two, and somewhere in the end's work.
    for cut in [290_000, 2 << 20, usize::MAX] {
        let root = tempfile::Builder::new()
            .prefix("gk-")
            .tempdir_in("/tmp")
            .unwrap();
        let process = Process::start(root);
        let mut archives = process.client().await;
        archive.truncate(cut.min(archive.len()));
        let (sender, waiting) = mpsc::channel(200);
        for message in messages(&archive, true) {
            sender.try_send(message).unwrap();
        }
        let requests = tokio_stream::wrappers::ReceiverStream::new(waiting);
        let mut events = archives.load(requests).await.unwrap().into_inner();
        if cut == usize::MAX {
            drop(sender);
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while process.files().is_empty() {
            assert!(Instant::now() < deadline, "nothing comes");
            tokio::task::yield_now().await;
        }
        let root = process.kill();
        while let Ok(Some(_)) = events.message().await {}
        let process = Process::start(root);
        process.client().await;
        let files = process.files();
        // Whole or not there at all.
        let whole_image = files.iter().any(|file| file.starts_with("images/"));
        assert!(files.is_empty() || whole_image, "{files:?}");
        drop(process.kill());
        archive.clone_from(&whole);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_load_named_is_removed_at_the_next_start() {
    let fixture = Fixture::new();
    load(&fixture, &docker(&varied(1), None, |tar| tar))
        .await
        .unwrap();
    let before = fixture.content_files();
    // As if it had been killed between the naming and the record.
    let root = fixture.root.path();
    let (mine, known) = (noise(6, 1_000), varied(1));
    std::fs::write(root.join("blobs/sha256").join(sha(&mine)), &mine).unwrap();
    let lines = format!("sha256:{}\nsha256:{}\n", sha(&mine), sha(&known));
    std::fs::write(root.join("loads/0123"), lines).unwrap();
    std::fs::write(root.join("ingest/0123456789abcdef"), b"half").unwrap();
    // Part of a download, which is resumed.
    let resumable = format!("sha256-{}", "1".repeat(64));
    std::fs::write(root.join("ingest").join(&resumable), b"half").unwrap();
    let fixture = fixture.reopen();
    let mut expected = before;
    expected.push(format!("ingest/{resumable}"));
    expected.sort();
    assert_eq!(fixture.content_files(), expected);
    assert_eq!(
        std::fs::read_dir(fixture.root.path().join("loads"))
            .unwrap()
            .count(),
        0
    );
}
