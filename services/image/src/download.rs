//! Receiving a blob, from whichever source gives it, until all of it is there.
//!
//! A connection that breaks is taken up where it broke. A source that has not
//! got the blob, or gives something else, is not asked again; one that brings
//! nothing gives way to the next.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gantry_oci::Descriptor;
use tokio::sync::mpsc;

use crate::error::ImageError;
use crate::pull::{Event, LayerState, Watcher};
use crate::registry_client::patience::Pauses;
use crate::registry_client::{RegistryError, Repository};

/// Attempts at each source that bring no further.
const ATTEMPTS: usize = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// How many bytes an attempt must bring to count as one that did. A source
/// that trickles would otherwise be asked for ever.
const WORTHWHILE: u64 = 16 << 10;
/// How often a download reports.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// One blob to receive.
pub(crate) struct Download<'a> {
    pub(crate) sources: &'a [Repository],
    pub(crate) descriptor: &'a Descriptor,
    pub(crate) watcher: &'a Watcher,
    /// Counts what comes over the wire.
    pub(crate) bytes: &'a AtomicU64,
}

impl Download<'_> {
    /// Receives the blob from `offset` on.
    pub(crate) async fn run(
        &self,
        offset: u64,
        sender: &mpsc::Sender<Bytes>,
    ) -> Result<(), ImageError> {
        let size = self.descriptor.size;
        let mut position = offset;
        let mut usable: Vec<&Repository> = self.sources.iter().collect();
        let (mut turn, mut fruitless) = (0, 0);
        let mut pauses = Pauses::from(FIRST_PAUSE);
        while position < size {
            let Some(source) = usable.get(turn) else {
                return Err(self.nobody());
            };
            let before = position;
            let error = match self.receive(source, &mut position, sender).await {
                Ok(()) => continue,
                Err(error) => error,
            };
            // The writer has failed, and says why when it is asked.
            if sender.is_closed() {
                return Err(error);
            }
            // The client has tried more than once already where nobody answers at all.
            let hopeless = !error.is_transient()
                || matches!(
                    error,
                    ImageError::Registry(RegistryError::Unreachable { .. })
                );
            tracing::debug!(
                layer = %self.descriptor.digest,
                host = source.host(),
                position,
                %error,
                "the download broke off"
            );
            if hopeless {
                if usable.len() == 1 {
                    return Err(error);
                }
                usable.remove(turn);
                turn %= usable.len();
                continue;
            }
            if position - before >= WORTHWHILE {
                fruitless = 0;
                pauses = Pauses::from(FIRST_PAUSE);
                continue;
            }
            fruitless += 1;
            if fruitless >= ATTEMPTS * usable.len() {
                return Err(error);
            }
            turn = (turn + 1) % usable.len();
            if turn == 0 {
                let asked = match &error {
                    ImageError::Registry(error) => error.retry_after(),
                    _ => None,
                };
                let Some(pause) = pauses.next_after(asked) else {
                    return Err(error);
                };
                tokio::time::sleep(pause).await;
            }
        }
        self.report(LayerState::Unpacking, size);
        Ok(())
    }

    fn nobody(&self) -> ImageError {
        ImageError::NotFound {
            reference: self.descriptor.digest.to_string(),
        }
    }

    fn report(&self, state: LayerState, current: u64) {
        (self.watcher)(Event::Layer {
            digest: self.descriptor.digest.clone(),
            state,
            current,
            total: self.descriptor.size,
        });
    }

    /// One answer's worth of the blob.
    async fn receive(
        &self,
        source: &Repository,
        position: &mut u64,
        sender: &mpsc::Sender<Bytes>,
    ) -> Result<(), ImageError> {
        let size = self.descriptor.size;
        let what = || format!("blob {}", self.descriptor.digest);
        let mut stream = source
            .blob(&self.descriptor.digest, size, *position)
            .await?;
        let mut reported = Instant::now();
        self.report(LayerState::Downloading, *position);
        loop {
            let at = stream.position;
            let Some(mut piece) = stream.next().await? else {
                break;
            };
            self.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
            // A registry that knows no ranges begins at the start: what is there is passed over.
            let known = position.saturating_sub(at).min(piece.len() as u64);
            let _ = piece.split_to(usize::try_from(known).unwrap_or(usize::MAX));
            if piece.is_empty() {
                continue;
            }
            *position += piece.len() as u64;
            if *position > size {
                return Err(RegistryError::Size {
                    host: source.host().to_owned(),
                    what: what(),
                    expected: size,
                    found: *position,
                }
                .into());
            }
            if sender.send(piece).await.is_err() {
                return Err(ImageError::Cancelled { what: what() });
            }
            if reported.elapsed() >= REPORT_EVERY {
                reported = Instant::now();
                self.report(LayerState::Downloading, *position);
            }
        }
        if *position < size {
            return Err(RegistryError::Broken {
                host: source.host().to_owned(),
                what: what(),
                source: format!("{} of {size} bytes came", *position).into(),
            }
            .into());
        }
        Ok(())
    }
}
