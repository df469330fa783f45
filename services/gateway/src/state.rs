//! A container's life: one table.
//!
//! ```text
//!           Created           Start            Started
//! Creating ────────> Created ───────> Starting ───────> Running <── Resume ──┐
//!    │                  ^               │ ^ ^             │   │              │
//!    │                  └───────────────┤ │ │       Exit  │   └── Pause ──> Paused
//!    │    StartFailed, it never ran     │ │ │             v                  │
//!    │                                  │ │ │           Ending <─────────────┘
//!    │         StartFailed, it ran once │ │ │            │  │            Exit
//!    │                                  v │ │ Start      │  │ Await
//!    │                     Start ───── Exited  <─────────┘  v
//!    │            Await, at boot ─────> │ ^     Released    Restarting <── Await ── Starting
//!    │                                  └── Stopped ──────── │ ── Start ──> Starting
//!    │
//!    │ Removed        any other but Creating, Starting ── Remove ──> Removing
//!    v                                 Removing ── RemoveFailed ──> Dead
//!   Gone  <── Removed ── Removing
//! ```
//!
//! `Creating`, `Starting`, `Ending` and `Removing` are intents: work is under
//! way whose undoing or finishing needs nothing but the container's id. A record
//! that is found in one of them after a crash says what is to be done.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is being made; nobody was told of it yet.
    Creating,
    /// Made; never started, or its first start failed.
    Created,
    /// It is being started.
    Starting,
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its program has ended; what the run held is being released.
    Ending,
    /// Ended; its restart policy starts it again when its back-off is over.
    Restarting,
    Exited,
    Removing,
    /// A step of its removal failed.
    Dead,
    /// Removed. Never kept: only those who watch it see this.
    Gone,
}

/// What happens to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Created,
    Start,
    Started,
    /// `ran_before`: an earlier start had succeeded.
    StartFailed {
        ran_before: bool,
    },
    /// The program ended.
    Exit,
    /// What the run held is released.
    Released,
    /// The restart policy waits for its back-off.
    Await,
    /// A person ended the waiting.
    Stopped,
    Pause,
    Resume,
    Remove,
    RemoveFailed,
    Removed,
}

/// An event that does not fit the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} does not fit a container that is {state}")]
pub struct InvalidTransition {
    pub state: State,
    pub event: Event,
}

/// The state after `event`.
///
/// # Errors
/// The event does not fit the state.
pub fn next(state: State, event: Event) -> Result<State, InvalidTransition> {
    use State::{
        Created, Creating, Dead, Ending, Exited, Gone, Paused, Removing, Restarting, Running,
        Starting,
    };
    match (state, event) {
        (Creating, Event::Created) => Ok(Created),
        (Created | Exited | Restarting, Event::Start) => Ok(Starting),
        (Starting, Event::Started) | (Paused, Event::Resume) => Ok(Running),
        (Starting, Event::StartFailed { ran_before: false }) => Ok(Created),
        (Starting, Event::StartFailed { ran_before: true })
        | (Ending, Event::Released)
        | (Restarting, Event::Stopped) => Ok(Exited),
        (Running | Paused, Event::Exit) => Ok(Ending),
        // From Starting: a restart by policy failed, and is tried again. From
        // Exited: the machine was started.
        (Ending | Starting | Exited, Event::Await) => Ok(Restarting),
        (Running, Event::Pause) => Ok(Paused),
        (Created | Running | Paused | Ending | Restarting | Exited | Dead, Event::Remove) => {
            Ok(Removing)
        }
        (Removing, Event::RemoveFailed) => Ok(Dead),
        (Creating | Removing, Event::Removed) => Ok(Gone),
        (state, event) => Err(InvalidTransition { state, event }),
    }
}

impl State {
    /// Whether a process of the container may be alive.
    #[must_use]
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }

    /// Whether work is under way that a crash would leave unfinished.
    #[must_use]
    pub fn is_intent(self) -> bool {
        matches!(
            self,
            Self::Creating | Self::Starting | Self::Ending | Self::Restarting | Self::Removing
        )
    }

    /// Whether `list` shows it without being asked for all.
    #[must_use]
    pub fn is_shown_running(self) -> bool {
        matches!(
            self,
            Self::Starting | Self::Running | Self::Paused | Self::Restarting
        )
    }

    /// Whether a run is under way or about to be: what `wait` waits for the end
    /// of.
    #[must_use]
    pub fn is_busy(self) -> bool {
        matches!(
            self,
            Self::Creating
                | Self::Starting
                | Self::Running
                | Self::Paused
                | Self::Ending
                | Self::Restarting
        )
    }
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "being started",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ending => "ending",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Removing => "being removed",
            Self::Dead => "dead",
            Self::Gone => "removed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 11] = [
        State::Creating,
        State::Created,
        State::Starting,
        State::Running,
        State::Paused,
        State::Ending,
        State::Restarting,
        State::Exited,
        State::Removing,
        State::Dead,
        State::Gone,
    ];
    const EVENTS: [Event; 14] = [
        Event::Created,
        Event::Start,
        Event::Started,
        Event::StartFailed { ran_before: false },
        Event::StartFailed { ran_before: true },
        Event::Exit,
        Event::Released,
        Event::Await,
        Event::Stopped,
        Event::Pause,
        Event::Resume,
        Event::Remove,
        Event::RemoveFailed,
        Event::Removed,
    ];

    #[test]
    fn a_whole_life_passes() {
        let life = [
            Event::Created,
            Event::Start,
            Event::Started,
            Event::Pause,
            Event::Resume,
            Event::Exit,
            Event::Await,
            Event::Start,
            Event::Started,
            Event::Exit,
            Event::Released,
            Event::Remove,
            Event::RemoveFailed,
            Event::Remove,
            Event::Removed,
        ];
        let mut state = State::Creating;
        for event in life {
            state = next(state, event).unwrap();
        }
        assert_eq!(state, State::Gone);
    }

    #[test]
    fn nothing_comes_after_removal() {
        for event in EVENTS {
            assert!(next(State::Gone, event).is_err(), "{event:?}");
        }
    }

    #[test]
    fn only_what_was_created_can_be_started_and_only_once() {
        let startable: Vec<State> = STATES
            .into_iter()
            .filter(|state| next(*state, Event::Start).is_ok())
            .collect();
        assert_eq!(
            startable,
            [State::Created, State::Restarting, State::Exited]
        );
    }

    #[test]
    fn an_exit_counts_once() {
        let after = next(State::Running, Event::Exit).unwrap();
        assert!(next(after, Event::Exit).is_err());
        assert!(next(State::Exited, Event::Exit).is_err());
    }

    #[test]
    fn every_state_is_reached_and_every_event_fits_somewhere() {
        let mut reached = vec![State::Creating];
        for state in STATES {
            for event in EVENTS {
                reached.extend(next(state, event));
            }
        }
        assert!(STATES.iter().all(|state| reached.contains(state)));
        for event in EVENTS {
            assert!(STATES.iter().any(|state| next(*state, event).is_ok()));
        }
    }
}
