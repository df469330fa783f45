//! `gantry tag`: gives an image one more name.

use clap::Args;
use gantry_proto::image::v1::TagRequest;

use crate::exit::Failure;
use crate::progress;
use crate::session::Session;

#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// Image
    source: String,
    /// Its new name: [REGISTRY/]NAME[:TAG]
    target: String,
}

impl Tag {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        progress::check_reference(&self.target).map_err(Failure::new)?;
        let request = TagRequest {
            source: self.source,
            target: self.target,
        };
        session.engine.images().tag(request).await?;
        Ok(0)
    }
}
