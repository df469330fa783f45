//! Windows: passed through to the shim, and ended properly when it dies.
//!
//! A primary window holds its process back, and the shim keeps it for a while when
//! its connection breaks. So when the caller of such a window goes away, this
//! service gives the window up; when this service stops, it does not: the caller
//! opens the window again and misses nothing.

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
use crate::shim::{CALL_LIMIT, Shim};

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
        let names = Names {
            shim: shim.clone(),
            release: shim_wire::ReleaseWindowRequest {
                exec_id: window.exec_id.clone(),
                primary: window.primary.clone(),
                typist: window.typist.clone(),
            },
            stopping: self.stopping.clone(),
        };
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
            State::Open(Box::new(Open {
                answers,
                shim,
                stopping: self.stopping.clone(),
                names,
                _shown: shown,
            })),
            move |state| pass_on(state, first),
        )))
    }
}

/// An open window.
struct Open {
    answers: Streaming<shim_wire::AttachResponse>,
    shim: Arc<Shim>,
    stopping: CancellationToken,
    names: Names,
    _shown: DropGuard,
}

enum State {
    Open(Box<Open>),
    /// Its connection broke, and something may have been missed with it.
    Broken(ExitStatus),
    Over,
}

/// What the shim keeps by name for a window: given up when this is dropped.
struct Names {
    shim: Arc<Shim>,
    release: shim_wire::ReleaseWindowRequest,
    stopping: CancellationToken,
}

impl Drop for Names {
    fn drop(&mut self) {
        let request = std::mem::take(&mut self.release);
        let named = !request.primary.is_empty() || !request.typist.is_empty();
        if !named || self.stopping.is_cancelled() {
            return;
        }
        let shim = self.shim.clone();
        tokio::spawn(async move {
            let released = shim.call(CALL_LIMIT, |mut client| async move {
                client.release_window(request).await
            });
            if let Err(error) = released.await {
                // Its shim gives it up by itself, later.
                tracing::debug!(container = shim.id, %error, "a window is not released");
            }
        });
    }
}

type Answer = std::result::Result<shim_wire::AttachResponse, Status>;

/// The next message; in place of a broken connection, how the container ended.
async fn pass_on(state: State, first: bool) -> Option<(Answer, State)> {
    let mut open = match state {
        State::Open(open) => open,
        State::Broken(exit) => return Some((Ok(exited(exit)), State::Over)),
        State::Over => return None,
    };
    let answer = tokio::select! {
        answer = open.answers.message() => answer,
        () = open.stopping.cancelled() => return Some((Err(Error::Stopping.into()), State::Over)),
    };
    match answer {
        Ok(Some(answer)) => Some((Ok(answer), State::Open(open))),
        Ok(None) => {
            // All was sent and may still be under way: the shim keeps it.
            open.names.release = shim_wire::ReleaseWindowRequest::default();
            None
        }
        Err(status) => {
            let exit = if first {
                tokio::time::timeout(LAST_WORDS_LIMIT, open.shim.exited())
                    .await
                    .ok()
                    .flatten()
            } else {
                None
            };
            Some(match exit {
                // Whatever was under way is lost.
                Some(exit) => (Ok(missed()), State::Broken(exit)),
                None => (Err(open.shim.failed(status).into()), State::Over),
            })
        }
    }
}

fn missed() -> shim_wire::AttachResponse {
    shim_wire::AttachResponse {
        message: Some(FromShim::Missed(shim_wire::Missed { bytes: 0 })),
    }
}

/// A window on a container whose shim is gone: it shows how it ended.
fn ended(shim: &Shim, first: bool) -> Result<Window> {
    let exit = shim.exit().filter(|_| first).ok_or_else(|| shim.lost())?;
    let attached = shim_wire::AttachResponse {
        message: Some(FromShim::Attached(shim_wire::Attached::default())),
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
        FromCaller::Received(received) => Some(ToShim::Received(received)),
        // Only the first message opens.
        FromCaller::Open(_) => None,
    }
}
