//! `gantry pull`: fetches an image from a registry.

use clap::Args;
use gantry_proto::image::v1::PullRequest;
use gantry_proto::types::v1::Platform;

use crate::exit::Failure;
use crate::parse::limits;
use crate::progress::{self, Channel, Progress};
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Say nothing but the image's name
    #[arg(short, long)]
    quiet: bool,
    /// Platform of the image: OS/ARCHITECTURE[/VARIANT]
    #[arg(long, value_parser = limits::platform)]
    platform: Option<Platform>,
    /// Image: [REGISTRY/]NAME[:TAG|@DIGEST]
    image: String,
}

impl Pull {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        progress::check_reference(&self.image).map_err(Failure::new)?;
        if !self.quiet && !self.image.contains('@') && progress::has_no_tag(&self.image) {
            terminal::println("Using default tag: latest")?;
        }
        let request = PullRequest {
            reference: self.image.clone(),
            platform: self.platform,
            ..PullRequest::default()
        };
        let mut progress = Progress::of_pull(&self.image, Channel::Stdout, self.quiet);
        let mut steps = session.engine.images().pull(request).await?.into_inner();
        while let Some(step) = steps.message().await? {
            progress.pulled(step)?;
        }
        terminal::println(&progress::canonical(&self.image))?;
        Ok(0)
    }
}
