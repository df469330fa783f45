//! `exec`: one more process in a running container, with a window on it.

use std::sync::Arc;
use std::time::Duration;

use gantry_kit::metadata::shortened;
use tokio::sync::mpsc;

use super::attach::{Connected, Line};
use crate::container::{ContainerId, Exit};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::peers;
use crate::roster::{Entry, RunningExec};
use crate::spec::{self, process};
use crate::state::State;
use crate::window::{WindowInput, WindowOpen, WindowOutput};

/// Digits of an exec's id that are enough within one container.
const EXEC_ID_DIGITS: usize = 32;

/// What an event tells of a command line, which may have two megabytes: events are
/// kept in memory.
const TOLD_BYTES: usize = 8 << 10;

/// Time before a runtime that does not answer is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// A process that is wanted.
#[derive(Clone, Debug, Default)]
pub struct ExecWanted {
    pub command: Vec<String>,
    pub tty: bool,
    pub env: Vec<String>,
    /// Empty: the container's.
    pub working_dir: String,
    /// Empty: the container's.
    pub user: String,
    pub privileged: bool,
    /// No event tells of it.
    pub silent: bool,
    /// None: detached.
    pub window: Option<WindowOpen>,
}

/// What an exec tells its caller.
#[derive(Debug)]
pub enum ExecEvent {
    Started {
        exec_id: String,
        pid: i32,
    },
    Output(WindowOutput),
    Exited(Exit),
    /// It cannot go on. The last.
    Failed(Error),
}

impl From<WindowOutput> for ExecEvent {
    fn from(output: WindowOutput) -> Self {
        Self::Output(output)
    }
}

/// Runs a process in a container; detached, until it has started, else to its
/// end.
///
/// # Errors
/// The container does not run, or the program cannot be executed.
pub async fn exec(
    engine: Arc<Engine>,
    entry: Arc<Entry>,
    wanted: ExecWanted,
    inputs: mpsc::Receiver<WindowInput>,
    events: mpsc::Sender<ExecEvent>,
) -> Result<()> {
    let record = entry
        .wait_for("execute a command in", |record| {
            record.state != State::Starting
        })
        .await?;
    if record.state != State::Running {
        return Err(Error::WrongState {
            name: record.name.clone(),
            verb: "execute a command in",
            state: record.state,
        });
    }
    if wanted.command.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("command", "none is given"));
    }
    let exec = spec::Exec {
        args: &wanted.command,
        env: &wanted.env,
        working_dir: &wanted.working_dir,
        tty: wanted.tty,
        privileged: wanted.privileged,
    };
    let process = spec::exec_process(&record, &engine.host, &exec)?;
    let exec_id = ContainerId::random()?.as_str()[..EXEC_ID_DIGITS].to_owned();
    let window = wanted.window.map(|open| WindowOpen {
        exec_id: exec_id.clone(),
        ..open
    });
    let user = if wanted.user.is_empty() {
        process::user_or_root(&record)
    } else {
        wanted.user
    };
    let said = shortened(&wanted.command.join(" "), TOLD_BYTES);
    let more = [("execID", exec_id.clone())];
    let journal = &engine.journal;
    let told = !wanted.silent;
    if told {
        journal.note(&record, format!("exec_create: {said}"), &more);
    }
    let runtime = &engine.peers.runtime;
    let exec = peers::ExecWanted {
        exec_id: exec_id.clone(),
        process: process.to_string().into_bytes(),
        user,
        stdin: window.as_ref().is_some_and(|window| window.stdin),
        terminal_size: window.as_ref().and_then(|window| window.terminal_size),
        open_window: window.is_some(),
    };
    // Before the process: should its container end meanwhile, the shim stays until
    // the window has seen how.
    let line = window.map(|open| Line::begin(&engine, &entry, open, inputs));
    let line = line.transpose()?;
    let pid = runtime.exec(&entry.id, exec).await?;
    // The checks of its health are the engine's own.
    let running = told.then(|| entry.begin_exec(&exec_id));
    if told {
        journal.note(&record, format!("exec_start: {said}"), &more);
    }
    let started = ExecEvent::Started {
        exec_id: exec_id.clone(),
        pid,
    };
    let listens = events.send(started).await.is_ok();
    let end = End {
        engine: Arc::clone(&engine),
        entry: Arc::clone(&entry),
        running,
    };
    let Some((mut line, first)) = line.filter(|_| listens) else {
        end.tell_later();
        return Ok(());
    };
    let outputs = match line.connect(first, &events).await? {
        // Everything from here on is seen.
        Connected::Open(outputs, _attached) => outputs,
        Connected::Exited(exit) => {
            end.tell(&exit);
            let _nobody_listens = events.send(ExecEvent::Exited(exit)).await;
            return Ok(());
        }
        Connected::Unread => {
            end.tell_later();
            return Ok(());
        }
    };
    match line.follow(outputs, &events).await? {
        Some(exit) => {
            end.tell(&exit);
            let _nobody_listens = events.send(ExecEvent::Exited(exit)).await;
        }
        None => end.tell_later(),
    }
    Ok(())
}

/// The end of a process: it no longer runs, and that is to be told.
struct End {
    engine: Arc<Engine>,
    entry: Arc<Entry>,
    /// None: nobody is to know of it.
    running: Option<RunningExec>,
}

impl End {
    fn tell(self, exit: &Exit) {
        if let Some(running) = self.running {
            let more = [
                ("execID", running.id().to_owned()),
                ("exitCode", exit.code.to_string()),
            ];
            let record = self.entry.record();
            self.engine.journal.note(&record, "exec_die", &more);
        }
    }

    /// Tells it when it comes: no window sees it.
    fn tell_later(self) {
        if self.running.is_some() {
            tokio::spawn(self.wait());
        }
    }

    async fn wait(self) {
        let Some(exec_id) = self.running.as_ref().map(RunningExec::id) else {
            return;
        };
        let exec_id = exec_id.to_owned();
        loop {
            let runtime = &self.engine.peers.runtime;
            let outcome = tokio::select! {
                outcome = runtime.wait(&self.entry.id, &exec_id) => outcome,
                () = self.engine.stopping.cancelled() => return,
            };
            match outcome {
                Ok(exit) => return self.tell(&exit),
                // The runtime is being restarted; the process goes on.
                Err(Error::Unanswered { .. }) => {}
                Err(error) if error.is_reason("STOPPING") => {}
                Err(error) => {
                    tracing::debug!(container = %self.entry.id, %error, "the end of an exec is not told");
                    return;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = self.engine.stopping.cancelled() => return,
            }
        }
    }
}
