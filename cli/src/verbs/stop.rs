//! `gantry stop`: asks containers to end, and kills them when their time is over.
//!
//! All at once: each takes its own time to end.

use clap::Args;
use futures::future::join_all;
use gantry_proto::gateway::v1::StopRequest;

use crate::each::Each;
use crate::ending::Ending;
use crate::exit::Failure;
use crate::session::Session;

#[derive(Debug, Args)]
pub(crate) struct Stop {
    #[command(flatten)]
    ending: Ending,
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Stop {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let calls = self.containers.iter().map(|name| {
            let request = StopRequest {
                container: name.clone(),
                timeout_seconds: self.ending.timeout,
                signal: self.ending.signal.clone(),
            };
            let mut client = session.engine.containers();
            async move { (name, client.stop(request).await) }
        });
        let mut each = Each::new(session);
        for (name, outcome) in join_all(calls).await {
            each.note(name, outcome)?;
        }
        Ok(each.code())
    }
}
