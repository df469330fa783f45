//! `gantry diff`: what a container changed in its files, or what one image has other than another.

use clap::Args;
use gantry_proto::gateway::v1::DiffRequest;
use gantry_proto::image::v1::{Change, ChangeKind, CompareImagesRequest};
use gantry_proto::types::v1::Stream;

use crate::display;
use crate::exit::Failure;
use crate::session::Session;
use crate::terminal;

/// A: added. C: changed. D: deleted.
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// Container; with a second operand: the image that is compared with
    #[arg(value_name = "CONTAINER|IMAGE")]
    first: String,
    /// Image that is looked at
    #[arg(value_name = "IMAGE")]
    second: Option<String>,
}

impl Diff {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        match self.second {
            None => {
                let request = DiffRequest {
                    container: self.first,
                };
                let answer = session.engine.containers().diff(request).await?;
                let mut answers = answer.into_inner();
                while let Some(some) = answers.message().await? {
                    terminal::write(Stream::Stdout, lines(&some.changes)).await?;
                }
            }
            Some(second) => {
                let request = CompareImagesRequest {
                    from: self.first,
                    to: second,
                };
                let answer = session.engine.images().compare_images(request).await?;
                let mut answers = answer.into_inner();
                while let Some(some) = answers.message().await? {
                    terminal::write(Stream::Stdout, lines(&some.changes)).await?;
                }
            }
        }
        Ok(0)
    }
}

fn lines(changes: &[Change]) -> String {
    let mut lines = String::new();
    for change in changes {
        let letter = match change.kind() {
            ChangeKind::Added => 'A',
            ChangeKind::Deleted => 'D',
            ChangeKind::Modified | ChangeKind::Unspecified => 'C',
        };
        lines.push(letter);
        lines.push(' ');
        // A path must not write on the terminal what is not its own line.
        lines.push_str(&display::escaped(&change.path));
        lines.push('\n');
    }
    lines
}
