//! What happened to an engine's objects: told to those who follow, and the last
//! events remembered for those who ask later. Memory only: a journal begins anew
//! with its service.
//!
//! **Bounded.** What is remembered has a limit in events and one in bytes, since
//! labels and command lines can be of any size. A follower holds a position, and
//! nothing else: one that is slow costs nothing, and misses what is forgotten
//! before it comes to it.
//!
//! **Order.** Events have the numbers in which they came. Those of another
//! service come with their own time, which may be earlier than that of the last;
//! so whoever looks back gets them by their times.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

/// Bytes of events that are remembered. The last event always is.
const BYTES_KEPT: usize = 8 << 20;

/// What an event takes beside its texts, about.
const EVENT_BYTES: usize = 256;

/// Events that a follower takes at once.
const BATCH: usize = 256;

/// What kind of object something happened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Container,
    Image,
    Network,
    Volume,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Container, Self::Image, Self::Network, Self::Volume];

    /// Docker's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Network => "network",
            Self::Volume => "volume",
        }
    }

    /// None: there is no such kind.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// One thing that happened, in Docker's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: Kind,
    /// "create", "start", "die", "exec_start: sh -c date", …
    pub action: Cow<'static, str>,
    /// Of the object. Empty: of all of the kind, as a prune is.
    pub id: String,
    /// "name", "image", "exitCode", labels, …
    pub attributes: BTreeMap<String, String>,
}

impl Event {
    fn bytes(&self) -> usize {
        let attributes = self.attributes.iter();
        let attributes = attributes.map(|(key, value)| key.len() + value.len() + EVENT_BYTES / 4);
        EVENT_BYTES + self.action.len() + self.id.len() + attributes.sum::<usize>()
    }
}

/// An event as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its number in this journal. The first has 1.
    pub sequence: u64,
    pub at: Timestamp,
    pub event: Event,
}

#[derive(Debug)]
pub struct Journal {
    kept: Mutex<Kept>,
    limit: usize,
    /// The number of the last event.
    last: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Arc<Told>>,
    bytes: usize,
    last: u64,
}

impl Journal {
    /// A journal that remembers up to `limit` events, at least one.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            kept: Mutex::default(),
            limit: limit.max(1),
            last: watch::Sender::new(0),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what happens now.
    pub fn note(&self, event: Event) {
        let mut kept = self.kept();
        // Under the lock: of two events the first has the earlier time.
        self.put(&mut kept, Timestamp::now(), event);
    }

    /// Notes what happened at `at`, elsewhere.
    pub fn note_at(&self, at: Timestamp, event: Event) {
        self.put(&mut self.kept(), at, event);
    }

    fn put(&self, kept: &mut Kept, at: Timestamp, event: Event) {
        kept.last += 1;
        kept.bytes += event.bytes();
        kept.events.push_back(Arc::new(Told {
            sequence: kept.last,
            at,
            event,
        }));
        while kept.events.len() > 1
            && (kept.events.len() > self.limit || kept.bytes > BYTES_KEPT)
            && let Some(forgotten) = kept.events.pop_front()
        {
            kept.bytes -= forgotten.event.bytes();
        }
        self.last.send_replace(kept.last);
    }

    /// The number of the last event; 0: there was none.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.kept().last
    }

    /// Follows what comes after the event of a number.
    #[must_use]
    pub fn follow(self: &Arc<Self>, after: u64) -> Follower {
        Follower {
            journal: Arc::clone(self),
            after,
            last: self.last.subscribe(),
        }
    }

    /// What is remembered from `since` on (None: nothing), by the times, and a
    /// follower of what comes after it.
    #[must_use]
    pub fn look_back(self: &Arc<Self>, since: Option<Timestamp>) -> (Vec<Arc<Told>>, Follower) {
        let (mut past, last) = {
            let kept = self.kept();
            let of_then = |told: &&Arc<Told>| since.is_some_and(|since| told.at >= since);
            let past: Vec<_> = kept.events.iter().filter(of_then).cloned().collect();
            (past, kept.last)
        };
        past.sort_by_key(|told| told.at);
        (past, self.follow(last))
    }
}

/// A place in a journal.
#[derive(Debug)]
pub struct Follower {
    journal: Arc<Journal>,
    after: u64,
    last: watch::Receiver<u64>,
}

/// Some of what came, in the order in which it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub events: Vec<Arc<Told>>,
    /// How many were forgotten before this follower came to them.
    pub missed: u64,
}

impl Follower {
    /// Waits for something to come. Safe to cancel.
    pub async fn next(&mut self) -> Batch {
        let after = self.after;
        // The sender is the journal's, which lives as long as this.
        drop(self.last.wait_for(|last| *last > after).await);
        self.ready()
    }

    /// What came already; nothing, perhaps.
    pub fn ready(&mut self) -> Batch {
        let kept = self.journal.kept();
        let first = kept.events.front().map_or(kept.last + 1, |t| t.sequence);
        let begin = first.max(self.after.saturating_add(1));
        let skipped = usize::try_from(begin - first).unwrap_or(usize::MAX);
        let events: Vec<_> = kept
            .events
            .iter()
            .skip(skipped)
            .take(BATCH)
            .cloned()
            .collect();
        let missed = begin.saturating_sub(self.after.saturating_add(1));
        if let Some(last) = events.last() {
            self.after = last.sequence;
        }
        Batch { events, missed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str) -> Event {
        Event {
            kind: Kind::Image,
            action: "tag".into(),
            id: id.to_owned(),
            attributes: BTreeMap::new(),
        }
    }

    fn ids(events: &[Arc<Told>]) -> Vec<&str> {
        events.iter().map(|told| told.event.id.as_str()).collect()
    }

    #[tokio::test]
    async fn a_follower_gets_each_event_once_from_its_place_on() {
        let journal = Arc::new(Journal::new(10));
        journal.note(event("1"));
        let mut from_the_first = journal.follow(0);
        let (past, mut from_now) = journal.look_back(None);
        assert!(past.is_empty());
        assert_eq!(ids(&from_the_first.next().await.events), ["1"]);
        assert_eq!(from_now.ready(), Batch::default());
        let waiting = tokio::spawn(async move { from_now.next().await });
        // It waits, or is about to: either way it gets what comes now.
        tokio::task::yield_now().await;
        journal.note(event("2"));
        assert_eq!(ids(&waiting.await.unwrap().events), ["2"]);
        assert_eq!(ids(&from_the_first.next().await.events), ["2"]);
        assert_eq!(journal.last(), 2);
    }

    #[test]
    fn who_looks_back_gets_the_events_by_their_times() {
        let journal = Arc::new(Journal::new(10));
        let second = |second| Timestamp::from_second(second).unwrap();
        for (at, id) in [(10, "a"), (30, "c"), (20, "b"), (40, "d")] {
            journal.note_at(second(at), event(id));
        }
        let (past, mut follower) = journal.look_back(Some(second(20)));
        assert_eq!(ids(&past), ["b", "c", "d"]);
        assert_eq!(follower.ready(), Batch::default());
    }

    #[test]
    fn a_slow_follower_is_told_how_much_it_missed() {
        let journal = Arc::new(Journal::new(3));
        let mut slow = journal.follow(0);
        for number in 1..=10_000 {
            journal.note(event(&number.to_string()));
        }
        let batch = slow.ready();
        assert_eq!(ids(&batch.events), ["9998", "9999", "10000"]);
        assert_eq!(batch.missed, 9997);
        assert_eq!(slow.ready(), Batch::default());
        // A place that is still to come.
        assert_eq!(journal.follow(20_000).ready(), Batch::default());
    }

    #[test]
    fn large_events_push_others_out_and_the_last_stays() {
        let journal = Arc::new(Journal::new(1000));
        let large = |id: &str, bytes| Event {
            attributes: [("label".to_owned(), "x".repeat(bytes))].into(),
            ..event(id)
        };
        for number in 0..100 {
            journal.note(large(&number.to_string(), BYTES_KEPT / 10));
        }
        let (past, _) = journal.look_back(Some(Timestamp::MIN));
        assert_eq!(
            ids(&past),
            ["91", "92", "93", "94", "95", "96", "97", "98", "99"]
        );
        journal.note(large("whale", BYTES_KEPT * 2));
        let (past, _) = journal.look_back(Some(Timestamp::MIN));
        assert_eq!(ids(&past), ["whale"]);
        journal.note(event("small"));
        let (past, _) = journal.look_back(Some(Timestamp::MIN));
        assert_eq!(ids(&past), ["small"]);
        assert_eq!(journal.kept().bytes, event("small").bytes());
    }
}
