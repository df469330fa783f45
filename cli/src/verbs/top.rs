//! `gantry top`: the processes of a container, as the host sees them.

use clap::Args;
use gantry_proto::gateway::v1::TopRequest;

use crate::exit::Failure;
use crate::processes::{Machine, columns, row};
use crate::session::Session;
use crate::{table, terminal};

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Container
    container: String,
    /// Options of ps(1) that choose columns: -ef, aux, -o pid,comm
    #[arg(value_name = "PS OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,
}

impl Top {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let columns = columns(&self.options).map_err(Failure::new)?;
        let request = TopRequest {
            container: self.container,
        };
        let mut client = session.engine.containers();
        let pids = client.top(request).await?.into_inner().pids;
        let machine = Machine::read();
        let headings = columns.iter().map(|column| column.heading.clone());
        let mut rows = vec![headings.collect::<Vec<_>>()];
        rows.extend(
            pids.into_iter()
                .filter_map(|pid| row(pid, &columns, &machine)),
        );
        terminal::print(&table::lines(&rows))?;
        Ok(0)
    }
}
