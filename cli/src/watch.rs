//! Follows a window to its end: `run`, `start -a`, `attach` and `exec` differ in
//! how they begin, and not in this.

use std::time::Duration;

use gantry_proto::gateway::v1::{ExecResponse, RunResponse, exec_response, run_response};
use gantry_proto::shim::v1::{AttachResponse, Missed, Output, attach_response};
use gantry_proto::types::v1::ExitStatus;
use tonic::Streaming;

use crate::exit::{Failure, REFUSED};
use crate::stream::{Happened, Input, Window};

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
pub(crate) async fn follow<R, A>(window: Window<R>, answers: Streaming<A>) -> Result<End, Failure>
where
    R: From<Input> + Send + 'static,
    Heard: From<A>,
{
    let mut window = window;
    let ended = until_end(&mut window, answers).await;
    // Also where it failed: what came before has to be seen.
    let written = window.close().await;
    let end = ended?;
    written?;
    Ok(end)
}

async fn until_end<R, A>(window: &mut Window<R>, mut answers: Streaming<A>) -> Result<End, Failure>
where
    R: From<Input> + Send + 'static,
    Heard: From<A>,
{
    loop {
        let answer = tokio::select! {
            answer = answers.message() => answer?,
            happened = window.happens() => match happened {
                Happened::Detached => {
                    // So that the engine hears of it before the stream is gone.
                    let over = async { while let Ok(Some(_)) = answers.message().await {} };
                    let _late = tokio::time::timeout(LEAVE, over).await;
                    return Ok(End::Detached);
                }
                Happened::Ended(signal) => {
                    return Err(Failure::Said(128u8.saturating_add(signal as u8)));
                }
            },
        };
        match answer.map(Heard::from) {
            Some(Heard::Output(output)) => window.write(output).await?,
            Some(Heard::Missed(missed)) => window.missed(missed).await?,
            Some(Heard::Exited(status)) => return Ok(End::Exited(status)),
            Some(Heard::Else) => {}
            None => {
                return Err(Failure::usage(
                    "the engine closed the window without an exit status; the container may run on: see `gantry ps`",
                ));
            }
        }
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
