//! The service of archives, and loads that do not come to their end: callers
//! that go away, processes that are killed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gantry_image::archive::LoadOptions;
use gantry_image::error::ImageError;
use gantry_image::grpc::{ImageGrpc, SERVICES};
use gantry_kit::client::{Client, connect};
use gantry_kit::fault::Fault;
use gantry_kit::service::{Service, serve};
use gantry_proto::image::v1::archive_service_client::ArchiveServiceClient;
use gantry_proto::image::v1::load_request::Part;
use gantry_proto::image::v1::load_response::Event;
use gantry_proto::image::v1::{LoadHeader, LoadRequest, SaveRequest};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::archive::{Archive, gzip};
use crate::archives::{load, noise, save, varied};
use crate::bad_archives::docker;
use crate::fixture::Fixture;
use crate::loads::sha;

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
        ..Default::default()
    };
    let mut pieces = archives.save(request).await.unwrap().into_inner();
    let mut saved = Vec::new();
    while let Some(piece) = pieces.message().await.unwrap() {
        saved.extend_from_slice(&piece.chunk);
    }
    assert_eq!(saved, save(&fixture, &["x:1"]).unwrap());
    let request = SaveRequest {
        references: vec!["none".into()],
        ..Default::default()
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
    let deadline = Instant::now() + Duration::from_secs(60);
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
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "the service does not start");
            tokio::task::yield_now().await;
        }
        let mut archives = ArchiveServiceClient::new(connect(&socket));
        // The socket is there before the store is open; an answer is not.
        let references = vec!["none".into()];
        let answer = archives
            .save(SaveRequest {
                references,
                ..Default::default()
            })
            .await;
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
        let deadline = Instant::now() + Duration::from_secs(60);
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
