//! `gantry unpause`: lets frozen containers go on.

use clap::Args;
use gantry_proto::gateway::v1::UnpauseRequest;

use crate::each::Each;
use crate::exit::Failure;
use crate::session::Session;

#[derive(Debug, Args)]
pub(crate) struct Unpause {
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Unpause {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let mut client = session.engine.containers();
        let mut each = Each::new(session);
        for name in self.containers {
            let request = UnpauseRequest {
                container: name.clone(),
            };
            each.note(&name, client.unpause(request).await)?;
        }
        Ok(each.code())
    }
}
