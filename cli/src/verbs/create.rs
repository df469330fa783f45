//! `gantry create`: a container that does not run yet.

use clap::Args;
use gantry_proto::gateway::v1::{CreateRequest, PullPolicy};
use gantry_proto::image::v1::PullRequest;

use super::run::CidFile;
use crate::container_options::ContainerOptions;
use crate::display;
use crate::exit::Failure;
use crate::progress::{self, Channel, Progress};
use crate::registry_auth;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Create {
    #[command(flatten)]
    options: ContainerOptions,
    /// Image to make it of
    image: String,
    /// Program and arguments, in place of the image's
    #[arg(value_name = "COMMAND", allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Create {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let config = self.options.config(&self.image, &self.command)?;
        let mut cidfile = self
            .options
            .cidfile
            .as_deref()
            .map(CidFile::create)
            .transpose()?;
        if self.options.pull() == PullPolicy::Always {
            self.pull(session).await?;
        }
        let request = CreateRequest {
            config: Some(config),
            name: self.options.name.clone().unwrap_or_default(),
        };
        let mut containers = session.engine.containers();
        let created = match containers
            .create(request.clone())
            .await
            .map_err(Failure::from)
        {
            Err(failure)
                if failure.is("IMAGE_NOT_FOUND") && self.options.pull() == PullPolicy::Missing =>
            {
                if !self.options.quiet {
                    eprintln!(
                        "Unable to find image '{}' locally",
                        progress::familiar(&self.image)
                    );
                }
                self.pull(session).await?;
                containers.create(request).await?
            }
            answer => answer?,
        }
        .into_inner();
        for warning in &created.warnings {
            eprintln!("gantry: warning: {}", display::escaped(warning));
        }
        if let Some(file) = &mut cidfile {
            file.write(&created.container_id)?;
        }
        terminal::println(&created.container_id)?;
        Ok(0)
    }

    async fn pull(&self, session: &Session) -> Result<(), Failure> {
        let request = PullRequest {
            reference: self.image.clone(),
            platform: self.options.platform(),
            auth: registry_auth::for_image(&self.image).await,
            ..PullRequest::default()
        };
        let mut progress = Progress::of_pull(&self.image, Channel::Stderr, self.options.quiet);
        let mut steps = session.engine.images().pull(request).await?.into_inner();
        while let Some(step) = steps.message().await? {
            progress.pulled(step)?;
        }
        Ok(())
    }
}
