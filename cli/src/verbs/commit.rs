//! `gantry commit`: makes an image of a container.

use clap::Args;
use clap::builder::BoolishValueParser;
use gantry_proto::gateway::v1::CommitRequest;

use crate::exit::Failure;
use crate::progress;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Commit {
    /// Who made the image: "Name <mail@example.com>"
    #[arg(short, long, default_value = "", hide_default_value = true)]
    author: String,
    /// Dockerfile instruction to apply to the image: CMD, ENTRYPOINT, ENV, …
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Comment for the image's history
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// Freeze a running container while its files are read
    #[arg(
        short,
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "true",
        default_missing_value = "true",
        value_parser = BoolishValueParser::new()
    )]
    pause: bool,
    /// Let a running container go on: its files may not fit together
    #[arg(long)]
    no_pause: bool,
    /// Container
    container: String,
    /// Name of the image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    reference: Option<String>,
}

impl Commit {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        if let Some(reference) = &self.reference {
            progress::check_reference(reference).map_err(Failure::new)?;
        }
        let request = CommitRequest {
            container: self.container,
            reference: self.reference.unwrap_or_default(),
            author: self.author,
            message: self.message,
            changes: self.change,
            no_pause: self.no_pause || !self.pause,
        };
        let answer = session.engine.containers().commit(request).await?;
        let image = answer.into_inner().image.unwrap_or_default();
        terminal::println(&image.id)?;
        Ok(0)
    }
}
