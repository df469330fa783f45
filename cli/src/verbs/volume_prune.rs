//! `gantry volume prune`: removes volumes that no container uses.

use clap::Args;
use gantry_proto::image::v1::{Filter, PruneVolumesRequest};

use crate::agreement::agreed;
use crate::display;
use crate::exit::Failure;
use crate::filters;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct VolumePrune {
    /// Also those that have a name
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only those that match: label, label!, until, all
    #[arg(long, value_name = "KEY=VALUE", value_parser = filters::filter)]
    filter: Vec<Filter>,
}

impl VolumePrune {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let warning = if self.all {
            "WARNING! This will remove all local volumes not used by at least one container."
        } else {
            "WARNING! This will remove anonymous local volumes not used by at least one container."
        };
        if !self.force && !agreed(warning)? {
            return Ok(0);
        }
        let request = PruneVolumesRequest {
            all: self.all,
            filters: self.filter,
        };
        let answer = session.engine.volumes().prune_volumes(request).await?;
        let pruned = answer.into_inner();
        let mut text = String::new();
        if !pruned.deleted.is_empty() {
            text.push_str("Deleted Volumes:\n");
            for name in &pruned.deleted {
                text.push_str(&format!("{name}\n"));
            }
            text.push('\n');
        }
        let reclaimed = display::exact_size(pruned.reclaimed);
        text.push_str(&format!("Total reclaimed space: {reclaimed}\n"));
        terminal::print(&text)?;
        Ok(0)
    }
}
