//! Which engine a bridge or a firewall table of this machine belongs to.
//!
//! Both are found by name in the kernel, and two engines can be configured with
//! the same name. So each carries the mark of the engine that made it: the
//! bridge as its alias (`ip link show`), the table as its comment (`nft list
//! table`). An engine takes over what carries its own mark, or none at all (a
//! version without marks made it, or a person did), and refuses to start with
//! what belongs to another engine, whether that runs or not: its containers may
//! run on without it. Only what belongs to an engine whose root directory is
//! gone is taken over, as nobody could ever come back for it.

use std::fmt;
use std::fs;

use gantry_kit::identity::{Identity, Mark, Other};

/// File below the run directory of the network service with its process id.
pub(crate) const LOCK: &str = "lock";

/// The engine that something belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    engine: Other,
    /// Process id of its network service, if that runs.
    pid: Option<u32>,
}

impl Owner {
    /// The owner by the text on an object. None: it is free for this engine.
    pub(crate) fn by_mark(identity: &Identity, text: &str) -> Option<Self> {
        match identity.read(text) {
            Mark::None | Mark::Own => None,
            Mark::Other(engine) => Some(Self {
                pid: running(&engine),
                engine,
            }),
        }
    }

    /// Whether the engine can never come back for it.
    pub(crate) fn is_gone(&self) -> bool {
        self.engine.is_gone()
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(
                formatter,
                "{}, which is running (pid {pid} is its network service)",
                self.engine
            ),
            None => write!(formatter, "{}, which is not running", self.engine),
        }
    }
}

/// The process id of that engine's network service.
fn running(engine: &Other) -> Option<u32> {
    let lock = engine.paths()?.run.join("network").join(LOCK);
    let pid = fs::read_to_string(lock).ok()?.trim().parse().ok()?;
    // The number may have become another program's.
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    name.contains("network").then_some(pid)
}

#[cfg(test)]
mod tests {
    use gantry_kit::paths::Paths;

    use super::*;

    #[test]
    fn an_owner_is_named_with_what_is_known_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let other = Identity::of(&Paths::under(&root).unwrap());
        let own = Identity::of(&Paths::system());
        let owner = Owner::by_mark(&own, &other.mark()).unwrap();
        assert_eq!(
            owner.to_string(),
            format!(
                "the engine with --root {}, which is not running",
                root.display()
            )
        );
        assert!(!owner.is_gone());
        drop(directory);
        assert!(owner.is_gone());
        assert_eq!(Owner::by_mark(&own, &own.mark()), None);
        assert_eq!(Owner::by_mark(&own, ""), None);
    }
}
