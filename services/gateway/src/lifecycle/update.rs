//! `update`: other limits and another restart policy, for what runs now and for
//! the next starts.

use std::sync::Arc;

use serde_json::Value;

use crate::container::Record;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::roster::Entry;
use crate::spec::resources;
use crate::state::State;
use crate::wanted::{Resources, RestartName, RestartPolicy};

/// What is to change; None: it stays as it is.
#[derive(Clone, Debug, Default)]
pub struct UpdateWanted {
    pub memory_bytes: Option<u64>,
    pub memory_swap_bytes: Option<i64>,
    pub memory_reservation_bytes: Option<u64>,
    pub nano_cpus: Option<u64>,
    pub cpu_shares: Option<u64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub pids_limit: Option<i64>,
    pub cpu_period_micros: Option<u64>,
    pub cpu_quota_micros: Option<i64>,
    pub blkio_weight: Option<u32>,
    pub cpu_realtime_runtime_micros: Option<i64>,
    pub cpu_realtime_period_micros: Option<u64>,
    pub restart_policy: Option<RestartPolicy>,
}

impl UpdateWanted {
    /// The limits after the change.
    fn merged(&self, before: &Resources) -> Result<Resources> {
        let quota = self.cpu_period_micros.is_some() || self.cpu_quota_micros.is_some();
        let has_quota = before.cpu_period_micros > 0 || before.cpu_quota_micros != 0;
        if quota && before.nano_cpus > 0 {
            return Err(Error::invalid(
                "cpu-quota",
                "the container's CPU time is set by cpus; change that",
            ));
        }
        if self.nano_cpus.is_some_and(|cpus| cpus > 0) && (quota || has_quota) {
            return Err(Error::invalid(
                "cpus",
                "the container's CPU time is set by cpu-period and cpu-quota; change these",
            ));
        }
        let after = self.over(before);
        let lowered = self.memory_swap_bytes.is_none() && before.memory_swap_bytes > 0;
        if lowered
            && u64::try_from(before.memory_swap_bytes).is_ok_and(|swap| swap < after.memory_bytes)
        {
            return Err(Error::invalid(
                "memory",
                "it would be above the limit of memory and swap; change memory-swap with it",
            ));
        }
        Ok(after)
    }

    /// `before` with what is named here in place of its own.
    fn over(&self, before: &Resources) -> Resources {
        let mut after = before.clone();
        fn set<T: Clone>(field: &mut T, value: Option<&T>) {
            if let Some(value) = value {
                field.clone_from(value);
            }
        }
        set(&mut after.memory_bytes, self.memory_bytes.as_ref());
        set(
            &mut after.memory_swap_bytes,
            self.memory_swap_bytes.as_ref(),
        );
        let reservation = self.memory_reservation_bytes.as_ref();
        set(&mut after.memory_reservation_bytes, reservation);
        set(&mut after.nano_cpus, self.nano_cpus.as_ref());
        set(&mut after.cpu_shares, self.cpu_shares.as_ref());
        set(&mut after.cpuset_cpus, self.cpuset_cpus.as_ref());
        set(&mut after.cpuset_mems, self.cpuset_mems.as_ref());
        set(&mut after.pids_limit, self.pids_limit.as_ref());
        set(
            &mut after.cpu_period_micros,
            self.cpu_period_micros.as_ref(),
        );
        set(&mut after.cpu_quota_micros, self.cpu_quota_micros.as_ref());
        set(&mut after.blkio_weight, self.blkio_weight.as_ref());
        set(
            &mut after.cpu_realtime_runtime_micros,
            self.cpu_realtime_runtime_micros.as_ref(),
        );
        set(
            &mut after.cpu_realtime_period_micros,
            self.cpu_realtime_period_micros.as_ref(),
        );
        after
    }

    fn changes_memory(&self) -> bool {
        self.memory_bytes.is_some()
            || self.memory_swap_bytes.is_some()
            || self.memory_reservation_bytes.is_some()
    }

    fn changes_cpu(&self) -> bool {
        self.nano_cpus.is_some()
            || self.cpu_shares.is_some()
            || self.cpuset_cpus.is_some()
            || self.cpuset_mems.is_some()
            || self.cpu_period_micros.is_some()
            || self.cpu_quota_micros.is_some()
            || self.cpu_realtime_runtime_micros.is_some()
            || self.cpu_realtime_period_micros.is_some()
    }

    /// What the kernel is told: the parts in which something changes.
    fn live(&self, after: &Resources, engine: &Engine) -> Result<Value> {
        let mut all = resources::resources(after, &engine.host)?;
        all.retain(|part, _| match part.as_str() {
            "memory" => self.changes_memory(),
            "cpu" => self.changes_cpu(),
            "pids" => self.pids_limit.is_some(),
            "blockIO" => self.blkio_weight.is_some(),
            _ => false,
        });
        if self.pids_limit.is_some() && !all.contains_key("pids") {
            all.insert("pids".to_owned(), serde_json::json!({"limit": -1}));
        }
        Ok(Value::Object(all))
    }
}

/// Changes a container's limits and restart policy.
///
/// # Errors
/// A limit is out of its range or contradicts another, or the kernel refuses:
/// then nothing is recorded.
pub async fn update(engine: &Arc<Engine>, entry: &Arc<Entry>, wanted: UpdateWanted) -> Result<()> {
    let record = entry
        .wait_for("update", |record| {
            !matches!(record.state, State::Creating | State::Starting)
        })
        .await?;
    if matches!(record.state, State::Removing | State::Dead | State::Gone) {
        return Err(Error::WrongState {
            name: record.name.clone(),
            verb: "update",
            state: record.state,
        });
    }
    let restarts = wanted.restart_policy;
    if record.wanted.auto_remove && restarts.is_some_and(|new| new.name != RestartName::No) {
        return Err(Error::invalid(
            "restart",
            "a container with --rm is removed when it ends",
        ));
    }
    let after = wanted.merged(&record.wanted.resources)?;
    let live = wanted.live(&after, engine)?;
    let changes_limits = live.as_object().is_some_and(|parts| !parts.is_empty());
    if record.state.is_running() && changes_limits {
        set_live(engine, entry, &live).await?;
    }
    let changed = entry.update(|record: &mut Record| {
        // On what it is now: another update may have been faster.
        record.wanted.resources = wanted.over(&record.wanted.resources);
        if let Some(policy) = restarts {
            record.wanted.restart_policy = policy;
        }
    });
    if let Err(error) = engine.keep(&changed).await {
        take_back(engine, entry, &wanted, &record).await;
        return Err(error);
    }
    // It was started between the look and the change, with the limits before it.
    let started = |record: &Record| record.state.is_running().then_some(record.started);
    let now = entry.record();
    if changes_limits && now.state.is_running() && started(&now) != started(&record) {
        let live = wanted.live(&now.wanted.resources, engine)?;
        set_live(engine, entry, &live).await?;
    }
    let record = changed;
    engine.journal.note(&record, "update", &[]);
    Ok(())
}

/// Sets limits of a container that runs.
async fn set_live(engine: &Engine, entry: &Entry, limits: &Value) -> Result<()> {
    let json = limits.to_string().into_bytes();
    let set = engine.peers.runtime.update(&entry.id, json).await;
    set.map_err(|error| match &error {
        // A value that the kernel refuses is the caller's, and named as the caller does.
        Error::Peer { fault, .. } if fault.is("INVALID_SPEC") => {
            let of = |key: &str| fault.metadata.get(key).cloned();
            match (of("field"), of("problem")) {
                (Some(field), Some(problem)) => Error::invalid(field_of(&field), problem),
                _ => error,
            }
        }
        _ => error,
    })
}

/// The caller's name of a field of the runtime specification.
fn field_of(spec: &str) -> &str {
    match spec.strip_prefix("linux.resources.").unwrap_or(spec) {
        "memory.limit" => "memory",
        "memory.swap" => "memory-swap",
        "memory.reservation" => "memory-reservation",
        "cpu.shares" => "cpu-shares",
        "cpu.quota" => "cpu-quota",
        "cpu.period" => "cpu-period",
        "cpu.cpus" => "cpuset-cpus",
        "cpu.mems" => "cpuset-mems",
        "cpu.realtimeRuntime" => "cpu-rt-runtime",
        "cpu.realtimePeriod" => "cpu-rt-period",
        "pids.limit" => "pids-limit",
        "blockIO.weight" => "blkio-weight",
        other => other,
    }
}

/// Takes back a change that cannot be recorded.
async fn take_back(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    wanted: &UpdateWanted,
    before: &Record,
) {
    entry.update(|record| {
        record.wanted.resources = before.wanted.resources.clone();
        record.wanted.restart_policy = before.wanted.restart_policy;
    });
    let Ok(live) = wanted.live(&before.wanted.resources, engine) else {
        return;
    };
    if !entry.record().state.is_running() {
        return;
    }
    if let Err(error) = set_live(engine, entry, &live).await {
        tracing::error!(container = %entry.id, %error, "limits that are not recorded cannot be taken back until the next start");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_stays_as_it_is() {
        let before = Resources {
            memory_bytes: 100 << 20,
            cpu_shares: 512,
            ..Resources::default()
        };
        let wanted = UpdateWanted {
            pids_limit: Some(-1),
            ..UpdateWanted::default()
        };
        let after = wanted.merged(&before).unwrap();
        assert_eq!(
            after,
            Resources {
                pids_limit: -1,
                ..before
            }
        );
    }

    #[test]
    fn contradictions_are_refused() {
        let of = |before: Resources, wanted: UpdateWanted| wanted.merged(&before).is_err();
        let cpus = Resources {
            nano_cpus: 5,
            ..Resources::default()
        };
        assert!(of(
            cpus,
            UpdateWanted {
                cpu_quota_micros: Some(1),
                ..UpdateWanted::default()
            }
        ));
        let quota = Resources {
            cpu_quota_micros: 5,
            ..Resources::default()
        };
        assert!(of(
            quota,
            UpdateWanted {
                nano_cpus: Some(1),
                ..UpdateWanted::default()
            }
        ));
        let swap = Resources {
            memory_bytes: 10 << 20,
            memory_swap_bytes: 20 << 20,
            ..Resources::default()
        };
        assert!(of(
            swap,
            UpdateWanted {
                memory_bytes: Some(30 << 20),
                ..UpdateWanted::default()
            }
        ));
    }
}
