//! `run`: create, a window, start, and the exit status, in one.
//!
//! What does not depend on each other is done at the same time: the image's
//! writable layer and the network's endpoint; the record's way to the disk and
//! the start. A run is whole or did not happen: where the container cannot be
//! started, it is removed again, and nothing of it is left. (Docker leaves one in
//! the state Created. `create` and `start` keep theirs, with the error.)

use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::join;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::attach::Line;
use super::create::{self, Layer, Purpose};
use super::resize;
use super::start::{self, EndpointStep, Start, Starter};
use crate::container::Exit;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::peers::{PullProgress, RegistryAuth};
use crate::roster::Entry;
use crate::state::State;
use crate::steps::{self, Step as _};
use crate::wanted::Wanted;
use crate::window::{WindowInput, WindowOpen, WindowOutput};

/// When the image is pulled first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pull {
    #[default]
    Missing,
    Always,
    Never,
}

#[derive(Clone, Debug)]
pub struct RunWanted {
    pub wanted: Wanted,
    /// Empty: one is made up.
    pub name: String,
    pub pull: Pull,
    /// For the image's registry.
    pub auth: Option<RegistryAuth>,
    /// None: detached.
    pub window: Option<WindowOpen>,
}

/// What a run tells its caller.
#[derive(Debug)]
pub enum RunEvent {
    Pull(PullProgress),
    Created {
        id: String,
    },
    Started {
        at: Timestamp,
    },
    Output(WindowOutput),
    Exited(Exit),
    /// It cannot go on. The last.
    Failed(Error),
}

impl From<WindowOutput> for RunEvent {
    fn from(output: WindowOutput) -> Self {
        Self::Output(output)
    }
}

/// Runs a container; detached, until it has started, else to its end. A caller
/// that goes away before the program runs has given the run up, and nothing of it
/// is left; later it ends its window, and never the container.
///
/// # Errors
/// The container cannot be created or started.
pub async fn run(
    engine: Arc<Engine>,
    wanted: RunWanted,
    inputs: mpsc::Receiver<WindowInput>,
    events: mpsc::Sender<RunEvent>,
) -> Result<()> {
    create::check_runtime(&engine, &wanted.wanted).await?;
    let entry = create::begin(&engine, wanted.wanted, wanted.name, Purpose::Run)?;
    let size = wanted.window.as_ref().and_then(|open| open.terminal_size);
    let (line, window) = match wanted.window {
        None => (None, None),
        Some(open) => match Line::begin(&engine, &entry, open, inputs) {
            Ok((line, window)) => (Some(line), Some(window)),
            Err(error) => {
                create::never_happened(&engine, &entry, true).await;
                return Err(error);
            }
        },
    };
    let start = Start::new(&engine, &entry, window);
    let puller = Puller {
        policy: wanted.pull,
        auth: wanted.auth,
        events: &events,
    };
    created(&engine, &entry, &start, &puller).await?;
    let record = entry.record();
    if line.is_some() {
        engine.journal.note(&record, "attach", &[]);
    }
    let auto_remove = record.wanted.auto_remove;
    let told = async {
        // A record with --rm was noted before its first step: enough to clean
        // up by, and all it needs until it runs.
        if !auto_remove {
            engine.keep(&record).await?;
        }
        let id = entry.id.to_string();
        let _nobody_listens = events.send(RunEvent::Created { id }).await;
        Ok(())
    };
    let gone = async {
        // One that is detached runs, whoever hears of it.
        if line.is_some() {
            events.closed().await;
            start.given_up().cancel();
        }
        std::future::pending::<()>().await;
    };
    let began = tokio::select! {
        began = join(told, start::go(&engine, &entry, Starter::Person, &start)) => began,
        () = gone => return Err(Error::CallerGone),
    };
    let outputs = match began.0.and(began.1) {
        Ok(outputs) => outputs,
        Err(error) => {
            drop(line);
            if let Err(left) = super::remove::remove_with_volumes(&engine, &entry, true).await {
                tracing::error!(container = %entry.id, error = %left, "a failed run is not removed");
                engine.untidy.notify_one();
            }
            return Err(error);
        }
    };
    if let Some(size) = size {
        resize::note(&engine, &record, size);
    }
    let at = entry.record().started.unwrap_or_else(Timestamp::now);
    let listens = events.send(RunEvent::Started { at }).await.is_ok();
    let (Some(line), Some(outputs), true) = (line, outputs, listens) else {
        return Ok(());
    };
    if let Some(exit) = line.follow(outputs, &events).await? {
        settled(&entry, true).await;
        let _nobody_listens = events.send(RunEvent::Exited(exit)).await;
    }
    Ok(())
}

/// Waits until what a container's end brings with it is done, so that whoever
/// hears of the end finds its name and ports free.
pub(super) async fn settled(entry: &Entry, ours: bool) {
    if !ours {
        return;
    }
    entry
        .wait_until(|record| {
            let ends = matches!(
                record.state,
                State::Running | State::Paused | State::Ending | State::Removing
            );
            !ends
        })
        .await;
}

/// Layer and endpoint, at the same time; then the container is created.
async fn created(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    start: &Start<'_>,
    puller: &Puller<'_>,
) -> Result<()> {
    let layer = Layer::new(engine, entry);
    let endpoint = EndpointStep(start);
    let (prepared, connected) = join(prepare(engine, entry, &layer, puller), endpoint.act()).await;
    let undo: &[&[&dyn steps::Step]] = &[&[&layer, &endpoint]];
    match (prepared, connected) {
        (Ok(()), Ok(())) => create::made(engine, entry, &layer).await.map(|_record| ()),
        (Err(error), _) | (_, Err(error)) => {
            let left = steps::undo(undo).await;
            create::never_happened(engine, entry, left.is_empty()).await;
            Err(error)
        }
    }
}

async fn prepare(
    engine: &Engine,
    entry: &Entry,
    layer: &Layer<'_>,
    puller: &Puller<'_>,
) -> Result<()> {
    if puller.policy == Pull::Always {
        puller.pull(engine, entry).await?;
        return layer.act().await;
    }
    match layer.act().await {
        Err(error) if puller.policy == Pull::Missing && error.is_reason("IMAGE_NOT_FOUND") => {
            puller.pull(engine, entry).await?;
            layer.act().await
        }
        outcome => outcome,
    }
}

/// When and how the image is pulled.
struct Puller<'a> {
    policy: Pull,
    auth: Option<RegistryAuth>,
    events: &'a mpsc::Sender<RunEvent>,
}

impl Puller<'_> {
    /// Pulls the image, and ends the pull where nobody listens any more.
    async fn pull(&self, engine: &Engine, entry: &Entry) -> Result<()> {
        let record = entry.record();
        let images = &engine.peers.image;
        let mut progress = images.pull(&record.wanted, self.auth.clone()).await?;
        while let Some(message) = progress.next().await {
            if self.events.send(RunEvent::Pull(message?)).await.is_err() {
                return Err(Error::CallerGone);
            }
        }
        Ok(())
    }
}
