//! What happened to containers: told to those who listen, and the last events
//! remembered for those who ask later. Memory only: the journal begins anew with
//! the service.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use tokio::sync::broadcast;

use crate::container::Record;

/// Events a slow listener may be behind; then it is told that it missed some.
const BEHIND_MAX: usize = 1024;

/// One thing that happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    pub at: Timestamp,
    /// "create", "start", "die", "exec_start: sh -c date", …
    pub action: Cow<'static, str>,
    pub id: String,
    /// "name", "image", "exitCode", labels, …
    pub attributes: BTreeMap<String, String>,
}

#[derive(Debug)]
pub struct Journal {
    kept: Mutex<VecDeque<Happening>>,
    limit: usize,
    listeners: broadcast::Sender<Happening>,
}

impl Journal {
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            kept: Mutex::default(),
            limit,
            listeners: broadcast::Sender::new(BEHIND_MAX),
        }
    }

    /// Notes that `action` happened to a container.
    pub fn note(
        &self,
        record: &Record,
        action: impl Into<Cow<'static, str>>,
        more: &[(&str, String)],
    ) {
        let mut attributes: BTreeMap<String, String> = record.wanted.labels.clone();
        attributes.insert("name".to_owned(), record.name.clone());
        attributes.insert("image".to_owned(), record.wanted.image.clone());
        for (key, value) in more {
            attributes.insert((*key).to_owned(), value.clone());
        }
        let happening = Happening {
            at: Timestamp::now(),
            action: action.into(),
            id: record.id.to_string(),
            attributes,
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= self.limit {
            kept.pop_front();
        }
        // Under the lock, so that a listener gets each event once: from what is
        // kept, or from the channel.
        let _nobody_listens = self.listeners.send(happening.clone());
        kept.push_back(happening);
    }

    /// What is remembered from `since` on (None: nothing), and what happens from
    /// now on.
    pub fn listen(
        &self,
        since: Option<Timestamp>,
    ) -> (Vec<Happening>, broadcast::Receiver<Happening>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let past = since.map_or_else(Vec::new, |since| {
            kept.iter()
                .filter(|happening| happening.at >= since)
                .cloned()
                .collect()
        });
        (past, self.listeners.subscribe())
    }
}
