//! `gantry rename`: gives a container another name.

use clap::Args;
use gantry_proto::gateway::v1::RenameRequest;

use crate::exit::Failure;
use crate::session::Session;

#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// Container
    container: String,
    /// Its new name
    name: String,
}

impl Rename {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let request = RenameRequest {
            container: self.container,
            name: self.name,
        };
        session.engine.containers().rename(request).await?;
        Ok(0)
    }
}
