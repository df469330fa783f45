//! `gantry restart`: stops containers and starts them again.
//!
//! All at once: each takes its own time to end.

use clap::Args;
use futures::future::join_all;
use gantry_proto::gateway::v1::RestartRequest;

use crate::each::Each;
use crate::ending::Ending;
use crate::exit::Failure;
use crate::session::Session;

#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    ending: Ending,
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Restart {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let calls = self.containers.iter().map(|name| {
            let request = RestartRequest {
                container: name.clone(),
                timeout_seconds: self.ending.timeout,
                signal: self.ending.signal.clone(),
            };
            let mut client = session.engine.containers();
            async move { (name, client.restart(request).await) }
        });
        let mut each = Each::new(session);
        for (name, outcome) in join_all(calls).await {
            each.note(name, outcome)?;
        }
        Ok(each.code())
    }
}
