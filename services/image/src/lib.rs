//! Image store: content, images, layers, writable layers, volumes; pull and push.
//!
//! [`ImageStore`] is the domain; `grpc` puts `gantry.image.v1` before it. What
//! is where on the disk, and when it is durable, is in [`disk`].
//!
//! **Images** are immutable and known by the digest of their configuration.
//! Packed layers are kept as they came (a push sends the same bytes), unpacked
//! ones are directories that overlayfs mounts, shared by all images that have
//! them.
//!
//! **Locking.** `changes` is held while records are written, fsync included, so
//! that they change one after another. `keep` is held for microseconds, by who
//! decides that something may go and who begins to refer to something. The
//! catalogue and the map of writable layers are read without waiting for
//! either. None is held over an await.
#![forbid(unsafe_code)]

pub mod account;
pub mod archive;
mod catalogue;
mod chain;
mod changes;
pub mod check;
pub mod commit;
mod compress;
pub mod config;
mod disk;
mod download;
pub mod error;
pub mod events;
mod fetch;
pub mod files;
mod flight;
mod garbage;
mod growing;
pub mod grpc;
pub mod image;
pub mod import;
mod keepers;
mod layers;
pub mod list;
mod measure;
pub mod names;
pub mod pack;
mod packed;
mod packings;
pub mod prune;
pub mod pull;
pub mod push;
pub mod registry_client;
mod remote;
pub mod remove;
mod restore;
pub mod search;
mod service;
pub mod snapshots;
mod store;
mod tree_record;
pub mod union;
pub mod unpack;
pub mod volumes;

use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use gantry_oci::config::CONFIG_MAX;
use gantry_oci::content::Store;

use catalogue::Catalogue;
use config::Config;
use disk::{Places, Syncer};
use error::ImageError;
use events::Events;
use flight::Flights;
use garbage::Leases;
use image::{Image, ImageRecord};
use layers::Layers;
use packings::Packings;
use registry_client::{Client, Credentials};
use snapshots::Snapshots;
use store::Records;
use volumes::Volumes;

pub use service::main;

/// The image store in one directory. Cheap to clone; clones are the same store.
#[derive(Clone, Debug)]
pub struct ImageStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    places: Places,
    content: Store,
    layers: Layers,
    records: Records,
    catalogue: RwLock<Catalogue>,
    /// Images whose configuration is lost: what is left of them is kept for a repair.
    unreadable: Mutex<Vec<ImageRecord>>,
    packings: Packings,
    snapshots: Snapshots,
    volumes: Volumes,
    syncer: Syncer,
    client: Client,
    flights: Flights,
    leases: Arc<Leases>,
    events: Events,
    changes: Mutex<()>,
    keep: Mutex<()>,
    /// Wakes the thread that empties the trash.
    cleaner: SyncSender<()>,
    /// Wakes the thread that brings layers to the disk.
    settler: SyncSender<()>,
}

impl Shared {
    fn keep_lock(&self) -> MutexGuard<'_, ()> {
        self.keep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreadable(&self) -> MutexGuard<'_, Vec<ImageRecord>> {
        self.unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn changes_lock(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageStore {
    /// Opens the store in a directory, which is made if it is not there, and
    /// puts right what an earlier process left. Blocks.
    pub fn open(root: &Path, config: Config) -> Result<Self, ImageError> {
        let places = Places::prepare(root)?;
        places.discard_unfinished()?;
        let content = Store::open(root)?;
        let records = Records::open(&places)?;
        let mut catalogue = Catalogue::default();
        let mut unreadable = Vec::new();
        let images = records.images()?;
        for record in &images {
            match read_image(&content, record.clone()) {
                Ok(image) => catalogue.insert(Arc::new(image)),
                Err(error) => {
                    let error = gantry_kit::fault::chain(&error);
                    tracing::error!(image = %record.id, error, "an image cannot be read and is left out; repair the store, or pull it again");
                    unreadable.push(record.clone());
                }
            }
        }
        let packings = Packings::new(records.packings());
        let (layers_of, damaged) = records.snapshots()?;
        let snapshots = Snapshots::new(layers_of, damaged);
        let layers = Layers::open(&places, &images)?;
        let volumes = Volumes::new(volumes::load(&places)?);
        let syncer = Syncer::new(root)?;
        let hosts = config.hosts();
        hosts.check()?;
        let store = Self {
            shared: Arc::new(Shared {
                client: Client::new(hosts),
                config,
                content,
                records,
                catalogue: RwLock::new(catalogue),
                unreadable: Mutex::new(unreadable),
                packings,
                snapshots,
                volumes,
                syncer: syncer.clone(),
                flights: Flights::default(),
                leases: Arc::default(),
                events: Events::default(),
                changes: Mutex::default(),
                keep: Mutex::default(),
                cleaner: start_thread("trash", root, {
                    let places = places.clone();
                    move || {
                        // Whoever waits for something comes first.
                        let nice = rustix::process::setpriority_process(None, TRASH_NICE);
                        if let Err(error) = nice {
                            tracing::debug!(%error, "what was deleted is removed at full speed");
                        }
                        places.empty_trash();
                    }
                })?,
                settler: start_thread("settle", root, {
                    let layers = layers.clone();
                    move || settle(&layers, &syncer)
                })?,
                layers,
                places,
            }),
        };
        store.restore_all();
        store.collect_leftovers()?;
        Ok(store)
    }

    fn catalogue(&self) -> RwLockReadGuard<'_, Catalogue> {
        self.shared
            .catalogue
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The image that a name, an id, an id's beginning or a digest means.
    pub fn resolve(&self, reference: &str) -> Result<Arc<Image>, ImageError> {
        self.catalogue().resolve(reference).cloned()
    }

    /// All images, in no particular order.
    #[must_use]
    pub fn images(&self) -> Vec<Arc<Image>> {
        self.catalogue().images().cloned().collect()
    }

    /// The manifest of an image, byte for byte.
    pub fn manifest(&self, image: &Image) -> Result<Vec<u8>, ImageError> {
        let limit = gantry_oci::manifest::MANIFEST_MAX as u64;
        Ok(self.shared.content.read(&image.record.manifest, limit)?)
    }

    /// Downloads that ended early and can be resumed, by the digest or name they have.
    pub fn unfinished_downloads(&self) -> Result<Vec<(String, u64)>, ImageError> {
        let ingests = self.shared.content.list_ingests()?;
        Ok(ingests
            .into_iter()
            .map(|ingest| (ingest.key.to_string(), ingest.offset))
            .collect())
    }

    /// Checks a user's credentials with a registry. Empty: Docker Hub. What its
    /// token service gave to be kept in place of the password, if it gave something.
    pub async fn login(
        &self,
        registry: &str,
        credentials: Credentials,
    ) -> Result<Option<String>, ImageError> {
        Ok(self.shared.client.login(registry, credentials).await?)
    }

    pub(crate) fn empty_trash_behind(&self) {
        // A full channel means that the thread will look once more anyway.
        self.shared.cleaner.try_send(()).ok();
    }

    /// Has the layers that were just named brought to the disk, and does not wait.
    pub(crate) fn settle_layers_behind(&self) {
        self.shared.settler.try_send(()).ok();
    }
}

/// Nice value of the thread that removes what was deleted.
const TRASH_NICE: i32 = 10;

/// Reads an image's parts. What its record names is on the disk, or the record would not be.
fn read_image(content: &Store, record: ImageRecord) -> Result<Image, ImageError> {
    let config_raw = Bytes::from(content.read(&record.id, CONFIG_MAX as u64)?);
    let config = pull::parse_config(&config_raw, record.id.as_str())?;
    Ok(Image {
        record,
        config,
        config_raw,
    })
}

/// A thread that does some work whenever it is woken, and once at its start for
/// what an earlier process left. It ends with the store.
fn start_thread(
    name: &str,
    root: &Path,
    work: impl Fn() + Send + 'static,
) -> Result<SyncSender<()>, ImageError> {
    let (sender, receiver) = sync_channel::<()>(1);
    sender.try_send(()).ok();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            while receiver.recv().is_ok() {
                work();
            }
        })
        .map_err(ImageError::io("start a thread for", root))?;
    Ok(sender)
}

fn settle(layers: &Layers, syncer: &Syncer) {
    if let Err(error) = layers.settle(syncer) {
        let error = gantry_kit::fault::chain(&error);
        tracing::warn!(
            error,
            "layers could not be brought to the disk; after a power cut they are unpacked again"
        );
    }
}
