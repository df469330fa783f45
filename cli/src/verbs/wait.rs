//! `gantry wait`: waits for containers to end, and prints their exit codes.

use clap::Args;
use gantry_proto::gateway::v1::{WaitCondition, WaitRequest};

use crate::each::Each;
use crate::exit::Failure;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// What to wait for: not-running, next-exit, removed
    #[arg(long, value_name = "CONDITION", default_value = "not-running", value_parser = ["not-running", "next-exit", "removed"])]
    condition: String,
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Wait {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let condition = match self.condition.as_str() {
            "next-exit" => WaitCondition::NextExit,
            "removed" => WaitCondition::Removed,
            _ => WaitCondition::NotRunning,
        };
        let mut client = session.engine.containers();
        let mut each = Each::new(session);
        for container in self.containers {
            let request = WaitRequest {
                container,
                condition: condition.into(),
            };
            if let Some(answer) = each.check(client.wait(request).await) {
                let status = answer.into_inner().status.unwrap_or_default();
                terminal::println(&status.code.to_string())?;
            }
        }
        Ok(each.code())
    }
}
