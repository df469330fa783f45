//! The layers of one pull, for those that need the ones below.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::flight::Leader;
use crate::unpack::{Lower, UnpackError};

/// The directories of a pull's layers, as far as they are there.
#[derive(Debug)]
pub(crate) struct Chain {
    state: Mutex<ChainState>,
    changed: Condvar,
}

#[derive(Debug)]
struct ChainState {
    directories: Vec<Option<PathBuf>>,
    given_up: bool,
}

impl Chain {
    pub(crate) fn new(count: usize) -> Self {
        Self {
            state: Mutex::new(ChainState {
                directories: vec![None; count],
                given_up: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ChainState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, position: usize, directory: PathBuf) {
        self.lock().directories[position] = Some(directory);
        self.changed.notify_all();
    }

    /// One layer will not come: who waits need not.
    pub(crate) fn give_up(&self) {
        self.lock().given_up = true;
        self.changed.notify_all();
    }

    /// Waits for all layers below one; the top-most first.
    fn below(&self, position: usize) -> Result<Vec<PathBuf>, UnpackError> {
        let mut state = self.lock();
        loop {
            let below: Option<Vec<PathBuf>> = state.directories[..position]
                .iter()
                .rev()
                .cloned()
                .collect();
            match below {
                Some(below) => return Ok(below),
                None if state.given_up => {
                    return Err(UnpackError::LowerMissing {
                        reason: "the pull failed".into(),
                    });
                }
                None => {
                    let waited = self.changed.wait(state);
                    state = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// The layers below, for one layer.
pub(crate) struct BelowInChain {
    pub(crate) chain: Arc<Chain>,
    pub(crate) position: usize,
    /// The right to get the layer, given up before waiting.
    pub(crate) leader: Option<Leader>,
}

impl Lower for BelowInChain {
    fn wait(&mut self) -> Result<Vec<PathBuf>, UnpackError> {
        self.leader = None;
        self.chain.below(self.position)
    }
}
