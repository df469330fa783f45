//! One piece of work at a time under one name: who comes second waits for who came first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// The names under which something is being done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flights {
    open: Arc<Mutex<HashMap<String, watch::Receiver<()>>>>,
}

/// Who came first. When it is dropped, the others look again.
#[derive(Debug)]
pub(crate) struct Leader {
    flights: Flights,
    name: String,
    _done: watch::Sender<()>,
}

/// What [`Flights::join`] makes of its caller.
#[derive(Debug)]
pub(crate) enum Role {
    Leader(Leader),
    Follower(watch::Receiver<()>),
}

impl Flights {
    /// Begins what is not under way under this name, or gives what to wait for:
    /// the receiver's `changed` fails when the leader is done.
    pub(crate) fn join(&self, name: &str) -> Role {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(receiver) = open.get(name) {
            return Role::Follower(receiver.clone());
        }
        let (sender, receiver) = watch::channel(());
        open.insert(name.to_owned(), receiver);
        Role::Leader(Leader {
            flights: self.clone(),
            name: name.to_owned(),
            _done: sender,
        })
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        let mut open = self
            .flights
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        open.remove(&self.name);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_waits_for_the_first_and_then_leads() {
        let flights = Flights::default();
        let Role::Leader(leader) = flights.join("a") else {
            panic!("nobody was there");
        };
        let Role::Follower(mut waiting) = flights.join("a") else {
            panic!("two leaders");
        };
        assert!(matches!(flights.join("b"), Role::Leader(_)));
        let waited = tokio::spawn(async move { waiting.changed().await });
        drop(leader);
        assert!(waited.await.unwrap().is_err());
        assert!(matches!(flights.join("a"), Role::Leader(_)));
    }
}
