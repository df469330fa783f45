//! `gantry system prune`: removes what nobody uses.

use clap::Args;
use gantry_proto::image::v1::{Filter, PruneVolumesResponse};

use super::{container_prune, image_prune, volume_prune};
use crate::agreement::agreed;
use crate::display;
use crate::exit::Failure;
use crate::filters;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct SystemPrune {
    /// All images that no container was made from, and not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Also anonymous volumes that no container uses
    #[arg(long)]
    volumes: bool,
    /// Only those that match: until, label, label!
    #[arg(long, value_name = "KEY=VALUE", value_parser = filters::filter)]
    filter: Vec<Filter>,
}

impl SystemPrune {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let images = if self.all {
            "all images without at least one container associated to them"
        } else {
            "all dangling images"
        };
        if self.volumes && self.filter.iter().any(|filter| filter.key == "until") {
            return Err(Failure::new(
                "the \"until\" filter is not supported with \"--volumes\": leave out one of the two",
            ));
        }
        let volumes = if self.volumes {
            "  - all anonymous volumes not used by at least one container\n"
        } else {
            ""
        };
        let warning = format!(
            "WARNING! This will remove:\n  - all stopped containers\n{volumes}  - {images}\n"
        );
        if !self.force && !agreed(&warning)? {
            return Ok(0);
        }
        let containers = container_prune::prune(session, self.filter.clone()).await?;
        // Containers first: what they used nobody uses then.
        let volumes = match self.volumes {
            true => volume_prune::prune(session, false, self.filter.clone()).await?,
            false => PruneVolumesResponse::default(),
        };
        let images = image_prune::prune(session, self.all, self.filter).await?;
        let reclaimed = containers.reclaimed_bytes + volumes.reclaimed + images.reclaimed;
        let text = format!(
            "{}{}{}Total reclaimed space: {}\n",
            container_prune::deleted(&containers),
            volume_prune::deleted(&volumes),
            image_prune::deleted(&images),
            display::exact_size(reclaimed)
        );
        terminal::print(&text)?;
        Ok(0)
    }
}
