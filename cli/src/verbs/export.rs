//! `gantry export`: a container's whole file system as a tar archive.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use gantry_proto::gateway::v1::ExportRequest;
use gantry_proto::types::v1::Stream;

use crate::exit::Failure;
use crate::new_file::NewFile;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Container
    container: String,
}

impl Export {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        if self.output.is_none() && io::stdout().is_terminal() {
            return Err(Failure::new(
                "cowardly refusing to export to a terminal; use the -o flag or redirect",
            ));
        }
        let request = ExportRequest {
            container: self.container.clone(),
        };
        let begun = self.output.as_deref().map(NewFile::begin).transpose();
        let mut file = begun.map_err(|error| self.not_written(error))?;
        let answer = session.engine.containers().export(request).await?;
        let mut chunks = answer.into_inner();
        while let Some(chunk) = chunks.message().await? {
            let written = match file {
                Some(whole) => {
                    let (whole, written) = write(whole, chunk.chunk).await?;
                    file = Some(whole);
                    written
                }
                None => terminal::write(Stream::Stdout, chunk.chunk).await,
            };
            written.map_err(|error| self.not_written(error))?;
        }
        file.map_or(Ok(()), NewFile::finish)
            .map_err(|error| self.not_written(error))?;
        Ok(0)
    }

    fn not_written(&self, error: io::Error) -> Failure {
        match &self.output {
            Some(path) => Failure::new(format!("cannot write {}: {error}", path.display())),
            None => error.into(),
        }
    }
}

/// Writes on a thread of its own: the file may be a pipe.
async fn write(mut file: NewFile, bytes: Bytes) -> Result<(NewFile, io::Result<()>), Failure> {
    let write = move || {
        let written = file.write_all(&bytes);
        (file, written)
    };
    tokio::task::spawn_blocking(write)
        .await
        .map_err(|error| Failure::of(&error))
}
