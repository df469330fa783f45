//! Taking up the containers of an earlier life of this service.
//!
//! Every bundle directory is looked at, all at the same time, and no shim is
//! waited for longer than [`ANSWER_LIMIT`]: one that does not answer is listed
//! as its record says, marked sick, and asked again by the health watch.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gantry_proto::shim::v1 as wire;
use tokio::task::JoinSet;

use crate::bundle::{Bundle, Record};
use crate::life::{Container, Status};
use crate::process::Process;
use crate::runtime::Runtime;
use crate::shim::Shim;

/// How long a shim may take to say how its container is.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

impl Runtime {
    /// Takes up all containers there are.
    pub async fn adopt(self: &Arc<Self>) {
        let directory = self.paths.run.join("containers");
        let mut adoptions = JoinSet::new();
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if let Ok(id) = entry.file_name().into_string() {
                adoptions.spawn(self.clone().adopt_one(id));
            }
        }
        while adoptions.join_next().await.is_some() {}
    }

    async fn adopt_one(self: Arc<Self>, id: String) {
        let bundle = Bundle::at(self.paths.container(&id));
        let log_directory = self.paths.container_log(&id);
        let record = bundle.record();
        let known = record
            .as_ref()
            .is_some_and(|record| record.status != Status::Empty);
        let record = record.unwrap_or(Record {
            shim_pid: 0,
            shim_start: 0,
            created_unix_nanos: 0,
            started_unix_nanos: None,
            status: Status::Empty,
            pid: 0,
        });
        let process = Process::find(record.shim_pid, record.shim_start);
        let alive = process.is_some();
        let shim = Shim::new(id.clone(), bundle, log_directory, process, record.clone());
        if !known {
            // Its creation was cut off, and never acknowledged: it never happened.
            return self.undo(&shim).await;
        }
        let mut container = Container {
            id,
            status: record.status,
            pid: record.pid,
            shim_pid: shim.pid(),
            created_at: time(record.created_unix_nanos),
            started_at: record.started_unix_nanos.map(time),
            exit: None,
            sick: String::new(),
        };
        if alive {
            let answer = shim
                .call(ANSWER_LIMIT, |mut client| async move {
                    client.state(wire::StateRequest {}).await
                })
                .await;
            match answer {
                Ok(state) => {
                    shim.set_trouble(&state.sick);
                    describe(&mut container, &state);
                }
                Err(error) => container.sick = error.to_string(),
            }
        }
        tracing::info!(container = container.id, status = %container.status, sick = container.sick, "adopted");
        self.roster.enter(container, shim.clone(), None);
        tokio::spawn(self.supervise(shim));
    }

    async fn undo(&self, shim: &Arc<Shim>) {
        tracing::info!(container = shim.id, "a creation that was cut off is undone");
        let shutdown = shim.call(ANSWER_LIMIT, |mut client| async move {
            client.shutdown(wire::ShutdownRequest { force: true }).await
        });
        // A shim without a record has no other name than its socket.
        let _dead = shutdown.await;
        if let Some(process) = shim.process() {
            process.kill();
            process.ended().await;
        }
        for undone in [self.sweep(shim).await, shim.bundle.remove()] {
            if let Err(error) = undone {
                tracing::warn!(container = shim.id, %error, "left behind");
            }
        }
    }
}

/// What the shim says counts, but for the end: that is the supervisor's to tell.
fn describe(container: &mut Container, state: &wire::StateResponse) {
    container.pid = state.pid;
    container.sick.clone_from(&state.sick);
    if let Some(started_at) = state.started_at {
        container.started_at = SystemTime::try_from(started_at).ok();
    }
    container.status = match state.status() {
        wire::Status::Created => Status::Created,
        wire::Status::Running => Status::Running,
        wire::Status::Paused => Status::Paused,
        wire::Status::Unspecified | wire::Status::Empty | wire::Status::Stopped => container.status,
    };
}

fn time(unix_nanos: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(unix_nanos)
}
