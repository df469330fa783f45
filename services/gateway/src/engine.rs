//! Everything the verbs of [`crate::lifecycle`] work with, in one place.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gantry_kit::identity::Identity;
use gantry_kit::paths::Paths;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::container::Record;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::own_ids::OwnIds;
use crate::peers::{Deleted, Peers};
use crate::restart;
use crate::roster::{Entry, Roster};
use crate::settings::Settings;
use crate::spec::Host;
use crate::state::{Event, InvalidTransition, State};
use crate::store::load::Damaged;
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
    /// Containers whose last change is not on the disk as it was promised.
    unkept: Mutex<Vec<Arc<Entry>>>,
    /// Containers that the machine's start is to start again.
    boot_starts: Mutex<Vec<Arc<Entry>>>,
    /// Whether it was looked for what belongs to no container.
    swept: AtomicBool,
    /// Cancelled when the service stops.
    pub stopping: CancellationToken,
}

/// The note on records that are lost.
const LOST_RECORDS: &str = "records-lost.txt";

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
        let roster = Roster::default();
        let mut unfinished = Vec::new();
        let mut boot_starts = Vec::new();
        for mut record in loaded.records {
            if loaded.rebooted && restart::is_for_boot(&record) {
                record.stopped_by_user = false;
            }
            let entry = roster.adopt(record);
            let record = entry.record();
            if record.state.is_intent() || record.frozen_for_commit || record.run_unfinished {
                unfinished.push(entry);
            } else if loaded.rebooted
                && record.state == State::Exited
                && restart::is_for_boot(&record)
            {
                boot_starts.push(entry);
            }
        }
        for damaged in loaded.damaged {
            tracing::error!(
                path = %damaged.path.display(),
                "a damaged record is set aside: until it is repaired or its container removed, nothing is removed for want of a record"
            );
            if let Some(id) = &damaged.id
                && roster.get(id.as_str()).is_none()
            {
                roster.adopt(Record::stand_in(id.clone(), damaged));
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
            unkept: Mutex::default(),
            boot_starts: Mutex::new(boot_starts),
            swept: AtomicBool::new(false),
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

    /// Containers that the machine's start is to start again, once.
    pub fn take_boot_starts(&self) -> Vec<Arc<Entry>> {
        let mut starts = self
            .boot_starts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        mem::take(&mut *starts)
    }

    /// Files that are kept because they may be records. While there are any, what
    /// has no record may be theirs, and nothing is removed for want of one.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn kept_aside(self: &Arc<Self>) -> Result<Vec<Damaged>> {
        let engine = Arc::clone(self);
        self.off_thread(move || engine.store.kept_aside().map_err(store_failed))
            .await
    }

    /// Has a log that could not be removed with its container removed later.
    pub fn report_left(&self, id: &str, deleted: &Deleted) {
        if !deleted.log_left.is_empty() {
            let problem = &deleted.log_left;
            tracing::warn!(container = id, problem, "its log is removed later");
            self.untidy.notify_one();
        }
    }

    /// Whether it was looked for what belongs to no container in this life of the
    /// service.
    pub fn has_swept(&self) -> bool {
        self.swept.load(Ordering::Relaxed)
    }

    pub fn set_swept(&self) {
        self.swept.store(true, Ordering::Relaxed);
    }

    /// Notes that the records of these containers were lost, so that what they own
    /// is kept.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn warn_of_lost_records(self: &Arc<Self>, ids: &[&str]) -> Result<()> {
        let text = format!(
            "The directory of the containers' records was missing at {}.\nThe writable layers of these containers are kept. Put the records back, or remove this file to have the layers removed:\n{}\n",
            Timestamp::now(),
            ids.join("\n")
        );
        let engine = Arc::clone(self);
        let path = self
            .off_thread(move || {
                let noted = engine.store.warn_of(LOST_RECORDS, &text);
                noted.map_err(store_failed)
            })
            .await?;
        tracing::error!(path = %path.display(), "the containers' records are lost: their writable layers are kept");
        Ok(())
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

    /// Keeps what has happened already. Where that fails it is noted, so that it
    /// survives at least this process, and tried again until it is kept.
    ///
    /// # Errors
    /// It is not kept as it was promised yet.
    pub async fn keep_happened(self: &Arc<Self>, entry: &Arc<Entry>) -> Result<()> {
        let record = entry.record();
        let kept = self.keep(&record).await;
        if let Err(error) = &kept {
            tracing::error!(container = %record.id, state = %record.state, %error, "a change is not kept yet");
            if let Err(error) = self.note(&record) {
                tracing::error!(container = %record.id, %error, "nor is it noted");
            }
            let mut unkept = self.unkept.lock().unwrap_or_else(PoisonError::into_inner);
            if !unkept.iter().any(|other| other.id == entry.id) {
                unkept.push(Arc::clone(entry));
            }
            self.untidy.notify_one();
        }
        kept
    }

    /// Tries again to keep what could not be kept.
    ///
    /// # Errors
    /// A record cannot be written: it stays to be tried again.
    pub async fn keep_unkept(self: &Arc<Self>) -> Result<()> {
        let entries = {
            let mut unkept = self.unkept.lock().unwrap_or_else(PoisonError::into_inner);
            mem::take(&mut *unkept)
        };
        let mut outcome = Ok(());
        for entry in entries {
            outcome = outcome.and(self.keep_happened(&entry).await);
        }
        outcome
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

fn store_failed(source: StoreError) -> Error {
    Error::Records {
        source: Arc::new(source),
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
