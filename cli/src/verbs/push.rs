//! `gantry push`: uploads an image to a registry.

use clap::Args;
use gantry_proto::image::v1::PushRequest;

use crate::exit::Failure;
use crate::progress::{self, Progress};
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Push {
    /// Say nothing but the image's name
    #[arg(short, long)]
    quiet: bool,
    /// Image: [REGISTRY/]NAME[:TAG]
    image: String,
}

impl Push {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        progress::check_reference(&self.image).map_err(Failure::new)?;
        let request = PushRequest {
            reference: self.image.clone(),
            ..PushRequest::default()
        };
        let mut progress = Progress::of_push(&self.image, self.quiet);
        let mut steps = session.engine.images().push(request).await?.into_inner();
        progress.push_begins()?;
        while let Some(step) = steps.message().await? {
            progress.pushed(step)?;
        }
        if self.quiet {
            terminal::println(&progress::canonical(&self.image))?;
        }
        Ok(0)
    }
}
