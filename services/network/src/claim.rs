//! One caller at a time for each container.
//!
//! A create and a delete of the same container take turns: whoever comes first
//! marks the container busy, and who comes later waits for the mark to go.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use crate::endpoint::ContainerId;
use crate::error::NetworkError;
use crate::network::{Live, Shared, Slot, State};

/// How long a caller waits for another's work on the same container.
const PATIENCE: Duration = Duration::from_secs(10);

/// The mark on a container whose endpoint is being made or deleted. Dropped
/// without [`Claim::fulfil`], the container has no endpoint.
pub(crate) struct Claim<'a> {
    shared: &'a Shared,
    container: ContainerId,
}

impl<'a> Claim<'a> {
    pub(crate) fn new(shared: &'a Shared, container: &ContainerId) -> Result<Self, NetworkError> {
        let mut state = Self::at_rest(shared, container)?;
        if state.stopping {
            return Err(NetworkError::Stopping);
        }
        if state.endpoints.contains_key(container) {
            return Err(NetworkError::EndpointExists {
                container: container.clone(),
            });
        }
        state.endpoints.insert(container.clone(), Slot::Busy);
        drop(state);
        Ok(Self {
            shared,
            container: container.clone(),
        })
    }

    /// Marks a container that has an endpoint, and takes that.
    pub(crate) fn of_live(
        shared: &'a Shared,
        container: &ContainerId,
    ) -> Result<Option<(Self, Box<Live>)>, NetworkError> {
        let mut state = Self::at_rest(shared, container)?;
        let Some(slot) = state.endpoints.get_mut(container) else {
            return Ok(None);
        };
        let Slot::Live(live) = std::mem::replace(slot, Slot::Busy) else {
            return Ok(None);
        };
        drop(state);
        let claim = Self {
            shared,
            container: container.clone(),
        };
        Ok(Some((claim, live)))
    }

    fn at_rest(
        shared: &'a Shared,
        container: &ContainerId,
    ) -> Result<MutexGuard<'a, State>, NetworkError> {
        let (state, waited) = shared
            .changed
            .wait_timeout_while(shared.state(), PATIENCE, |state| {
                matches!(state.endpoints.get(container), Some(Slot::Busy))
            })
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(NetworkError::EndpointBusy {
                container: container.clone(),
            });
        }
        Ok(state)
    }

    pub(crate) fn fulfil(self, live: Live) {
        let mut state = self.shared.state();
        state
            .endpoints
            .insert(self.container.clone(), Slot::Live(Box::new(live)));
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if matches!(state.endpoints.get(&self.container), Some(Slot::Busy)) {
            state.endpoints.remove(&self.container);
        }
        self.shared.changed.notify_all();
    }
}
