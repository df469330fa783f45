//! `gantry system prune`: removes what nobody uses.

use clap::Args;
use gantry_proto::image::v1::Filter;

use super::{container_prune, image_prune};
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
        let warning =
            format!("WARNING! This will remove:\n  - all stopped containers\n  - {images}\n");
        if !self.force && !agreed(&warning)? {
            return Ok(0);
        }
        let containers = container_prune::prune(session, self.filter.clone()).await?;
        let images = image_prune::prune(session, self.all, self.filter).await?;
        let reclaimed = display::exact_size(containers.reclaimed_bytes + images.reclaimed);
        let text = format!(
            "{}{}Total reclaimed space: {reclaimed}\n",
            container_prune::deleted(&containers),
            image_prune::deleted(&images)
        );
        terminal::print(&text)?;
        Ok(0)
    }
}
