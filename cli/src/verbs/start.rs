//! `gantry start`: starts containers, with a window on one where asked.

use clap::Args;
use gantry_proto::gateway::v1::{InspectRequest, StartRequest};

use super::attach;
use super::run::DetachKeys;
use crate::each::Each;
use crate::exit::Failure;
use crate::session::Session;
use crate::stream::Wishes;

#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Show what it writes, and pass signals on to it
    #[arg(short, long)]
    attach: bool,
    /// Type into it
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave the container's terminal
    #[arg(long, value_name = "KEYS", value_parser = DetachKeys::parse)]
    detach_keys: Option<DetachKeys>,
    /// Begin where a checkpoint ended: refused, since none can be made
    #[arg(long, value_name = "NAME")]
    checkpoint: Option<String>,
    /// Where the checkpoint is: refused, as --checkpoint
    #[arg(long, value_name = "DIR")]
    checkpoint_dir: Option<String>,
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Start {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        if self.checkpoint.is_some() || self.checkpoint_dir.is_some() {
            return Err(Failure::new(
                "checkpoints are not supported: a container begins anew; leave out --checkpoint and --checkpoint-dir",
            ));
        }
        let mut client = session.engine.containers();
        if !self.attach && !self.interactive {
            let mut each = Each::new(session);
            for name in self.containers {
                let request = StartRequest {
                    container: name.clone(),
                };
                each.note(&name, client.start(request).await)?;
            }
            return Ok(each.code());
        }
        let [container] = self.containers.as_slice() else {
            return Err(Failure::new(
                "there is one window: give one container to -a or -i",
            ));
        };
        let request = InspectRequest {
            container: container.clone(),
            size: false,
        };
        let config = client
            .inspect(request)
            .await?
            .into_inner()
            .container
            .and_then(|detail| detail.config)
            .unwrap_or_default();
        let wishes = Wishes {
            tty: config.tty,
            stdin: self.interactive && config.stdin_open,
            ends_input: config.attached.is_some_and(|attached| attached.stdin),
            forward_signals: true,
            detach_keys: DetachKeys::or_default(self.detach_keys),
        };
        attach::window(session, container, wishes, true).await
    }
}
