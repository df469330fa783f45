//! `gantry rm`: removes containers.

use clap::Args;
use gantry_proto::gateway::v1::RemoveRequest;

use crate::each::Each;
use crate::exit::Failure;
use crate::session::Session;

#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Kill what runs; a container that does not exist is no error
    #[arg(short, long)]
    force: bool,
    /// Remove their anonymous volumes too
    #[arg(short, long)]
    volumes: bool,
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Rm {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let mut client = session.engine.containers();
        let mut each = Each::new(session);
        for name in self.containers {
            let request = RemoveRequest {
                container: name.clone(),
                force: self.force,
                volumes: self.volumes,
            };
            match client.remove(request).await.map_err(Failure::from) {
                // As Docker: said, and no failure.
                Err(failure) if self.force && failure.is("CONTAINER_NOT_FOUND") => {
                    failure.say(session.engine.socket());
                }
                outcome => each.note(&name, outcome)?,
            }
        }
        Ok(each.code())
    }
}
