//! `gantry save`: writes images into a tar archive.

use std::io::{self, IsTerminal as _, Write};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use gantry_proto::image::v1::SaveRequest;
use gantry_proto::types::v1::Platform;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::exit::Failure;
use crate::new_file::NewFile;
use crate::parse::limits;
use crate::session::Session;

/// Pieces between the connection and the file.
const QUEUE: usize = 8;

#[derive(Debug, Args)]
pub(crate) struct Save {
    /// File to write; standard output where it is left out
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Refuse images of another platform: OS/ARCHITECTURE[/VARIANT]
    #[arg(long, value_parser = limits::platform)]
    platform: Option<Platform>,
    /// Images: names, ids or digests; a name without a tag means all its tags
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Save {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let file = match &self.output {
            Some(path) => Some(NewFile::begin(path).map_err(|error| self.cannot_write(&error))?),
            None if io::stdout().is_terminal() => {
                return Err(Failure::new(
                    "cowardly refusing to save to a terminal; use the -o flag or redirect",
                ));
            }
            None => None,
        };
        let request = SaveRequest {
            references: self.images.clone(),
            platform: self.platform.clone(),
        };
        let mut pieces = session.engine.archives().save(request).await?.into_inner();
        let (sender, waiting) = mpsc::channel(QUEUE);
        let writing = write(file, waiting);
        loop {
            let piece = pieces.message().await?.map(|piece| piece.chunk);
            let last = piece.is_none();
            // Where writing failed it says why below.
            if sender.send(piece).await.is_err() || last {
                break;
            }
        }
        match writing.await {
            Ok(Ok(())) => Ok(0),
            Ok(Err(error)) if self.output.is_some() => Err(self.cannot_write(&error)),
            Ok(Err(error)) => Err(error.into()),
            Err(lost) => Err(Failure::of(&lost)),
        }
    }

    fn cannot_write(&self, error: &io::Error) -> Failure {
        let path = self.output.clone().unwrap_or_default();
        Failure::new(format!("cannot write {}: {error}", path.display()))
    }
}

/// Writes on a thread of its own, so that receiving goes on meanwhile. Only a
/// `None` says that all has come: then the file gets its name.
fn write(
    mut file: Option<NewFile>,
    mut pieces: mpsc::Receiver<Option<Bytes>>,
) -> JoinHandle<io::Result<()>> {
    tokio::task::spawn_blocking(move || {
        while let Some(piece) = pieces.blocking_recv() {
            match (piece, &mut file) {
                (Some(piece), Some(file)) => file.write_all(&piece)?,
                (Some(piece), None) => io::stdout().write_all(&piece)?,
                (None, Some(_)) => return file.map_or(Ok(()), NewFile::finish),
                (None, None) => return io::stdout().flush(),
            }
        }
        Ok(())
    })
}
