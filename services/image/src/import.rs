//! A tar stream becomes an image of one layer.
//!
//! The stream is kept packed, as a pulled layer is: as it comes if it is
//! packed already, else with gzip, which every client of every registry reads.
//! It is unpacked from there while it comes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use flate2::write::GzEncoder;
use gantry_oci::content::{Commit, Expected, IngestKey, Writer};
use gantry_oci::{
    Algorithm, Compression, ContainerConfig, Descriptor, Digest, History, ImageConfig, Manifest,
    MediaType, Platform, RootFs,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::ImageStore;
use crate::changes;
use crate::error::ImageError;
use crate::growing::{self, Growth};
use crate::image::{Image, ImageRecord, LayerRecord};
use crate::layers::NewLayer;
use crate::pull::blocking;
use crate::unpack::{self, Nothing, SourceFailed, Unpacked};

/// What an imported image is to be.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Its name, if it gets one.
    pub reference: Option<String>,
    /// Dockerfile instructions for its configuration.
    pub changes: Vec<String>,
    /// A remark for its history.
    /// Empty: where it came from.
    pub message: String,
    /// Absent: this machine's.
    pub platform: Option<Platform>,
}

/// The bytes of an archive as they come; an error says why no more will.
pub type Pieces = mpsc::Receiver<Result<Bytes, String>>;

/// Bytes packed between two reports to the unpacker.
const BATCH_BYTES: usize = 256 << 10;
/// Pieces between a server and the thread that packs them.
const FETCHED_PIECES: usize = 8;

impl ImageStore {
    /// Makes an image of a tar stream. What is wrong with the options is said
    /// before a byte is taken.
    pub async fn import(
        &self,
        options: &ImportOptions,
        pieces: Pieces,
    ) -> Result<Arc<Image>, ImageError> {
        // A file of the client's has no name here.
        self.import_named(options, "-", pieces).await
    }

    /// The same with what the archive's source is called.
    async fn import_named(
        &self,
        options: &ImportOptions,
        source: &str,
        pieces: Pieces,
    ) -> Result<Arc<Image>, ImageError> {
        let name = match &options.reference {
            Some(text) => Some(self.new_name(text)?),
            None => None,
        };
        let mut container = ContainerConfig::default();
        for change in &options.changes {
            changes::apply(&mut container, change)?;
        }
        let (packed, new, unpacked) = self.import_layer(pieces).await?;
        let platform = options.platform.clone().unwrap_or_else(any_such_host);
        let created = jiff::Timestamp::now().to_string();
        let config = ImageConfig {
            created: Some(created.clone()),
            architecture: platform.architecture,
            variant: platform.variant,
            os: platform.os,
            config: container,
            rootfs: RootFs {
                diff_ids: vec![unpacked.diff_id.clone()],
                ..RootFs::default()
            },
            history: vec![History {
                created: Some(created),
                comment: Some(if options.message.is_empty() {
                    format!("Imported from {source}")
                } else {
                    options.message.clone()
                }),
                ..History::default()
            }],
            ..ImageConfig::default()
        };
        let store = self.clone();
        blocking("recording an image", move || {
            // From here on nobody removes a layer of the same content that is there already.
            let lease = store.lease(vec![
                unpacked.diff_id.hex().to_owned(),
                packed.digest.to_string(),
            ]);
            // Unpacked from the very blob.
            store.note_packing(&packed.digest, &unpacked.diff_id);
            let layer = new.finish(&unpacked, &unpacked.diff_id)?;
            let record = LayerRecord {
                descriptor: packed,
                kept_as: None,
                diff_id: layer.meta.diff_id,
                key: layer.key,
                size: layer.meta.size,
                root: layer.meta.root,
            };
            let image = store.keep_image(config, vec![record], name.into_iter().collect(), None)?;
            drop(lease);
            store.events().of_image("import", &image);
            Ok(image)
        })
        .await
    }

    /// The same with an archive that is at a URL.
    pub async fn import_from(
        &self,
        options: &ImportOptions,
        url: &str,
        cancel: &CancellationToken,
    ) -> Result<Arc<Image>, ImageError> {
        self.check_import(options)?;
        let failed = |source| ImageError::Source {
            url: url.to_owned(),
            source: Box::new(source),
        };
        let cancelled = || ImageError::Cancelled {
            what: format!("the import of {url}"),
        };
        let mut source = tokio::select! {
            source = self.shared.client.fetch_source(url) => source.map_err(failed)?,
            () = cancel.cancelled() => return Err(cancelled()),
        };
        let (sender, pieces) = mpsc::channel(FETCHED_PIECES);
        let forward = async move {
            loop {
                let next = tokio::select! {
                    next = source.next() => next.map_err(failed),
                    () = cancel.cancelled() => Err(cancelled()),
                };
                let piece = match &next {
                    Ok(None) => return Ok(()),
                    Ok(Some(piece)) => Ok(piece.clone()),
                    Err(error) => Err(error.to_string()),
                };
                // An import that ended early says why itself.
                if sender.send(piece).await.is_err() {
                    return Ok(());
                }
                next?;
            }
        };
        let (imported, forwarded) =
            tokio::join!(self.import_named(options, public(url), pieces), forward);
        forwarded.and(imported)
    }

    /// Refuses what is wrong with the options.
    fn check_import(&self, options: &ImportOptions) -> Result<(), ImageError> {
        if let Some(text) = &options.reference {
            self.new_name(text)?;
        }
        let mut container = ContainerConfig::default();
        options
            .changes
            .iter()
            .try_for_each(|change| changes::apply(&mut container, change))
    }

    /// Writes configuration and manifest, brings everything to the disk, and records it.
    pub(crate) fn keep_image(
        &self,
        config: ImageConfig,
        layers: Vec<LayerRecord>,
        tags: BTreeSet<gantry_oci::Reference>,
        parent: Option<Digest>,
    ) -> Result<Arc<Image>, ImageError> {
        let content = &self.shared.content;
        let config_raw = serde_json::to_vec(&config).map_err(unwritable)?;
        let described = Descriptor::of(MediaType::OciConfig, &config_raw);
        let id = described.digest.clone();
        let names = tags.clone();
        let descriptors = layers.iter().map(|layer| layer.descriptor.clone());
        let manifest = manifest_of(described, descriptors.collect())?;
        content.put_known(&id, &config_raw, Commit::Deferred)?;
        let manifest = content.put(&manifest, Commit::Deferred)?;
        content.sync_all_pending()?;
        let image = Image {
            record: ImageRecord {
                parent: parent.filter(|parent| *parent != id),
                id,
                manifest,
                manifest_media_type: MediaType::OciManifest,
                index: None,
                layers,
                tags,
                digests: BTreeSet::new(),
            },
            config,
            config_raw: config_raw.into(),
        };
        let recorded = self.record(image);
        self.settle_layers_behind();
        let (image, _) = recorded?;
        for name in &names {
            self.events().tagged(&image, name);
        }
        Ok(image)
    }

    /// Packs and unpacks the stream. On an error nothing is left.
    async fn import_layer(
        &self,
        pieces: Pieces,
    ) -> Result<(Descriptor, NewLayer, Unpacked), ImageError> {
        let content = self.shared.content.clone();
        let (writer, growth, reader) = blocking("opening an import", move || {
            let key = IngestKey::random();
            let writer = content.writer(&key)?;
            let path = content.root().join("ingest").join(key.as_str());
            let file = File::open(&path).map_err(ImageError::io("open", &path))?;
            let (growth, reader) = growing::pair(file, 0);
            Ok((writer, growth, reader))
        })
        .await?;
        let packing = blocking("packing an import", move || pack(writer, growth, pieces));
        let layers = self.shared.layers.clone();
        let limits = self.shared.config.limits.clone();
        let unpacking = blocking("unpacking an import", move || {
            let new = layers.begin()?;
            let unpacked = unpack::unpack(
                reader,
                new.open()?,
                Algorithm::Sha256,
                &limits,
                &mut Nothing,
            );
            let unpacked = unpacked.map_err(|source| ImageError::Layer {
                digest: "of the import".to_owned(),
                source,
            })?;
            Ok((new, unpacked))
        });
        match tokio::join!(packing, unpacking) {
            (Ok(packed), Ok((new, unpacked))) => Ok((packed, new, unpacked)),
            (Err(error), unpacked) => {
                drop_later(unpacked);
                Err(error)
            }
            (Ok(packed), Err(error)) => {
                let candidates = crate::garbage::Candidates {
                    blobs: vec![packed.digest],
                    layers: Vec::new(),
                };
                let store = self.clone();
                blocking("removing what a failed import left", move || {
                    store.collect(&candidates).map(drop)
                })
                .await?;
                Err(error)
            }
        }
    }
}

/// The manifest of an image that has none yet. The same parts give the same bytes.
pub(crate) fn manifest_of(
    config: Descriptor,
    layers: Vec<Descriptor>,
) -> Result<Vec<u8>, ImageError> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(MediaType::OciManifest),
        artifact_type: None,
        config,
        layers,
        subject: None,
        annotations: None,
    };
    serde_json::to_vec(&manifest).map_err(unwritable)
}

#[expect(clippy::needless_pass_by_value, reason = "map_err passes a value")]
fn unwritable(error: serde_json::Error) -> ImageError {
    ImageError::Stream {
        reason: format!("its configuration cannot be written: {error}"),
    }
}

fn drop_later<T: Send + 'static>(value: T) {
    // Its directory is removed, which blocks. Nobody waits for it.
    drop(tokio::task::spawn_blocking(move || drop(value)));
}

/// Keeps the stream packed. On an error what was written is gone.
fn pack(mut writer: Writer, growth: Growth, pieces: Pieces) -> Result<Descriptor, ImageError> {
    let mut source = PieceReader::new(pieces);
    let packed = pack_into(&mut writer, &growth, &mut source).and_then(|media_type| {
        // The reader has to find what is still in memory, too.
        writer.flush()?;
        growth.wrote(writer.written());
        Ok(media_type)
    });
    let media_type = match packed {
        Ok(media_type) => media_type,
        Err(error) => {
            growth.fail(error.to_string());
            writer.abort()?;
            return Err(error);
        }
    };
    match writer.commit(&Expected::anything(), Commit::Deferred) {
        Ok(committed) => {
            growth.finish();
            Ok(Descriptor::new(
                media_type,
                committed.digest,
                committed.size,
            ))
        }
        Err(error) => {
            growth.fail(error.to_string());
            Err(error.into())
        }
    }
}

fn pack_into(
    writer: &mut Writer,
    growth: &Growth,
    source: &mut PieceReader,
) -> Result<MediaType, ImageError> {
    let mut head = Vec::new();
    source.take(4).read_to_end(&mut head).map_err(broken)?;
    let format = Compression::detect(&head);
    let mut source = io::Cursor::new(head).chain(source);
    match format {
        Compression::Gzip | Compression::Zstd => {
            copy(&mut source, writer, |writer| growth.wrote(writer.written()))?;
            Ok(match format {
                Compression::Gzip => MediaType::OciLayerGzip,
                _ => MediaType::OciLayerZstd,
            })
        }
        Compression::None => {
            // Without a name or a time in its header: the same tar gives the same layer.
            let mut encoder = GzEncoder::new(&mut *writer, flate2::Compression::fast());
            copy(&mut source, &mut encoder, |encoder| {
                growth.wrote(encoder.get_ref().written());
            })?;
            encoder.finish().map_err(broken)?;
            Ok(MediaType::OciLayerGzip)
        }
    }
}

/// The stream ended early, or what came of it could not be written.
fn broken(error: io::Error) -> ImageError {
    if gantry_kit::durable::is_full(&error) {
        return ImageError::Io {
            action: "write",
            path: "the archive's content".into(),
            source: error,
        };
    }
    ImageError::Stream {
        reason: error.to_string(),
    }
}

fn copy<W: Write>(
    source: &mut impl Read,
    target: &mut W,
    mut wrote: impl FnMut(&W),
) -> Result<(), ImageError> {
    let mut batch = Vec::with_capacity(BATCH_BYTES);
    loop {
        batch.clear();
        source
            .take(BATCH_BYTES as u64)
            .read_to_end(&mut batch)
            .map_err(broken)?;
        if batch.is_empty() {
            return Ok(());
        }
        target.write_all(&batch).map_err(broken)?;
        wrote(target);
    }
}

/// The pieces of a channel as one stream.
pub(crate) struct PieceReader {
    pieces: Pieces,
    current: Bytes,
}

impl PieceReader {
    pub(crate) const fn new(pieces: Pieces) -> Self {
        Self {
            pieces,
            current: Bytes::new(),
        }
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => self.current = piece,
                Some(Err(reason)) => return Err(io::Error::other(SourceFailed(reason))),
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

/// The host's platform without the level of its CPU, which says nothing of what
/// an archive needs: an image that names it is refused by lesser machines.
fn any_such_host() -> Platform {
    let host = Platform::host();
    match host.architecture.as_str() {
        "amd64" => Platform {
            variant: None,
            ..host
        },
        _ => host,
    }
}

/// A URL without what often is a secret of whoever gave it.
fn public(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}
