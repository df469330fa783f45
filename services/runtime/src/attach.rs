//! Windows: passed through to the shim, and ended properly when it dies.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use gantry_proto::runtime::v1 as wire;
use gantry_proto::shim::v1 as shim_wire;
use shim_wire::attach_request::Message as ToShim;
use shim_wire::attach_response::Message as FromShim;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, Streaming};
use wire::attach_request::Message as FromCaller;

use crate::error::{Error, Result};
use crate::life::ExitStatus;
use crate::runtime::Runtime;
use crate::shim::Shim;

/// How long a window waits for the exit status of a container whose shim died.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(20);

/// What a window shows.
pub type Window =
    Pin<Box<dyn Stream<Item = std::result::Result<shim_wire::AttachResponse, Status>> + Send>>;

impl Runtime {
    /// Opens a window: the first message of `inbound` was `open`.
    ///
    /// # Errors
    /// There is no such container or process.
    pub async fn attach(
        &self,
        open: wire::AttachOpen,
        inbound: Streaming<wire::AttachRequest>,
    ) -> Result<Window> {
        let shim = self.roster.shim(&open.container_id)?;
        let window = open.window.unwrap_or_default();
        let first = window.exec_id.is_empty();
        if shim.is_gone() {
            return ended(&shim, first);
        }
        let opening = stream::once(async { ToShim::Open(window) });
        // HTTP/2 ends a call when both its directions have: what is typed must
        // not outlive what is shown.
        let shown = CancellationToken::new();
        let typed = inbound
            .take_until(shown.clone().cancelled_owned())
            // The window's end shows in its other direction.
            .take_while(|message| std::future::ready(message.is_ok()))
            .filter_map(|message| {
                std::future::ready(message.ok().and_then(|m| m.message).and_then(translate))
            });
        let requests = opening
            .chain(typed)
            .map(|message| shim_wire::AttachRequest {
                message: Some(message),
            });
        let shown = shown.drop_guard();
        let mut client = shim.client();
        let answers = tokio::select! {
            answer = client.attach(requests) => match answer {
                Ok(answers) => answers.into_inner(),
                Err(status) => match shim.failed(status) {
                    error @ Error::Gone { .. } => {
                        let gone = tokio::time::timeout(LAST_WORDS_LIMIT, shim.gone());
                        return match gone.await {
                            Ok(()) => ended(&shim, first),
                            Err(_elapsed) => Err(error),
                        };
                    }
                    error => return Err(error),
                }
            },
            () = shim.gone() => return ended(&shim, first),
            () = shim.suspicion() => {
                let error = Error::Stopped { id: shim.id.clone(), pid: shim.pid() };
                self.set_sick(&shim, &error.to_string());
                return Err(error);
            }
        };
        Ok(Box::pin(stream::unfold(
            Some((answers, shim, self.stopping.clone(), shown)),
            move |state| pass_on(state, first),
        )))
    }
}

type Answers = Option<(
    Streaming<shim_wire::AttachResponse>,
    Arc<Shim>,
    CancellationToken,
    DropGuard,
)>;
type Answer = std::result::Result<shim_wire::AttachResponse, Status>;

/// The next message; in place of a broken connection, how the container ended.
async fn pass_on(state: Answers, first: bool) -> Option<(Answer, Answers)> {
    let (mut answers, shim, stopping, shown) = state?;
    let answer = tokio::select! {
        answer = answers.message() => answer,
        () = stopping.cancelled() => return Some((Err(Error::Stopping.into()), None)),
    };
    match answer {
        Ok(Some(answer)) => Some((Ok(answer), Some((answers, shim, stopping, shown)))),
        Ok(None) => None,
        Err(status) => {
            let exit = if first {
                tokio::time::timeout(LAST_WORDS_LIMIT, shim.exited())
                    .await
                    .ok()
                    .flatten()
            } else {
                None
            };
            let last =
                exit.map_or_else(|| Err(shim.failed(status).into()), |exit| Ok(exited(exit)));
            Some((last, None))
        }
    }
}

/// A window on a container whose shim is gone: it shows how it ended.
fn ended(shim: &Shim, first: bool) -> Result<Window> {
    let exit = shim.exit().filter(|_| first).ok_or_else(|| shim.lost())?;
    let attached = shim_wire::AttachResponse {
        message: Some(FromShim::Attached(shim_wire::Attached { terminal: false })),
    };
    Ok(Box::pin(stream::iter([Ok(attached), Ok(exited(exit))])))
}

fn exited(exit: ExitStatus) -> shim_wire::AttachResponse {
    shim_wire::AttachResponse {
        message: Some(FromShim::Exited(exit.into())),
    }
}

fn translate(message: FromCaller) -> Option<ToShim> {
    match message {
        FromCaller::Stdin(data) => Some(ToShim::Stdin(data)),
        FromCaller::StdinClose(close) => Some(ToShim::StdinClose(close)),
        FromCaller::Resize(size) => Some(ToShim::Resize(size)),
        // Only the first message opens.
        FromCaller::Open(_) => None,
    }
}
