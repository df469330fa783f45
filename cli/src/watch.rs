//! Follows a window to its end: `run`, `start -a`, `attach` and `exec` differ in
//! how they begin, and not in this.

use std::time::Duration;

use gantry_proto::gateway::v1::{ExecResponse, RunResponse, exec_response, run_response};
use gantry_proto::shim::v1::{AttachResponse, Missed, Output, attach_response};
use gantry_proto::types::v1::ExitStatus;
use tonic::Streaming;

use crate::exit::{Failure, INCOMPLETE, REFUSED};
use crate::stream::{Happened, Person, Screen, Window};

/// What a window hears.
#[derive(Debug)]
pub(crate) enum Heard {
    Output(Output),
    Missed(Missed),
    Exited(ExitStatus),
    /// Nothing that concerns the window.
    Else,
}

macro_rules! heard_from {
    ($response:ty, $message:path) => {
        impl From<$response> for Heard {
            fn from(response: $response) -> Self {
                use $message as Message;
                match response.message {
                    Some(Message::Output(output)) => Self::Output(output),
                    Some(Message::Missed(missed)) => Self::Missed(missed),
                    Some(Message::Exited(status)) => Self::Exited(status),
                    _ => Self::Else,
                }
            }
        }
    };
}

heard_from!(RunResponse, run_response::Message);
heard_from!(ExecResponse, exec_response::Message);
heard_from!(AttachResponse, attach_response::Message);

/// How long the engine may take to let a person go.
const LEAVE: Duration = Duration::from_secs(1);

/// How a window ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The process did.
    Exited(ExitStatus),
    /// The person left; the process runs on.
    Detached,
}

/// Copies until the process ends or the person leaves.
pub(crate) async fn follow<R, A>(
    window: Window<R>,
    mut answers: Streaming<A>,
) -> Result<End, Failure>
where
    Heard: From<A>,
{
    let Window {
        mut person,
        mut screen,
        requests,
    } = window;
    let ended = tokio::select! {
        ended = show(&mut screen, &mut answers) => ended.map(End::Exited),
        // Also while the reader of the output is slow.
        happened = person.happens() => match happened {
            Happened::Detached => {
                // The engine receives it before the stream ends.
                let over = async { while let Ok(Some(_)) = answers.message().await {} };
                let _late = tokio::time::timeout(LEAVE, over).await;
                Ok(End::Detached)
            }
            // Not even what was shown already is waited for.
            Happened::Ended(signal) => return Err(Failure::Said(128u8.saturating_add(signal))),
        },
    };
    let missed = screen.has_missed();
    // Also where it failed: what came before has to be seen. A signal still ends it.
    let written = tokio::select! {
        written = screen.close() => written,
        happened = until_ended(&mut person) => return Err(happened),
    };
    drop(requests);
    let end = ended?;
    written?;
    match (end, missed) {
        (End::Exited(status), Some(missed)) if missed > 0 || status.code == 0 => {
            Err(incomplete(missed, &status))
        }
        (end, _) => Ok(end),
    }
}

/// Waits for a signal that is to end this command, once there is no process any more
/// to pass one on to.
async fn until_ended(person: &mut Person) -> Failure {
    Failure::Said(128u8.saturating_add(person.ends().await))
}

/// Shows output until the process has ended.
async fn show<A>(screen: &mut Screen, answers: &mut Streaming<A>) -> Result<ExitStatus, Failure>
where
    Heard: From<A>,
{
    loop {
        match answers.message().await?.map(Heard::from) {
            Some(Heard::Output(output)) => screen.write(output).await?,
            Some(Heard::Missed(missed)) => screen.missed(missed).await?,
            Some(Heard::Exited(status)) => return Ok(status),
            Some(Heard::Else) => {}
            None => {
                return Err(Failure::usage(
                    "the engine closed the window without an exit status; the container may run on: see `gantry ps`",
                ));
            }
        }
    }
}

/// The program ended, and not all of its output was shown.
fn incomplete(missed: u64, status: &ExitStatus) -> Failure {
    let what = match missed {
        0 => "some of the output was not shown".to_owned(),
        bytes => format!("{bytes} bytes of the output were not shown"),
    };
    Failure::Here {
        code: INCOMPLETE,
        message: format!(
            "{what}; the program ended with exit code {}, and `gantry logs` has what was logged",
            status.code
        ),
    }
}

/// The process' exit code as this command's.
pub(crate) fn code(status: &ExitStatus) -> Result<u8, Failure> {
    let code = u8::try_from(status.code & 0xff).unwrap_or(REFUSED);
    if status.error.is_empty() {
        return Ok(code);
    }
    Err(Failure::Here {
        code: if code == 0 { REFUSED } else { code },
        message: status.error.clone(),
    })
}
