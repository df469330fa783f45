//! Takes an archive's entries in as they come.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gantry_oci::content::{ContentError, Expected, IngestKey, Writer};
use gantry_oci::manifest::MANIFEST_MAX;
use gantry_oci::{Algorithm, Compression, Digest, Hasher};
use tar_core::EntryType;
use tar_core::parse::ParsedEntry;
use tokio_util::sync::CancellationToken;

use super::ahead::{Ahead, Early, cancelled};
use super::entries::{Arrived, Entries, Place, Unnamed, normal};
use super::error::ArchiveError;
use super::layout;
use super::{DOCKER_LIST, LAYOUT_LIST};
use crate::ImageStore;
use crate::error::ImageError;
use crate::garbage::Lease;
use crate::growing::{self, Growth};
use crate::import::{PieceReader, Pieces};
use crate::pull::{Event, LayerState, Watcher};
use crate::unpack::{Checksum, Header, Headers, SourceFailed, TarStream, UnpackError, shown};

/// Entries up to this size stay in memory, while there is room for them.
const SMALL: u64 = 64 << 10;
/// Room for small entries.
const MEMORY: u64 = 4 << 20;
/// How often an entry reports.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// What an entry's header says.
struct Head {
    path: String,
    kind: Kind,
    size: u64,
}

enum Kind {
    File,
    Directory,
    Link { target: Vec<u8>, symbolic: bool },
}

impl Head {
    fn read(parsed: &ParsedEntry<'_>, sparse: bool) -> Result<Self, ArchiveError> {
        let name = shown(&parsed.path);
        let path = normal("", &parsed.path).map_err(|reason| ArchiveError::entry(&name, reason))?;
        let target = || parsed.link_target.as_deref().unwrap_or_default().to_vec();
        let kind = match parsed.entry_type {
            _ if sparse => {
                let reason = "is a file with holes, which archives of images do not have";
                return Err(ArchiveError::entry(&name, reason));
            }
            EntryType::Regular if parsed.path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Link {
                target: target(),
                symbolic: true,
            },
            EntryType::Link => Kind::Link {
                target: target(),
                symbolic: false,
            },
            _ => {
                let reason = "is neither a file, nor a directory, nor a link";
                return Err(ArchiveError::entry(&name, reason));
            }
        };
        Ok(Self {
            size: if matches!(kind, Kind::File) {
                parsed.size
            } else {
                0
            },
            path,
            kind,
        })
    }
}

/// An archive on its way in.
pub(super) struct Intake {
    store: ImageStore,
    ahead: Ahead,
    watcher: Watcher,
    cancel: CancellationToken,
    pub(super) entries: Entries,
    in_memory: u64,
    /// Keep what was in the store already.
    leases: Vec<Lease>,
}

impl Intake {
    pub(super) fn new(
        store: &ImageStore,
        ahead: &Ahead,
        watcher: &Watcher,
        cancel: &CancellationToken,
    ) -> Self {
        Self {
            store: store.clone(),
            ahead: ahead.clone(),
            watcher: watcher.clone(),
            cancel: cancel.clone(),
            entries: Entries::new(&store.shared.content),
            in_memory: 0,
            leases: Vec::new(),
        }
    }

    /// Takes everything in. Blocks; on a thread of the runtime only.
    pub(super) fn run(&mut self, pieces: Pieces) -> Result<(), ImageError> {
        let limits = self.store.shared.config.limits.clone();
        let source = PieceReader::new(pieces);
        let mut stream = TarStream::start(source, &limits, (), Checksum::Compared)
            .map_err(ArchiveError::from)?;
        self.take_all(&mut stream, limits.path_bytes)
            .map_err(of_the_stream)
    }

    fn take_all(&mut self, stream: &mut TarStream<()>, path_bytes: u64) -> Result<(), ImageError> {
        let mut headers = Headers::new(path_bytes);
        loop {
            let header = headers.next::<_, _, ArchiveError>(stream, |parsed, sparse| {
                Head::read(parsed, sparse.is_some())
            })?;
            if self.cancel.is_cancelled() {
                return Err(cancelled());
            }
            match header {
                Header::Entry(head) => self.take(head, stream)?,
                Header::Other => {}
                Header::End => return stream.drain().map_err(damaged),
            }
        }
    }

    fn take(&mut self, head: Head, stream: &mut TarStream<()>) -> Result<(), ImageError> {
        match head.kind {
            Kind::Directory => Ok(self.entries.add_directory(head.path)?),
            Kind::Link { target, symbolic } => {
                Ok(self.entries.add_link(head.path, &target, symbolic)?)
            }
            Kind::File => {
                let file = self.take_file(&head, stream)?;
                let padding = head.size.next_multiple_of(tar_core::HEADER_SIZE as u64) - head.size;
                pass(stream, padding, &head.path, |_| Ok(()))?;
                Ok(self.entries.add_file(head.path, file)?)
            }
        }
    }

    fn take_file(
        &mut self,
        head: &Head,
        stream: &mut TarStream<()>,
    ) -> Result<Arrived, ImageError> {
        let is_list = matches!(head.path.as_str(), DOCKER_LIST | LAYOUT_LIST);
        if is_list && head.size > MANIFEST_MAX as u64 {
            return Err(ArchiveError::Document {
                path: head.path.clone(),
                source: gantry_oci::ManifestError::TooLarge {
                    size: head.size,
                    limit: MANIFEST_MAX as u64,
                },
            }
            .into());
        }
        let small = head.size <= SMALL && self.in_memory + head.size <= MEMORY;
        if is_list || small {
            return self.take_into_memory(head, stream);
        }
        let promised = layout::promised(&head.path);
        if let Some(digest) = &promised {
            // Leased first: what is found then stays.
            let lease = self.store.lease(vec![digest.to_string()]);
            let status = self.store.shared.content.stat(digest);
            if status.is_ok_and(|status| status.size == head.size) {
                self.leases.push(lease);
                return check_known(head, digest, stream);
            }
        }
        self.take_into_store(head, promised, stream)
    }

    fn take_into_memory(
        &mut self,
        head: &Head,
        stream: &mut TarStream<()>,
    ) -> Result<Arrived, ImageError> {
        let mut bytes = Vec::with_capacity(usize::try_from(head.size).unwrap_or(0));
        pass(stream, head.size, &head.path, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        self.in_memory += head.size;
        let promised = layout::promised(&head.path);
        let algorithm = promised
            .as_ref()
            .map_or(Algorithm::Sha256, Digest::algorithm);
        let digest = Digest::of(algorithm, &bytes);
        verify(head, promised.as_ref(), &digest)?;
        Ok(Arrived {
            label: digest.clone(),
            digest,
            size: head.size,
            format: Compression::detect(&bytes),
            place: Place::Memory(Bytes::from(bytes)),
            early: None,
        })
    }

    /// Makes content of an entry, and meanwhile a layer where it looks like one.
    fn take_into_store(
        &mut self,
        head: &Head,
        promised: Option<Digest>,
        stream: &mut TarStream<()>,
    ) -> Result<Arrived, ImageError> {
        let first = stream
            .peek_at_least(tar_core::HEADER_SIZE)
            .map_err(damaged)?;
        let format = Compression::detect(first);
        let is_layer = format != Compression::None || looks_like_tar(first);
        let hint = promised.clone().or_else(|| hint(&head.path));
        let content = self.store.shared.content.clone();
        let key = IngestKey::random();
        let lease = self.store.lease(vec![key.to_string()]);
        let algorithm = promised
            .as_ref()
            .map_or(Algorithm::Sha256, Digest::algorithm);
        let mut writer = content.writer_with(&key, algorithm)?;
        writer.write_behind();
        // A plain tar that says nothing of itself is unpacked when its digest is
        // known: that is its diff ID, and the layer may be here already.
        let at_once = match &hint {
            Some(digest) => !self.is_unpacked(digest),
            None => format != Compression::None,
        };
        let label = hint.clone().or_else(|| label(&head.path));
        let mut begun = None;
        if is_layer && at_once {
            let opened = content.open_ingest(&key).map_err(ImageError::from);
            match opened.and_then(|file| self.begin(growing::pair(file, 0), &head.path)) {
                Ok(both) => begun = Some(both),
                Err(error) => {
                    writer.abort()?;
                    return Err(error);
                }
            }
        }
        let (growth, mut early) = begun.unzip();
        let told = label.as_ref().filter(|_| is_layer);
        let copied = self.copy(head, stream, &mut writer, growth.as_ref(), told);
        let sealed = match copied {
            Ok(()) => seal(writer, head, promised),
            Err(error) => writer.abort().map_err(ImageError::from).and(Err(error)),
        };
        let sealed = match sealed {
            Ok(sealed) => sealed,
            Err(error) => {
                if let Some(growth) = growth {
                    growth.fail(error.to_string());
                }
                self.abandon(early);
                return Err(error);
            }
        };
        if let Some(growth) = growth {
            growth.finish();
        }
        let (digest, size) = (sealed.digest.clone(), sealed.size);
        let place = Place::Sealed(Unnamed::new(&content, sealed.clone(), lease));
        let late = is_layer && hint.is_none() && format == Compression::None;
        if late && !self.is_unpacked(&digest) {
            let file = content.open_ingest(&sealed.key)?;
            early = Some(self.ahead.begin(file, &head.path)?);
        }
        let label = label.unwrap_or_else(|| digest.clone());
        if early.is_some() {
            self.report(&label, LayerState::Unpacking, size, size);
        }
        Ok(Arrived {
            digest,
            size,
            format,
            place,
            label,
            early,
        })
    }

    fn begin(
        &self,
        (growth, reader): (Growth, growing::GrowingFile),
        path: &str,
    ) -> Result<(Growth, Early), ImageError> {
        let early = self.ahead.begin(reader, path)?;
        Ok((growth, early))
    }

    /// Waits for the end of a layer that failed, so that nothing is written any more.
    fn abandon(&self, early: Option<Early>) {
        if let Some(early) = early {
            tokio::runtime::Handle::current().block_on(early.discard());
        }
    }

    fn copy(
        &self,
        head: &Head,
        stream: &mut TarStream<()>,
        writer: &mut Writer,
        growth: Option<&Growth>,
        label: Option<&Digest>,
    ) -> Result<(), ImageError> {
        let mut reported: Option<Instant> = None;
        pass(stream, head.size, &head.path, |piece| {
            if self.cancel.is_cancelled() {
                return Err(cancelled());
            }
            writer.write(piece)?;
            if let Some(growth) = growth {
                growth.passed(Bytes::copy_from_slice(piece), writer.written());
            }
            if let Some(label) = label
                && reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY)
            {
                reported = Some(Instant::now());
                self.report(label, LayerState::Downloading, writer.offset(), head.size);
            }
            Ok(())
        })?;
        // The reader has to find what is still in memory, too.
        writer.flush()?;
        if let Some(growth) = growth {
            growth.wrote(writer.written());
        }
        Ok(())
    }

    fn report(&self, digest: &Digest, state: LayerState, current: u64, total: u64) {
        (self.watcher)(Event::Layer {
            digest: digest.clone(),
            state,
            current,
            total,
        });
    }

    /// Whether a layer of that digest, packed or not, is here as files.
    fn is_unpacked(&self, digest: &Digest) -> bool {
        let layers = &self.store.shared.layers;
        layers.contains(digest.hex())
            || self.store.catalogue().images().any(|image| {
                let mut records = image.record.layers.iter();
                records.any(|layer| layer.descriptor.digest == *digest)
            })
    }
}

/// Takes the next bytes of an archive, piece by piece.
fn pass(
    stream: &mut TarStream<()>,
    count: u64,
    path: &str,
    mut take: impl FnMut(&[u8]) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let mut left = count;
    while left > 0 {
        let bytes = stream.peek().map_err(damaged)?;
        if bytes.is_empty() {
            let during = format!("entry {path:?}");
            return Err(damaged(UnpackError::Truncated { during }));
        }
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        take(&bytes[..count])?;
        stream.advance(count);
        left -= count as u64;
    }
    Ok(())
}

/// Passes over an entry that the store has already, if it is that.
fn check_known(
    head: &Head,
    promised: &Digest,
    stream: &mut TarStream<()>,
) -> Result<Arrived, ImageError> {
    let first = stream.peek_at_least(4).map_err(damaged)?;
    let format = Compression::detect(first);
    let mut hasher = Hasher::new(promised.algorithm());
    pass(stream, head.size, &head.path, |piece| {
        hasher.update(piece);
        Ok(())
    })?;
    let digest = hasher.finish();
    verify(head, Some(promised), &digest)?;
    Ok(Arrived {
        label: digest.clone(),
        digest,
        size: head.size,
        format,
        place: Place::Stored,
        early: None,
    })
}

fn verify(head: &Head, promised: Option<&Digest>, found: &Digest) -> Result<(), ArchiveError> {
    match promised {
        Some(promised) if promised != found => Err(ArchiveError::Digest {
            path: head.path.clone(),
            found: found.clone(),
        }),
        _ => Ok(()),
    }
}

fn seal(
    writer: Writer,
    head: &Head,
    promised: Option<Digest>,
) -> Result<gantry_oci::content::Sealed, ImageError> {
    let expected = Expected {
        digest: promised,
        size: Some(head.size),
    };
    writer.seal(&expected).map_err(|error| match error {
        ContentError::DigestMismatch { found, .. } => ArchiveError::Digest {
            path: head.path.clone(),
            found,
        }
        .into(),
        error => error.into(),
    })
}

/// Whether a block is a tar's header: its checksum says so.
fn looks_like_tar(block: &[u8]) -> bool {
    let Some(block) = block.get(..tar_core::HEADER_SIZE) else {
        return false;
    };
    let (before, rest) = block.split_at(148);
    let (field, after) = rest.split_at(8);
    let sum: u32 = before
        .iter()
        .chain(after)
        .map(|&byte| u32::from(byte))
        .sum();
    let text = std::str::from_utf8(field).unwrap_or_default();
    let digits = text.trim_matches(['\0', ' ']);
    u32::from_str_radix(digits, 8).is_ok_and(|found| found == sum + 8 * u32::from(b' '))
}

/// The diff ID that Podman and skopeo name a layer by.
fn hint(path: &str) -> Option<Digest> {
    let hex = path.strip_suffix(".tar")?;
    Digest::from_hex(Algorithm::Sha256, hex).ok()
}

/// What Docker's old format calls a layer by: no digest of it, but its own.
fn label(path: &str) -> Option<Digest> {
    let hex = path.strip_suffix("/layer.tar")?;
    Digest::from_hex(Algorithm::Sha256, hex).ok()
}

fn damaged(source: UnpackError) -> ImageError {
    ArchiveError::Damaged(source).into()
}

/// What the sender of the archive said is no damage of it.
fn of_the_stream(error: ImageError) -> ImageError {
    match error {
        ImageError::Archive(ArchiveError::Damaged(
            UnpackError::Read(source) | UnpackError::Inflate { source, .. },
        )) if is_senders(&source) => ImageError::Stream {
            reason: source.to_string(),
        },
        error => error,
    }
}

fn is_senders(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<SourceFailed>())
}
