//! All containers in memory: what `list` and `inspect` read, and where every
//! change is made.
//!
//! # Locking
//! The maps are behind one lock that is held for a look-up or an insertion, never
//! over a wait. A record is an `Arc` in a watch channel: reading is a clone of
//! the `Arc`, and a change swaps it and wakes those who wait for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::container::{ContainerId, Record};
use crate::error::{Error, Result};
use crate::name;
use crate::state::{self, Event, InvalidTransition, State};

/// How long a copy that was broken off may take to let go of the files.
const VIEWS_LIMIT: Duration = Duration::from_secs(20);

/// How long a verb waits for what is under way with its container. Pulling an
/// image for it can take longer, which is then the caller's to wait for.
pub const BUSY_LIMIT: Duration = Duration::from_secs(60);

/// One container.
#[derive(Debug)]
pub struct Entry {
    pub id: ContainerId,
    record: watch::Sender<Arc<Record>>,
    /// Windows that still carry output of the container's first process.
    windows: watch::Sender<usize>,
    /// Views of the files of a container that does not run.
    /// By the ids of the containers that show them.
    views: watch::Sender<Vec<ContainerId>>,
    /// Cancelled when the views there are must end.
    views_end: Mutex<CancellationToken>,
    /// The run whose health checks are under way.
    checked: Mutex<Option<Timestamp>>,
    /// Ids of the processes that `exec` started and that run.
    execs: Mutex<Vec<String>>,
}

impl Entry {
    fn new(record: Record) -> Self {
        Self {
            id: record.id.clone(),
            record: watch::Sender::new(Arc::new(record)),
            windows: watch::Sender::new(0),
            views: watch::Sender::default(),
            views_end: Mutex::default(),
            checked: Mutex::default(),
            execs: Mutex::default(),
        }
    }

    /// The record as it is now.
    #[must_use]
    pub fn record(&self) -> Arc<Record> {
        self.record.borrow().clone()
    }

    /// Sees every change from here on.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Record>> {
        self.record.subscribe()
    }

    /// Moves the container on by `event`, and sets with it what `also` sets: the
    /// one setter of its state.
    ///
    /// # Errors
    /// The event does not fit the state; nothing was changed.
    pub fn change(
        &self,
        event: Event,
        also: impl FnOnce(&mut Record),
    ) -> Result<Arc<Record>, InvalidTransition> {
        let mut outcome = Err(InvalidTransition {
            state: State::Gone,
            event,
        });
        self.record.send_if_modified(|record| {
            outcome = state::next(record.state, event).map(|state| {
                let changed = Arc::make_mut(record);
                changed.state = state;
                changed.revision += 1;
                also(changed);
                Arc::clone(record)
            });
            outcome.is_ok()
        });
        outcome
    }

    /// Decides on the record as it is now, and changes it with that: `decide` sets
    /// what it wants, and says which event is to move the container on, if any.
    ///
    /// # Errors
    /// The event does not fit the state; nothing was changed.
    pub fn decide(
        &self,
        decide: impl FnOnce(&mut Record) -> Option<Event>,
    ) -> Result<Arc<Record>, InvalidTransition> {
        let mut outcome = Ok(());
        self.record.send_if_modified(|record| {
            let mut changed = Record::clone(record);
            let event = decide(&mut changed);
            match event.map_or(Ok(record.state), |event| state::next(record.state, event)) {
                Ok(state) => {
                    changed.state = state;
                    changed.revision = record.revision + 1;
                    *record = Arc::new(changed);
                }
                Err(refused) => outcome = Err(refused),
            }
            outcome.is_ok()
        });
        outcome.map(|()| self.record())
    }

    /// Sets what is no change of state.
    pub fn update(&self, set: impl FnOnce(&mut Record)) -> Arc<Record> {
        self.record.send_modify(|record| {
            let changed = Arc::make_mut(record);
            changed.revision += 1;
            set(changed);
        });
        self.record()
    }

    /// Waits until nothing is under way that `verb` would be in the way of: `is`
    /// holds of the record.
    ///
    /// # Errors
    /// It does not within [`BUSY_LIMIT`].
    pub async fn wait_for(
        &self,
        verb: &'static str,
        is: impl FnMut(&Arc<Record>) -> bool,
    ) -> Result<Arc<Record>> {
        let waiting = tokio::time::timeout(BUSY_LIMIT, self.wait_until(is)).await;
        waiting.map_err(|_| {
            let record = self.record();
            Error::Busy {
                name: record.name.clone(),
                verb,
                state: record.state,
                seconds: BUSY_LIMIT.as_secs(),
            }
        })
    }

    /// Waits until `is` holds of the record.
    pub async fn wait_until(&self, is: impl FnMut(&Arc<Record>) -> bool) -> Arc<Record> {
        let mut changes = self.watch();
        // The sender lives in self: the channel cannot close.
        match changes.wait_for(is).await {
            Ok(record) => record.clone(),
            Err(_) => self.record(),
        }
    }

    /// Notes that a window carries output until the guard is dropped.
    #[must_use]
    pub fn open_window(self: &Arc<Self>) -> OpenWindow {
        self.windows.send_modify(|count| *count += 1);
        OpenWindow {
            entry: Arc::clone(self),
        }
    }

    /// Notes that the files of the container are seen without its running, by a
    /// container `id`, until the guard is dropped; the token is cancelled when that
    /// must end.
    #[must_use]
    pub fn open_view(self: &Arc<Self>, id: ContainerId) -> (OpenView, CancellationToken) {
        self.views.send_modify(|views| views.push(id.clone()));
        let end = self.views_end.lock();
        let end = end.unwrap_or_else(PoisonError::into_inner).clone();
        let entry = Arc::clone(self);
        (OpenView { entry, id }, end)
    }

    /// Ends all views, and waits until they are over.
    ///
    /// # Errors
    /// One is not over in time.
    pub async fn end_views(&self) -> Result<()> {
        if self.views.borrow().is_empty() {
            return Ok(());
        }
        let end = {
            let mut end = self
                .views_end
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *end)
        };
        end.cancel();
        let mut views = self.views.subscribe();
        let over = tokio::time::timeout(VIEWS_LIMIT, views.wait_for(Vec::is_empty)).await;
        over.map(drop).map_err(|_| Error::FilesBusy {
            name: self.record().name.clone(),
        })
    }

    /// Notes that the health checks of a run are under way. False: they are
    /// already.
    pub fn begin_checks(&self, run: Timestamp) -> bool {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        checked.replace(run) != Some(run)
    }

    /// Notes that a process of `exec` runs until the guard is dropped.
    #[must_use]
    pub fn begin_exec(self: &Arc<Self>, id: &str) -> RunningExec {
        let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.push(id.to_owned());
        RunningExec {
            entry: Arc::clone(self),
            id: id.to_owned(),
        }
    }

    /// Ids of the processes that `exec` started and that run, the oldest first.
    #[must_use]
    pub fn execs(&self) -> Vec<String> {
        let execs = self.execs.lock();
        execs.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until no window carries output.
    pub async fn windows_closed(&self) {
        let mut windows = self.windows.subscribe();
        let _cannot_close = windows.wait_for(|count| *count == 0).await;
    }
}

/// A window that still carries output.
#[derive(Debug)]
pub struct OpenWindow {
    entry: Arc<Entry>,
}

impl Drop for OpenWindow {
    fn drop(&mut self) {
        self.entry
            .windows
            .send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// A view of the files of a container that does not run.
#[derive(Debug)]
pub struct OpenView {
    entry: Arc<Entry>,
    id: ContainerId,
}

impl OpenView {
    /// The container that shows the files.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.id
    }
}

impl Drop for OpenView {
    fn drop(&mut self) {
        self.entry
            .views
            .send_modify(|views| views.retain(|id| *id != self.id));
    }
}

/// A process of `exec` that runs.
#[derive(Debug)]
pub struct RunningExec {
    entry: Arc<Entry>,
    id: String,
}

impl RunningExec {
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for RunningExec {
    fn drop(&mut self) {
        let execs = self.entry.execs.lock();
        let mut execs = execs.unwrap_or_else(PoisonError::into_inner);
        execs.retain(|id| *id != self.id);
    }
}

#[derive(Debug, Default)]
struct Maps {
    entries: HashMap<ContainerId, Arc<Entry>>,
    names: HashMap<String, ContainerId>,
}

/// All containers.
#[derive(Debug, Default)]
pub struct Roster {
    maps: RwLock<Maps>,
}

impl Roster {
    /// Adds a container that was recorded earlier. One whose name is taken gets
    /// its id for a name, so that none is lost.
    pub fn adopt(&self, mut record: Record) -> Arc<Entry> {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        if maps.names.contains_key(&record.name) {
            record.name = record.id.short().to_owned();
        }
        insert(&mut maps, record)
    }

    /// Adds a container under the name in its record, or under a made-up one
    /// where that is empty.
    ///
    /// # Errors
    /// The name is in use or is not one.
    pub fn add(&self, record: Record) -> Result<Arc<Entry>> {
        self.add_with(record, |_, _| Ok(()))
    }

    /// The same, with what `also` gives it that no other container may have: it
    /// sees them all.
    ///
    /// # Errors
    /// As [`Roster::add`], and what `also` says.
    pub fn add_with(
        &self,
        mut record: Record,
        also: impl FnOnce(&mut Record, &mut dyn Iterator<Item = Arc<Record>>) -> Result<()>,
    ) -> Result<Arc<Entry>> {
        if !record.name.is_empty() {
            name::check(&record.name)?;
        }
        // The id is random already.
        let random = u32::from_str_radix(&record.id.as_str()[..8], 16).unwrap_or_default();
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        if record.name.is_empty() {
            let mut attempt = 0;
            while record.name.is_empty() || maps.names.contains_key(&record.name) {
                record.name = name::made_up(random.wrapping_mul(attempt + 1), attempt);
                attempt += 1;
            }
        } else if let Some(id) = maps.names.get(&record.name) {
            return Err(in_use(&record.name, id));
        }
        also(
            &mut record,
            &mut maps.entries.values().map(|entry| entry.record()),
        )?;
        Ok(insert(&mut maps, record))
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// The name is in use or is not one.
    pub fn rename(&self, entry: &Entry, new: &str) -> Result<Arc<Record>> {
        name::check(new)?;
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = maps.names.get(new) {
            return Err(in_use(new, id));
        }
        let old = entry.record().name.clone();
        maps.names.remove(&old);
        maps.names.insert(new.to_owned(), entry.id.clone());
        drop(maps);
        Ok(entry.update(|record| new.clone_into(&mut record.name)))
    }

    /// Takes a removed container out; its name is free.
    pub fn remove(&self, entry: &Entry) {
        let name = entry.record().name.clone();
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.entries.remove(&entry.id);
        if maps.names.get(&name) == Some(&entry.id) {
            maps.names.remove(&name);
        }
    }

    /// The container of this id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<Entry>> {
        let id = ContainerId::try_from(id.to_owned()).ok()?;
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        maps.entries.get(&id).cloned()
    }

    /// The container a person names: by its name, its id, or a unique prefix of
    /// its id.
    ///
    /// # Errors
    /// There is none, or a prefix fits several.
    pub fn find(&self, query: &str) -> Result<Arc<Entry>> {
        let missing = || Error::NotFound {
            query: query.to_owned(),
        };
        if query.is_empty() {
            return Err(missing());
        }
        if let Some(entry) = self.get(query) {
            return Ok(entry);
        }
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        let name = query.strip_prefix('/').unwrap_or(query);
        if let Some(id) = maps.names.get(name) {
            return maps.entries.get(id).cloned().ok_or_else(missing);
        }
        let mut fitting = maps
            .entries
            .iter()
            .filter(|(id, _)| id.as_str().starts_with(query));
        match (fitting.next(), fitting.count()) {
            (None, _) => Err(missing()),
            (Some((_, entry)), 0) => Ok(Arc::clone(entry)),
            (Some(_), more) => Err(Error::Ambiguous {
                query: query.to_owned(),
                count: more + 1,
            }),
        }
    }

    /// All containers.
    #[must_use]
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        maps.entries.values().cloned().collect()
    }

    /// Whether a container of the runtime's shows the files of one of these, and
    /// is none of them.
    #[must_use]
    pub fn has_view(&self, id: &str) -> bool {
        let shows =
            |entry: &Arc<Entry>| entry.views.borrow().iter().any(|view| view.as_str() == id);
        self.entries().iter().any(shows)
    }

    /// All records that people may see, the newest first.
    #[must_use]
    pub fn records(&self) -> Vec<Arc<Record>> {
        let mut records: Vec<Arc<Record>> = self
            .entries()
            .iter()
            .map(|entry| entry.record())
            .filter(|record| !matches!(record.state, State::Creating | State::Gone))
            .collect();
        records.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        records
    }
}

fn insert(maps: &mut Maps, record: Record) -> Arc<Entry> {
    let entry = Arc::new(Entry::new(record));
    let name = entry.record().name.clone();
    maps.names.insert(name, entry.id.clone());
    maps.entries.insert(entry.id.clone(), Arc::clone(&entry));
    entry
}

fn in_use(name: &str, id: &ContainerId) -> Error {
    Error::NameInUse {
        name: name.to_owned(),
        id: id.short().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wanted::Wanted;

    fn record(id: &str, name: &str) -> Record {
        let id = format!("{id:0<64}");
        Record::new(
            ContainerId::try_from(id).unwrap(),
            name.to_owned(),
            Wanted::default(),
        )
    }

    #[test]
    fn a_container_is_found_by_name_id_and_unique_prefix() {
        let roster = Roster::default();
        let one = roster.add(record("ab1", "one")).unwrap();
        roster.add(record("ab2", "two")).unwrap();
        for query in ["one", "/one", "ab1", one.id.as_str()] {
            assert_eq!(roster.find(query).unwrap().id, one.id, "{query}");
        }
        assert!(matches!(
            roster.find("ab"),
            Err(Error::Ambiguous { count: 2, .. })
        ));
        for query in ["", "three", "zz"] {
            assert!(matches!(roster.find(query), Err(Error::NotFound { .. })));
        }
    }

    #[test]
    fn a_name_wins_over_a_prefix() {
        let roster = Roster::default();
        roster.add(record("abc", "one")).unwrap();
        let named = roster.add(record("123", "abc")).unwrap();
        assert_eq!(roster.find("abc").unwrap().id, named.id);
    }

    #[test]
    fn a_name_is_taken_until_its_container_is_removed_or_renamed() {
        let roster = Roster::default();
        let one = roster.add(record("1", "one")).unwrap();
        assert!(matches!(
            roster.add(record("2", "one")),
            Err(Error::NameInUse { .. })
        ));
        roster.rename(&one, "uno").unwrap();
        let two = roster.add(record("2", "one")).unwrap();
        assert!(roster.rename(&two, "uno").is_err());
        roster.remove(&one);
        roster.rename(&two, "uno").unwrap();
        assert_eq!(roster.find("uno").unwrap().id, two.id);
    }

    #[test]
    fn names_are_made_up_until_a_free_one_is_found() {
        let roster = Roster::default();
        for n in 1..200 {
            // The same leading digits: the same random bits.
            let id = format!("00000001{n:0>56}");
            roster.add(record(&id, "")).unwrap();
        }
        assert_eq!(roster.entries().len(), 199);
    }

    #[tokio::test]
    async fn a_change_that_does_not_fit_changes_nothing() {
        let roster = Roster::default();
        let entry = roster.add(record("1", "one")).unwrap();
        let before = entry.record();
        let refused = entry.change(Event::Pause, |record| record.pid = 9);
        assert!(refused.is_err());
        assert_eq!(entry.record().pid, 0);
        assert_eq!(entry.record().revision, before.revision);
        let waiting = tokio::spawn({
            let entry = Arc::clone(&entry);
            async move {
                entry
                    .wait_until(|record| record.state == State::Created)
                    .await
            }
        });
        entry
            .change(Event::Created, |record| record.pid = 9)
            .unwrap();
        assert_eq!(waiting.await.unwrap().pid, 9);
    }
}
