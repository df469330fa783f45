//! A layer that is not packed becomes one that is.
//!
//! What is read is hashed on the way: a blob that the disk has damaged must not
//! become a whole one of another name.

use std::io::{self, Read as _, Seek as _};

use flate2::write::GzEncoder;
use gantry_oci::content::{Commit, ContentError, Expected, IngestKey, Store};
use gantry_oci::{Compression, Descriptor, Hasher, MediaType};
use tokio_util::sync::CancellationToken;

use crate::error::ImageError;
use crate::pull::blocking;
use crate::unpack::SourceFailed;

/// The layer packed with gzip; `None` where it is packed already. The same layer
/// gives the same blob.
pub(crate) async fn compress(
    content: &Store,
    layer: &Descriptor,
    cancel: &CancellationToken,
) -> Result<Option<Descriptor>, ImageError> {
    let content = content.clone();
    let (digest, cancel) = (layer.digest.clone(), cancel.clone());
    blocking("packing a layer", move || {
        let path = content.blob_path(&digest);
        let (mut file, _) = content.open_blob(&digest)?;
        let mut head = Vec::new();
        let failed = |error| ImageError::io("read", &path)(error);
        file.by_ref()
            .take(4)
            .read_to_end(&mut head)
            .and_then(|_| file.rewind())
            .map_err(failed)?;
        if Compression::detect(&head) != Compression::None {
            return Ok(None);
        }
        let mut writer = content.writer(&IngestKey::random())?;
        let source = Cancellable {
            source: file,
            cancel: cancel.clone(),
        };
        let mut hasher = Hasher::new(digest.algorithm());
        // Without a name or a time in its header.
        let mut encoder = GzEncoder::new(&mut writer, flate2::Compression::fast());
        let written =
            copy(source, &mut encoder, &mut hasher).and_then(|()| encoder.finish().map(drop));
        if let Err(error) = written {
            writer.abort()?;
            if cancel.is_cancelled() {
                let what = format!("packing layer {digest}");
                return Err(ImageError::Cancelled { what });
            }
            return Err(ImageError::io("pack", &path)(error));
        }
        let found = hasher.finish();
        if found != digest {
            writer.abort()?;
            return Err(ContentError::Damaged { digest, found }.into());
        }
        let committed = writer.commit(&Expected::anything(), Commit::Deferred)?;
        Ok(Some(Descriptor::new(
            MediaType::OciLayerGzip,
            committed.digest,
            committed.size,
        )))
    })
    .await
}

/// A source that ends with an error once nobody wants what is made of it.
#[derive(Debug)]
pub(crate) struct Cancellable<R> {
    pub(crate) source: R,
    pub(crate) cancel: CancellationToken,
}

impl<R: io::Read> io::Read for Cancellable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other(SourceFailed("it was cancelled".into())));
        }
        self.source.read(buffer)
    }
}

fn copy(
    mut source: impl io::Read,
    target: &mut impl io::Write,
    hasher: &mut Hasher,
) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(()),
            count => {
                hasher.update(&buffer[..count]);
                target.write_all(&buffer[..count])?;
            }
        }
    }
}
