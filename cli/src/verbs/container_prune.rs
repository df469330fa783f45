//! `gantry container prune`: removes all containers that do not run.

use clap::Args;
use gantry_proto::gateway::v1::{PruneRequest, PruneResponse};
use gantry_proto::image::v1::Filter;

use crate::agreement::agreed;
use crate::display;
use crate::exit::Failure;
use crate::filters;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct ContainerPrune {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only those that match: until, label, label!
    #[arg(long, value_name = "KEY=VALUE", value_parser = filters::filter)]
    filter: Vec<Filter>,
}

impl ContainerPrune {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let warning = "WARNING! This will remove all stopped containers.";
        if !self.force && !agreed(warning)? {
            return Ok(0);
        }
        let pruned = prune(session, self.filter).await?;
        let reclaimed = display::exact_size(pruned.reclaimed_bytes);
        let text = format!("{}Total reclaimed space: {reclaimed}\n", deleted(&pruned));
        terminal::print(&text)?;
        Ok(0)
    }
}

pub(super) async fn prune(
    session: &Session,
    filters: Vec<Filter>,
) -> Result<PruneResponse, Failure> {
    let request = PruneRequest { filters };
    let answer = session.engine.containers().prune(request).await?;
    Ok(answer.into_inner())
}

/// What was removed, as Docker lists it.
pub(super) fn deleted(pruned: &PruneResponse) -> String {
    if pruned.container_ids.is_empty() {
        return String::new();
    }
    format!(
        "Deleted Containers:\n{}\n\n",
        pruned.container_ids.join("\n")
    )
}
