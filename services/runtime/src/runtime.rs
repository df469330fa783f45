//! The service's verbs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gantry_kit::client::Client;
use gantry_kit::directories;
use gantry_kit::paths::Paths;
use gantry_proto::shim::v1 as wire;
use gantry_proto::types::v1 as types;
use tokio_util::sync::CancellationToken;
use wire::shim_service_client::ShimServiceClient;

use crate::bundle::{Bundle, EtcFile, Record};
use crate::error::{Error, Result};
use crate::launch::Launcher;
use crate::life::{Container, ExitStatus, Status, Step, unix_nanos};
use crate::process::stat;
use crate::programs::Programs;
use crate::roster::{Happened, Roster};
use crate::shim::{CALL_LIMIT, Shim};

/// Limit of making or starting a container: hooks run in it.
const START_LIMIT: Duration = Duration::from_secs(25);

/// Longest container id.
const ID_MAX: usize = 64;

/// A part of an operation, timed.
#[derive(Clone, Debug)]
pub struct Timed {
    pub name: String,
    pub start: SystemTime,
    pub duration: Duration,
}

impl Timed {
    fn since(name: &str, start: SystemTime) -> Self {
        Self {
            name: name.to_owned(),
            start,
            duration: start.elapsed().unwrap_or_default(),
        }
    }
}

/// A container to be made. `shim` is the request as the shim gets it, but for
/// its directories and the mounts of `etc_files`.
#[derive(Debug)]
pub struct Create {
    pub shim: wire::CreateRequest,
    pub etc_files: Vec<EtcFile>,
    /// The OCI runtime, by name. Empty: the shim.
    pub runtime: String,
}

/// Running containers.
#[derive(Debug)]
pub struct Runtime {
    pub roster: Roster,
    pub(crate) launcher: Launcher,
    /// Other OCI runtimes.
    pub programs: Programs,
    pub(crate) paths: Paths,
    /// Cancelled when the service stops.
    pub(crate) stopping: CancellationToken,
}

impl Runtime {
    #[must_use]
    pub fn new(
        paths: Paths,
        launcher: Launcher,
        programs: Programs,
        stopping: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            roster: Roster::default(),
            launcher,
            programs,
            paths,
            stopping,
        })
    }

    /// Where a container's log is, whether or not it still exists.
    #[must_use]
    pub fn log_directory(&self, id: &str) -> PathBuf {
        self.paths.container_log(id)
    }

    /// Starts a shim and has it create the container.
    ///
    /// # Errors
    /// The id is taken or no id, or the container cannot be made: then nothing
    /// of it is left.
    pub async fn create(
        self: &Arc<Self>,
        mut create: Create,
    ) -> Result<(i32, Vec<types::Step>, Vec<Timed>)> {
        let id = create.shim.container_id.clone();
        check_id(&id)?;
        create.shim.runtime = self.programs.find(&create.runtime)?;
        self.roster.reserve(&id)?;
        // On a task of its own: a caller that goes away must not leave half a
        // container.
        let runtime = self.clone();
        let made = tokio::spawn(async move { runtime.make(create).await }).await;
        match made {
            Ok(Ok(made)) => Ok(made),
            Ok(Err(error)) => {
                self.roster.release(&id);
                Err(error)
            }
            Err(_) => {
                self.roster.release(&id);
                Err(Error::Gone {
                    id,
                    why: String::new(),
                })
            }
        }
    }

    async fn make(
        self: Arc<Self>,
        mut create: Create,
    ) -> Result<(i32, Vec<types::Step>, Vec<Timed>)> {
        let id = create.shim.container_id.clone();
        let created_at = SystemTime::now();
        let bundle = Bundle::make(self.paths.container(&id))?;
        let process = match self.launcher.shim(&id, &bundle) {
            Ok(process) => process,
            Err(error) => {
                // The first error is the one to tell.
                let _left = bundle.remove();
                return Err(error);
            }
        };
        let mut steps = vec![Timed::since("runtime.launch", created_at)];
        let pid = process.pid();
        let record = Record {
            shim_pid: pid,
            shim_start: stat(pid).map_or(0, |stat| stat.start),
            created_unix_nanos: unix_nanos(created_at),
            started_unix_nanos: None,
            status: Status::Empty,
            pid: 0,
        };
        let log_directory = self.paths.container_log(&id);
        let shim = Shim::new(id.clone(), bundle, log_directory, Some(process), record);
        // The shim begins while its files are written.
        let begin = SystemTime::now();
        let answer = match self.prepare(&shim, &mut create) {
            Ok(()) => {
                steps.push(Timed::since("runtime.bundle", begin));
                let request = create.shim;
                shim.call(START_LIMIT, |mut client| async move {
                    client.create(request).await
                })
                .await
            }
            Err(error) => Err(error),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.abandon(&shim).await;
                return Err(error);
            }
        };
        shim.keep(|record| {
            record.status = Status::Created;
            record.pid = answer.pid;
        })?;
        let container = Container {
            id,
            status: Status::Created,
            pid: answer.pid,
            shim_pid: pid,
            created_at,
            started_at: None,
            exit: None,
            sick: String::new(),
        };
        self.roster
            .enter(container, shim.clone(), Some(Happened::Created));
        tokio::spawn(self.clone().supervise(shim));
        Ok((answer.pid, answer.steps, steps))
    }

    /// Writes the bundle, and completes the request with what is in it.
    fn prepare(&self, shim: &Shim, create: &mut Create) -> Result<()> {
        shim.keep(|_| {})?;
        let request = &mut create.shim;
        let spec = shim.bundle.fill(&request.spec, &create.etc_files)?;
        request.spec = spec.into();
        request.bundle_dir = text(shim.bundle.path().to_owned())?;
        if request.log.is_none_or(|log| log.enabled) {
            // Made here, so that whoever follows the log has something to watch.
            directories::make(&shim.log_directory)
                .map_err(|error| Error::file("cannot create", &shim.log_directory, error))?;
            request.log_dir = text(shim.log_directory.clone())?;
        }
        Ok(())
    }

    /// Ends the shim of a container that could not be made.
    async fn abandon(&self, shim: &Arc<Shim>) {
        if let Some(process) = shim.process() {
            process.kill();
            process.ended().await;
        }
        shim.set_gone();
        if let Err(error) = self.sweep(shim).await {
            tracing::warn!(container = shim.id, %error, "left behind");
        }
        if let Err(error) = shim.bundle.remove() {
            tracing::warn!(container = shim.id, %error, "left behind");
        }
        // Only where it is empty: it may be the log of an earlier life.
        let _kept = std::fs::remove_dir(&shim.log_directory);
    }

    /// Lets the first process execute its program.
    ///
    /// # Errors
    /// The shim's: the program cannot be executed, or was started before.
    pub async fn start(&self, id: &str) -> Result<(SystemTime, Vec<types::Step>)> {
        let shim = self.roster.shim(id)?;
        let _starting = shim.starting.lock().await;
        let answer = self
            .forward(&shim, START_LIMIT, |mut client| async move {
                client.start(wire::StartRequest {}).await
            })
            .await?;
        let started_at = answer
            .started_at
            .and_then(|at| SystemTime::try_from(at).ok())
            .unwrap_or_else(SystemTime::now);
        shim.keep(|record| {
            record.status = Status::Running;
            record.started_unix_nanos = Some(unix_nanos(started_at));
        })?;
        self.roster.change(id, |container| {
            container.started_at = Some(started_at);
            container.take(Step::Started).ok()?;
            Some(Happened::Started)
        });
        Ok((started_at, answer.steps))
    }

    /// Makes a call to a shim, and notes whether it answered.
    ///
    /// # Errors
    /// As [`Shim::call`].
    pub async fn forward<T, F>(
        &self,
        shim: &Arc<Shim>,
        limit: Duration,
        call: impl FnOnce(ShimServiceClient<Client>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        let answer = shim.call(limit, call).await;
        match &answer {
            Err(error @ (Error::NoAnswer { .. } | Error::Stopped { .. })) => {
                self.set_sick(shim, &error.to_string());
            }
            Err(error) if error.is_runtime_stuck() => {
                shim.set_trouble(&error.to_string());
                self.set_sick(shim, &error.to_string());
            }
            _ => self.set_sick(shim, &shim.trouble()),
        }
        answer
    }

    pub(crate) fn set_sick(&self, shim: &Shim, why: &str) {
        self.roster.change(&shim.id, |container| {
            if container.sick == why {
                return None;
            }
            why.clone_into(&mut container.sick);
            Some(Happened::Health)
        });
    }

    /// Freezes all processes of the container.
    ///
    /// # Errors
    /// It does not run, or cannot be frozen.
    pub async fn pause(&self, id: &str) -> Result<()> {
        let shim = self.roster.shim(id)?;
        self.forward(&shim, START_LIMIT, |mut client| async move {
            client.pause(wire::PauseRequest {}).await
        })
        .await?;
        shim.keep(|record| record.status = Status::Paused)?;
        self.roster.change(id, |container| {
            container.take(Step::Paused).ok()?;
            Some(Happened::Paused)
        });
        Ok(())
    }

    /// Thaws all processes of the container.
    ///
    /// # Errors
    /// It has ended, or cannot be thawed.
    pub async fn resume(&self, id: &str) -> Result<()> {
        let shim = self.roster.shim(id)?;
        self.forward(&shim, CALL_LIMIT, |mut client| async move {
            client.resume(wire::ResumeRequest {}).await
        })
        .await?;
        shim.keep(|record| record.status = Status::Running)?;
        self.roster.change(id, |container| {
            container.take(Step::Resumed).ok()?;
            Some(Happened::Resumed)
        });
        Ok(())
    }

    /// Waits for a process to end.
    ///
    /// # Errors
    /// There is no such process.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<ExitStatus> {
        let shim = self.roster.shim(id)?;
        if exec_id.is_empty() {
            return tokio::select! {
                exit = shim.exited() => exit.ok_or_else(|| shim.lost()),
                () = self.stopping.cancelled() => Err(Error::Stopping),
            };
        }
        let request = wire::WaitRequest {
            exec_id: exec_id.to_owned(),
        };
        let mut client = shim.client();
        let answer = tokio::select! {
            answer = client.wait(request) => answer.map_err(|status| shim.failed(status))?,
            () = shim.gone() => return Err(shim.lost()),
            () = self.stopping.cancelled() => return Err(Error::Stopping),
        };
        answer
            .into_inner()
            .status
            .map(ExitStatus::from)
            .ok_or_else(|| shim.lost())
    }
}

fn text(path: PathBuf) -> Result<String> {
    path.into_os_string()
        .into_string()
        .map_err(|path| Error::Invalid {
            field: "root",
            problem: format!("{path:?} is not UTF-8"),
        })
}

/// Whether `id` can be a container's, and so part of a path.
///
/// # Errors
/// It can not.
pub fn check_id(id: &str) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if id.is_empty()
        || id.len() > ID_MAX
        || !id.bytes().all(good)
        || id.bytes().all(|byte| byte == b'.')
    {
        return Err(Error::Invalid {
            field: "container_id",
            problem: format!("{id:?} is not 1-{ID_MAX} characters of [a-zA-Z0-9_.-]"),
        });
    }
    Ok(())
}
