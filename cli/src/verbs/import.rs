//! `gantry import`: makes an image of a tar archive. One at a URL is fetched by the engine.

use std::path::PathBuf;

use bytes::BytesMut;
use clap::Args;
use gantry_proto::image::v1::{ImportHeader, ImportRequest, import_request::Part};
use gantry_proto::types::v1::Platform;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::exit::Failure;
use crate::parse::limits;
use crate::progress;
use crate::session::Session;
use crate::terminal;

/// Bytes of one message.
const CHUNK: usize = 256 << 10;
/// Chunks read ahead.
const QUEUE: usize = 8;

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Dockerfile instruction to apply to the image: CMD, ENTRYPOINT, ENV, …
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Comment for the image's history
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// Platform of the image: OS/ARCHITECTURE[/VARIANT]
    #[arg(long, value_parser = limits::platform)]
    platform: Option<Platform>,
    /// Archive, plain, gzip or zstd: a file, http://… or https://…, or - for standard input
    #[arg(value_name = "FILE|URL|-")]
    file: PathBuf,
    /// Name of the image
    reference: Option<String>,
}

impl Import {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        if let Some(reference) = &self.reference {
            progress::check_reference(reference).map_err(Failure::new)?;
        }
        let url = self.file.to_str().filter(|text| is_url(text));
        let source: Box<dyn AsyncRead + Send + Unpin> = if url.is_some() {
            Box::new(tokio::io::empty())
        } else if self.file.as_os_str() == "-" {
            if terminal::stdin_is_terminal() {
                return Err(Failure::new(
                    "standard input is a terminal; redirect an archive to it",
                ));
            }
            Box::new(tokio::io::stdin())
        } else {
            Box::new(tokio::fs::File::open(&self.file).await.map_err(|error| {
                Failure::new(format!("cannot read the archive {:?}: {error}", self.file))
            })?)
        };
        let header = ImportHeader {
            reference: self.reference.unwrap_or_default(),
            changes: self.change,
            message: self.message,
            platform: self.platform,
            source_url: url.unwrap_or_default().to_owned(),
        };
        let (parts, waiting) = mpsc::channel(QUEUE);
        let sender = tokio::spawn(send(header, source, parts));
        let answer = session
            .engine
            .images()
            .import(ReceiverStream::new(waiting))
            .await;
        // A file that cannot be read is why the call failed, not the other way
        // round.
        sender.abort();
        if let Ok(Err(error)) = sender.await {
            return Err(Failure::new(format!(
                "cannot read the archive {:?}: {error}",
                self.file
            )));
        }
        let image = answer?.into_inner().image.unwrap_or_default();
        terminal::println(&image.id)?;
        Ok(0)
    }
}

fn is_url(text: &str) -> bool {
    let scheme = text.split("://").next().unwrap_or_default();
    text.contains("://") && matches!(&*scheme.to_ascii_lowercase(), "http" | "https")
}

/// Sends the archive; the stream ends unfinished where it cannot be read.
async fn send(
    header: ImportHeader,
    mut source: Box<dyn AsyncRead + Send + Unpin>,
    parts: mpsc::Sender<ImportRequest>,
) -> std::io::Result<()> {
    let message = |part| ImportRequest { part: Some(part) };
    if parts.send(message(Part::Header(header))).await.is_err() {
        return Ok(());
    }
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK);
        if source.read_buf(&mut chunk).await? == 0 {
            return Ok(());
        }
        let part = Part::Chunk(chunk.freeze());
        if parts.send(message(part)).await.is_err() {
            return Ok(());
        }
    }
}
