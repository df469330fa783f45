//! Restart policies: whether a container that ended is started again, and when.
//!
//! The wait before a restart doubles from `restart_backoff_ms` on, up to
//! `restart_backoff_max_ms`; after a run of `restart_good_run_ms` or more it
//! begins anew.

use std::sync::Arc;
use std::time::Duration;

use crate::container::Record;
use crate::engine::Engine;
use crate::lifecycle::start::{self, Starter};
use crate::roster::Entry;
use crate::settings::Settings;
use crate::state::{Event, InvalidTransition, State};
use crate::wanted::RestartName;

/// What becomes of a container that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Stay,
    Again { after: Duration },
}

/// Decides by the policy of a container that has just ended.
#[must_use]
pub fn verdict(record: &Record, settings: &Settings) -> Verdict {
    let policy = record.wanted.restart_policy;
    let failed = record.exit.as_ref().is_some_and(|exit| exit.code != 0);
    let limit = policy.maximum_retry_count;
    let again = !record.stopped_by_user
        && match policy.name {
            RestartName::No => false,
            RestartName::OnFailure => failed && (limit == 0 || record.restarts < limit),
            RestartName::Always | RestartName::UnlessStopped => true,
        };
    if !again {
        return Verdict::Stay;
    }
    let ran = match (record.started, &record.exit) {
        (Some(started), Some(exit)) => Duration::try_from(exit.at - started).unwrap_or_default(),
        _ => Duration::ZERO,
    };
    let first = settings.restart_backoff_ms;
    let wait = if ran >= settings.good_run() {
        first
    } else {
        let doubled = 1_u64.checked_shl(record.restarts).unwrap_or(u64::MAX);
        first.saturating_mul(doubled)
    };
    Verdict::Again {
        after: Duration::from_millis(wait.min(settings.restart_backoff_max_ms)),
    }
}

/// Whether the machine's start starts the container whatever it was doing: by
/// `always`, as in Docker also one that a person had stopped. One that never ran
/// is left alone. A start of the services alone is no start of the machine.
#[must_use]
pub fn is_for_boot(record: &Record) -> bool {
    record.wanted.restart_policy.name == RestartName::Always
        && record.started.is_some()
        && !record.wanted.auto_remove
}

/// Starts a container that the machine's start is to start again.
pub fn at_boot(engine: &Arc<Engine>, entry: &Arc<Entry>) {
    if entry.change(Event::Await, |_| {}).is_ok() {
        tracing::info!(container = %entry.id, "started again with the machine");
        schedule(Arc::clone(engine), Arc::clone(entry), Duration::ZERO);
    }
}

/// Starts the container again when its wait is over, unless somebody stops,
/// starts or removes it before.
pub fn schedule(engine: Arc<Engine>, entry: Arc<Entry>, after: Duration) {
    tokio::spawn(async move {
        tokio::select! {
            () = tokio::time::sleep(after) => {}
            _ = entry.wait_until(|record| record.state != State::Restarting) => return,
            () = engine.stopping.cancelled() => return,
        }
        if let Err(error) = start::start(&engine, &entry, Starter::Policy, None).await {
            tracing::warn!(container = %entry.id, %error, "a restart by policy failed");
        }
    });
}

/// Moves a container on whose run has ended or could not be started: by its
/// policy, decided on the record as it is at this moment, to the wait for another
/// start, and otherwise by `event`. `also` is set with it.
///
/// # Errors
/// Neither fits: somebody removes it.
pub fn settle(
    engine: &Engine,
    entry: &Entry,
    event: Event,
    also: impl FnOnce(&mut Record),
) -> Result<(Arc<Record>, Verdict), InvalidTransition> {
    let mut decided = Verdict::Stay;
    let record = entry.decide(|record| {
        also(record);
        decided = verdict(record, &engine.settings);
        Some(match decided {
            Verdict::Stay => event,
            Verdict::Again { .. } => Event::Await,
        })
    })?;
    Ok((record, decided))
}

/// Starts the wait that [`settle`] decided on.
pub fn go_on(engine: &Arc<Engine>, entry: &Arc<Entry>, verdict: Verdict) {
    if let Verdict::Again { after } = verdict {
        schedule(Arc::clone(engine), Arc::clone(entry), after);
    }
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;

    use super::*;
    use crate::container::{ContainerId, Exit};
    use crate::wanted::{RestartPolicy, Wanted};

    fn record(name: RestartName, maximum_retry_count: u32, code: i32) -> Record {
        let wanted = Wanted {
            restart_policy: RestartPolicy {
                name,
                maximum_retry_count,
            },
            ..Wanted::default()
        };
        let id = ContainerId::try_from("c".repeat(64)).unwrap();
        let mut record = Record::new(id, "one".to_owned(), wanted);
        record.started = Some(record.created);
        record.exit = Some(Exit {
            code,
            at: record.created + 1.second(),
            ..Exit::default()
        });
        record
    }

    fn judge(record: &Record) -> Verdict {
        verdict(record, &Settings::default())
    }

    #[test]
    fn each_policy_restarts_what_it_says() {
        use RestartName::{Always, No, OnFailure, UnlessStopped};
        for (name, code, again) in [
            (No, 1, false),
            (OnFailure, 1, true),
            (OnFailure, 0, false),
            (Always, 0, true),
            (UnlessStopped, 0, true),
        ] {
            let mut record = record(name, 0, code);
            assert_eq!(judge(&record) != Verdict::Stay, again, "{name:?}");
            record.stopped_by_user = true;
            assert_eq!(
                judge(&record),
                Verdict::Stay,
                "{name:?} stopped by a person"
            );
        }
    }

    #[test]
    fn tries_on_failure_are_counted() {
        let mut record = record(RestartName::OnFailure, 2, 1);
        record.restarts = 1;
        assert_ne!(judge(&record), Verdict::Stay);
        record.restarts = 2;
        assert_eq!(judge(&record), Verdict::Stay);
    }

    #[test]
    fn the_wait_doubles_up_to_its_limit_and_begins_anew_after_a_good_run() {
        let mut record = record(RestartName::Always, 0, 1);
        let after = |record: &Record| match judge(record) {
            Verdict::Again { after } => after.as_millis(),
            Verdict::Stay => panic!("it stays"),
        };
        assert_eq!(after(&record), 100);
        record.restarts = 3;
        assert_eq!(after(&record), 800);
        record.restarts = 70;
        assert_eq!(after(&record), 60_000);
        let started = record.started.unwrap();
        record.exit.as_mut().unwrap().at = started + 11.seconds();
        assert_eq!(after(&record), 100);
    }
}
