//! `gantry rmi`: removes images.

use clap::Args;
use gantry_proto::image::v1::RemoveRequest;

use crate::each::Each;
use crate::exit::Failure;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Rmi {
    /// Remove all names of an image, and it, also where a container is made of it
    #[arg(short, long)]
    force: bool,
    /// Keep parents without a name that only this image has
    #[arg(long)]
    no_prune: bool,
    /// Images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

impl Rmi {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let mut client = session.engine.images();
        let mut each = Each::new(session);
        for reference in self.images {
            let request = RemoveRequest {
                reference,
                force: self.force,
                no_prune: self.no_prune,
                ..RemoveRequest::default()
            };
            match client.remove(request).await.map_err(Failure::from) {
                // As Docker: said, and no failure.
                Err(failure) if self.force && failure.is("IMAGE_NOT_FOUND") => {
                    failure.say(session.engine.socket());
                }
                outcome => {
                    if let Some(answer) = each.check(outcome) {
                        let answer = answer.into_inner();
                        for name in &answer.untagged {
                            terminal::println(&format!("Untagged: {name}"))?;
                        }
                        for id in &answer.deleted {
                            terminal::println(&format!("Deleted: {id}"))?;
                        }
                    }
                }
            }
        }
        Ok(each.code())
    }
}
