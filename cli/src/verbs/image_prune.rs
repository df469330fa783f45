//! `gantry image prune`: removes images that nobody needs.

use clap::Args;
use gantry_proto::image::v1::{Filter, PruneRequest};

use crate::display;
use crate::exit::Failure;
use crate::filters;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct ImagePrune {
    /// Also images with a name that no container was made from
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only those that match: until, label, label!
    #[arg(long, value_name = "KEY=VALUE", value_parser = filters::filter)]
    filter: Vec<Filter>,
}

impl ImagePrune {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let warning = if self.all {
            "WARNING! This will remove all images without at least one container associated to them."
        } else {
            "WARNING! This will remove all dangling images."
        };
        if !self.force && !terminal::agreed(warning)? {
            return Ok(0);
        }
        let request = PruneRequest {
            all: self.all,
            filters: self.filter,
            dry_run: false,
        };
        let pruned = session.engine.store().prune(request).await?.into_inner();
        let mut text = String::new();
        if !pruned.untagged.is_empty() || !pruned.deleted.is_empty() {
            text.push_str("Deleted Images:\n");
            for name in &pruned.untagged {
                text.push_str(&format!("untagged: {name}\n"));
            }
            for id in &pruned.deleted {
                text.push_str(&format!("deleted: {id}\n"));
            }
            text.push('\n');
        }
        let reclaimed = display::exact_size(pruned.reclaimed);
        text.push_str(&format!("Total reclaimed space: {reclaimed}\n"));
        terminal::print(&text)?;
        Ok(0)
    }
}
