//! Whether a container's program is well: the check in force, and how its runs
//! went. What runs it is [`crate::lifecycle::health`]; the rules are Docker's.

use std::time::Duration;

use gantry_oci::Healthcheck;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::container::Record;
use crate::error::{Error, Result};
use crate::wanted::HealthWanted;

/// Results that are remembered.
const LOG_MAX: usize = 5;

/// Bytes of a result's output that are remembered.
pub const OUTPUT_MAX: usize = 4 << 10;

const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_START_INTERVAL: Duration = Duration::from_secs(5);
const DEFAULT_RETRIES: u32 = 3;

/// Times below this are mistakes, and would keep a machine busy.
const LEAST: i64 = 1_000_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Not healthy yet, and not unhealthy.
    #[default]
    Starting,
    Healthy,
    Unhealthy,
}

impl Status {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// How one check went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub start: Timestamp,
    pub end: Timestamp,
    /// -1: it had none.
    pub code: i32,
    pub output: String,
}

/// How a container is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub status: Status,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last results, the oldest first.
    pub log: Vec<Probe>,
}

/// The check in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// "CMD" and its words, or "CMD-SHELL" and a script.
    pub test: Vec<String>,
    /// What runs a script.
    pub shell: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub start_period: Duration,
    pub start_interval: Duration,
    pub retries: u32,
}

/// Refuses a check that cannot be meant.
///
/// # Errors
/// What is wrong in it.
pub fn check(wanted: &HealthWanted) -> Result<()> {
    let refused = |problem: &str| Err(Error::invalid("health check", problem));
    match wanted.test.split_first() {
        None => {}
        Some((kind, rest)) => match (kind.as_str(), rest) {
            ("NONE", []) => {}
            ("CMD", [program, ..]) if !program.is_empty() => {}
            ("CMD-SHELL", [script]) if !script.is_empty() => {}
            _ => {
                return refused("its test is NONE, CMD with a program, or CMD-SHELL with a script");
            }
        },
    }
    for (name, nanos) in [
        ("interval", wanted.interval_nanos),
        ("timeout", wanted.timeout_nanos),
        ("start period", wanted.start_period_nanos),
        ("start interval", wanted.start_interval_nanos),
    ] {
        if nanos != 0 && nanos < LEAST {
            return refused(&format!("its {name} is less than a millisecond"));
        }
    }
    if wanted.retries < 0 {
        return refused("its retries are negative");
    }
    Ok(())
}

/// The health check of an image that is made of a container: the container's
/// own, and for what that leaves open its image's.
#[must_use]
pub fn merged(own: &HealthWanted, image: Option<Healthcheck>) -> Option<Healthcheck> {
    if *own == HealthWanted::default() {
        return image;
    }
    let mut check = image.unwrap_or_default();
    if !own.test.is_empty() {
        check.test.clone_from(&own.test);
    }
    for (field, wanted) in [
        (&mut check.interval, own.interval_nanos),
        (&mut check.timeout, own.timeout_nanos),
        (&mut check.start_period, own.start_period_nanos),
        (&mut check.start_interval, own.start_interval_nanos),
        (&mut check.retries, own.retries.into()),
    ] {
        if wanted != 0 {
            *field = wanted;
        }
    }
    Some(check)
}

impl Check {
    /// What a person asked for, then what the image says, then the defaults.
    /// None: there is no check.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        let own = &record.wanted.health;
        let image = record.image.as_ref();
        let shell = image.and_then(|image| image.config.shell.clone());
        let image = image.and_then(|image| image.config.healthcheck.clone());
        let image = image.unwrap_or_default();
        let test = if own.test.is_empty() {
            image.test
        } else {
            own.test.clone()
        };
        if !matches!(test.first().map(String::as_str), Some("CMD" | "CMD-SHELL")) {
            return None;
        }
        let time = |own: i64, image: i64, otherwise: Duration| {
            [own, image]
                .into_iter()
                .find_map(|nanos| u64::try_from(nanos).ok().filter(|nanos| *nanos > 0))
                .map_or(otherwise, Duration::from_nanos)
        };
        let count = |count: i64| u32::try_from(count).ok().filter(|count| *count > 0);
        Some(Self {
            test,
            shell: shell
                .filter(|shell| !shell.is_empty())
                .unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()]),
            interval: time(own.interval_nanos, image.interval, DEFAULT_INTERVAL),
            timeout: time(own.timeout_nanos, image.timeout, DEFAULT_TIMEOUT),
            start_period: time(own.start_period_nanos, image.start_period, Duration::ZERO),
            start_interval: time(
                own.start_interval_nanos,
                image.start_interval,
                DEFAULT_START_INTERVAL,
            ),
            retries: count(own.retries.into())
                .or_else(|| count(image.retries))
                .unwrap_or(DEFAULT_RETRIES),
        })
    }

    /// What is executed.
    #[must_use]
    pub fn command(&self) -> Vec<String> {
        match self.test.split_first() {
            Some((kind, script)) if kind == "CMD-SHELL" => [&self.shell, script].concat(),
            Some((_, words)) => words.to_vec(),
            None => Vec::new(),
        }
    }
}

impl Health {
    /// Takes a result. The new status, where that is another one. `grace`: it
    /// came in the start period, in which a failure does not count.
    pub fn take(&mut self, probe: Probe, check: &Check, grace: bool) -> Option<Status> {
        let before = self.status;
        if probe.code == 0 {
            self.failing_streak = 0;
            self.status = Status::Healthy;
        } else if !(grace && before == Status::Starting) {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= check.retries {
                self.status = Status::Unhealthy;
            }
        }
        if self.log.len() >= LOG_MAX {
            self.log.remove(0);
        }
        self.log.push(probe);
        (self.status != before).then_some(self.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{ContainerId, Image};
    use crate::wanted::Wanted;

    fn record(own: HealthWanted, image: gantry_oci::Healthcheck) -> Record {
        let id = ContainerId::try_from("a".repeat(64)).unwrap();
        let wanted = Wanted {
            health: own,
            ..Wanted::default()
        };
        let mut record = Record::new(id, "one".to_owned(), wanted);
        record.image = Some(Image {
            id: "sha256:1".to_owned(),
            config: gantry_oci::ContainerConfig {
                healthcheck: Some(image),
                ..Default::default()
            },
        });
        record
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn probe(code: i32) -> Probe {
        Probe {
            start: Timestamp::UNIX_EPOCH,
            end: Timestamp::UNIX_EPOCH,
            code,
            output: String::new(),
        }
    }

    #[test]
    fn a_persons_wishes_come_before_the_images_and_these_before_the_defaults() {
        let image = gantry_oci::Healthcheck {
            test: words("CMD-SHELL image"),
            interval: 2_000_000_000,
            retries: 7,
            ..Default::default()
        };
        let check = Check::of(&record(HealthWanted::default(), image.clone())).unwrap();
        assert_eq!(check.command(), words("/bin/sh -c image"));
        assert_eq!(check.interval, Duration::from_secs(2));
        assert_eq!((check.timeout, check.retries), (DEFAULT_TIMEOUT, 7));
        let own = HealthWanted {
            test: words("CMD mine -x"),
            interval_nanos: 5_000_000,
            retries: 1,
            ..Default::default()
        };
        let check = Check::of(&record(own, image.clone())).unwrap();
        assert_eq!(check.command(), words("mine -x"));
        assert_eq!(check.interval, Duration::from_millis(5));
        assert_eq!(check.retries, 1);
        let none = HealthWanted {
            test: words("NONE"),
            ..Default::default()
        };
        assert_eq!(Check::of(&record(none, image)), None);
        let nothing = record(HealthWanted::default(), Default::default());
        assert_eq!(Check::of(&nothing), None);
    }

    #[test]
    fn so_many_failures_in_a_row_make_it_unhealthy_and_one_success_well() {
        let image = gantry_oci::Healthcheck {
            test: words("CMD true"),
            ..Default::default()
        };
        let check = Check::of(&record(HealthWanted::default(), image)).unwrap();
        let mut health = Health::default();
        assert_eq!(health.take(probe(1), &check, true), None);
        assert_eq!(health.failing_streak, 0, "failures do not count at first");
        assert_eq!(health.take(probe(0), &check, true), Some(Status::Healthy));
        assert_eq!(health.take(probe(1), &check, true), None);
        assert_eq!(health.take(probe(-1), &check, false), None);
        assert_eq!(health.take(probe(0), &check, false), None);
        for expected in [None, None, Some(Status::Unhealthy), None] {
            assert_eq!(health.take(probe(3), &check, false), expected);
        }
        assert_eq!(health.failing_streak, 4);
        assert_eq!(health.log.len(), LOG_MAX);
        assert_eq!(health.take(probe(0), &check, false), Some(Status::Healthy));
    }

    #[test]
    fn checks_that_cannot_be_meant_are_refused() {
        let with = |set: fn(&mut HealthWanted)| {
            let mut wanted = HealthWanted::default();
            set(&mut wanted);
            check(&wanted)
        };
        assert!(with(|_| {}).is_ok());
        assert!(with(|w| w.test = vec!["NONE".to_owned()]).is_ok());
        assert!(with(|w| w.test = vec!["CMD".to_owned()]).is_err());
        assert!(with(|w| w.test = vec!["true".to_owned()]).is_err());
        assert!(with(|w| w.interval_nanos = 1000).is_err());
        assert!(with(|w| w.retries = -1).is_err());
    }
}
