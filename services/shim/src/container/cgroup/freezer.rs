//! Freezing and thawing.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Cgroup, read, write};
use crate::container::context::During;
use crate::container::error::{Error, Result};

enum Freezer {
    /// `cgroup.freeze`, and events in `cgroup.events`.
    Unified(PathBuf),
    /// `freezer.state`, without events.
    V1(PathBuf),
}

impl Cgroup {
    fn freezer(&self) -> Result<Freezer> {
        if let Some(directory) = self.unified_directory()
            && directory.join("cgroup.freeze").exists()
        {
            return Ok(Freezer::Unified(directory));
        }
        self.v1_directory("freezer")
            .map(Freezer::V1)
            .ok_or_else(|| Error::Unsupported {
                what: "pausing a container".to_owned(),
                why: "no freezer is mounted".to_owned(),
            })
    }

    /// Freezes, and waits until all is frozen.
    pub(in crate::container) fn freeze(&self, deadline: Instant) -> Result<()> {
        let frozen = match self.freezer()? {
            Freezer::Unified(directory) => {
                let file = directory.join("cgroup.freeze");
                write(&file, "1").during("freeze", file.display())?;
                wait_frozen(&directory, deadline)?
            }
            Freezer::V1(directory) => {
                let file = directory.join("freezer.state");
                loop {
                    // Writing again catches processes that were being made meanwhile.
                    write(&file, "FROZEN").during("freeze", file.display())?;
                    let state = read(&file).during("freeze", file.display())?;
                    if state.trim() == "FROZEN" {
                        break true;
                    }
                    if Instant::now() >= deadline {
                        break false;
                    }
                    // v1 has no event for this.
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        };
        if frozen {
            return Ok(());
        }
        self.thaw()?;
        Err(Error::step(
            "freeze",
            self.path().display().to_string(),
            std::io::Error::from_raw_os_error(libc::ETIMEDOUT),
        ))
    }

    /// The files that freeze it, each with what is in it when it is not frozen. In a hybrid layout there are two, and
    /// another runtime than this one may have used the other.
    fn freezer_files(&self) -> impl Iterator<Item = (PathBuf, &'static str)> {
        let unified = self.unified_directory();
        let unified = unified.map(|directory| (directory.join("cgroup.freeze"), "0"));
        let v1 = self.v1_directory("freezer");
        let v1 = v1.map(|directory| (directory.join("freezer.state"), "THAWED"));
        unified.into_iter().chain(v1)
    }

    /// Thaws.
    pub(in crate::container) fn thaw(&self) -> Result<()> {
        for (file, thawed) in self.freezer_files() {
            if read(&file).is_ok_and(|state| state.trim() != thawed) {
                write(&file, thawed).during("thaw", file.display())?;
            }
        }
        Ok(())
    }

    /// Whether it is frozen, or about to be.
    pub(in crate::container) fn is_frozen(&self) -> bool {
        self.freezer_files()
            .any(|(file, thawed)| read(&file).is_ok_and(|state| state.trim() != thawed))
    }
}

fn wait_frozen(directory: &std::path::Path, deadline: Instant) -> Result<bool> {
    let path = directory.join("cgroup.events");
    let mut events = File::open(&path).during("freeze", path.display())?;
    loop {
        let mut text = String::new();
        events.rewind().during("freeze", path.display())?;
        events
            .read_to_string(&mut text)
            .during("freeze", path.display())?;
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(true);
        }
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            return Ok(false);
        };
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let _ = poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout));
    }
}
