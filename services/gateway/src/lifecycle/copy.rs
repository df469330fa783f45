//! `cp`: files of a container, running or not, in and out.
//!
//! The runtime copies, in what a container's processes see. For one that does
//! not run, a container is made in the runtime of the same writable layer and
//! the same mounts, which is never started, and deleted when the copy is over: so
//! there is one way in which a path leads somewhere, and nothing is mounted but
//! in a namespace that ends with it. Its id is a new one that no record has, so
//! that [`crate::reconcile`] removes it should this process end before.
//!
//! A writable layer must not be in two mounts of which one is written to: a
//! start, or a removal, breaks such copies off, and waits until they are over.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::container::{ContainerId, Record};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::etc_files;
use crate::peers::{ContainerWanted, FoundPath, Place};
use crate::roster::{Entry, OpenView};
use crate::spec::{self, Namespaces};
use crate::state::State;
use crate::wanted::LogOptions;

/// The pieces of an archive on their way into a container. None: it is whole.
pub type Pieces = mpsc::Receiver<Option<Bytes>>;

/// A container whose files can be seen.
struct View {
    /// In the runtime.
    id: ContainerId,
    /// Of one that is here for the view alone.
    made: Option<Made>,
}

struct Made {
    engine: Arc<Engine>,
    ended: CancellationToken,
    /// Let go when the container is deleted.
    open: Option<OpenView>,
}

impl View {
    async fn open(engine: &Arc<Engine>, entry: &Arc<Entry>, verb: &'static str) -> Result<Self> {
        loop {
            let record = entry
                .wait_for(verb, |record| {
                    !matches!(
                        record.state,
                        State::Creating | State::Starting | State::Ending
                    )
                })
                .await?;
            if let Some(path) = &record.damaged {
                // How its files are put together is not known.
                return Err(Error::DamagedRecord {
                    name: record.name.clone(),
                    verb,
                    path: path.clone(),
                });
            }
            if record.state.is_running() {
                return Ok(Self {
                    id: entry.id.clone(),
                    made: None,
                });
            }
            super::files::must_have_files(entry, verb)?;
            let (open, ended) = entry.open_view(ContainerId::random()?);
            // Looked at again, now that a start would wait.
            let record = entry.record();
            if matches!(
                record.state,
                State::Created | State::Exited | State::Restarting
            ) {
                return Self::make(engine, &record, open, ended).await;
            }
        }
    }

    /// Makes a container that shows the files of one that does not run.
    async fn make(
        engine: &Arc<Engine>,
        record: &Record,
        open: OpenView,
        ended: CancellationToken,
    ) -> Result<Self> {
        let id = open.id().clone();
        let mut spec = spec::build(record, &Namespaces::default(), &engine.host)?;
        // Nothing runs in it, and nothing is to be hindered by it.
        spec["process"] = json!({
            "cwd": "/",
            // The one program that is there whatever the image is.
            "args": ["/proc/self/exe"],
            "user": {"uid": 0, "gid": 0},
        });
        spec["linux"]["cgroupsPath"] = json!(format!("/{}/{id}", engine.host.cgroup_parent));
        if let Some(spec) = spec.as_object_mut() {
            spec.remove("hooks");
        }
        if let Some(resources) = spec["linux"]["resources"].as_object_mut() {
            resources.retain(|name, _: &mut Value| name == "devices");
        }
        let wanted = ContainerWanted {
            spec: spec.to_string().into_bytes(),
            rootfs: record.rootfs.clone().unwrap_or_default(),
            log: Some(LogOptions {
                enabled: false,
                max_segment_bytes: 0,
                max_segments: 0,
            }),
            etc_files: etc_files::files(record, None)?,
            ..ContainerWanted::default()
        };
        let view = Self {
            id,
            made: Some(Made {
                engine: Arc::clone(engine),
                ended,
                open: Some(open),
            }),
        };
        engine.peers.runtime.create(&view.id, wanted).await?;
        Ok(view)
    }

    /// Returns when the view must end, if ever.
    async fn ended(&self) {
        match &self.made {
            Some(made) => made.ended.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Ends the view, and answers when nothing of it is left.
    async fn close(mut self) -> Result<()> {
        let Some(made) = self.made.take() else {
            return Ok(());
        };
        made.close(&self.id).await
    }
}

impl Made {
    async fn close(mut self, id: &ContainerId) -> Result<()> {
        let open = self.open.take();
        let runtime = &self.engine.peers.runtime;
        let deleted = runtime.delete(id.as_str(), true, true).await;
        if let Err(error) = &deleted {
            tracing::warn!(container = %id, %error, "what showed the files of a container stays");
        }
        drop(open);
        deleted.map(drop)
    }
}

impl Drop for View {
    /// A view whose caller went away.
    fn drop(&mut self) {
        if let Some(made) = self.made.take() {
            let id = self.id.clone();
            tokio::spawn(async move {
                let _said = made.close(&id).await;
            });
        }
    }
}

/// The runtime knows the container that shows the files, which is another one
/// for a container that does not run: people know neither's id.
fn in_words(entry: &Entry, view: &View, path: &str, error: Error) -> Error {
    let name = entry.record().name.clone();
    match error {
        error if error.is_reason("PATH_NOT_FOUND") => Error::NoPath {
            name,
            path: path.to_owned(),
        },
        Error::Peer { peer, mut fault } => {
            fault.message = fault.message.replace(view.id.as_str(), &name);
            Error::Peer { peer, fault }
        }
        error => error,
    }
}

fn cut_off(entry: &Entry) -> Error {
    let record = entry.record();
    Error::WrongState {
        name: record.name.clone(),
        verb: "go on copying the files of",
        state: record.state,
    }
}

/// What is at a path.
///
/// # Errors
/// There is nothing, or a service fails.
pub async fn stat(engine: &Arc<Engine>, entry: &Arc<Entry>, place: Place) -> Result<FoundPath> {
    let view = View::open(engine, entry, "look at the files of").await?;
    let path = place.path.clone();
    let found = tokio::select! {
        found = engine.peers.runtime.stat_path(&view.id, place) => found,
        () = view.ended() => Err(cut_off(entry)),
    };
    let found = found.map_err(|error| in_words(entry, &view, &path, error));
    view.close().await?;
    found
}

/// A file or a directory as an archive, named `name`, or as the path says.
///
/// # Errors
/// There is nothing, or a service fails.
pub async fn out(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    place: Place,
    name: String,
) -> Result<BoxStream<'static, Result<Bytes>>> {
    let view = View::open(engine, entry, "copy out of").await?;
    let record = entry.record();
    let path = place.path.clone();
    let pieces = engine.peers.runtime.copy_out(&view.id, place, name).await;
    let pieces = match pieces {
        Ok(pieces) => pieces,
        Err(error) => {
            let error = in_words(entry, &view, &path, error);
            view.close().await?;
            return Err(error);
        }
    };
    engine.journal.note(&record, "archive-path", &[]);
    let entry = Arc::clone(entry);
    let answers = futures::stream::unfold(Some((view, pieces)), move |state| {
        let (entry, path) = (Arc::clone(&entry), path.clone());
        async move {
            let (view, mut pieces) = state?;
            let piece = tokio::select! {
                piece = pieces.next() => piece,
                () = view.ended() => Some(Err(cut_off(&entry))),
            };
            match piece {
                Some(Ok(piece)) => Some((Ok(piece), Some((view, pieces)))),
                Some(Err(error)) => {
                    let error = in_words(&entry, &view, &path, error);
                    let _said = view.close().await;
                    Some((Err(error), None))
                }
                // The end is told when nothing of the view is left.
                None => match view.close().await {
                    Ok(()) => None,
                    Err(error) => Some((Err(error), None)),
                },
            }
        }
    });
    Ok(answers.boxed())
}

/// Unpacks an archive into a directory.
///
/// # Errors
/// There is no such directory, the archive is damaged or breaks off, or a
/// service fails.
pub async fn into(
    engine: &Arc<Engine>,
    entry: &Arc<Entry>,
    path: String,
    keep_owner: bool,
    pieces: Pieces,
) -> Result<()> {
    let view = View::open(engine, entry, "copy into").await?;
    let copied = tokio::select! {
        copied = engine.peers.runtime.copy_in(&view.id, path.clone(), keep_owner, pieces) => copied,
        () = view.ended() => Err(cut_off(entry)),
    };
    let copied = copied.map_err(|error| in_words(entry, &view, &path, error));
    let closed = view.close().await;
    copied.and(closed)?;
    engine.journal.note(&entry.record(), "extract-to-dir", &[]);
    Ok(())
}
