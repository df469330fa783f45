//! `gantry pause`: freezes all processes of containers.

use clap::Args;
use gantry_proto::gateway::v1::PauseRequest;

use crate::each::Each;
use crate::exit::Failure;
use crate::session::Session;

#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Pause {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let mut client = session.engine.containers();
        let mut each = Each::new(session);
        for name in self.containers {
            let request = PauseRequest {
                container: name.clone(),
            };
            each.note(&name, client.pause(request).await)?;
        }
        Ok(each.code())
    }
}
