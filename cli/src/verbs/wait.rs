//! `gantry wait`: waits for containers to end, and prints their exit codes.

use clap::Args;
use gantry_proto::gateway::v1::{WaitCondition, WaitRequest};

use crate::each::Each;
use crate::exit::Failure;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Wait {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let mut client = session.engine.containers();
        let mut each = Each::new(session);
        for container in self.containers {
            let request = WaitRequest {
                container,
                condition: WaitCondition::NotRunning.into(),
            };
            if let Some(answer) = each.check(client.wait(request).await) {
                let status = answer.into_inner().status.unwrap_or_default();
                terminal::println(&status.code.to_string())?;
            }
        }
        Ok(each.code())
    }
}
