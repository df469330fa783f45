//! `gantry pull`: fetches an image from a registry.

use clap::Args;
use gantry_proto::image::v1::PullRequest;
use gantry_proto::types::v1::Platform;

use crate::content_trust::ContentTrust;
use crate::exit::Failure;
use crate::parse::limits;
use crate::progress::{self, Channel, Progress};
use crate::registry_auth;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Fetch every tag of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Say nothing but the image's name
    #[arg(short, long)]
    quiet: bool,
    /// Platform of the image: OS/ARCHITECTURE[/VARIANT]
    #[arg(long, value_parser = limits::platform)]
    platform: Option<Platform>,
    #[command(flatten)]
    trust: ContentTrust,
    /// Image: [REGISTRY/]NAME[:TAG|@DIGEST]
    image: String,
}

impl Pull {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        self.trust.check()?;
        progress::check_reference(&self.image).map_err(Failure::new)?;
        let is_repository = progress::has_no_tag(&self.image);
        if self.all_tags && !is_repository {
            return Err(Failure::new("tag can't be used with --all-tags/-a"));
        }
        if !self.quiet && !self.all_tags && is_repository {
            terminal::println("Using default tag: latest")?;
        }
        let request = PullRequest {
            reference: self.image.clone(),
            platform: self.platform,
            auth: registry_auth::for_image(&self.image).await,
            all_tags: self.all_tags,
        };
        let mut progress = Progress::of_pull(&self.image, Channel::Stdout, self.quiet);
        if self.all_tags {
            progress = progress.of_many();
        }
        let mut steps = session.engine.images().pull(request).await?.into_inner();
        while let Some(step) = steps.message().await? {
            progress.pulled(step)?;
        }
        progress.all_pulled()?;
        terminal::println(&if self.all_tags {
            progress::repository(&self.image)
        } else {
            progress::canonical(&self.image)
        })?;
        Ok(0)
    }
}
