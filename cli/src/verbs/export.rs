//! `gantry export`: a container's whole file system as a tar archive.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use clap::Args;
use gantry_proto::gateway::v1::ExportRequest;

use crate::exit::Failure;
use crate::new_file::NewFile;
use crate::session::Session;

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
            let written = match &mut file {
                Some(file) => file.write_all(&chunk.chunk),
                None => io::stdout().lock().write_all(&chunk.chunk),
            };
            written.map_err(|error| self.not_written(error))?;
        }
        let finished = match file {
            Some(file) => file.finish(),
            None => io::stdout().lock().flush(),
        };
        finished.map_err(|error| self.not_written(error))?;
        Ok(0)
    }

    fn not_written(&self, error: io::Error) -> Failure {
        match &self.output {
            Some(path) => Failure::new(format!("cannot write {}: {error}", path.display())),
            None => error.into(),
        }
    }
}
