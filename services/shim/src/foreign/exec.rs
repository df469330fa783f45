//! `exec`: one more process, by the program.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::create::set_size;
use super::{Foreign, births};
use crate::container;
use crate::created::{Created, Status};
use crate::error::{Error, Result};
use crate::exit;
use crate::process::Process;
use crate::shim::{Exec, Shim};
use crate::stdio::lock;

const VERB: &str = "exec";

/// Shorter than the runtime service waits.
const EXEC_LIMIT: Duration = Duration::from_secs(8);

/// The file of an exec that goes with it.
struct Written<'a>(&'a Path);

impl Drop for Written<'_> {
    fn drop(&mut self) {
        // The bundle it is in goes anyhow.
        let _gone = std::fs::remove_file(self.0);
    }
}

/// Has the program run one more process.
///
/// # Errors
/// The container does not run, the id is taken, or the program cannot be
/// executed.
pub async fn exec(shim: Arc<Shim>, foreign: Arc<Foreign>, mut exec: Exec) -> Result<i32> {
    let first = shim.with(|created| {
        free(created, &exec)?;
        // Taken at once: another may come while the program runs.
        if !created.arriving.insert(exec.exec_id.clone()) {
            return Err(Error::ProcessExists {
                exec_id: exec.exec_id.clone(),
            });
        }
        Ok(created.init.pid)
    })?;
    let id = exec.exec_id.clone();
    let made = foreign.execute(&shim, &mut exec, first).await;
    let _no_container = shim.with(|created| {
        created.arriving.remove(&id);
        Ok(())
    });
    made
}

fn free(created: &Created, exec: &Exec) -> Result<()> {
    if created.status() != Status::Running {
        return Err(Error::NotRunning);
    }
    created.free(&exec.exec_id)
}

impl Foreign {
    async fn execute(&self, shim: &Arc<Shim>, exec: &mut Exec, first: i32) -> Result<i32> {
        let wanted = exec.wanted();
        shim.keep_oom_score(&mut exec.process);
        let groups = lock(&self.groups).clone();
        {
            let root = container::root_of(first)?;
            container::settle_user(
                root.as_fd(),
                &mut exec.process,
                exec.user.as_deref(),
                &groups,
            )?;
        }
        set_size(&mut exec.process, exec.size);
        let number = self.number();
        let name = format!("process.{number}");
        let text = serde_json::to_vec(&exec.process)
            .map_err(|error| Self::failed("cannot write a process for a runtime")(error.into()))?;
        exit::write_whole(&self.directory(), &name, &text).map_err(|error| {
            Self::failed("cannot write a process for a runtime")(std::io::Error::other(error))
        })?;
        let file = self.directory().join(name);
        let _written = Written(&file);
        let pid_file = self.directory().join(format!("pid.{number}"));
        let words = [
            OsStr::new("--detach"),
            OsStr::new("--process"),
            file.as_os_str(),
        ];
        let _expecting = shim.births.expect();
        let spawned = self
            .spawn(shim, VERB, number, &wanted, &pid_file, &words, EXEC_LIMIT)
            .await;
        let (ends, expected) = match spawned {
            Ok(spawned) => spawned,
            Err(error) => {
                // A call that was given up may have come as far.
                if let Ok(pid) = self.made(VERB, &pid_file) {
                    end(shim, pid);
                }
                return Err(error);
            }
        };
        let pid = self.made(VERB, &pid_file)?;
        let taken = (|| {
            let pidfd = open(pid);
            if pidfd.is_some() && births::parent_of(pid) != Some(std::process::id()) {
                return Err(self.unfit(
                    VERB,
                    "the process is not its caller's child; such a runtime cannot be used"
                        .to_owned(),
                ));
            }
            let terminal = self.terminal(VERB, expected, wanted.size)?;
            Process::adopt(&exec.exec_id, pid, pidfd, ends, terminal, &wanted, None)
        })();
        let process = match taken {
            Ok(process) => process,
            Err(error) => {
                end(shim, pid);
                return Err(error);
            }
        };
        shim.enter(process)?;
        shim.catch_up(pid);
        Ok(pid)
    }
}

fn open(pid: i32) -> Option<OwnedFd> {
    Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
}

/// Ends a process that nobody will know. It is of the container, or it is left alone.
fn end(shim: &Shim, pid: i32) {
    let Some(process) = open(pid) else {
        return;
    };
    let ours = shim.with(|created| Ok(created.container.processes()?.contains(&pid)));
    if ours.unwrap_or(false) {
        let _ended = gantry_sys::process::send_signal_to(process.as_fd(), libc::SIGKILL);
    }
}
