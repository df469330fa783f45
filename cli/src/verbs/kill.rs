//! `gantry kill`: sends a signal to containers' first processes.

use clap::Args;
use gantry_proto::gateway::v1::KillRequest;

use crate::each::Each;
use crate::exit::Failure;
use crate::session::Session;

#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Signal, by name or number
    #[arg(short, long, default_value = "KILL", allow_hyphen_values = true)]
    signal: String,
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Kill {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let mut client = session.engine.containers();
        let mut each = Each::new(session);
        for name in self.containers {
            let request = KillRequest {
                exec_id: String::new(),
                container: name.clone(),
                signal: self.signal.clone(),
            };
            each.note(&name, client.kill(request).await)?;
        }
        Ok(each.code())
    }
}
