//! `gantry push`: uploads an image to a registry.

use clap::Args;
use gantry_proto::image::v1::PushRequest;
use gantry_proto::types::v1::Platform;

use crate::content_trust::ContentTrust;
use crate::exit::Failure;
use crate::parse::limits;
use crate::progress::{self, Progress};
use crate::registry_auth;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Push {
    /// Upload every tag of the repository that is here
    #[arg(short, long)]
    all_tags: bool,
    /// Say nothing but the image's name
    #[arg(short, long)]
    quiet: bool,
    /// Refuse an image of another platform: OS/ARCHITECTURE[/VARIANT]
    #[arg(long, value_parser = limits::platform)]
    platform: Option<Platform>,
    #[command(flatten)]
    trust: ContentTrust,
    /// Image: [REGISTRY/]NAME[:TAG]
    image: String,
}

impl Push {
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
        let request = PushRequest {
            reference: self.image.clone(),
            auth: registry_auth::for_image(&self.image).await,
            all_tags: self.all_tags,
            platform: self.platform,
        };
        let mut progress = Progress::of_push(&self.image, self.quiet);
        let mut steps = session.engine.images().push(request).await?.into_inner();
        progress.push_begins()?;
        while let Some(step) = steps.message().await? {
            progress.pushed(step)?;
        }
        if self.quiet {
            terminal::println(&if self.all_tags {
                progress::repository(&self.image)
            } else {
                progress::canonical(&self.image)
            })?;
        }
        Ok(0)
    }
}
