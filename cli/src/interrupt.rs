//! Signals that come before there is a process to pass them on to: they end the
//! command.
//!
//! Until the engine says that the program runs, a signal is for this command.
//! What the engine has begun by then it takes back when the stream ends.

use std::io;
use std::task::Poll;

use nix::sys::signal::Signal;
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};

use crate::exit::Failure;

const SIGNALS: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// The signals that end a command, as they come.
#[derive(Debug)]
pub(crate) struct Interrupts {
    streams: Vec<(Signal, SignalStream)>,
}

impl Interrupts {
    /// Takes the signals from here on: they do not end the process any more.
    pub(crate) fn new() -> io::Result<Self> {
        let streams = SIGNALS
            .into_iter()
            .map(|number| Ok((number, signal(SignalKind::from_raw(number as i32))?)))
            .collect::<io::Result<_>>()?;
        Ok(Self { streams })
    }

    /// Waits for `call`, and gives it up at a signal.
    ///
    /// # Errors
    /// The call's own, or the exit code 128 + the signal's number.
    pub(crate) async fn or<T>(
        &mut self,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            outcome = call => outcome,
            signal = self.next() => Err(Failure::Said(128_u8.saturating_add(signal as u8))),
        }
    }

    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (number, stream) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }
}
