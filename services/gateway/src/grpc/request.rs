//! What callers send on streams, from the wire.

use gantry_proto::gateway::v1 as wire;
use gantry_proto::types::v1 as types;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use tracing::Instrument as _;

use super::config;
use super::status::status;
use crate::error::Error;
use crate::lifecycle::attach::LINE;
use crate::lifecycle::exec::ExecWanted;
use crate::lifecycle::run::{Pull, RunWanted};
use crate::lifecycle::update::UpdateWanted;
use crate::peers::RegistryAuth;
use crate::wanted::Wanted;
use crate::window::{TerminalSize, WindowInput, WindowOpen};

pub(super) fn size(wire: types::TerminalSize) -> TerminalSize {
    TerminalSize {
        columns: wire.columns,
        rows: wire.rows,
    }
}

/// The streams that begin with a message of their own and go on with input.
pub(super) trait InputMessage: Send + 'static {
    /// None: not an input.
    fn input(self) -> Option<WindowInput>;
}

macro_rules! input_message {
    ($request:ty, $module:ident) => {
        impl InputMessage for $request {
            fn input(self) -> Option<WindowInput> {
                use wire::$module::Message;
                Some(match self.message? {
                    Message::Stdin(data) => WindowInput::Stdin(data),
                    Message::StdinClose(_) => WindowInput::StdinClose,
                    Message::Resize(wire) => WindowInput::Resize(size(wire)),
                    Message::Signal(number) => WindowInput::Signal(number),
                    Message::Detach(_) => WindowInput::Detach,
                    _ => return None,
                })
            }
        }
    };
}

input_message!(wire::RunRequest, run_request);
input_message!(wire::AttachRequest, attach_request);
input_message!(wire::ExecRequest, exec_request);

/// Reads a stream's input until it ends, or nobody wants it any more.
pub(super) fn inputs<T: InputMessage>(mut stream: Streaming<T>) -> mpsc::Receiver<WindowInput> {
    let (sender, receiver) = mpsc::channel(LINE);
    tokio::spawn(
        async move {
            loop {
                let message = tokio::select! {
                    message = stream.message() => message,
                    () = sender.closed() => return,
                };
                match message {
                    Ok(Some(message)) => {
                        if let Some(input) = message.input()
                            && sender.send(input).await.is_err()
                        {
                            return;
                        }
                    }
                    // The caller went away, or has no more to say.
                    Ok(None) | Err(_) => return,
                }
            }
        }
        .in_current_span(),
    );
    receiver
}

/// The first message of a stream.
pub(super) async fn first<T>(stream: &mut Streaming<T>, what: &str) -> Result<T, Status> {
    stream.message().await?.ok_or_else(|| missing(what))
}

pub(super) fn missing(what: &str) -> Status {
    status(Error::invalid(
        "stream",
        format!("the first message must be `{what}`"),
    ))
}

pub(super) fn absent(field: &str) -> Status {
    status(Error::invalid(field, "is absent"))
}

pub(super) fn update(request: wire::UpdateRequest) -> Result<UpdateWanted, Status> {
    let resources = request.resources.unwrap_or_default();
    let restart_policy = request.restart_policy.map(config::restart_policy);
    Ok(UpdateWanted {
        memory_bytes: resources.memory_bytes,
        memory_swap_bytes: resources.memory_swap_bytes,
        memory_reservation_bytes: resources.memory_reservation_bytes,
        nano_cpus: resources.nano_cpus,
        cpu_shares: resources.cpu_shares,
        cpuset_cpus: resources.cpuset_cpus,
        cpuset_mems: resources.cpuset_mems,
        pids_limit: resources.pids_limit,
        cpu_period_micros: resources.cpu_period_micros,
        cpu_quota_micros: resources.cpu_quota_micros,
        blkio_weight: resources.blkio_weight,
        cpu_realtime_runtime_micros: resources.cpu_realtime_runtime_micros,
        cpu_realtime_period_micros: resources.cpu_realtime_period_micros,
        restart_policy: restart_policy.transpose().map_err(status)?,
    })
}

pub(super) fn run(open: wire::RunOpen) -> Result<RunWanted, Status> {
    let pull = match open.pull() {
        wire::PullPolicy::Always => Pull::Always,
        wire::PullPolicy::Never => Pull::Never,
        wire::PullPolicy::Missing | wire::PullPolicy::Unspecified => Pull::Missing,
    };
    let window = (!open.detach).then(|| WindowOpen {
        exec_id: String::new(),
        stdin: open.attach_stdin,
        stdout: open.attach_stdout,
        stderr: open.attach_stderr,
        terminal_size: open.terminal_size.map(size),
        primary: open.primary,
    });
    Ok(RunWanted {
        wanted: Wanted::try_from(open.config.unwrap_or_default()).map_err(status)?,
        name: open.name,
        pull,
        auth: open.auth.map(RegistryAuth),
        window,
    })
}

pub(super) fn attach(open: &wire::AttachOpen) -> WindowOpen {
    WindowOpen {
        exec_id: String::new(),
        stdin: open.stdin,
        stdout: open.stdout,
        stderr: open.stderr,
        terminal_size: open.terminal_size.map(size),
        primary: open.primary,
    }
}

pub(super) fn exec(open: wire::ExecOpen) -> ExecWanted {
    let window = (!open.detach).then(|| WindowOpen {
        exec_id: String::new(),
        stdin: open.stdin,
        stdout: true,
        stderr: true,
        terminal_size: open.terminal_size.map(size),
        primary: open.primary,
    });
    ExecWanted {
        command: open.command,
        tty: open.tty,
        env: open.env,
        working_dir: open.working_dir,
        user: open.user,
        privileged: open.privileged,
        silent: false,
        window,
    }
}
