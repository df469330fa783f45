//! The service as its callers see it.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use gantry_image::grpc::{ImageGrpc, SERVICES};
use gantry_kit::client::{Client, connect};
use gantry_kit::fault::Fault;
use gantry_kit::service::{Service, serve};
use gantry_proto::image::v1::image_service_client::ImageServiceClient;
use gantry_proto::image::v1::snapshot_service_client::SnapshotServiceClient;
use gantry_proto::image::v1::{self as proto, import_request::Part, pull_response::Event};
use gantry_proto::types::v1::Platform;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::archive::Archive;
use crate::fixture::{Fixture, TestLayer, publish};
use crate::registry::{Fault as Misbehaviour, Registry};

/// Serves a fixture's store on a socket beside it.
pub(crate) fn start(fixture: &Fixture) -> Client {
    let socket = fixture.root.path().join("image.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let stopping = CancellationToken::new();
    let services = ImageGrpc::new(fixture.store.clone(), stopping.clone());
    let service = Service::new(services.routes(), SERVICES);
    tokio::spawn(serve(service, listener, stopping, Duration::from_secs(1)));
    connect(&socket)
}

fn reason(status: &Status) -> (Code, String) {
    (status.code(), Fault::from_status(status).reason)
}

fn layer(n: u32) -> TestLayer {
    TestLayer::gzip(Archive::new().file("f", n.to_string()).finish())
}

async fn pull(client: &Client, reference: &str) -> Result<Vec<Event>, Status> {
    let request = proto::PullRequest {
        reference: reference.into(),
        ..Default::default()
    };
    let mut stream = ImageServiceClient::new(client.clone())
        .pull(request)
        .await?
        .into_inner();
    let mut events = Vec::new();
    while let Some(message) = stream.message().await? {
        events.push(message.event.unwrap());
    }
    Ok(events)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_streams_its_progress_and_a_container_gets_its_root() {
    let registry = Registry::start().await;
    publish(&registry, "v1", &[layer(1), layer(2)]);
    let fixture = Fixture::new();
    let client = start(&fixture);
    let reference = format!("{}/x:v1", registry.host);
    let mut snapshots = SnapshotServiceClient::new(client.clone());
    let prepare = |platform: Option<&str>| proto::PrepareRequest {
        container_id: "c1".into(),
        image: reference.clone(),
        platform: platform.map(|architecture| Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: String::new(),
        }),
        ephemeral: true,
        ..Default::default()
    };
    let status = snapshots.prepare(prepare(None)).await.unwrap_err();
    assert_eq!(reason(&status), (Code::NotFound, "IMAGE_NOT_FOUND".into()));

    let events = pull(&client, &reference).await.unwrap();
    let Some(Event::Resolved(resolved)) = events.first() else {
        panic!("{events:?}")
    };
    assert_eq!(
        (resolved.layers.len(), &resolved.reference),
        (2, &reference)
    );
    let Some(Event::Done(done)) = events.last() else {
        panic!("{events:?}")
    };
    let image = done.image.clone().unwrap();
    assert_eq!(
        (image.tags.as_slice(), done.updated),
        (&[reference.clone()][..], true)
    );
    assert_eq!(image.created.unwrap().seconds, 1_714_979_289);

    let status = snapshots
        .prepare(prepare(Some("riscv64")))
        .await
        .unwrap_err();
    assert_eq!(reason(&status), (Code::NotFound, "IMAGE_NOT_FOUND".into()));
    let prepared = snapshots
        .prepare(prepare(Some("amd64")))
        .await
        .unwrap()
        .into_inner();
    let rootfs = prepared.rootfs.unwrap();
    assert_eq!(
        std::fs::read(Path::new(&rootfs.lower_dirs[0]).join("f")).unwrap(),
        b"2"
    );
    assert_eq!(rootfs.lower_dirs.len(), 2);
    let status = snapshots.prepare(prepare(None)).await.unwrap_err();
    assert_eq!(
        reason(&status),
        (Code::AlreadyExists, "SNAPSHOT_EXISTS".into())
    );
    let listed = snapshots
        .list_snapshots(proto::ListSnapshotsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.snapshots[0].image_id, image.id);

    let mut images = ImageServiceClient::new(client);
    let remove = |force| proto::RemoveRequest {
        reference: reference.clone(),
        force,
        ..Default::default()
    };
    let status = images.remove(remove(false)).await.unwrap_err();
    assert_eq!(
        reason(&status),
        (Code::FailedPrecondition, "IMAGE_IN_USE".into())
    );
    assert!(status.message().contains("c1"), "{}", status.message());
    let delete = proto::DeleteRequest {
        container_id: "c1".into(),
        ..Default::default()
    };
    assert!(
        snapshots
            .delete(delete.clone())
            .await
            .unwrap()
            .into_inner()
            .deleted
    );
    assert!(!snapshots.delete(delete).await.unwrap().into_inner().deleted);
    let inspect = proto::InspectRequest {
        reference: image.id.clone(),
        platform: None,
    };
    let inspected = images.inspect(inspect).await.unwrap().into_inner();
    assert!(inspected.manifest.starts_with(b"{") && inspected.config.starts_with(b"{"));
    let tag = proto::TagRequest {
        source: image.id[7..15].into(),
        target: "short".into(),
    };
    assert_eq!(
        images.tag(tag).await.unwrap().into_inner().tag,
        "short:latest"
    );
    images.remove(remove(false)).await.unwrap();
    let last = proto::RemoveRequest {
        reference: "short".into(),
        ..Default::default()
    };
    assert_eq!(
        images
            .remove(last)
            .await
            .unwrap()
            .into_inner()
            .deleted
            .len(),
        3
    );
    assert_eq!(fixture.content_files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_in_one_line_what_and_where() {
    let registry = Registry::start().await;
    let fixture = Fixture::new();
    let client = start(&fixture);
    let host = &registry.host;
    let escape = TestLayer::gzip(Archive::new().file("../evil", b"x").finish());
    publish(&registry, "evil", &[escape]);
    for (reference, code, expected, part) in [
        (
            format!("{host}/x:none"),
            Code::NotFound,
            "NOT_IN_REGISTRY",
            "x:none",
        ),
        (
            "127.0.0.1:1/x".into(),
            Code::Unavailable,
            "REGISTRY_UNREACHABLE",
            "refused",
        ),
        (
            "no-such-host.invalid/x".into(),
            Code::Unavailable,
            "REGISTRY_UNREACHABLE",
            "no-such-host.invalid",
        ),
        (
            "x/Y".into(),
            Code::InvalidArgument,
            "INVALID_REFERENCE",
            "x/Y",
        ),
        (
            format!("{host}/x:evil"),
            Code::DataLoss,
            "LAYER_UNUSABLE",
            "../evil",
        ),
    ] {
        let status = pull(&client, &reference).await.unwrap_err();
        assert_eq!(
            reason(&status),
            (code, expected.to_owned()),
            "{}",
            status.message()
        );
        assert!(status.message().contains(part), "{}", status.message());
        assert!(!status.message().contains('\n'), "{}", status.message());
    }
    assert_eq!(fixture.content_files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_takes_a_header_and_then_the_archive() {
    let fixture = Fixture::new();
    let mut images = ImageServiceClient::new(start(&fixture));
    let part = |part| proto::ImportRequest { part: Some(part) };
    let header = Part::Header(proto::ImportHeader {
        reference: "imported:1".into(),
        changes: vec!["ENTRYPOINT [\"/init\"]".into()],
        ..Default::default()
    });
    let tar = Archive::new().file("init", vec![1; 100_000]).finish();
    let chunks = tar
        .chunks(30_000)
        .map(|chunk| part(Part::Chunk(Bytes::copy_from_slice(chunk))));
    let messages: Vec<_> = std::iter::once(part(header)).chain(chunks).collect();
    let image = images
        .import(futures::stream::iter(messages.clone()))
        .await
        .unwrap()
        .into_inner()
        .image
        .unwrap();
    assert_eq!(image.tags, ["imported:1"]);
    let status = images
        .import(futures::stream::iter(messages[1..].to_vec()))
        .await
        .unwrap_err();
    assert_eq!(
        reason(&status),
        (Code::InvalidArgument, "MISSING_FIELD".into())
    );
    let listed = images
        .list(proto::ListRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.images, [image]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_ends_its_pull() {
    let registry = Registry::start().await;
    let slow = layer(1);
    let digest = slow.digest();
    let endless = Misbehaviour {
        delay: Duration::from_secs(600),
        ..Misbehaviour::default()
    };
    registry.fault(&digest, endless);
    publish(&registry, "v1", &[slow, layer(2)]);
    let fixture = Fixture::new();
    let client = start(&fixture);
    let reference = format!("{}/x:v1", registry.host);
    let request = proto::PullRequest {
        reference: reference.clone(),
        ..Default::default()
    };
    let mut stream = ImageServiceClient::new(client)
        .pull(request)
        .await
        .unwrap()
        .into_inner();
    // Until the layer that never comes is asked for.
    while !registry.asked_for(&digest) {
        stream.message().await.unwrap().unwrap();
    }
    drop(stream);
    // The next pull of the same layer would wait for one that still ran.
    registry.fault(&digest, Misbehaviour::default());
    let again = tokio::time::timeout(Duration::from_secs(60), fixture.pull(&reference));
    again.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_compared_committed_and_exported() {
    let fixture = Fixture::new();
    let client = start(&fixture);
    let header = proto::ImportHeader {
        reference: "base".into(),
        ..Default::default()
    };
    let chunk = Archive::new().file("f", b"x").finish().into();
    let parts = [Part::Header(header), Part::Chunk(chunk)];
    let parts = parts.map(|part| proto::ImportRequest { part: Some(part) });
    let mut images = ImageServiceClient::new(client.clone());
    images.import(tokio_stream::iter(parts)).await.unwrap();
    let mut snapshots = SnapshotServiceClient::new(client);
    let prepare = proto::PrepareRequest {
        container_id: "c".into(),
        image: "base".into(),
        ..Default::default()
    };
    let rootfs = snapshots
        .prepare(prepare)
        .await
        .unwrap()
        .into_inner()
        .rootfs;
    let upper = std::path::PathBuf::from(rootfs.unwrap().upper_dir);
    std::fs::write(upper.join("new"), vec![7; 3_000_000]).unwrap();

    let diff = |container: &str| proto::DiffRequest {
        container_id: container.into(),
    };
    let mut stream = snapshots.diff(diff("c")).await.unwrap().into_inner();
    let changes = stream.message().await.unwrap().unwrap().changes;
    assert_eq!(changes[0].path, "/new");
    assert_eq!(changes[0].kind(), proto::ChangeKind::Added);
    assert!(stream.message().await.unwrap().is_none());
    let missing = (Code::NotFound, "SNAPSHOT_NOT_FOUND".to_owned());
    let error = snapshots.diff(diff("nobody")).await.unwrap_err();
    assert_eq!(reason(&error), missing);

    let commit = proto::CommitRequest {
        container_id: "c".into(),
        reference: "mine".into(),
        author: "me".into(),
        changes: vec!["USER 5".into()],
        config: br#"{"Cmd":["/new"],"Env":["A=1"]}"#.as_slice().into(),
        created: Some(prost_types::Timestamp {
            seconds: 1_700_000_000,
            nanos: 0,
        }),
        ..Default::default()
    };
    let image = snapshots.commit(commit.clone()).await.unwrap().into_inner();
    let image = image.image.unwrap();
    assert_eq!(image.tags, ["mine:latest"]);
    assert_eq!(image.created.unwrap().seconds, 1_700_000_000);
    let inspect = proto::InspectRequest {
        reference: "mine".into(),
        ..Default::default()
    };
    let config = images.inspect(inspect).await.unwrap().into_inner().config;
    let config = gantry_oci::ImageConfig::parse(&config).unwrap();
    assert_eq!(config.config.cmd.unwrap(), ["/new"]);
    assert_eq!(
        (config.config.user.as_str(), config.author.as_str()),
        ("5", "me")
    );
    for (wrong, why) in [
        (
            proto::CommitRequest {
                config: b"[]".as_slice().into(),
                ..commit.clone()
            },
            "INVALID_CONFIG",
        ),
        (
            proto::CommitRequest {
                changes: vec!["RUN x".into()],
                ..commit.clone()
            },
            "INVALID_CHANGE",
        ),
        (
            proto::CommitRequest {
                created: Some(prost_types::Timestamp {
                    seconds: i64::MAX,
                    nanos: 0,
                }),
                ..commit.clone()
            },
            "INVALID_FIELD",
        ),
    ] {
        let error = snapshots.commit(wrong).await.unwrap_err();
        assert_eq!(reason(&error), (Code::InvalidArgument, why.to_owned()));
    }

    let compare = |to: &str| proto::CompareImagesRequest {
        from: "base".into(),
        to: to.into(),
    };
    let mut stream = images
        .compare_images(compare("mine"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().changes, changes);
    let error = images.compare_images(compare("none")).await.unwrap_err();
    assert_eq!(
        reason(&error),
        (Code::NotFound, "IMAGE_NOT_FOUND".to_owned())
    );

    let export = proto::ExportRequest {
        container_id: "c".into(),
    };
    let mut stream = snapshots.export(export).await.unwrap().into_inner();
    let mut bytes = 0;
    while let Some(chunk) = stream.message().await.unwrap() {
        bytes += chunk.chunk.len();
    }
    assert!((3_000_000..3_010_000).contains(&bytes), "{bytes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_tags_a_search_and_a_login_work_over_the_wire() {
    let (registry, target) = (Registry::start().await, Registry::start().await);
    for (n, tag) in ["a", "b", "c"].iter().enumerate() {
        publish(&registry, tag, &[layer(u32::try_from(n).unwrap())]);
    }
    registry.answer_search(r#"{"results":[{"name":"web","star_count":7,"is_official":true}]}"#);
    let fixture = Fixture::new();
    let client = start(&fixture);
    let mut images = ImageServiceClient::new(client.clone());

    let request = proto::PullRequest {
        reference: format!("{}/app", registry.host),
        all_tags: true,
        ..Default::default()
    };
    let mut stream = images.pull(request.clone()).await.unwrap().into_inner();
    let mut tags = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        if let Some(Event::Done(done)) = message.event {
            tags.extend(done.image.unwrap().tags);
        }
    }
    let named = |tag: &str| format!("{}/app:{tag}", registry.host);
    assert_eq!(tags, [named("a"), named("b"), named("c")]);
    let tagged = proto::PullRequest {
        reference: named("a"),
        ..request
    };
    let mut stream = images.pull(tagged).await.unwrap().into_inner();
    let refused = stream.message().await.unwrap_err();
    assert_eq!(
        reason(&refused),
        (Code::InvalidArgument, "INVALID_REFERENCE".into())
    );

    let repository = format!("{}/app", target.host);
    for tag in ["a", "c"] {
        let name = format!("{repository}:{tag}");
        fixture.store.tag(&named(tag), &name).unwrap();
    }
    let request = proto::PushRequest {
        reference: repository.clone(),
        all_tags: true,
        ..Default::default()
    };
    let mut stream = images.push(request).await.unwrap().into_inner();
    let mut pushed = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        if let Some(proto::push_response::Event::Done(done)) = message.event {
            pushed.push(done.reference);
        }
    }
    assert_eq!(pushed, ["a", "c"].map(|tag| format!("{repository}:{tag}")));

    let mut request = proto::SearchRequest {
        term: format!("{}/web", registry.host),
        ..Default::default()
    };
    let found = images.search(request.clone()).await.unwrap().into_inner();
    let [result] = &found.results[..] else {
        panic!("{found:?}");
    };
    assert_eq!(result.name, format!("{}/web", registry.host));
    assert!(result.official && result.stars == 7);
    request.limit = 101;
    let refused = images.search(request).await.unwrap_err();
    assert_eq!(
        reason(&refused),
        (Code::InvalidArgument, "INVALID_LIMIT".into())
    );

    registry.want_login("bob", "secret");
    let login = |password: &str| proto::LoginRequest {
        registry: registry.host.clone(),
        auth: Some(proto::RegistryAuth {
            username: "bob".into(),
            password: password.into(),
            identity_token: String::new(),
        }),
    };
    let answer = images.login(login("secret")).await.unwrap().into_inner();
    assert_eq!(answer.identity_token, "a-long-lived-one");
    let refused = images.login(login("guess")).await.unwrap_err();
    assert_eq!(
        reason(&refused),
        (Code::PermissionDenied, "REGISTRY_DENIED".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_is_accounted_checked_and_pruned_by_its_callers() {
    use gantry_proto::image::v1::store_service_client::StoreServiceClient;
    let registry = Registry::start().await;
    publish(&registry, "v1", &[layer(1), layer(2)]);
    let fixture = Fixture::new();
    let reference = format!("{}/x:v1", registry.host);
    fixture.pull(&reference).await.unwrap();
    let mut store = StoreServiceClient::new(start(&fixture));

    let usage = store.disk_usage(proto::DiskUsageRequest {}).await;
    let usage = usage.unwrap().into_inner();
    assert_eq!(usage.images[0].unique_size, 2);
    assert_eq!(usage.layers_size, 2);
    let sum: u64 = usage.owners.iter().map(|owner| owner.bytes).sum();
    assert_eq!(sum, usage.total);
    let layers = usage
        .owners
        .iter()
        .filter(|owner| owner.kind() == proto::OwnerKind::Layer);
    for layer in layers {
        assert_eq!(layer.kept_by, std::slice::from_ref(&reference));
        assert_eq!(layer.freed_by(), proto::FreedBy::ImagePruneAll);
    }

    let check = |repair| proto::CheckRequest { repair };
    let events = |mut stream: tonic::Streaming<proto::CheckResponse>| async move {
        let mut events = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            events.push(message.event.unwrap());
        }
        events
    };
    use proto::check_response::Event as Checked;
    let answer = store.check(check(false)).await.unwrap().into_inner();
    let clean = events(answer).await;
    let Some(Checked::Done(done)) = clean.last() else {
        panic!("{clean:?}")
    };
    assert_eq!((done.findings, done.objects as usize), (1, clean.len() - 2));
    let findings = |events: &[Checked]| {
        let findings = events.iter().filter_map(|event| match event {
            Checked::Finding(finding) => Some(finding.clone()),
            _ => None,
        });
        findings.collect::<Vec<_>>()
    };
    // The socket of the test.
    assert_eq!(findings(&clean)[0].object, "file image.sock");
    let image = fixture.store.resolve(&reference).unwrap();
    let key = &image.record.layers[0].key;
    let file = fixture.root.path().join("layers").join(key).join("fs/f");
    std::fs::write(&file, "damaged").unwrap();
    let answer = store.check(check(true)).await.unwrap().into_inner();
    let found = events(answer).await;
    assert_eq!(findings(&found)[0].repaired, "unpacked again");
    assert_eq!(std::fs::read(file).unwrap(), b"1");

    let prune = |all, key: &str| proto::PruneRequest {
        all,
        filters: vec![proto::Filter {
            key: key.to_owned(),
            value: "1ns".to_owned(),
        }],
        dry_run: false,
    };
    let status = store.prune(prune(true, "colour")).await.unwrap_err();
    assert_eq!(
        reason(&status),
        (Code::InvalidArgument, "INVALID_FILTER".into())
    );
    let pruned = store.prune(prune(true, "until")).await.unwrap();
    let pruned = pruned.into_inner();
    assert_eq!(pruned.untagged[0], reference);
    assert!(pruned.reclaimed > 0 && pruned.deleted.contains(&image.id().to_string()));
    assert_eq!(fixture.content_files(), Vec::<String>::new());
}
