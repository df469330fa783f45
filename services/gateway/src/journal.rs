//! What the gateway tells of: containers, the networks and volumes that they come
//! to and leave, and what the image service tells of its own
//! ([`crate::watch_images`]). In Docker's words.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_kit::journal::{self, Event, Follower, Kind, Told};
use jiff::Timestamp;

use crate::container::Record;
use crate::wanted::{Found, Mount, NetworkMode};

#[derive(Debug)]
pub struct Journal(Arc<journal::Journal>);

/// The name and Docker's type of the network that a container joins by itself.
fn network_of(record: &Record) -> Option<(String, &'static str)> {
    match record.wanted.network() {
        NetworkMode::Network(name) => Some((name, "bridge")),
        NetworkMode::Host => Some(("host".to_owned(), "host")),
        NetworkMode::None => Some(("none".to_owned(), "null")),
        // It is the other's.
        NetworkMode::Container(_) => None,
    }
}

/// The volumes among a container's mounts.
fn volumes_of(record: &Record) -> impl Iterator<Item = (&Mount, &Found)> {
    let mounts = record.mounts().iter();
    let found = mounts.filter_map(|mount| Some((mount, mount.found.as_ref()?)));
    found.filter(|(_, found)| !found.volume.is_empty())
}

impl Journal {
    /// A journal that remembers up to `limit` events.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(journal::Journal::new(limit)))
    }

    /// Notes that `action` happened to a container.
    pub fn note(
        &self,
        record: &Record,
        action: impl Into<Cow<'static, str>>,
        more: &[(&str, String)],
    ) {
        let image = record.image.as_ref();
        let mut attributes = image
            .map(|image| image.config.labels.clone())
            .unwrap_or_default();
        attributes.extend(record.wanted.labels.clone());
        attributes.insert("name".to_owned(), record.name.clone());
        attributes.insert("image".to_owned(), record.wanted.image.clone());
        for (key, value) in more {
            attributes.insert((*key).to_owned(), value.clone());
        }
        self.0.note(Event {
            kind: Kind::Container,
            action: action.into(),
            id: record.id.to_string(),
            attributes,
        });
    }

    /// Notes that a container that is about to run has its network and its volumes.
    pub fn note_held(&self, record: &Record) {
        self.network(record, "connect");
        for (mount, found) in volumes_of(record) {
            self.volume(record, "mount", found, |attributes| {
                let mut set = |key: &str, value: String| attributes.insert(key.to_owned(), value);
                set("destination", mount.target.clone());
                set("read/write", (!mount.read_only).to_string());
                set("propagation", mount.propagation.clone());
            });
        }
    }

    /// Notes that a container that has run has left them.
    pub fn note_released(&self, record: &Record) {
        self.network(record, "disconnect");
        for (_, found) in volumes_of(record) {
            self.volume(record, "unmount", found, |_| {});
        }
    }

    fn network(&self, record: &Record, action: &'static str) {
        let Some((name, of_type)) = network_of(record) else {
            return;
        };
        self.0.note(Event {
            kind: Kind::Network,
            action: action.into(),
            // Networks have no other id.
            id: name.clone(),
            attributes: BTreeMap::from([
                ("container".to_owned(), record.id.to_string()),
                ("name".to_owned(), name),
                ("type".to_owned(), of_type.to_owned()),
            ]),
        });
    }

    fn volume(
        &self,
        record: &Record,
        action: &'static str,
        found: &Found,
        more: impl FnOnce(&mut BTreeMap<String, String>),
    ) {
        let mut attributes = BTreeMap::from([
            ("container".to_owned(), record.id.to_string()),
            ("driver".to_owned(), found.driver.clone()),
        ]);
        more(&mut attributes);
        self.0.note(Event {
            kind: Kind::Volume,
            action: action.into(),
            id: found.volume.clone(),
            attributes,
        });
    }

    /// Notes that containers were pruned.
    pub fn note_pruned(&self, reclaimed: u64) {
        self.0.note(Event {
            kind: Kind::Container,
            action: "prune".into(),
            id: String::new(),
            attributes: BTreeMap::from([("reclaimed".to_owned(), reclaimed.to_string())]),
        });
    }

    /// Notes what another service told, with its time.
    pub fn pass_on(&self, at: Timestamp, event: Event) {
        self.0.note_at(at, event);
    }

    /// What is remembered from `since` on (None: nothing), by the times, and a
    /// follower of what comes after it.
    #[must_use]
    pub fn look_back(&self, since: Option<Timestamp>) -> (Vec<Arc<Told>>, Follower) {
        self.0.look_back(since)
    }
}
