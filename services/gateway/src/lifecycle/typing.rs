//! What a person types at a window, on its way to a process.
//!
//! Input has a window of its own in the runtime, so that neither acknowledgements
//! of output nor signals nor resizes wait behind it. What the process does not read
//! waits here up to a limit, and then with whoever types. It is kept until the shim
//! has taken it: where the connection breaks, the window is opened again under its
//! name and goes on behind what was taken.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{attach, resize};
use crate::engine::Engine;
use crate::error::{Error, Peer, Result};
use crate::roster::Entry;
use crate::window::{Outputs, TerminalSize, WindowInput, WindowOutput};

/// Messages to a window that may be under way.
const LINE: usize = 32;

/// How much input waits for a process that does not read, and for the shim to take it.
const INPUT_BYTES: usize = 512 << 10;

/// How long input that was typed last may take to reach its process once the person
/// has left.
const LINGER: Duration = Duration::from_secs(1);

/// Time before a window whose connection broke is opened again.
const AGAIN: Duration = Duration::from_millis(100);

/// What a person types at.
pub(super) struct Typing {
    pub(super) engine: Arc<Engine>,
    pub(super) entry: Arc<Entry>,
    /// Empty: the container's first process.
    pub(super) exec_id: String,
    /// Name of this window.
    pub(super) typist: String,
    /// This window types.
    pub(super) stdin: bool,
    /// True once the window's output is open.
    pub(super) opened: watch::Receiver<bool>,
    /// Cancelled here when the person has left.
    pub(super) left: CancellationToken,
    /// Cancelled here when input was lost.
    pub(super) lost: CancellationToken,
    /// Cancelled when the window is over.
    pub(super) over: CancellationToken,
}

/// An open window on the input.
struct Open {
    inputs: mpsc::Sender<WindowInput>,
    outputs: Outputs,
    /// The position behind what was sent.
    sent: u64,
    closed: bool,
}

/// Input that the shim has not taken yet.
#[derive(Default)]
struct Pending {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    /// The position of the first byte.
    from: u64,
    /// The end follows.
    closing: bool,
}

impl Pending {
    fn to(&self) -> u64 {
        self.from + self.bytes as u64
    }

    fn push(&mut self, data: Bytes) {
        self.bytes += data.len();
        self.chunks.push_back(data);
    }

    /// Drops what is before `position`. False: that is none of what was typed.
    fn taken(&mut self, position: u64) -> bool {
        if position < self.from || position > self.to() {
            return false;
        }
        while self.from < position
            && let Some(chunk) = self.chunks.front_mut()
        {
            let wanted = usize::try_from(position - self.from).unwrap_or(usize::MAX);
            let count = wanted.min(chunk.len());
            chunk.advance(count);
            self.bytes -= count;
            self.from += count as u64;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        true
    }

    /// What begins at `position`; `None`: there is nothing.
    fn at(&self, position: u64) -> Option<Bytes> {
        let mut from = self.from;
        for chunk in &self.chunks {
            let to = from + chunk.len() as u64;
            if position < to {
                let skipped = usize::try_from(position - from).unwrap_or(0);
                return Some(chunk.slice(skipped..));
            }
            from = to;
        }
        None
    }

    /// What is to be sent next over `open`.
    fn next(&self, open: &Open) -> Option<WindowInput> {
        match self.at(open.sent) {
            Some(data) => Some(WindowInput::Stdin(data)),
            None => (self.closing && !open.closed).then_some(WindowInput::StdinClose),
        }
    }
}

impl Typing {
    /// Takes a person's input until the window is over.
    pub(super) async fn take(self, inputs: mpsc::Receiver<WindowInput>) {
        let over = self.over.clone();
        tokio::select! {
            () = self.pass_on(inputs) => {}
            () = over.cancelled() => {}
        }
    }

    async fn pass_on(self, mut inputs: mpsc::Receiver<WindowInput>) {
        let sizes = self.resizer();
        let mut pending = Pending::default();
        let mut open: Option<Open> = None;
        let mut opening = self.stdin.then(|| self.open(Duration::ZERO));
        let mut listening = true;
        let mut leaving = false;
        loop {
            let next = open.as_ref().and_then(|open| pending.next(open));
            // What nobody can take any more is not waited for.
            let idle = next.is_none() && (open.is_some() || pending.bytes == 0);
            if leaving && (idle || (open.is_none() && opening.is_none())) {
                self.leave();
                if let Some(open) = open {
                    linger(open);
                }
                return;
            }
            let sender = next.is_some().then_some(open.as_ref()).flatten();
            let sender = sender.map(|open| open.inputs.clone());
            tokio::select! {
                permit = async { sender?.reserve_owned().await.ok() }, if sender.is_some() => {
                    if let (Some(permit), Some(next), Some(open)) = (permit, next, open.as_mut()) {
                        match &next {
                            WindowInput::Stdin(data) => open.sent += data.len() as u64,
                            _ => open.closed = true,
                        }
                        permit.send(next);
                    } else {
                        (open, opening) = (None, Some(self.open(AGAIN)));
                    }
                }
                told = async { open.as_mut()?.outputs.next().await }, if open.is_some() => match told {
                    Some(Ok(WindowOutput::Typed { position })) => {
                        pending.taken(position);
                    }
                    // The process takes no more.
                    Some(Ok(WindowOutput::Exited(_))) => (open, pending) = (None, Pending::default()),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => (open, opening) = (None, Some(self.open(AGAIN))),
                },
                opened = async { opening.as_mut()?.await.into() }, if opening.is_some() => {
                    opening = None;
                    match opened {
                        Some(Ok(opened)) if pending.taken(opened.sent) => open = Some(opened),
                        // It was away for too long, and the shim has given it up.
                        Some(Ok(_)) => return self.lost.cancel(),
                        // Its output tells how the process ended.
                        Some(Err(_)) | None => pending = Pending::default(),
                    }
                }
                input = inputs.recv(), if listening && pending.bytes < INPUT_BYTES => match input {
                    None => listening = false,
                    // What was typed before it comes first.
                    Some(WindowInput::Detach) => (leaving, listening) = (true, false),
                    Some(WindowInput::Signal(number)) => self.signal(number),
                    Some(WindowInput::Resize(size)) => {
                        sizes.send_replace(Some(size));
                    }
                    Some(WindowInput::Stdin(data)) if open.is_some() || opening.is_some() => {
                        pending.push(data);
                    }
                    Some(WindowInput::StdinClose) => pending.closing = true,
                    Some(WindowInput::Stdin(_)) => {}
                },
                // The window's end ends this.
                else => return std::future::pending().await,
            }
        }
    }

    /// Opens the window once the output is open, and again where the runtime does
    /// not answer. Fails where the process is gone.
    fn open(&self, wait: Duration) -> BoxFuture<'static, Result<Open>> {
        let (engine, entry) = (Arc::clone(&self.engine), Arc::clone(&self.entry));
        let (exec_id, typist) = (self.exec_id.clone(), self.typist.clone());
        let mut opened = self.opened.clone();
        Box::pin(async move {
            // The window is over with whoever says that it is open.
            drop(opened.wait_for(|opened| *opened).await);
            let mut wait = wait;
            loop {
                tokio::time::sleep(wait).await;
                wait = AGAIN;
                let (sender, inputs) = mpsc::channel(LINE);
                let runtime = &engine.peers.runtime;
                let mut outputs = match runtime
                    .type_into(&entry.id, &exec_id, &typist, inputs)
                    .await
                {
                    Ok(outputs) => outputs,
                    Err(error) if attach::is_passing(&error) => continue,
                    Err(error) => return Err(error),
                };
                match outputs.next().await {
                    Some(Ok(WindowOutput::Attached(attached))) => {
                        return Ok(Open {
                            inputs: sender,
                            outputs,
                            sent: attached.typed,
                            closed: false,
                        });
                    }
                    Some(Err(error)) if attach::is_passing(&error) => {}
                    Some(Err(error)) => return Err(error),
                    None => {}
                    Some(Ok(_)) => {
                        return Err(Error::Unanswered {
                            peer: Peer::Runtime,
                            problem: "a window was not opened".to_owned(),
                        });
                    }
                }
            }
        })
    }

    fn leave(&self) {
        let record = self.entry.record();
        let journal = &self.engine.journal;
        if self.exec_id.is_empty() {
            journal.note(&record, "detach", &[]);
        } else {
            let more = [("execID", self.exec_id.clone())];
            journal.note(&record, "exec_detach", &more);
        }
        self.left.cancel();
    }

    fn signal(&self, number: u32) {
        let (engine, entry) = (Arc::clone(&self.engine), Arc::clone(&self.entry));
        let exec_id = self.exec_id.clone();
        tokio::spawn(async move { attach::send_signal(&engine, &entry, &exec_id, number).await });
    }

    /// Sets the terminal's size, the last one that was wanted, once the window is
    /// open.
    fn resizer(&self) -> watch::Sender<Option<TerminalSize>> {
        let (sizes, mut wanted) = watch::channel(None);
        let (engine, entry) = (Arc::clone(&self.engine), Arc::clone(&self.entry));
        let exec_id = self.exec_id.clone();
        let mut opened = self.opened.clone();
        tokio::spawn(async move {
            if opened.wait_for(|opened| *opened).await.is_err() {
                return;
            }
            while wanted.changed().await.is_ok() {
                let size = *wanted.borrow_and_update();
                if let Some(size) = size
                    && let Err(error) = resize::resize(&engine, &entry, &exec_id, size).await
                {
                    tracing::debug!(container = %entry.id, %error, "a size was not set");
                }
            }
        });
        sizes
    }
}

/// Lets what was typed last come to its process: with its outputs a window's input
/// is gone too. Nobody waits for that.
fn linger(mut open: Open) {
    let over = async move { while let Some(Ok(_)) = open.outputs.next().await {} };
    tokio::spawn(tokio::time::timeout(LINGER, over));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(chunks: &[&'static [u8]]) -> Pending {
        let mut pending = Pending::default();
        for chunk in chunks {
            pending.push(Bytes::from_static(chunk));
        }
        pending
    }

    #[test]
    fn input_goes_on_behind_what_was_taken() {
        let mut pending = pending(&[b"abc", b"defg"]);
        assert!(pending.taken(2));
        assert_eq!(pending.at(2).as_deref(), Some(&b"c"[..]));
        assert_eq!(pending.at(4).as_deref(), Some(&b"efg"[..]));
        assert_eq!(pending.at(7), None);
        assert!(pending.taken(7));
        assert_eq!(pending.bytes, 0);
        pending.push(Bytes::from_static(b"h"));
        assert_eq!(pending.at(7).as_deref(), Some(&b"h"[..]));
    }

    #[test]
    fn input_that_was_forgotten_is_not_sent_again() {
        let mut pending = pending(&[b"abc"]);
        assert!(pending.taken(3));
        // The shim knows nothing of this typist any more.
        assert!(!pending.taken(0));
        assert!(!pending.taken(4));
    }
}
