//! `gantry volume prune`: removes volumes that no container uses.

use clap::Args;
use gantry_proto::image::v1::{Filter, PruneVolumesRequest, PruneVolumesResponse};

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
        let pruned = prune(session, self.all, self.filter).await?;
        let mut text = deleted(&pruned);
        let reclaimed = display::exact_size(pruned.reclaimed);
        text.push_str(&format!("Total reclaimed space: {reclaimed}\n"));
        terminal::print(&text)?;
        Ok(0)
    }
}

pub(super) async fn prune(
    session: &Session,
    all: bool,
    filters: Vec<Filter>,
) -> Result<PruneVolumesResponse, Failure> {
    let request = PruneVolumesRequest { all, filters };
    let answer = session.engine.volumes().prune_volumes(request).await?;
    Ok(answer.into_inner())
}

/// What was removed, as Docker lists it.
pub(super) fn deleted(pruned: &PruneVolumesResponse) -> String {
    if pruned.deleted.is_empty() {
        return String::new();
    }
    format!("Deleted Volumes:\n{}\n\n", pruned.deleted.join("\n"))
}
