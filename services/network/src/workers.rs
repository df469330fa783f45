//! The threads that work ahead of and behind the callers.
//!
//! *maker* keeps `warm_pool` sandboxes ready. *reaper* removes sandboxes that
//! nobody has any more, and has the kernel forget flows that a newly published
//! port makes stale. Both hold the kernel's lock over all links (RTNL) for
//! milliseconds at a time, which is why no caller does their work.
//!
//! A removal costs the kernel some 15 ms of waiting for its processors, however
//! many links go at once, and half a millisecond for each. So the reaper takes
//! all that has come up while it was busy, and the more there is to do, the
//! faster it goes. Sandboxes that cannot be removed are tried again later, and
//! hold up no others.

use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::setpriority_process;

use crate::error::{StartError, chain};
use crate::firewall::flows::{self, Published};
use crate::link::REMOVED_TOGETHER;
use crate::netlink::Netlink;
use crate::network::{Shared, State};
use crate::sandbox::{self, Sandbox};

/// Workers are woken by callers, who shall not lose the processor to them.
const NICENESS: i32 = 5;
/// With so much to remove, callers are better off when it goes fast: a worker
/// that waits for the processor may hold the lock that they need.
const NICENESS_BUSY: i32 = 0;
const BUSY: usize = 16;
/// After a failure: how long until the next attempt, at least and at most.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(10);

pub(crate) fn start(shared: &Arc<Shared>) -> Result<Vec<JoinHandle<()>>, StartError> {
    let spawn = |name: &str, work: fn(&Shared)| {
        let shared = Arc::clone(shared);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                set_niceness(NICENESS);
                work(&shared);
            })
            .map_err(|source| StartError::Thread { source })
    };
    Ok(vec![
        spawn("sandbox-maker", make)?,
        spawn("sandbox-reaper", reap)?,
    ])
}

/// Sets the priority of the calling thread.
fn set_niceness(niceness: i32) {
    if let Err(errno) = setpriority_process(None, niceness) {
        tracing::debug!(error = %errno, "a worker keeps its priority");
    }
}

fn make(shared: &Shared) {
    let wanted = shared.settings.warm_pool;
    let mut pause = PAUSE_MIN;
    loop {
        let mut state = shared.state();
        let address = loop {
            if state.stopping {
                return;
            }
            // An empty pool of addresses or a full bridge is no error here: it is
            // one for the caller who needs one.
            if state.ready.len() < wanted
                && !state.is_full()
                && let Ok(address) = state.addresses.take()
            {
                break address;
            }
            state = shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        };
        state.building += 1;
        drop(state);
        let built = shared
            .build(address, false, None, None)
            .and_then(|sandbox| match shared.records.put(&sandbox) {
                Ok(()) => Ok(sandbox),
                Err(error) => {
                    shared.doom(sandbox);
                    Err(error.into())
                }
            });
        let mut state = shared.state();
        state.building -= 1;
        let failed = match built {
            Ok(sandbox) => {
                state.ready.push_back(sandbox);
                None
            }
            Err(error) => Some(error),
        };
        shared.changed.notify_all();
        let Some(error) = failed else {
            pause = PAUSE_MIN;
            continue;
        };
        tracing::error!(error = %chain(&error), "cannot make an endpoint ahead of need");
        drop(
            shared
                .changed
                .wait_timeout_while(state, pause, |state| !state.stopping)
                .unwrap_or_else(PoisonError::into_inner),
        );
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn reap(shared: &Shared) {
    let mut host = None;
    let mut busy = false;
    let mut retry: Option<Instant> = None;
    let mut pause = PAUSE_MIN;
    while let Some((mut doomed, published)) = next_work(shared, &mut retry) {
        forget_flows(&published);
        let count = doomed.len();
        if busy != (count >= BUSY) {
            busy = !busy;
            set_niceness(if busy { NICENESS_BUSY } else { NICENESS });
        }
        let left = match host.take().map_or_else(Netlink::route, Ok) {
            Ok(mut netlink) => {
                remove(shared, &mut netlink, &mut doomed);
                host = Some(netlink);
                doomed
            }
            Err(error) => {
                tracing::error!(error = %chain(&error), "endpoints cannot be removed yet");
                doomed
            }
        };
        let mut state = shared.state();
        state.dying -= count;
        if left.is_empty() {
            if state.stuck.is_empty() {
                pause = PAUSE_MIN;
            }
        } else {
            state.stuck.extend(left);
            retry = Some(Instant::now() + pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
        shared.changed.notify_all();
    }
}

/// Waits for something to remove or to forget, also for what could not be
/// removed, once `retry` has come. None: the network stops; what is left is
/// removed by the one who stops it.
fn next_work(
    shared: &Shared,
    retry: &mut Option<Instant>,
) -> Option<(Vec<Sandbox>, Vec<Published>)> {
    let mut state = shared.state();
    loop {
        if state.stopping {
            return None;
        }
        if retry.is_some_and(|at| at <= Instant::now()) {
            *retry = None;
            let State { doomed, stuck, .. } = &mut *state;
            doomed.append(stuck);
        }
        if !state.doomed.is_empty() || !state.published.is_empty() {
            let count = state.doomed.len().min(REMOVED_TOGETHER);
            let doomed: Vec<_> = state.doomed.drain(..count).collect();
            state.dying += count;
            return Some((doomed, std::mem::take(&mut state.published)));
        }
        state = match *retry {
            None => shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                shared
                    .changed
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
    }
}

fn forget_flows(published: &[Published]) {
    if published.is_empty() {
        return;
    }
    match flows::forget(published) {
        Ok(count) => tracing::debug!(count, "older flows to published ports are forgotten"),
        Err(error) => tracing::warn!(
            error = %chain(&error),
            "older UDP flows to a published port may still lead elsewhere"
        ),
    }
}

/// Removes sandboxes and releases their addresses; those that cannot be removed
/// stay in `sandboxes`.
pub(crate) fn remove(shared: &Shared, host: &mut Netlink, sandboxes: &mut Vec<Sandbox>) {
    let mut kept = Vec::new();
    for (sandbox, error) in sandbox::destroy(sandboxes, &shared.settings, host, shared.removal) {
        tracing::error!(sandbox = %sandbox.id, error = %chain(&error), "cannot remove an endpoint");
        kept.push(sandbox.id.clone());
    }
    let gone = sandboxes
        .extract_if(.., |sandbox| !kept.contains(&sandbox.id))
        .collect::<Vec<_>>();
    for sandbox in &gone {
        if let Err(error) = shared.records.forget(&sandbox.id) {
            tracing::error!(sandbox = %sandbox.id, error = %chain(&error), "still on record");
        }
    }
    let mut state = shared.state();
    for sandbox in gone {
        state.addresses.release(sandbox.address);
    }
}
