//! `gantry rmi`: removes images.

use clap::Args;
use gantry_proto::image::v1::{RemoveRequest, RemoveResponse};

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
        let mut waiting = self.images;
        let mut first_turn = true;
        // A parent goes once its children are gone, in whatever order they were named.
        loop {
            let count = waiting.len();
            let mut parents = Vec::new();
            for reference in waiting {
                let request = RemoveRequest {
                    reference: reference.clone(),
                    force: self.force,
                    no_prune: self.no_prune,
                    ..RemoveRequest::default()
                };
                match client.remove(request).await.map_err(Failure::from) {
                    // It went with its last child.
                    Err(failure) if !first_turn && failure.is("IMAGE_NOT_FOUND") => {}
                    // As Docker: said, and no failure.
                    Err(failure) if self.force && failure.is("IMAGE_NOT_FOUND") => {
                        failure.say(session.engine.socket());
                    }
                    Err(failure) if failure.is("IMAGE_HAS_CHILDREN") => {
                        parents.push((reference, failure));
                    }
                    outcome => {
                        if let Some(answer) = each.check(outcome) {
                            show(&answer.into_inner())?;
                        }
                    }
                }
            }
            if parents.is_empty() || parents.len() == count {
                for (_, failure) in parents {
                    each.check::<()>(Err(failure));
                }
                return Ok(each.code());
            }
            waiting = parents
                .into_iter()
                .map(|(reference, _)| reference)
                .collect();
            first_turn = false;
        }
    }
}

fn show(removed: &RemoveResponse) -> Result<(), Failure> {
    for name in &removed.untagged {
        terminal::println(&format!("Untagged: {name}"))?;
    }
    for id in &removed.deleted {
        terminal::println(&format!("Deleted: {id}"))?;
    }
    Ok(())
}
