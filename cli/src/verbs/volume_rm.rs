//! `gantry volume rm`: removes volumes.

use clap::Args;
use gantry_proto::image::v1::RemoveVolumeRequest;

use crate::each::Each;
use crate::exit::Failure;
use crate::session::Session;

#[derive(Debug, Args)]
pub(crate) struct VolumeRm {
    /// A volume that does not exist is no error
    #[arg(short, long)]
    force: bool,
    /// Volumes
    #[arg(value_name = "VOLUME", required = true)]
    volumes: Vec<String>,
}

impl VolumeRm {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let mut client = session.engine.volumes();
        let mut each = Each::new(session);
        for name in self.volumes {
            let request = RemoveVolumeRequest {
                name: name.clone(),
                force: self.force,
            };
            each.note(&name, client.remove_volume(request).await)?;
        }
        Ok(each.code())
    }
}
