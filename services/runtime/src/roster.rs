//! All containers, what each is doing, and the feed of what changes.
//!
//! Reading never waits for a shim: everything told here is a copy in memory.
//!
//! # Locking
//! One lock over all members, held for copies only. An event is sent under it,
//! so that a snapshot and the events after it leave no gap.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::broadcast;

use crate::error::{Error, Result};
use crate::life::{Container, Status};
use crate::shim::Shim;

/// Events a reader may be behind before it has to begin anew.
const EVENTS_MAX: usize = 4096;

/// What happened to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    Created,
    Started,
    Exited,
    Deleted,
    Paused,
    Resumed,
    OutOfMemory,
    Health,
}

/// A change, with the container after it.
#[derive(Clone, Debug)]
pub struct Event {
    pub happened: Happened,
    pub container: Container,
    pub time: SystemTime,
}

#[derive(Debug)]
struct Member {
    container: Container,
    shim: Option<Arc<Shim>>,
}

/// See the module.
#[derive(Debug)]
pub struct Roster {
    members: Mutex<BTreeMap<String, Member>>,
    events: broadcast::Sender<Event>,
}

impl Default for Roster {
    fn default() -> Self {
        Self {
            members: Mutex::default(),
            events: broadcast::Sender::new(EVENTS_MAX),
        }
    }
}

impl Roster {
    fn members(&self) -> MutexGuard<'_, BTreeMap<String, Member>> {
        // A copy that was cut off by a panic left the members as they were.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the id: from here on no other container can have it.
    ///
    /// # Errors
    /// Another one has it.
    pub fn reserve(&self, id: &str) -> Result<()> {
        let mut members = self.members();
        if members.contains_key(id) {
            return Err(Error::Exists { id: id.to_owned() });
        }
        let container = Container {
            id: id.to_owned(),
            status: Status::Empty,
            pid: 0,
            shim_pid: 0,
            created_at: SystemTime::now(),
            started_at: None,
            exit: None,
            sick: String::new(),
        };
        let member = Member {
            container,
            shim: None,
        };
        members.insert(id.to_owned(), member);
        Ok(())
    }

    /// Gives a reserved id back.
    pub fn release(&self, id: &str) {
        self.members().remove(id);
    }

    /// Puts a container with its shim in its place, and tells of it if
    /// something happened.
    pub fn enter(&self, container: Container, shim: Arc<Shim>, happened: Option<Happened>) {
        let mut members = self.members();
        if let Some(happened) = happened {
            self.tell(happened, &container);
        }
        let member = Member {
            container: container.clone(),
            shim: Some(shim),
        };
        members.insert(container.id, member);
    }

    /// Changes a container and tells of it, unless `change` says that nothing
    /// happened. Without effect on one that is gone.
    pub fn change(&self, id: &str, change: impl FnOnce(&mut Container) -> Option<Happened>) {
        if let Some(member) = self.members().get_mut(id)
            && let Some(happened) = change(&mut member.container)
        {
            self.tell(happened, &member.container);
        }
    }

    /// Takes a container out.
    pub fn remove(&self, id: &str) {
        let mut members = self.members();
        if let Some(member) = members.remove(id) {
            self.tell(Happened::Deleted, &member.container);
        }
    }

    fn tell(&self, happened: Happened, container: &Container) {
        // Nobody may be listening.
        let _nobody = self.events.send(Event {
            happened,
            container: container.clone(),
            time: SystemTime::now(),
        });
    }

    /// One container.
    ///
    /// # Errors
    /// There is none with that id.
    pub fn get(&self, id: &str) -> Result<Container> {
        self.members()
            .get(id)
            .filter(|member| member.container.status != Status::Empty)
            .map(|member| member.container.clone())
            .ok_or_else(|| Error::NotFound { id: id.to_owned() })
    }

    /// One container's shim.
    ///
    /// # Errors
    /// There is no container with that id.
    pub fn shim(&self, id: &str) -> Result<Arc<Shim>> {
        self.members()
            .get(id)
            .and_then(|member| member.shim.clone())
            .ok_or_else(|| Error::NotFound { id: id.to_owned() })
    }

    /// All containers.
    #[must_use]
    pub fn list(&self) -> Vec<Container> {
        let members = self.members();
        Self::all(&members)
    }

    /// All containers, and every event after them.
    #[must_use]
    pub fn follow(&self) -> (Vec<Container>, broadcast::Receiver<Event>) {
        let members = self.members();
        (Self::all(&members), self.events.subscribe())
    }

    fn all(members: &BTreeMap<String, Member>) -> Vec<Container> {
        members
            .values()
            .filter(|member| member.container.status != Status::Empty)
            .map(|member| member.container.clone())
            .collect()
    }

    /// All shims.
    #[must_use]
    pub fn shims(&self) -> Vec<Arc<Shim>> {
        self.members()
            .values()
            .filter_map(|member| member.shim.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_once() {
        let roster = Roster::default();
        roster.reserve("a").unwrap();
        assert!(matches!(roster.reserve("a"), Err(Error::Exists { .. })));
        assert!(roster.list().is_empty());
        roster.release("a");
        roster.reserve("a").unwrap();
    }
}
