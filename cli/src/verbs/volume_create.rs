//! `gantry volume create`: makes a volume.

use clap::Args;
use gantry_proto::image::v1::CreateVolumeRequest;

use crate::exit::Failure;
use crate::parse::{ParseError, environment};
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct VolumeCreate {
    /// Driver: local
    #[arg(short, long, default_value = "local")]
    driver: String,
    /// Set a label
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Option of the driver: type=tmpfs and o=size=…, or type=none, o=bind and device=/PATH
    #[arg(short, long = "opt", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// Name; without one the volume is anonymous
    #[arg(value_name = "VOLUME")]
    name: Option<String>,
    /// The same, as older versions of Docker had it
    #[arg(
        long = "name",
        value_name = "VOLUME",
        hide = true,
        conflicts_with = "name"
    )]
    named: Option<String>,
}

impl VolumeCreate {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let refused = |error: ParseError| Failure::usage(error.to_string());
        let no_files: [&str; 0] = [];
        let request = CreateVolumeRequest {
            name: self.name.or(self.named).unwrap_or_default(),
            driver: self.driver,
            options: environment::pairs("--opt", &self.options).map_err(refused)?,
            labels: environment::labels(&no_files, &self.label).map_err(refused)?,
        };
        let answer = session.engine.volumes().create_volume(request).await?;
        let volume = answer.into_inner().volume.unwrap_or_default();
        terminal::println(&volume.name)?;
        Ok(0)
    }
}
