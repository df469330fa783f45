//! Deleting: nothing is left.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::shim::v1 as wire;

use crate::error::{Error, Result};
use crate::life::ExitStatus;
use crate::runtime::{Runtime, check_id};
use crate::shim::Shim;

/// How long a shim may take to end its container and go.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(8);

/// How long a shim that was killed, or said that it goes, may take.
const GOING_LIMIT: Duration = Duration::from_secs(5);

/// What deleting came to.
#[derive(Debug, Default)]
pub struct Deleted {
    /// False: there was no container.
    pub existed: bool,
    /// How its program ended, if it was started.
    pub exit: Option<ExitStatus>,
    /// Why the log could not be removed. Empty: it was, or was to stay.
    pub log_left: String,
}

impl Runtime {
    /// Removes a container with all that belongs to it. With `force` what runs is
    /// killed; without, it is refused. A log that cannot be removed is reported,
    /// and keeps nothing else from being removed.
    ///
    /// # Errors
    /// The container runs, or something of it can not be removed: then it stays
    /// in the list, and deleting can be tried again.
    pub async fn delete(
        self: &Arc<Self>,
        id: &str,
        force: bool,
        remove_log: bool,
    ) -> Result<Deleted> {
        check_id(id)?;
        let Ok(shim) = self.roster.shim(id) else {
            return Ok(Deleted {
                log_left: log_left(&self.paths.container_log(id), remove_log).await,
                ..Deleted::default()
            });
        };
        // On a task of its own: a caller that goes away does not stop it half-way.
        let runtime = self.clone();
        let deleted =
            tokio::spawn(async move { runtime.delete_one(&shim, force, remove_log).await }).await;
        deleted.unwrap_or_else(|_| {
            Err(Error::Sweep {
                id: id.to_owned(),
                why: "deleting was cut off".to_owned(),
            })
        })
    }

    async fn delete_one(&self, shim: &Arc<Shim>, force: bool, remove_log: bool) -> Result<Deleted> {
        let _deleting = shim.deleting.lock().await;
        let Ok(container) = self.roster.get(&shim.id) else {
            return Ok(Deleted::default());
        };
        if container.is_live() && !force {
            return Err(Error::WrongState {
                id: shim.id.clone(),
                status: container.status,
                advice: "stop it first, or force",
            });
        }
        if shim.is_gone() {
            // It died by itself: its sweep may have failed, and is tried again.
            self.sweep(shim).await?;
        } else {
            self.end_shim(shim, force).await?;
        }
        shim.bundle.remove()?;
        let log_left = log_left(&shim.log_directory, remove_log).await;
        // Its shim is gone by now, and with it the last that can change this.
        let started = self.roster.get(&shim.id).ok();
        let started = started.is_some_and(|container| container.started_at.is_some());
        self.roster.remove(&shim.id);
        Ok(Deleted {
            existed: true,
            exit: shim.exit().filter(|_| started),
            log_left,
        })
    }

    /// Ids of all containers that have a log, whether or not they exist.
    ///
    /// # Errors
    /// The directory of the logs cannot be read.
    pub fn logs(&self) -> Result<Vec<String>> {
        let directory = self.paths.log.join("containers");
        let failed = |source| Error::file("cannot read", &directory, source);
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            // A name that is no text is no container's.
            ids.extend(entry.map_err(failed)?.file_name().into_string());
        }
        Ok(ids)
    }

    /// Has the shim end its container and itself; ends it where it does not.
    async fn end_shim(&self, shim: &Arc<Shim>, force: bool) -> Result<()> {
        let answer = if shim.is_stopped() {
            Err(Error::Stopped {
                id: shim.id.clone(),
                pid: shim.pid(),
            })
        } else {
            shim.call(SHUTDOWN_LIMIT, |mut client| async move {
                client.shutdown(wire::ShutdownRequest { force }).await
            })
            .await
        };
        let going = tokio::time::timeout(GOING_LIMIT, shim.gone());
        match answer {
            Ok(_) if going.await.is_ok() => return Ok(()),
            // It says itself why not.
            Err(error @ Error::Shim(_)) => return Err(error),
            Ok(_) | Err(_) => {}
        }
        if let Some(process) = shim.process() {
            process.kill();
        }
        // The supervisor sweeps what is left, unless the container had ended.
        if tokio::time::timeout(GOING_LIMIT + SHUTDOWN_LIMIT, shim.gone())
            .await
            .is_err()
        {
            return Err(Error::NoAnswer {
                id: shim.id.clone(),
                limit: GOING_LIMIT,
            });
        }
        self.sweep(shim).await
    }
}

/// Removes a log, where that is wanted; says why it could not.
async fn log_left(directory: &Path, remove: bool) -> String {
    if !remove {
        return String::new();
    }
    match remove_tree(directory).await {
        Ok(()) => String::new(),
        Err(error) => {
            let problem = gantry_kit::fault::chain(&error);
            tracing::warn!(problem, "a log is left over");
            problem
        }
    }
}

async fn remove_tree(path: &Path) -> Result<()> {
    let path = path.to_owned();
    let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("cannot remove", path, error))
        }
        _ => Ok(()),
    });
    removed
        .await
        .unwrap_or_else(|error| Err(Error::file("cannot remove", "", io::Error::other(error))))
}
