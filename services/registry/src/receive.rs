//! From a request's body to a file, with bounded memory.
//!
//! Frames are gathered to batches of a megabyte. While one batch is hashed and
//! written on a blocking thread, the next one gathers, so that network and disk
//! work at once and no more than two batches are in memory. No thread waits for
//! a client: a thousand slow ones cost memory, not threads.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use gantry_oci::content::{ContentError, Writer};
use http_body_util::BodyExt;
use tokio::task::JoinHandle;

use crate::error::RegistryError;

const BATCH: usize = 1 << 20;

/// How long a client may send nothing in the middle of a body.
pub(crate) const STALL: Duration = Duration::from_secs(120);

/// Appends a body to an ingest. The writer comes back, unless it can no longer
/// be used; what arrived before an error is written too, and can be resumed.
pub(crate) async fn receive(
    writer: Writer,
    mut body: Body,
) -> (Option<Writer>, Result<(), RegistryError>) {
    let mut disk = Disk::Idle(Box::new(writer));
    let mut batch: Vec<Bytes> = Vec::new();
    let mut gathered = 0;
    let ended = loop {
        match next(&mut body).await {
            Ok(Some(data)) => {
                gathered += data.len();
                batch.push(data);
                if gathered >= BATCH {
                    gathered = 0;
                    disk = match disk.write(std::mem::take(&mut batch)).await {
                        Ok(disk) => disk,
                        Err(error) => return (None, Err(error)),
                    };
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    match disk.finish(batch).await {
        Ok(writer) => (Some(*writer), ended),
        Err(error) => (None, Err(error)),
    }
}

/// Reads what is left of a short body, so that a client which is still sending
/// gets to see the answer. A long one is left, and the connection with it.
pub(crate) async fn discard(mut body: Body) {
    const LIMIT: usize = 4 << 20;
    let mut seen = 0;
    let reading = async {
        while let Ok(Some(data)) = next(&mut body).await {
            seen += data.len();
            if seen > LIMIT {
                break;
            }
        }
    };
    // The answer does not depend on whether the rest came.
    tokio::time::timeout(Duration::from_secs(5), reading)
        .await
        .ok();
}

/// Reads a body into memory, up to a limit.
pub(crate) async fn gather(mut body: Body, limit: usize) -> Result<Bytes, RegistryError> {
    let mut bytes = bytes::BytesMut::new();
    while let Some(data) = next(&mut body).await? {
        if bytes.len() + data.len() > limit {
            discard(body).await;
            return Err(gantry_oci::ManifestError::TooLarge {
                size: (bytes.len() + data.len()) as u64,
                limit: limit as u64,
            }
            .into());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

async fn next(body: &mut Body) -> Result<Option<Bytes>, RegistryError> {
    loop {
        let frame = tokio::time::timeout(STALL, body.frame())
            .await
            .map_err(|_| RegistryError::Stalled {
                seconds: STALL.as_secs(),
            })?;
        match frame {
            None => return Ok(None),
            Some(Err(source)) => return Err(RegistryError::Body { source }),
            // Trailers mean nothing here.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// The disk's side: at rest with the writer, or busy with a batch.
enum Disk {
    Idle(Box<Writer>),
    Busy(JoinHandle<Result<Box<Writer>, ContentError>>),
}

impl Disk {
    async fn idle(self) -> Result<Box<Writer>, RegistryError> {
        match self {
            Self::Idle(writer) => Ok(writer),
            Self::Busy(task) => Ok(task.await??),
        }
    }

    /// Writes the last batch, and hands everything to the operating system.
    async fn finish(self, batch: Vec<Bytes>) -> Result<Box<Writer>, RegistryError> {
        let mut writer = self.idle().await?;
        let flushed = tokio::task::spawn_blocking(move || {
            for data in batch {
                writer.write(&data)?;
            }
            writer.flush()?;
            Ok::<_, ContentError>(writer)
        });
        Ok(flushed.await??)
    }

    /// Waits for the batch before, and starts on this one.
    async fn write(self, batch: Vec<Bytes>) -> Result<Self, RegistryError> {
        let mut writer = self.idle().await?;
        Ok(Self::Busy(tokio::task::spawn_blocking(move || {
            for data in batch {
                writer.write(&data)?;
            }
            Ok(writer)
        })))
    }
}
