//! `gantry load`: reads images from a tar archive.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use gantry_proto::image::v1::load_request::Part;
use gantry_proto::image::v1::load_response::Event;
use gantry_proto::image::v1::{LoadHeader, LoadRequest, LoadedImage};
use gantry_proto::types::v1::Platform;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::exit::Failure;
use crate::parse::limits;
use crate::progress::Progress;
use crate::session::Session;
use crate::terminal;

/// Bytes of one message.
const CHUNK: usize = 1 << 20;
/// Chunks read ahead.
const QUEUE: usize = 4;

#[derive(Debug, Args)]
pub(crate) struct Load {
    /// Archive to read, plain, gzip or zstd; standard input where it is left out
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Platform of images that the archive has for several: OS/ARCHITECTURE[/VARIANT]
    #[arg(long, value_parser = limits::platform)]
    platform: Option<Platform>,
}

impl Load {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let source: Box<dyn Read + Send> = match &self.input {
            Some(path) => Box::new(File::open(path).map_err(|error| self.cannot_read(&error))?),
            None if terminal::stdin_is_terminal() => {
                return Err(Failure::new(
                    "requested load from stdin, but stdin is empty: it is a terminal; use the -i flag or redirect an archive to it",
                ));
            }
            None => Box::new(io::stdin()),
        };
        let (parts, waiting) = mpsc::channel(QUEUE);
        let header = LoadHeader {
            platform: self.platform.clone(),
        };
        let reading = read(header, source, parts);
        let answer = session
            .engine
            .archives()
            .load(ReceiverStream::new(waiting))
            .await;
        let outcome = match answer {
            Ok(events) => self.follow(events.into_inner()).await,
            Err(status) => Err(status.into()),
        };
        // A file that cannot be read is why the call failed, not the other way
        // round. Whoever stopped listening is not waited for: a read of a
        // terminal or a pipe may never end.
        if reading.is_finished()
            && let Ok(Err(error)) = reading.await
        {
            return Err(self.cannot_read(&error));
        }
        outcome.map(|()| 0)
    }

    async fn follow(
        &self,
        mut events: tonic::Streaming<gantry_proto::image::v1::LoadResponse>,
    ) -> Result<(), Failure> {
        let mut progress = Progress::of_load(self.quiet);
        while let Some(response) = events.message().await? {
            match response.event {
                Some(Event::Layer(layer)) => progress.loading(&layer)?,
                Some(Event::Loaded(image)) => {
                    for line in lines(&image) {
                        progress.say(&line)?;
                    }
                }
                None => {}
            }
        }
        progress.finish();
        Ok(())
    }

    fn cannot_read(&self, error: &io::Error) -> Failure {
        let what = self.input.as_ref().map_or_else(
            || "standard input".to_owned(),
            |path| path.display().to_string(),
        );
        Failure::new(format!("cannot read the archive {what}: {error}"))
    }
}

/// What Docker says of a loaded image.
fn lines(loaded: &LoadedImage) -> Vec<String> {
    let taken = loaded.taken.iter().map(|taken| {
        format!(
            "The image {} already exists, renaming the old one with ID {} to empty string",
            taken.name, taken.image_id
        )
    });
    let mut lines: Vec<String> = taken.collect();
    if loaded.names.is_empty() {
        let id = loaded.image.as_ref().map_or("", |image| image.id.as_str());
        lines.push(format!("Loaded image ID: {id}"));
    }
    lines.extend(
        loaded
            .names
            .iter()
            .map(|name| format!("Loaded image: {name}")),
    );
    lines
}

/// Sends the archive from a thread of its own. Where it cannot be read, the
/// stream ends unfinished.
fn read(
    header: LoadHeader,
    mut source: Box<dyn Read + Send>,
    parts: mpsc::Sender<LoadRequest>,
) -> JoinHandle<io::Result<()>> {
    tokio::task::spawn_blocking(move || {
        let message = |part| LoadRequest { part: Some(part) };
        if parts.blocking_send(message(Part::Header(header))).is_err() {
            return Ok(());
        }
        loop {
            let mut chunk = vec![0; CHUNK];
            let count = match source.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            chunk.truncate(count);
            let part = Part::Chunk(Bytes::from(chunk));
            if parts.blocking_send(message(part)).is_err() {
                return Ok(());
            }
        }
    })
}
