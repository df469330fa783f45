//! Noticing shims that do not do their work.
//!
//! A look at /proc every few seconds finds those that were stopped; it wakes no
//! shim. Those that a call found silent are asked again until they answer.

use std::sync::Arc;
use std::time::Duration;

use gantry_proto::shim::v1 as wire;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::runtime::Runtime;
use crate::shim::Shim;

const INTERVAL: Duration = Duration::from_secs(2);

/// How long a silent shim may take to answer when it is asked again.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

impl Runtime {
    /// Watches until the service stops.
    pub async fn watch_health(self: Arc<Self>, stopping: CancellationToken) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stopping.cancelled() => return,
            }
            for shim in self.roster.shims() {
                self.look_after(shim);
            }
        }
    }

    fn look_after(self: &Arc<Self>, shim: Arc<Shim>) {
        if shim.is_gone() {
            return;
        }
        if shim.is_stopped() {
            let why = Error::Stopped {
                id: shim.id.clone(),
                pid: shim.pid(),
            };
            self.set_sick(&shim, &why.to_string());
        } else if self
            .roster
            .get(&shim.id)
            .is_ok_and(|container| !container.sick.is_empty())
        {
            let runtime = self.clone();
            tokio::spawn(async move {
                // Whether it answers is noted by the call itself.
                let answer = runtime
                    .forward(&shim, ANSWER_LIMIT, |mut client| async move {
                        client.state(wire::StateRequest {}).await
                    })
                    .await;
                if let Ok(state) = answer {
                    shim.set_trouble(&state.sick);
                    runtime.set_sick(&shim, &state.sick);
                }
            });
        }
    }
}
