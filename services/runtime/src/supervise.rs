//! Watching one container: its end, and its shim's.
//!
//! One task per container. It holds `ShimService.Wait` for the exit status and
//! the shim's pidfd for the shim itself. A shim that died takes its container
//! with it: what is left of it is ended through its cgroup, by a process of the
//! shim's own program (`gantry-shim sweep`), which alone knows cgroups.

use std::sync::Arc;
use std::time::Duration;

use gantry_proto::shim::v1 as wire;

use crate::error::{Error, Result};
use crate::life::{ExitStatus, Step};
use crate::process::Process;
use crate::roster::Happened;
use crate::runtime::Runtime;
use crate::shim::Shim;

/// Pause before asking again over a connection that broke while the shim lives.
const RETRY: Duration = Duration::from_millis(200);

/// How long ending what a dead shim left may take.
const SWEEP_LIMIT: Duration = Duration::from_secs(15);

impl Runtime {
    /// Returns when the shim is gone.
    pub(crate) async fn supervise(self: Arc<Self>, shim: Arc<Shim>) {
        let Some(process) = shim.process() else {
            return self.shim_ended(&shim).await;
        };
        tokio::select! {
            exit = wait(&shim) => {
                self.exited(&shim, exit).await;
                process.ended().await;
            }
            () = process.ended() => {}
        }
        self.shim_ended(&shim).await;
    }

    async fn shim_ended(&self, shim: &Arc<Shim>) {
        if shim.exit().is_none() {
            // It may have written the status just before it ended.
            let exit = match shim.bundle.exit() {
                Some(exit) => exit,
                None => self.lost(shim).await,
            };
            self.exited(shim, exit).await;
        }
        shim.set_gone();
        self.roster.change(&shim.id, |container| {
            container.shim_pid = 0;
            None
        });
    }

    /// The shim died before its container: so the container is ended too.
    async fn lost(&self, shim: &Arc<Shim>) -> ExitStatus {
        let words = shim.bundle.last_words();
        let mut error = "its shim died".to_owned();
        if !words.is_empty() {
            error = format!("{error}: {words}");
        }
        tracing::warn!(container = shim.id, error, "lost");
        if let Err(error) = self.sweep(shim).await {
            tracing::warn!(container = shim.id, %error, "left behind");
            self.set_sick(shim, &error.to_string());
        }
        let exit = ExitStatus::lost(error);
        if let Err(error) = shim.bundle.keep_exit(&exit) {
            tracing::warn!(container = shim.id, %error, "exit status not kept");
        }
        exit
    }

    /// Ends what a dead shim left of its container, and removes its cgroup.
    ///
    /// # Errors
    /// Something can not be ended or removed.
    pub(crate) async fn sweep(&self, shim: &Shim) -> Result<()> {
        let child = self.launcher.sweep(&shim.id, &shim.bundle)?;
        let failed = |why: String| Error::Sweep {
            id: shim.id.clone(),
            why,
        };
        let mut child = child;
        let process = i32::try_from(child.id())
            .map_err(std::io::Error::other)
            .and_then(Process::open)
            .map_err(|error| failed(error.to_string()))?;
        if tokio::time::timeout(SWEEP_LIMIT, process.exited())
            .await
            .is_err()
        {
            process.kill();
            return Err(failed(format!("not done within {SWEEP_LIMIT:?}")));
        }
        match child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(_) => Err(failed(shim.bundle.last_words())),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// The first process has ended.
    async fn exited(&self, shim: &Shim, exit: ExitStatus) {
        // A start that is under way is told first.
        let _started = shim.starting.lock().await;
        self.roster.change(&shim.id, |container| {
            container.take(Step::Exited).ok()?;
            container.exit = Some(exit.clone());
            exit.oom_killed.then_some(Happened::OutOfMemory)
        });
        self.roster.change(&shim.id, |_| Some(Happened::Exited));
        shim.set_exit(exit);
    }
}

/// How the first process ended, as the shim says.
async fn wait(shim: &Shim) -> ExitStatus {
    loop {
        let request = wire::WaitRequest {
            exec_id: String::new(),
        };
        if let Ok(answer) = shim.client().wait(request).await
            && let Some(status) = answer.into_inner().status
        {
            return status.into();
        }
        tokio::time::sleep(RETRY).await;
    }
}
