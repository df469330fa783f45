//! A layer that is not packed becomes one that is.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};

use flate2::write::GzEncoder;
use gantry_oci::content::{Commit, Expected, IngestKey, Store};
use gantry_oci::{Compression, Descriptor, MediaType};
use tokio_util::sync::CancellationToken;

use crate::error::ImageError;
use crate::pull::blocking;

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
            file,
            cancel: cancel.clone(),
        };
        // Without a name or a time in its header.
        let mut encoder = GzEncoder::new(&mut writer, flate2::Compression::fast());
        let written = copy(source, &mut encoder).and_then(|()| encoder.finish().map(drop));
        if let Err(error) = written {
            writer.abort()?;
            if cancel.is_cancelled() {
                let what = format!("packing layer {digest}");
                return Err(ImageError::Cancelled { what });
            }
            return Err(ImageError::io("pack", &path)(error));
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

/// A file that ends with an error when nobody wants what is made of it.
struct Cancellable {
    file: File,
    cancel: CancellationToken,
}

impl io::Read for Cancellable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("it was cancelled"));
        }
        self.file.read(buffer)
    }
}

fn copy(mut source: impl io::Read, target: &mut impl io::Write) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(()),
            count => target.write_all(&buffer[..count])?,
        }
    }
}
