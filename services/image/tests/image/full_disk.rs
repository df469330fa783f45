//! A disk without room: what fails leaves nothing but what can be resumed, and
//! reading and deleting still work.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use gantry_image::ImageStore;
use gantry_image::account::OwnerKind;
use gantry_image::archive::{LoadOptions, Loaded};
use gantry_image::error::ImageError;
use gantry_image::import::ImportOptions;
use gantry_image::prune::PruneOptions;
use gantry_image::pull::{PullOptions, Pulled};
use gantry_image::volumes::{NewVolume, VolumeWish, Wishes};

use crate::archive::Archive;
use crate::archives::load_into;
use crate::checking::{Unmount, assert_clean};
use crate::fixture::{TestLayer, config, open_when_free, publish};
use crate::life::{gently, import_pieces, tar};
use crate::loads;
use crate::registry::Registry;

/// A file system of so many mebibytes of its own.
struct Disk {
    directory: tempfile::TempDir,
    _mounted: Unmount,
}

impl Disk {
    fn tmpfs(mebibytes: u32) -> Self {
        let directory = tempfile::TempDir::new().unwrap();
        let size = format!("size={mebibytes}m,nr_inodes=1000");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "none"])
            .arg(directory.path()));
        Self {
            _mounted: Unmount(directory.path().to_owned()),
            directory,
        }
    }

    fn ext4(mebibytes: u32) -> Self {
        let directory = tempfile::TempDir::new().unwrap();
        let image = directory.path().with_extension("img");
        let file = fs::File::create(&image).unwrap();
        file.set_len(u64::from(mebibytes) << 20).unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-m", "0", "-F"])
            .arg(&image));
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(directory.path()));
        // The loop device keeps it.
        fs::remove_file(image).unwrap();
        Self {
            _mounted: Unmount(directory.path().to_owned()),
            directory,
        }
    }

    fn root(&self) -> std::path::PathBuf {
        self.directory.path().join("store")
    }

    /// Takes all room that is left.
    fn fill(&self) {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.path().join("ballast"))
            .unwrap();
        for size in [1 << 20, 4096, 512, 1] {
            while file
                .write_all(&vec![0; size])
                .and_then(|()| file.sync_data())
                .is_ok()
            {}
        }
        // Directories need blocks of their own.
        for n in 0.. {
            if fs::create_dir(self.directory.path().join(format!("d{n}"))).is_err() {
                break;
            }
        }
    }

    /// Gives back what [`Disk::fill`] took.
    fn free(&self) {
        fs::remove_file(self.directory.path().join("ballast")).unwrap();
    }
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// Content that does not pack.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

async fn pull(store: &ImageStore, reference: &str) -> Result<Pulled, ImageError> {
    let watcher = std::sync::Arc::new(|_| {});
    store
        .pull(reference, &PullOptions::default(), watcher)
        .await
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

fn assert_full<T: std::fmt::Debug>(outcome: Result<T, ImageError>, what: &str) {
    match outcome {
        Err(error) => assert!(
            error.is_out_of_space(),
            "{what}: {}",
            gantry_kit::fault::chain(&error)
        ),
        Ok(done) => panic!("{what}: {done:?}"),
    }
}

async fn load(store: &ImageStore, archive: &[u8]) -> Result<Vec<Loaded>, ImageError> {
    let watcher = std::sync::Arc::new(|_| {});
    load_into(store, archive, &LoadOptions::default(), watcher).await
}

/// An archive of one image with one layer.
fn saved(layer: &[u8]) -> Vec<u8> {
    let list = r#"[{"Config":"c.json","RepoTags":["saved:1"],"Layers":["l/layer.tar"]}]"#;
    Archive::new()
        .file("l/layer.tar", layer)
        .file("c.json", loads::config("saved", &[layer]))
        .file("manifest.json", list)
        .finish()
}

async fn a_full_disk(disk: Disk) {
    let registry = Registry::start().await;
    publish(&registry, "small", &[TestLayer::gzip(tar(1))]);
    publish(&registry, "other", &[TestLayer::gzip(tar(2))]);
    let big = Archive::new().file("big", noise(1, 40 << 20)).finish();
    publish(
        &registry,
        "big",
        &[TestLayer::gzip(tar(3)), TestLayer::gzip(big.clone())],
    );
    let name = |tag: &str| format!("{}/x:{tag}", registry.host);
    let store = ImageStore::open(&disk.root(), config()).unwrap();
    pull(&store, &name("small")).await.unwrap();
    store.tag(&name("small"), "again:1").unwrap();
    pull(&store, &name("other")).await.unwrap();
    store.prepare("c1", &name("other"), false).unwrap();

    // More than there is room for.
    assert_full(pull(&store, &name("big")).await, "a pull");
    assert_full(load(&store, &saved(&big)).await, "a load");
    let import = import_pieces(&store, &ImportOptions::default(), big).await;
    assert_full(import, "an import");
    assert_eq!(store.images().len(), 2);
    assert_eq!(
        count(&disk.root().join("layers")),
        2,
        "no half layer is left"
    );
    let account = store.account().unwrap();
    for owner in &account.owners {
        assert!(
            owner.kind != OwnerKind::InProgress && owner.kind != OwnerKind::Foreign,
            "{owner:?}"
        );
    }
    let pruned = store.prune(&PruneOptions::default()).unwrap();
    let partial = account
        .owners
        .iter()
        .filter(|o| o.kind == OwnerKind::PartialDownload);
    assert_eq!(
        pruned.deleted.len(),
        partial.count(),
        "what is left can be pruned"
    );

    // No byte left: reading and deleting.
    disk.fill();
    assert_full(pull(&store, &name("big")).await, "a pull");
    let import = import_pieces(&store, &ImportOptions::default(), tar(9)).await;
    assert_full(import, "an import");
    assert_full(load(&store, &saved(&tar(9))).await, "a load");
    assert_eq!(store.list(true, &[]).unwrap().len(), 2);
    assert!(store.resolve("again:1").is_ok());
    assert!(store.manifest(&store.resolve("again:1").unwrap()).is_ok());
    store.account().unwrap();
    assert!(store.get_snapshot("c1").is_ok());
    // One of two names goes: that is a record to be written.
    assert_eq!(
        store.remove("again:1", &gently()).unwrap().untagged,
        ["again:1"]
    );
    disk.fill();
    assert!(store.delete_snapshot("c1").unwrap());
    disk.fill();
    store.remove(&name("small"), &gently()).unwrap();
    disk.fill();
    let all = PruneOptions {
        all: true,
        ..PruneOptions::default()
    };
    assert_eq!(store.prune(&all).unwrap().untagged.len(), 2);
    assert_eq!(store.images().len(), 0);
    assert_eq!(count(&disk.root().join("layers")), 0);

    // It starts on a full disk, too.
    disk.fill();
    drop(store);
    let store = open_when_free(&disk.root());
    assert_eq!(store.images().len(), 0);
    disk.free();
    drop(store);
    let store = open_when_free(&disk.root());
    pull(&store, &name("small")).await.unwrap();
    assert_clean(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_tmpfs_can_be_read_and_emptied() {
    a_full_disk(Disk::tmpfs(24)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_ext4_can_be_read_and_emptied() {
    a_full_disk(Disk::ext4(32)).await;
}

async fn volumes_on_a_full_disk(disk: Disk) {
    let registry = Registry::start().await;
    let big = Archive::new().file("d/big", noise(1, 8 << 20)).finish();
    publish(&registry, "big", &[TestLayer::gzip(big)]);
    let name = format!("{}/x:big", registry.host);
    let store = ImageStore::open(&disk.root(), config()).unwrap();
    pull(&store, &name).await.unwrap();
    let there = NewVolume {
        name: "there".to_owned(),
        ..NewVolume::default()
    };
    let content = store.create_volume(&there).unwrap().mountpoint;
    let volumes = disk.root().join("volumes");
    let mut ballast = fs::File::create(disk.directory.path().join("ballast")).unwrap();
    ballast.write_all(&vec![0; 5 << 20]).unwrap();
    // A fresh one and one that is there: neither is filled by half.
    for named in ["", "new", "there"] {
        let wish = |volume: &str, target: &str| VolumeWish {
            volume: NewVolume {
                name: volume.to_owned(),
                ..NewVolume::default()
            },
            target: target.to_owned(),
            ..VolumeWish::default()
        };
        let wishes = Wishes {
            volumes: vec![wish("", "/first"), wish(named, "/d")],
            ..Wishes::default()
        };
        let prepared = store.prepare_with("c1", &name, false, &wishes);
        assert_full(prepared.map(drop), "a volume that is filled");
        assert!(store.get_snapshot("c1").is_err());
        assert_eq!(count(&volumes), 1, "{named:?}");
        assert_eq!((count(&volumes.join("there")), count(&content)), (2, 0));
    }
    disk.fill();
    assert_full(
        store.create_volume(&NewVolume::default()),
        "a volume that is made",
    );
    assert_eq!(count(&volumes), 1);
    assert_eq!(store.list_volumes(&[]).unwrap().len(), 1);
    assert!(store.remove_volume("there", false).unwrap());
    assert_eq!(count(&volumes), 0);
    disk.free();
    assert_clean(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_a_full_disk_has_no_room_for_is_not_there() {
    volumes_on_a_full_disk(Disk::tmpfs(24)).await;
    volumes_on_a_full_disk(Disk::ext4(32)).await;
}
