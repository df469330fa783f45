//! Filters of `events`, as Docker's: of several values for one key any may hold,
//! of several labels all must; and all keys must.
//!
//! | key | value |
//! | --- | --- |
//! | `container`, `network`, `volume`, `daemon` | how the object's id or name begins; other kinds do not fit |
//! | `image` | an image's id or name, with its tag or without; also of the container's image |
//! | `event` | the action; `exec_create`, `exec_start`, `health_status` whatever follows |
//! | `label` | `KEY` or `KEY=VALUE` |
//! | `type`, `scope` | the word |

use gantry_kit::journal::{Event, Kind};
use gantry_oci::Reference;

use crate::error::{Error, Result};
use crate::filter::Filter;

const KEYS: [&str; 9] = [
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "scope",
    "type",
    "volume",
];

/// What Docker tells of, and nothing here: scripts ask for it all the same.
const OTHER_TYPES: [&str; 7] = [
    "builder", "config", "daemon", "node", "plugin", "secret", "service",
];

const SCOPES: [&str; 2] = ["local", "swarm"];

/// Filters that can be asked.
#[derive(Debug, Default)]
pub struct EventFilters(Vec<Filter>);

impl EventFilters {
    /// Reads filters.
    ///
    /// # Errors
    /// A key is unknown, or a value of one that has only some.
    pub fn read(filters: &[Filter]) -> Result<Self> {
        for Filter { key, value } in filters {
            let one_of = |known: &[&str]| match known.contains(&value.as_str()) {
                true => Ok(()),
                false => Err(Error::invalid(
                    "filter",
                    format!(
                        "{key}={value}: there is none; there are {}",
                        known.join(", ")
                    ),
                )),
            };
            match key.as_str() {
                "type" => {
                    let ours = Kind::ALL.map(Kind::name);
                    if !OTHER_TYPES.contains(&value.as_str()) {
                        one_of(&ours)?;
                    }
                }
                "scope" => one_of(&SCOPES)?,
                key if KEYS.contains(&key) => {}
                unknown => {
                    return Err(Error::invalid(
                        "filter",
                        format!("{unknown:?} is not known; there are {}", KEYS.join(", ")),
                    ));
                }
            }
        }
        Ok(Self(filters.to_vec()))
    }

    /// Whether an event is asked for.
    #[must_use]
    pub fn fit(&self, event: &Event) -> bool {
        KEYS.iter().all(|key| {
            let of_key = |filter: &&Filter| filter.key == *key;
            let mut values = self.0.iter().filter(of_key).map(|f| f.value.as_str());
            let mut others = values.clone().peekable();
            match *key {
                "label" => values.all(|value| has_label(event, value)),
                _ => others.peek().is_none() || values.any(|value| fits(event, key, value)),
            }
        })
    }
}

fn attribute<'a>(event: &'a Event, key: &str) -> &'a str {
    event.attributes.get(key).map_or("", String::as_str)
}

fn has_label(event: &Event, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => event.attributes.get(key).is_some_and(|own| own == value),
        None => event.attributes.contains_key(wanted),
    }
}

fn fits(event: &Event, key: &str, value: &str) -> bool {
    match key {
        "type" => event.kind.name() == value,
        "scope" => value == "local",
        "event" => {
            let action = &*event.action;
            let kind = action.split_once(": ").map_or(action, |(kind, _)| kind);
            action == value || kind == value
        }
        "image" => is_of_image(event, value),
        // An object of the kind that the key names.
        _ => {
            let name = attribute(event, "name");
            event.kind.name() == key && (event.id.starts_with(value) || name.starts_with(value))
        }
    }
}

/// The repository of an image's name: "debian" of "debian:12".
fn repository(name: &str) -> String {
    match name.parse::<Reference>() {
        Ok(reference) => reference.familiar_name(),
        Err(_) => name.to_owned(),
    }
}

fn is_of_image(event: &Event, wanted: &str) -> bool {
    let name = match event.kind {
        Kind::Image => attribute(event, "name"),
        Kind::Container => attribute(event, "image"),
        Kind::Network | Kind::Volume => return false,
    };
    let id = match event.kind {
        Kind::Image => event.id.as_str(),
        _ => "",
    };
    [id, name]
        .iter()
        .any(|text| !text.is_empty() && (*text == wanted || repository(text) == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, action: &'static str, id: &str, attributes: &[(&str, &str)]) -> Event {
        let attributes = attributes.iter();
        Event {
            kind,
            action: action.into(),
            id: id.to_owned(),
            attributes: attributes
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    fn read(filters: &[&str]) -> Result<EventFilters> {
        let filters: Vec<Filter> = filters
            .iter()
            .map(|text| {
                let (key, value) = text.split_once('=').unwrap();
                Filter {
                    key: key.to_owned(),
                    value: value.to_owned(),
                }
            })
            .collect();
        EventFilters::read(&filters)
    }

    #[test]
    fn filters_are_dockers() {
        let start = event(
            Kind::Container,
            "start",
            "c1d",
            &[
                ("name", "web"),
                ("image", "shop/web:2"),
                ("tier", "front"),
                ("x", "1"),
            ],
        );
        let exec = event(
            Kind::Container,
            "exec_start: sh -c x",
            "c1d",
            &[("name", "web")],
        );
        let tag = event(Kind::Image, "tag", "sha256:ab", &[("name", "shop/web:3")]);
        let connect = event(
            Kind::Network,
            "connect",
            "bridge",
            &[("name", "bridge"), ("container", "c1d")],
        );
        let mount = event(Kind::Volume, "mount", "data", &[("container", "c1d")]);
        let prune = event(Kind::Image, "prune", "", &[("reclaimed", "0")]);
        let all = [&start, &exec, &tag, &connect, &mount, &prune];
        let asked = |filters: &[&str]| -> Vec<usize> {
            let filters = read(filters).unwrap();
            (0..all.len()).filter(|n| filters.fit(all[*n])).collect()
        };
        for (filters, expected) in [
            (&[][..], &[0, 1, 2, 3, 4, 5][..]),
            (&["type=container"], &[0, 1]),
            (&["type=image", "type=volume"], &[2, 4, 5]),
            (&["type=daemon"], &[]),
            (&["event=start", "event=tag"], &[0, 2]),
            (&["event=exec_start"], &[1]),
            (&["event=exec_start: sh -c x"], &[1]),
            (&["event=exec"], &[]),
            (&["container=we"], &[0, 1]),
            (&["container=c1"], &[0, 1]),
            (&["container=eb"], &[]),
            (&["network=br"], &[3]),
            (&["volume=da", "event=mount"], &[4]),
            (&["volume=da", "container=c1"], &[]),
            (&["image=shop/web"], &[0, 2]),
            (&["image=shop/web:3"], &[2]),
            (&["image=sha256:ab"], &[2]),
            (&["image=shop"], &[]),
            (&["label=tier=front", "label=x"], &[0]),
            (&["label=tier=front", "label=x=2"], &[]),
            (&["label=name=web"], &[0, 1]),
            (&["scope=local"], &[0, 1, 2, 3, 4, 5]),
            (&["scope=swarm"], &[]),
            (&["daemon=x"], &[]),
        ] {
            assert_eq!(asked(filters), expected, "{filters:?}");
        }
    }

    #[test]
    fn what_can_never_fit_is_refused() {
        for (filter, says) in [
            ("knid=image", "container, daemon"),
            ("type=contaner", "container, image, network, volume"),
            ("scope=global", "local, swarm"),
        ] {
            let refused = read(&[filter]).unwrap_err().to_string();
            assert!(refused.contains(says), "{refused}");
        }
    }
}
