//! Filters of `list`, as Docker's: all keys must hold; of several values for one
//! key any may (of several labels, all).

use jiff::Timestamp;
use regex_lite::Regex;

use crate::container::Record;
use crate::error::{Error, Result};
use crate::roster::Roster;
use crate::state::State;
use crate::wanted::{MountKind, NetworkMode};

/// One key=value, as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub key: String,
    pub value: String,
}

#[derive(Debug)]
enum Test {
    Id(Regex),
    Name(Regex),
    Label(String, Option<String>),
    Status(String),
    Exited(i32),
    Ancestor(String),
    Before(Timestamp),
    Since(Timestamp),
    Publish(String),
    Expose(String),
    Network(String),
    Health(String),
    Volume(String),
    IsTask(bool),
}

/// Filters that can be asked.
#[derive(Debug, Default)]
pub struct Filters {
    tests: Vec<Test>,
    /// Ids that the ancestors' names stand for.
    ancestors: Vec<String>,
}

const STATES: [&str; 8] = [
    "created",
    "restarting",
    "running",
    "removing",
    "paused",
    "exited",
    "dead",
    "stopped",
];

const HEALTH: [&str; 4] = ["starting", "healthy", "unhealthy", "none"];

/// Reads filters. `ancestors` are the ids that `ancestor` names stand for.
///
/// # Errors
/// A key is unknown, a value is malformed, or a container that is named is not
/// there.
pub fn compile(filters: &[Filter], roster: &Roster, ancestors: Vec<String>) -> Result<Filters> {
    let tests = filters
        .iter()
        .map(|filter| test(filter, roster))
        .collect::<Result<_>>()?;
    Ok(Filters { tests, ancestors })
}

fn test(filter: &Filter, roster: &Roster) -> Result<Test> {
    let value = filter.value.clone();
    let wrong = |problem: &str| {
        Error::invalid(
            "filter",
            format!("{}={}: {problem}", filter.key, filter.value),
        )
    };
    Ok(match filter.key.as_str() {
        "id" => Test::Id(pattern(&value).map_err(|problem| wrong(&problem))?),
        "name" => Test::Name(pattern(&value).map_err(|problem| wrong(&problem))?),
        "label" => match value.split_once('=') {
            Some((label, value)) => Test::Label(label.to_owned(), Some(value.to_owned())),
            None => Test::Label(value, None),
        },
        "status" if STATES.contains(&value.as_str()) => Test::Status(value),
        "status" => return Err(wrong("there is no such state")),
        "exited" => Test::Exited(value.parse().map_err(|_| wrong("give an exit code"))?),
        "ancestor" => Test::Ancestor(value),
        "before" => Test::Before(roster.find(&value)?.record().created),
        "since" => Test::Since(roster.find(&value)?.record().created),
        "publish" => Test::Publish(value),
        "expose" => Test::Expose(value),
        "network" => Test::Network(value),
        "health" if HEALTH.contains(&value.as_str()) => Test::Health(value),
        "health" => return Err(wrong("give starting, healthy, unhealthy or none")),
        "volume" => Test::Volume(value),
        "is-task" => match value.as_str() {
            "true" | "True" | "1" => Test::IsTask(true),
            "false" | "False" | "0" => Test::IsTask(false),
            _ => return Err(wrong("give true or false")),
        },
        _ => return Err(wrong("there is no such filter")),
    })
}

/// A regular expression, that may be of any part of the text.
fn pattern(text: &str) -> std::result::Result<Regex, String> {
    Regex::new(text).map_err(|error| format!("it is not a regular expression: {error}"))
}

/// A port filter, "80", "80/tcp" or "8000-8080/udp", against one port.
fn port_fits(filter: &str, port: u16, protocol: &str) -> bool {
    let (numbers, wanted) = filter.split_once('/').unwrap_or((filter, "tcp"));
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let range = first.parse::<u16>().ok().zip(last.parse::<u16>().ok());
    wanted == protocol && range.is_some_and(|(first, last)| (first..=last).contains(&port))
}

fn status_fits(wanted: &str, state: State) -> bool {
    match wanted {
        "created" => state == State::Created,
        "restarting" => state == State::Restarting,
        "running" => matches!(state, State::Running | State::Starting),
        "removing" => state == State::Removing,
        "paused" => state == State::Paused,
        "exited" | "stopped" => matches!(state, State::Exited | State::Ending),
        "dead" => state == State::Dead,
        _ => false,
    }
}

impl Test {
    fn key(&self) -> u8 {
        match self {
            Self::Id(_) => 0,
            Self::Name(_) => 1,
            Self::Label(..) => 2,
            Self::Status(_) => 3,
            Self::Exited(_) => 4,
            Self::Ancestor(_) => 5,
            Self::Before(_) => 6,
            Self::Since(_) => 7,
            Self::Publish(_) => 8,
            Self::Expose(_) => 9,
            Self::Network(_) => 10,
            Self::Health(_) => 11,
            Self::Volume(_) => 12,
            Self::IsTask(_) => 13,
        }
    }

    fn holds(&self, record: &Record, ancestors: &[String]) -> bool {
        let wanted = &record.wanted;
        match self {
            Self::Id(pattern) => pattern.is_match(record.id.as_str()),
            // `inspect` shows a name with a slash, and scripts give it back so.
            Self::Name(pattern) => {
                pattern.is_match(&record.name) || pattern.is_match(&format!("/{}", record.name))
            }
            Self::Label(label, value) => {
                let image = record.image.as_ref();
                let own = wanted.labels.get(label);
                let found = own.or_else(|| image.and_then(|image| image.config.labels.get(label)));
                found.is_some_and(|found| value.as_ref().is_none_or(|value| found == value))
            }
            Self::Status(status) => status_fits(status, record.state),
            Self::Exited(code) => {
                record.state == State::Exited
                    && record.exit.as_ref().is_some_and(|exit| exit.code == *code)
            }
            Self::Ancestor(name) => {
                let id = record.image.as_ref().map_or("", |image| &image.id);
                wanted.image == *name
                    || wanted.image == format!("{name}:latest")
                    || ancestors.iter().any(|ancestor| ancestor == id)
                    || (name.len() >= 4 && id.trim_start_matches("sha256:").starts_with(name))
            }
            Self::Before(time) => record.created < *time,
            Self::Since(time) => record.created > *time,
            Self::Publish(filter) => {
                let held = record.endpoint.as_ref().map(|endpoint| &endpoint.ports);
                held.unwrap_or(&wanted.ports).iter().any(|port| {
                    port_fits(filter, port.container_port, port.protocol.name())
                        || port_fits(filter, port.host_port, port.protocol.name())
                })
            }
            Self::Expose(filter) => record.exposed_ports().iter().any(|exposed| {
                exposed.split_once('/').is_some_and(|(port, protocol)| {
                    port.parse()
                        .is_ok_and(|port| port_fits(filter, port, protocol))
                })
            }),
            Self::Network(name) => match wanted.network() {
                NetworkMode::Network(network) => network == *name,
                NetworkMode::Host => name == "host",
                NetworkMode::None => name == "none",
                NetworkMode::Container(_) => false,
            },
            Self::Health(health) => {
                let own = record.health.as_ref();
                own.map_or("none", |own| own.status.name()) == health
            }
            Self::Volume(text) => record.mounts().iter().any(|mount| {
                let volume = mount.found.as_ref().map(|found| &found.volume);
                mount.kind != MountKind::Tmpfs
                    && (mount.source == *text || mount.target == *text || volume == Some(text))
            }),
            // Tasks are of Swarm, and nothing here is.
            Self::IsTask(is) => !is,
        }
    }
}

impl Filters {
    /// Whether a container fits.
    #[must_use]
    pub fn fit(&self, record: &Record) -> bool {
        self.tests.iter().all(|test| {
            let mut alike = self.tests.iter().filter(|other| other.key() == test.key());
            if matches!(test, Test::Label(..)) {
                test.holds(record, &self.ancestors)
            } else {
                alike.any(|test| test.holds(record, &self.ancestors))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{ContainerId, Exit};
    use crate::wanted::Wanted;

    fn record() -> Record {
        let id = ContainerId::try_from("ab".repeat(32)).unwrap();
        let mut record = Record::new(
            id,
            "web_1".to_owned(),
            Wanted {
                image: "nginx:latest".to_owned(),
                labels: [("tier".to_owned(), "front".to_owned())].into(),
                exposed_ports: vec!["80/tcp".to_owned()],
                ..Wanted::default()
            },
        );
        record.state = State::Exited;
        record.exit = Some(Exit {
            code: 3,
            ..Exit::default()
        });
        record
    }

    fn fits(filters: &[(&str, &str)]) -> Result<bool> {
        let filters: Vec<Filter> = filters
            .iter()
            .map(|(key, value)| Filter {
                key: (*key).to_owned(),
                value: (*value).to_owned(),
            })
            .collect();
        Ok(compile(&filters, &Roster::default(), Vec::new())?.fit(&record()))
    }

    #[test]
    fn each_filter_tells_what_fits_from_what_does_not() {
        for (key, yes, no) in [
            ("id", "abab", "abba"),
            ("name", "eb_", "db"),
            ("name", "^web_1$", "^web$"),
            ("name", "^/web_1$", "^/eb"),
            ("name", "w.b_[0-9]|db", "^db|^eb"),
            ("label", "tier", "role"),
            ("label", "tier=front", "tier=back"),
            ("status", "exited", "running"),
            ("exited", "3", "0"),
            ("ancestor", "nginx", "debian"),
            ("expose", "79-81/tcp", "80/udp"),
            ("network", "bridge", "host"),
            ("health", "none", "healthy"),
            ("is-task", "false", "true"),
        ] {
            assert!(fits(&[(key, yes)]).unwrap(), "{key}={yes}");
            assert!(!fits(&[(key, no)]).unwrap(), "{key}={no}");
        }
    }

    #[test]
    fn any_value_of_a_key_and_all_keys_must_hold() {
        assert!(fits(&[("name", "db"), ("name", "web")]).unwrap());
        assert!(!fits(&[("name", "web"), ("status", "running")]).unwrap());
        assert!(!fits(&[("label", "tier"), ("label", "role")]).unwrap());
        assert!(fits(&[]).unwrap());
    }

    #[test]
    fn unknown_filters_are_refused() {
        for (key, value) in [
            ("colour", "red"),
            ("status", "asleep"),
            ("exited", "x"),
            ("before", "nobody"),
            ("name", "web["),
            ("is-task", "x"),
        ] {
            assert!(fits(&[(key, value)]).is_err(), "{key}={value}");
        }
    }
}
