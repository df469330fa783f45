//! Images made for tests, and a store to pull them into.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use gantry_image::ImageStore;
use gantry_image::config::Config;
use gantry_image::error::ImageError;
use gantry_image::pull::{Event, PullOptions, Pulled, Watcher};
use gantry_oci::Digest;
use tempfile::TempDir;

use crate::archive::gzip;
use crate::registry::Registry;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A layer as it is put into an image.
#[derive(Clone)]
pub(crate) struct TestLayer {
    pub(crate) packed: Vec<u8>,
    pub(crate) diff_id: Digest,
}

impl TestLayer {
    pub(crate) fn gzip(tar: Vec<u8>) -> Self {
        Self {
            packed: gzip(&tar),
            diff_id: Digest::sha256_of(&tar),
        }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::sha256_of(&self.packed)
    }
}

/// An image in a registry.
pub(crate) struct TestImage {
    pub(crate) manifest: Digest,
    pub(crate) manifest_size: usize,
    pub(crate) config: Digest,
}

/// Puts an image of these layers into the registry under a tag.
pub(crate) fn publish(registry: &Registry, tag: &str, layers: &[TestLayer]) -> TestImage {
    publish_as(registry, tag, layers, "amd64", |json| json)
}

pub(crate) fn publish_as(
    registry: &Registry,
    tag: &str,
    layers: &[TestLayer],
    architecture: &str,
    alter: impl Fn(String) -> String,
) -> TestImage {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|l| format!("\"{}\"", l.diff_id))
        .collect();
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","created":"2024-05-06T07:08:09Z","config":{{"Cmd":["/bin/{tag}"],"Labels":{{"tag":"{tag}"}}}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let (config, config_size) = registry.put_blob(config);
    let descriptors: Vec<String> = layers
        .iter()
        .map(|layer| {
            let (digest, size) = registry.put_blob(layer.packed.clone());
            format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":{size}}}"#)
        })
        .collect();
    let manifest = alter(format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"{CONFIG}","digest":"{config}","size":{config_size}}},"layers":[{}]}}"#,
        descriptors.join(",")
    ));
    let manifest_size = manifest.len();
    TestImage {
        manifest: registry.put_manifest(tag, MANIFEST, manifest),
        manifest_size,
        config,
    }
}

/// A store in a directory of its own.
pub(crate) struct Fixture {
    pub(crate) root: TempDir,
    pub(crate) store: ImageStore,
    pub(crate) events: Arc<Mutex<Vec<Event>>>,
}

pub(crate) fn config() -> Config {
    Config {
        docker_config: PathBuf::new(),
        certs_dirs: Vec::new(),
        ..Config::default()
    }
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(config())
    }

    pub(crate) fn with(config: Config) -> Self {
        let root = TempDir::new().unwrap();
        Self {
            store: ImageStore::open(root.path(), config).unwrap(),
            root,
            events: Arc::default(),
        }
    }

    /// Closes the store and opens it again, as a restart does.
    pub(crate) fn reopen(self) -> Self {
        self.reopen_after(|_| {})
    }

    /// The same, with something done to its files between.
    pub(crate) fn reopen_after(self, meanwhile: impl FnOnce(&Path)) -> Self {
        let Self {
            root,
            store,
            events,
        } = self;
        drop(store);
        // The next one must find the index free, and this must not change it under its feet.
        drop(open_when_free(root.path()));
        wait_until_free(root.path());
        meanwhile(root.path());
        Self {
            store: open_when_free(root.path()),
            root,
            events,
        }
    }

    pub(crate) fn watcher(&self) -> Watcher {
        let events = Arc::clone(&self.events);
        Arc::new(move |event| events.lock().unwrap().push(event))
    }

    pub(crate) async fn pull(&self, reference: &str) -> Result<Pulled, ImageError> {
        self.store
            .pull(reference, &PullOptions::default(), self.watcher())
            .await
    }

    /// All files beneath the store that are content, by their paths in it.
    pub(crate) fn content_files(&self) -> Vec<String> {
        let mut files = Vec::new();
        for directory in ["blobs", "ingest", "pending", "layers", "writable", "images"] {
            walk(&self.root.path().join(directory), &mut files);
        }
        let root = format!("{}/", self.root.path().display());
        let mut files: Vec<String> = files
            .iter()
            .map(|path| path.display().to_string().replace(&root, ""))
            .collect();
        files.sort();
        files
    }

    /// The file of an image's merged layers; whiteouts are not looked at.
    pub(crate) fn read(&self, pulled: &Pulled, path: &str) -> Option<Vec<u8>> {
        let id = pulled.image.id().to_string();
        let container = format!("c{}", id.rsplit(':').next()?.get(..8)?);
        let (_, snapshot) = self.store.prepare(&container, &id, true).unwrap();
        self.store.delete_snapshot(&container).unwrap();
        snapshot
            .lower
            .iter()
            .find_map(|lower| std::fs::read(lower.join(path)).ok())
    }
}

/// The threads of a store that was closed may hold the index for a moment longer.
pub(crate) fn open_when_free(root: &Path) -> ImageStore {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        match ImageStore::open(root, config()) {
            Ok(store) => return store,
            Err(error) if std::time::Instant::now() > deadline => {
                panic!("{}", gantry_kit::fault::chain(&error))
            }
            Err(_) => std::thread::yield_now(),
        }
    }
}

/// Waits until nobody has the index open.
fn wait_until_free(root: &Path) {
    let file = std::fs::File::open(root.join("index/db")).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        assert!(
            std::time::Instant::now() < deadline,
            "the index stays in use"
        );
        std::thread::yield_now();
    }
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            if path
                .file_name()
                .is_some_and(|name| name == "sha256" || name == "sha512")
            {
                walk(&path, files);
                continue;
            }
            files.push(path);
        } else {
            files.push(path);
        }
    }
}
