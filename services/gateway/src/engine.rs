//! Everything the verbs of [`crate::lifecycle`] work with, in one place.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use gantry_kit::identity::Identity;
use gantry_kit::paths::Paths;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::container::Record;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::own_ids::OwnIds;
use crate::peers::Peers;
use crate::roster::{Entry, Roster};
use crate::settings::Settings;
use crate::spec::Host;
use crate::state::{Event, InvalidTransition};
use crate::store::{Store, StoreError};
use crate::watch_images::Followed;

#[derive(Debug)]
pub struct Engine {
    pub settings: Settings,
    pub paths: Paths,
    pub peers: Peers,
    pub store: Store,
    pub roster: Roster,
    pub journal: Journal,
    /// Of the image service's events.
    pub followed: Followed,
    pub host: Host,
    /// The ids that containers with users of their own share.
    pub own_ids: OwnIds,
    /// Something could not be released: [`crate::reconcile`] looks again.
    pub untidy: Notify,
    /// Containers that an earlier life of the service left in the middle of
    /// something; dealt with when the runtime has said what is alive.
    unfinished: Mutex<Vec<Arc<Entry>>>,
    /// Containers that could not be dealt with, for another try.
    again: Mutex<Vec<Arc<Entry>>>,
    /// Cancelled when the service stops.
    pub stopping: CancellationToken,
}

impl Engine {
    /// An engine over the records on disk. Nothing is reconciled yet.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn open(
        settings: Settings,
        paths: Paths,
        stopping: CancellationToken,
    ) -> Result<Arc<Self>, StoreError> {
        let store = Store::open(&paths)?;
        let loaded = store.load()?;
        for damaged in &loaded.damaged {
            tracing::error!(path = %damaged.display(), "a damaged record was set aside");
        }
        let roster = Roster::default();
        let mut unfinished = Vec::new();
        for record in loaded.records {
            let entry = roster.adopt(record);
            let record = entry.record();
            if record.state.is_intent() || record.frozen_for_commit {
                unfinished.push(entry);
            }
        }
        let identity = Identity::of(&paths);
        let cgroup_parent = settings.cgroup_parent(&identity);
        Ok(Arc::new(Self {
            host: Host::of_this_machine(settings.pids_limit, &cgroup_parent),
            own_ids: settings.own_ids(&identity),
            journal: Journal::new(settings.events_kept),
            followed: Followed::default(),
            peers: Peers::new(&paths),
            store,
            roster,
            settings,
            paths,
            untidy: Notify::new(),
            unfinished: Mutex::new(unfinished),
            again: Mutex::default(),
            stopping,
        }))
    }

    /// What an earlier life of the service left, once.
    pub fn take_unfinished(&self) -> Vec<Arc<Entry>> {
        let mut unfinished = self
            .unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        mem::take(&mut *unfinished)
    }

    /// Has a container that could not be dealt with looked at again.
    pub fn try_again(&self, entry: &Arc<Entry>) {
        let mut again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
        again.push(Arc::clone(entry));
        self.untidy.notify_one();
    }

    /// Containers to look at again.
    pub fn take_again(&self) -> Vec<Arc<Entry>> {
        let mut again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
        mem::take(&mut *again)
    }

    /// Keeps a record so that it survives the end of this process.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn note(&self, record: &Record) -> Result<()> {
        self.store
            .save(record, false)
            .map_err(|source| not_kept(record, source))
    }

    /// Keeps a record as firmly as it was promised: synced for a container that
    /// stays, written for one with `--rm`.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn keep(self: &Arc<Self>, record: &Arc<Record>) -> Result<()> {
        if record.wanted.auto_remove {
            return self.note(record);
        }
        let engine = Arc::clone(self);
        let record = Arc::clone(record);
        self.off_thread(move || {
            engine
                .store
                .save(&record, true)
                .map_err(|source| not_kept(&record, source))
        })
        .await
    }

    /// Removes a record from the disk.
    ///
    /// # Errors
    /// It cannot be removed.
    pub async fn discard(self: &Arc<Self>, record: &Arc<Record>) -> Result<()> {
        let remove = |engine: &Self, record: &Record| {
            engine
                .store
                .remove(record)
                .map_err(|source| not_kept(record, source))
        };
        if record.wanted.auto_remove {
            return remove(self, record);
        }
        let engine = Arc::clone(self);
        let record = Arc::clone(record);
        self.off_thread(move || remove(&engine, &record)).await
    }

    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        match tokio::task::spawn_blocking(work).await {
            Ok(outcome) => outcome,
            Err(failure) => Err(Error::Task {
                problem: failure.to_string(),
            }),
        }
    }
}

fn not_kept(record: &Record, source: StoreError) -> Error {
    Error::Store {
        id: record.id.short().to_owned(),
        source: Arc::new(source),
    }
}

/// The refusal of `verb` for what the container is doing.
pub(crate) fn wrong_state(entry: &Entry, verb: &'static str, refused: InvalidTransition) -> Error {
    Error::WrongState {
        name: entry.record().name.clone(),
        verb,
        state: refused.state,
    }
}

/// Moves a container on, or says that `verb` does not fit what it is doing.
pub(crate) fn change(
    entry: &Entry,
    verb: &'static str,
    event: Event,
    also: impl FnOnce(&mut Record),
) -> Result<Arc<Record>> {
    entry
        .change(event, also)
        .map_err(|refused| wrong_state(entry, verb, refused))
}
