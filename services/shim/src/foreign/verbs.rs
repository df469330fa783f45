//! The verbs that change the container as a whole, one at a time.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use oci_spec::runtime::LinuxResources;

use super::Foreign;
use super::command::Call;
use crate::error::{Error, Result, chain};
use crate::exit;
use crate::shim::{Shim, Status};

/// Hooks run in it. Shorter than the runtime service waits, as are the others.
const START_LIMIT: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_secs(8);

/// What the program leaves is removed without it.
const DELETE_LIMIT: Duration = Duration::from_secs(3);

/// Lets the first process execute its program.
///
/// # Errors
/// It was started already, has ended, or its program cannot be executed.
pub async fn start(shim: Arc<Shim>, foreign: Arc<Foreign>) -> Result<SystemTime> {
    let _one = shim.births.verbs.lock().await;
    shim.with(|created| match created.status() {
        Status::Created => Ok(()),
        Status::Running | Status::Paused => Err(Error::Started),
        Status::Stopped | Status::Empty => Err(Error::NotRunning),
    })?;
    let now = SystemTime::now();
    foreign.say(&shim, "start", &[], START_LIMIT).await?;
    shim.with(|created| {
        created.started_at = Some(now);
        Ok(now)
    })
}

/// Freezes all processes.
///
/// # Errors
/// The container does not run, or cannot be frozen.
pub async fn pause(shim: Arc<Shim>, foreign: Arc<Foreign>) -> Result<()> {
    let _one = shim.births.verbs.lock().await;
    match shim.report().status {
        Status::Running => {}
        Status::Paused => return Ok(()),
        Status::Empty | Status::Created | Status::Stopped => return Err(Error::NotRunning),
    }
    foreign.say(&shim, "pause", &[], LIMIT).await?;
    shim.with(|created| {
        created.paused = true;
        Ok(())
    })
}

/// Thaws all processes.
///
/// # Errors
/// The container has ended, or cannot be thawed.
pub async fn resume(shim: Arc<Shim>, foreign: Arc<Foreign>) -> Result<()> {
    let _one = shim.births.verbs.lock().await;
    match shim.report().status {
        Status::Paused => {}
        Status::Running => return Ok(()),
        Status::Empty | Status::Created | Status::Stopped => return Err(Error::NotRunning),
    }
    foreign.say(&shim, "resume", &[], LIMIT).await?;
    shim.with(|created| {
        created.paused = false;
        Ok(())
    })
}

/// Changes the limits.
///
/// # Errors
/// A limit cannot be set.
pub async fn update(
    shim: Arc<Shim>,
    foreign: Arc<Foreign>,
    resources: LinuxResources,
) -> Result<()> {
    let _one = shim.births.verbs.lock().await;
    let failed = || Foreign::failed("cannot write new limits for a runtime");
    let text = serde_json::to_vec(&resources).map_err(|error| failed()(error.into()))?;
    let directory = foreign.directory();
    exit::write_whole(&directory, "resources.json", &text)
        .map_err(|error| failed()(std::io::Error::other(error)))?;
    let file = directory.join("resources.json");
    let words = [OsStr::new("--resources"), file.as_os_str()];
    let updated = foreign.say(&shim, "update", &words, LIMIT).await;
    // The bundle it is in goes anyhow.
    let _gone = std::fs::remove_file(&file);
    updated
}

impl Foreign {
    async fn say(
        &self,
        shim: &Shim,
        verb: &'static str,
        words: &[&OsStr],
        limit: Duration,
    ) -> Result<()> {
        self.run(
            shim,
            Call {
                verb,
                words,
                streams: None,
                limit,
            },
        )
        .await
    }

    /// Unmounts what was mounted for it.
    pub fn leave(&self) {
        crate::container::leave(&self.directory());
    }

    /// Has the program forget the container, and run the hooks that come last. What it does not remove is removed by the
    /// caller, so that its failure is only noted.
    pub async fn delete(&self, shim: &Shim) {
        if !self.directory().join("state").exists() {
            // It was never asked for a container.
            return;
        }
        let words = [OsStr::new("--force")];
        if let Err(error) = self.say(shim, "delete", &words, DELETE_LIMIT).await {
            eprintln!("{}", chain(&error));
        }
    }
}
