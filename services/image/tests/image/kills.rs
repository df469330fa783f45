//! The service is killed with SIGKILL at random points of everything it does.
//! After each restart the store checks clean, the account is what the disk
//! says, and every image that has a name is whole.
//!
//! A round starts one of the [`OPERATIONS`] on a service process of its own and
//! kills it after a random part of the time that the operation takes.
//! `GANTRY_KILL_ROUNDS` says how many rounds: `make test-kills` has 200.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use gantry_kit::client::{Client, connect};
use gantry_proto::image::v1 as proto;
use gantry_proto::image::v1::archive_service_client::ArchiveServiceClient;
use gantry_proto::image::v1::check_response::Event;
use gantry_proto::image::v1::image_service_client::ImageServiceClient;
use gantry_proto::image::v1::import_request::Part;
use gantry_proto::image::v1::load_request::Part as LoadPart;
use gantry_proto::image::v1::snapshot_service_client::SnapshotServiceClient;
use gantry_proto::image::v1::store_service_client::StoreServiceClient;
use gantry_proto::image::v1::volume_service_client::VolumeServiceClient;
use tonic::{Code, Status};

use crate::account::du;
use crate::archive::Archive;
use crate::fixture::{TestLayer, publish};
use crate::registry::Registry;

/// Rounds without the environment variable.
const ROUNDS: u32 = 20;

/// One thing that the service does, on a store that [`World::furnish`] made.
type Operation = for<'a> fn(&'a World, &'a Client) -> BoxFuture<'a, Result<(), Status>>;

/// All that is interrupted.
const OPERATIONS: &[(&str, Operation)] = &[
    ("pull", |world, client| Box::pin(world.pull(client, "big"))),
    ("pull of what is there in part", |world, client| {
        Box::pin(async move {
            world.pull(client, "base").await?;
            world.pull(client, "big").await
        })
    }),
    ("import", |world, client| {
        Box::pin(world.import(client, "imported:1"))
    }),
    ("load", |world, client| Box::pin(world.load(client))),
    ("commit", |world, client| {
        Box::pin(async move {
            for n in 0..3 {
                world.commit(client, &format!("committed:{n}")).await?;
            }
            Ok(())
        })
    }),
    ("tag", |world, client| {
        Box::pin(async move {
            for n in 0..10 {
                world
                    .tag(client, "kept", &format!("moving:{}", n % 3))
                    .await?;
                world
                    .tag(client, "base", &format!("moving:{}", n % 3))
                    .await?;
            }
            Ok(())
        })
    }),
    ("removal", |world, client| {
        Box::pin(async move {
            world.remove(client, &world.name("base")).await?;
            world.remove(client, &world.name("big")).await
        })
    }),
    ("prune", |_, client| {
        Box::pin(async move {
            let request = proto::PruneRequest {
                all: true,
                ..Default::default()
            };
            StoreServiceClient::new(client.clone())
                .prune(request)
                .await?;
            Ok(())
        })
    }),
    ("volumes", |world, client| {
        Box::pin(async move {
            for n in 0..5 {
                world.create_volume(client, &format!("made-{n}")).await?;
                world.prepare_with_volumes(client, n).await?;
            }
            for n in 0..5 {
                world.delete(client, &format!("v{n}")).await?;
                world.remove_volume(client, &format!("made-{n}")).await?;
            }
            world.prune_volumes(client).await
        })
    }),
    ("containers", |world, client| {
        Box::pin(async move {
            for n in 0..10 {
                world.prepare(client, &format!("c{n}"), n % 2 == 0).await?;
            }
            for n in 0..10 {
                world.delete(client, &format!("c{n}")).await?;
            }
            Ok(())
        })
    }),
];

/// A registry, and the directory of a service.
struct World {
    registry: Registry,
    root: tempfile::TempDir,
    archive: Vec<u8>,
    /// What `load` loads.
    saved: OnceLock<Vec<u8>>,
}

/// A running service.
struct Service {
    process: Child,
    client: Client,
}

impl World {
    async fn new() -> Self {
        let registry = Registry::start().await;
        let layer = |seed: u32, files: u32| {
            let mut archive = Archive::new().dir("d");
            for n in 0..files {
                let content = (0..20_000).map(|i| (i * seed + n) as u8);
                archive = archive.file(format!("d/{seed}-{n}"), content.collect::<Vec<u8>>());
            }
            archive
        };
        let base = TestLayer::gzip(layer(3, 50).finish());
        let kept = layer(5, 20).symlink("also", "d").symlink("too", "/d");
        publish(&registry, "kept", &[TestLayer::gzip(kept.finish())]);
        publish(&registry, "base", std::slice::from_ref(&base));
        // A hard link into the layer below makes its layer wait.
        let needy = layer(7, 80).hard_link("linked", "d/3-1").finish();
        let top = layer(11, 100).finish();
        publish(
            &registry,
            "big",
            &[base, TestLayer::gzip(needy), TestLayer::gzip(top)],
        );
        Self {
            registry,
            root: tempfile::Builder::new()
                .prefix("gk-")
                .tempdir_in("/tmp")
                .unwrap(),
            archive: layer(13, 100).finish(),
            saved: OnceLock::new(),
        }
    }

    fn name(&self, tag: &str) -> String {
        format!("{}/x:{tag}", self.registry.host)
    }

    fn store(&self) -> PathBuf {
        self.root.path().join("lib/image")
    }

    fn spawn(&self) -> Service {
        let process = Command::new(env!("CARGO_BIN_EXE_gantry-image"))
            .arg("--root")
            .arg(self.root.path())
            .args(["--set", "image.docker_config="])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(log(self.root.path())))
            .spawn()
            .unwrap();
        let client = connect(&self.root.path().join("run/image.sock"));
        Service { process, client }
    }

    async fn start(&self) -> Service {
        let mut service = self.spawn();
        let deadline = Instant::now() + Duration::from_secs(60);
        // Until it answers: it has put right by then what the last one left.
        loop {
            let mut images = ImageServiceClient::new(service.client.clone());
            match images.list(proto::ListRequest::default()).await {
                Ok(_) => return service,
                Err(status) => {
                    let ended = service.process.try_wait().unwrap();
                    let log = || std::fs::read_to_string(self.root.path().join("service.log")).unwrap();
                    assert!(
                        ended.is_none() && Instant::now() < deadline,
                        "{status}: {}",
                        log()
                    );
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    async fn pull(&self, client: &Client, tag: &str) -> Result<(), Status> {
        let request = proto::PullRequest {
            reference: self.name(tag),
            ..Default::default()
        };
        let mut stream = ImageServiceClient::new(client.clone())
            .pull(request)
            .await?
            .into_inner();
        while stream.message().await?.is_some() {}
        Ok(())
    }

    async fn import(&self, client: &Client, name: &str) -> Result<(), Status> {
        let header = Part::Header(proto::ImportHeader {
            reference: name.to_owned(),
            ..Default::default()
        });
        let chunks = self
            .archive
            .chunks(50_000)
            .map(|chunk| Part::Chunk(Bytes::copy_from_slice(chunk)));
        let messages: Vec<_> = std::iter::once(header)
            .chain(chunks)
            .map(|part| proto::ImportRequest { part: Some(part) })
            .collect();
        let mut images = ImageServiceClient::new(client.clone());
        images.import(futures::stream::iter(messages)).await?;
        Ok(())
    }

    /// An archive of `kept` and `big`, when both were there.
    async fn save(&self, client: &Client) -> Result<Vec<u8>, Status> {
        let request = proto::SaveRequest {
            references: vec![self.name("kept"), self.name("big")],
            ..Default::default()
        };
        let mut stream = ArchiveServiceClient::new(client.clone())
            .save(request)
            .await?
            .into_inner();
        let mut archive = Vec::new();
        while let Some(message) = stream.message().await? {
            archive.extend_from_slice(&message.chunk);
        }
        Ok(archive)
    }

    async fn load(&self, client: &Client) -> Result<(), Status> {
        let saved = self.saved.get().expect("an archive was saved");
        let chunks: Vec<_> = saved
            .chunks(50_000)
            .map(|chunk| proto::LoadRequest {
                part: Some(LoadPart::Chunk(Bytes::copy_from_slice(chunk))),
            })
            .collect();
        let mut stream = ArchiveServiceClient::new(client.clone())
            .load(futures::stream::iter(chunks))
            .await?
            .into_inner();
        while stream.message().await?.is_some() {}
        Ok(())
    }

    /// Makes an image of what the container that is always there wrote.
    async fn commit(&self, client: &Client, name: &str) -> Result<(), Status> {
        let request = proto::CommitRequest {
            container_id: "user".to_owned(),
            reference: name.to_owned(),
            ..Default::default()
        };
        SnapshotServiceClient::new(client.clone())
            .commit(request)
            .await?;
        Ok(())
    }

    async fn tag(&self, client: &Client, source: &str, target: &str) -> Result<(), Status> {
        let request = proto::TagRequest {
            source: self.name(source),
            target: target.to_owned(),
        };
        ImageServiceClient::new(client.clone()).tag(request).await?;
        Ok(())
    }

    async fn remove(&self, client: &Client, reference: &str) -> Result<(), Status> {
        let request = proto::RemoveRequest {
            reference: reference.to_owned(),
            force: true,
            ..Default::default()
        };
        ImageServiceClient::new(client.clone())
            .remove(request)
            .await?;
        Ok(())
    }

    async fn prepare(&self, client: &Client, id: &str, ephemeral: bool) -> Result<(), Status> {
        let request = proto::PrepareRequest {
            container_id: id.to_owned(),
            image: self.name("kept"),
            ephemeral,
            ..Default::default()
        };
        SnapshotServiceClient::new(client.clone())
            .prepare(request)
            .await?;
        Ok(())
    }

    async fn create_volume(&self, client: &Client, name: &str) -> Result<(), Status> {
        let request = proto::CreateVolumeRequest {
            name: name.to_owned(),
            ..Default::default()
        };
        let mut volumes = VolumeServiceClient::new(client.clone());
        volumes.create_volume(request).await?;
        Ok(())
    }

    /// A container with a volume that was made before, one that it makes, and an
    /// anonymous one; each gets what the image has.
    async fn prepare_with_volumes(&self, client: &Client, n: u32) -> Result<(), Status> {
        let mount = |volume: String, target: &str| proto::VolumeMount {
            volume,
            target: target.to_owned(),
            ..Default::default()
        };
        let request = proto::PrepareRequest {
            container_id: format!("v{n}"),
            image: self.name("kept"),
            volumes: vec![
                mount(format!("made-{n}"), "/d"),
                mount(format!("fresh-{n}"), "/also"),
                mount(String::new(), "/too"),
            ],
            ..Default::default()
        };
        let mut snapshots = SnapshotServiceClient::new(client.clone());
        snapshots.prepare(request).await?;
        Ok(())
    }

    async fn remove_volume(&self, client: &Client, name: &str) -> Result<(), Status> {
        let request = proto::RemoveVolumeRequest {
            name: name.to_owned(),
            force: false,
        };
        let mut volumes = VolumeServiceClient::new(client.clone());
        volumes.remove_volume(request).await?;
        Ok(())
    }

    async fn prune_volumes(&self, client: &Client) -> Result<(), Status> {
        let request = proto::PruneVolumesRequest {
            all: true,
            ..Default::default()
        };
        let mut volumes = VolumeServiceClient::new(client.clone());
        volumes.prune_volumes(request).await?;
        Ok(())
    }

    /// Each volume that a container made of an image's files has all of them, and
    /// no anonymous one is there without its container.
    async fn look_at_volumes(&self, client: &Client) {
        let mut volumes = VolumeServiceClient::new(client.clone());
        let listed = volumes.list_volumes(proto::ListVolumesRequest::default());
        for volume in listed.await.unwrap().into_inner().volumes {
            let files = std::fs::read_dir(&volume.mountpoint).unwrap().count();
            if volume.name.starts_with("fresh-") {
                assert_eq!(files, 20, "{volume:?}");
            } else {
                assert!(matches!(files, 0 | 20), "{files} files: {volume:?}");
            }
            assert!(
                !volume.anonymous || !volume.used_by.is_empty(),
                "{volume:?}"
            );
        }
    }

    async fn delete(&self, client: &Client, id: &str) -> Result<(), Status> {
        let request = proto::DeleteRequest {
            container_id: id.to_owned(),
            remove_volumes: true,
        };
        SnapshotServiceClient::new(client.clone())
            .delete(request)
            .await?;
        Ok(())
    }

    /// What an operation finds: an image that nothing touches, used by a
    /// container, and for what takes away, something to take.
    async fn furnish(&self, client: &Client, operation: &str) -> Result<(), Status> {
        self.pull(client, "kept").await?;
        match self.prepare(client, "user", false).await {
            Err(status) if status.code() != Code::AlreadyExists => return Err(status),
            _ => {}
        }
        let wrote = self.store().join("writable/user/upper/wrote");
        if !wrote.exists() {
            std::fs::write(wrote, self.archive.as_slice()).unwrap();
        }
        if self.saved.get().is_none() {
            self.pull(client, "big").await?;
            let archive = self.save(client).await?;
            self.saved.set(archive).expect("it is saved once");
        }
        match operation {
            "tag" => self.pull(client, "base").await?,
            "volumes" => {
                for n in 0..5 {
                    self.delete(client, &format!("v{n}")).await?;
                }
                self.prune_volumes(client).await?;
            }
            "containers" => {
                for n in 0..10 {
                    self.delete(client, &format!("c{n}")).await?;
                }
            }
            "removal" | "prune" => {
                self.pull(client, "base").await?;
                self.pull(client, "big").await?;
                self.import(client, "imported:1").await?;
            }
            _ => {
                for name in ["base", "big"] {
                    match self.remove(client, &self.name(name)).await {
                        Err(status) if status.code() != Code::NotFound => return Err(status),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// What must hold after any kill.
    async fn look(&self, client: &Client) {
        let mut store = StoreServiceClient::new(client.clone());
        let mut events = store
            .check(proto::CheckRequest { repair: false })
            .await
            .unwrap()
            .into_inner();
        let mut done = None;
        while let Some(message) = events.message().await.unwrap() {
            match message.event {
                Some(Event::Finding(finding)) => panic!("{finding:#?}"),
                Some(Event::Done(last)) => done = Some(last),
                _ => {}
            }
        }
        assert!(done.is_some());
        self.account(&mut store).await;
        self.look_at_volumes(client).await;
        let mut images = ImageServiceClient::new(client.clone());
        let listed = images.list(proto::ListRequest::default()).await.unwrap();
        let listed = listed.into_inner().images;
        let mut names = BTreeMap::new();
        for image in &listed {
            for name in &image.tags {
                assert_eq!(
                    names.insert(name.clone(), &image.id),
                    None,
                    "{name} is two images'"
                );
            }
        }
        assert!(names.contains_key(&self.name("kept")), "{names:?}");
        for name in names.keys() {
            let request = proto::InspectRequest {
                reference: name.clone(),
                platform: None,
            };
            let inspected = images.inspect(request).await.unwrap().into_inner();
            assert_eq!(
                inspected.layer_sizes.len(),
                inspected.image.unwrap().layers.len()
            );
            // A container can be made of it.
            let request = proto::PrepareRequest {
                container_id: "probe".to_owned(),
                image: name.clone(),
                ephemeral: true,
                ..Default::default()
            };
            let mut snapshots = SnapshotServiceClient::new(client.clone());
            let rootfs = snapshots
                .prepare(request)
                .await
                .unwrap()
                .into_inner()
                .rootfs;
            for lower in rootfs.unwrap().lower_dirs {
                assert!(std::fs::read_dir(&lower).unwrap().count() > 0, "{lower}");
            }
            self.delete(client, "probe").await.unwrap();
        }
    }

    /// The account is what the disk says, once both are at rest.
    async fn account(&self, store: &mut StoreServiceClient<Client>) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let usage = store.disk_usage(proto::DiskUsageRequest {}).await.unwrap();
            let usage = usage.into_inner();
            let sum: u64 = usage.owners.iter().map(|owner| owner.bytes).sum();
            assert_eq!(sum, usage.total);
            let disk = du(&self.store());
            let passing = usage.owners.iter().any(|owner| {
                matches!(
                    owner.kind(),
                    proto::OwnerKind::InProgress
                        | proto::OwnerKind::Trash
                        | proto::OwnerKind::Foreign
                )
            });
            if usage.total == disk && !passing {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the account says {}, the disk {disk}: {:#?}",
                usage.total,
                usage.owners
            );
        }
    }
}

fn log(root: &Path) -> std::fs::File {
    std::fs::File::create(root.join("service.log")).unwrap()
}

impl Service {
    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A test that fails leaves none either.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Random enough, and the same again for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_service_leaves_a_clean_store() {
    let rounds = match std::env::var("GANTRY_KILL_ROUNDS") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => ROUNDS,
    };
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let seed = std::env::var("GANTRY_KILL_SEED")
        .map_or(now.as_nanos() as u64 | 1, |text| text.parse().unwrap());
    println!("GANTRY_KILL_SEED={seed}");
    let mut dice = Dice(seed);
    let world = World::new().await;
    let mut took: BTreeMap<&str, Duration> = BTreeMap::new();
    let (mut killed, mut finished) = (0, 0);
    for round in 0..rounds {
        let (name, operation) = OPERATIONS[round as usize % OPERATIONS.len()];
        let mut service = world.start().await;
        world.furnish(&service.client, name).await.unwrap();
        // The first of each kind runs to its end, to know how long that takes.
        let limit = match took.get(name) {
            Some(whole) => whole.mul_f64(dice.roll(1000) as f64 / 1000.0),
            None => Duration::from_secs(60),
        };
        let begun = Instant::now();
        let client = service.client.clone();
        let mut work = operation(&world, &client);
        match tokio::time::timeout(limit, &mut work).await {
            Err(_) => {
                // While the call is under way: a caller that leaves would end it first.
                service.process.kill().unwrap();
                // It may have been done by then, and only its answer was under way.
                drop(work.await);
                killed += 1;
            }
            Ok(outcome) => {
                outcome.unwrap_or_else(|status| panic!("{name}: {status}"));
                took.insert(name, begun.elapsed());
                finished += 1;
            }
        }
        service.kill();
        println!("round {round}: {name}, {limit:?}");
        if dice.roll(4) == 0 {
            // While it puts right what the last one left.
            let service = world.spawn();
            tokio::time::sleep(Duration::from_millis(dice.roll(60))).await;
            service.kill();
        }
        let service = world.start().await;
        world.look(&service.client).await;
        service.kill();
    }
    println!("{killed} killed, {finished} finished before");
    assert!(rounds < 14 || killed > 0, "no round was interrupted");
}
