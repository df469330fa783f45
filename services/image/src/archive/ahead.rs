//! Layers that are unpacked while they come, before anybody knows whose they are.
//!
//! An archive's list of images may be its last entry. So what looks like a layer
//! is unpacked at once, into a directory without a name, and gets one when the
//! list says so.
//!
//! A few are under way at a time; who wants to begin one more waits. A layer that
//! needs the ones below cannot have them yet: it stops there, gives its place to
//! another, and goes on when it is told what is below. Not many can stand still
//! like that, since each holds memory: the others fail, and are unpacked again
//! when it is their turn.

use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use gantry_oci::Algorithm;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::ImageStore;
use crate::compress::Cancellable;
use crate::error::ImageError;
use crate::layers::NewLayer;
use crate::pull::blocking;
use crate::unpack::{self, Lower, UnpackError, Unpacked};

/// Layers that stand still at a time.
const WAITING_MAX: usize = 8;

/// An unpacked layer without a name.
pub(super) struct Fresh {
    pub(super) new: NewLayer,
    pub(super) unpacked: Unpacked,
}

/// Begins layers.
#[derive(Clone, Debug)]
pub(super) struct Ahead {
    store: ImageStore,
    slots: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    cancel: CancellationToken,
}

/// A layer that was begun. Dropped, it ends as soon as it looks up.
pub(super) struct Early {
    task: Option<JoinHandle<Result<Fresh, ImageError>>>,
    gate: Arc<Gate>,
}

impl std::fmt::Debug for Early {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Early").finish_non_exhaustive()
    }
}

impl Ahead {
    pub(super) fn new(store: &ImageStore, cancel: &CancellationToken) -> Self {
        Self {
            store: store.clone(),
            slots: Arc::new(Semaphore::new(store.shared.config.parallel_layers.max(1))),
            waiting: Arc::default(),
            cancel: cancel.clone(),
        }
    }

    /// Begins to unpack, and waits for a place to do so. Blocks; on a thread of
    /// the runtime only.
    pub(super) fn begin(
        &self,
        source: impl Read + Send + 'static,
        name: &str,
    ) -> Result<Early, ImageError> {
        let slot = Handle::current().block_on(async {
            tokio::select! {
                slot = Arc::clone(&self.slots).acquire_owned() => slot.ok(),
                () = self.cancel.cancelled() => None,
            }
        });
        if slot.is_none() {
            return Err(cancelled());
        }
        let gate = Arc::new(Gate::default());
        let lower = BelowOnceKnown {
            gate: Arc::clone(&gate),
            slot,
            waiting: Arc::clone(&self.waiting),
        };
        let job = self.job(source, Algorithm::Sha256, lower, name);
        let task = Handle::current().spawn(blocking("unpacking a layer", job));
        Ok(Early {
            task: Some(task),
            gate,
        })
    }

    /// Unpacks a layer whose lower ones are known.
    pub(super) async fn unpack(
        &self,
        source: impl Read + Send + 'static,
        algorithm: Algorithm,
        below: Vec<PathBuf>,
        name: &str,
    ) -> Result<Fresh, ImageError> {
        let job = self.job(source, algorithm, below, name);
        blocking("unpacking a layer", job).await
    }

    fn job(
        &self,
        source: impl Read + Send + 'static,
        algorithm: Algorithm,
        mut lower: impl Lower + 'static,
        name: &str,
    ) -> impl FnOnce() -> Result<Fresh, ImageError> + Send + 'static {
        let layers = self.store.shared.layers.clone();
        let limits = self.store.shared.config.limits.clone();
        let source = Cancellable {
            source,
            cancel: self.cancel.clone(),
        };
        let digest = name.to_owned();
        move || {
            let new = layers.begin()?;
            let unpacked = unpack::unpack(source, new.open()?, algorithm, &limits, &mut lower)
                .map_err(|source| ImageError::Layer { digest, source })?;
            Ok(Fresh { new, unpacked })
        }
    }
}

impl Early {
    /// The layer, given the directories of those below it, the top-most first.
    /// None: it could not wait for them, and has to be unpacked now.
    pub(super) async fn finish(mut self, below: Vec<PathBuf>) -> Result<Option<Fresh>, ImageError> {
        self.gate.answer(Some(below));
        match self.join().await {
            Some(Ok(fresh)) => Ok(Some(fresh)),
            Some(Err(ImageError::Layer {
                source: UnpackError::LowerMissing { .. },
                ..
            }))
            | None => Ok(None),
            Some(Err(error)) => Err(error),
        }
    }

    /// Ends it, and removes what it made.
    pub(super) async fn discard(mut self) {
        self.gate.answer(None);
        if let Some(Ok(fresh)) = self.join().await {
            // Only a panic in a destructor could fail it, and that is reported by itself.
            let _ = tokio::task::spawn_blocking(move || drop(fresh)).await;
        }
    }

    async fn join(&mut self) -> Option<Result<Fresh, ImageError>> {
        let task = self.task.take()?;
        Some(task.await.unwrap_or(Err(ImageError::TaskLost {
            what: "unpacking a layer",
        })))
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        self.gate.answer(None);
    }
}

/// What is below a layer, once it is known.
#[derive(Debug, Default)]
struct Gate {
    /// The inner `None`: nobody wants the layer.
    answer: Mutex<Option<Option<Vec<PathBuf>>>>,
    changed: Condvar,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Option<Option<Vec<PathBuf>>>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, below: Option<Vec<PathBuf>>) {
        self.lock().get_or_insert(below);
        self.changed.notify_all();
    }

    fn wait(&self) -> Result<Vec<PathBuf>, UnpackError> {
        let mut answer = self.lock();
        loop {
            match &*answer {
                Some(Some(below)) => return Ok(below.clone()),
                Some(None) => return Err(not_below("nobody wants the layer")),
                None => {
                    let waited = self.changed.wait(answer);
                    answer = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn is_answered(&self) -> bool {
        self.lock().is_some()
    }
}

fn not_below(reason: &str) -> UnpackError {
    UnpackError::LowerMissing {
        reason: reason.to_owned(),
    }
}

/// The layers below, for one layer of which nobody knows yet where it belongs.
struct BelowOnceKnown {
    gate: Arc<Gate>,
    /// Given back before waiting: the one that is waited for may need it.
    slot: Option<OwnedSemaphorePermit>,
    waiting: Arc<AtomicUsize>,
}

impl Lower for BelowOnceKnown {
    fn wait(&mut self) -> Result<Vec<PathBuf>, UnpackError> {
        if self.gate.is_answered() {
            return self.gate.wait();
        }
        self.slot = None;
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let below = if before < WAITING_MAX {
            self.gate.wait()
        } else {
            Err(not_below("too many layers wait for others"))
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        below
    }
}

pub(super) fn cancelled() -> ImageError {
    ImageError::Cancelled {
        what: "the load".into(),
    }
}
