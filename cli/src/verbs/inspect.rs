//! `gantry inspect`: everything known of containers, images, volumes and networks.

use clap::Args;
use gantry_proto::gateway::v1::{InspectRequest, ListRequest};
use gantry_proto::image::v1::{
    Filter, InspectRequest as ImageInspectRequest, InspectVolumeRequest,
};
use gantry_proto::network::v1::ListNetworksRequest;
use tonic::Code;

use crate::exit::Failure;
use crate::format::{Data, Template};
use crate::inspect;
use crate::lists;
use crate::session::Session;
use crate::terminal;

const KINDS: [&str; 4] = ["container", "image", "network", "volume"];

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// json, or a template
    #[arg(short, long)]
    format: Option<String>,
    /// Look among these only: container, image, network, volume
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Show the sizes of containers' files
    #[arg(short, long)]
    size: bool,
    /// Containers, images, volumes and networks
    #[arg(value_name = "OBJECT", required = true)]
    objects: Vec<String>,
}

impl Inspect {
    /// `inspect` of objects of one kind: `gantry image inspect`.
    pub(crate) fn only(mut self, kind: &str) -> Self {
        self.kind = Some(kind.to_owned());
        self
    }

    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        if let Some(kind) = self.kind.as_deref()
            && !KINDS.contains(&kind)
        {
            return Err(Failure::new(format!(
                "--type {kind:?} is not known; there are {}",
                KINDS.join(", ")
            )));
        }
        let template = match self.format.as_deref() {
            None | Some("" | "json") => None,
            Some(text) => Some(Template::parse(text).map_err(|e| Failure::of(&e))?),
        };
        let mut documents = Vec::new();
        let mut failures = Vec::new();
        for object in &self.objects {
            match self.find(session, object).await {
                Ok(document) => documents.push(document),
                Err(failure) => failures.push(failure),
            }
        }
        match (&template, self.format.as_deref()) {
            (Some(template), _) => {
                for document in &documents {
                    let line = template.render(document).map_err(|e| Failure::of(&e))?;
                    terminal::println(&line)?;
                }
            }
            (None, Some("json")) => {
                terminal::println(&Data::list(documents).json())?;
            }
            (None, _) => terminal::println(&inspect::pretty(&documents))?,
        }
        for failure in &failures {
            failure.say(session.engine.socket());
        }
        Ok(u8::from(!failures.is_empty()))
    }

    async fn find(&self, session: &Session, object: &str) -> Result<Data, Failure> {
        match self.kind.as_deref() {
            Some("volume") => return volume(session, object).await.map_err(Failure::from),
            Some("network") => return network(session, object).await,
            _ => {}
        }
        if self.kind.as_deref() != Some("image") {
            let request = InspectRequest {
                container: object.to_owned(),
                size: self.size,
            };
            match session.engine.containers().inspect(request).await {
                Ok(answer) => {
                    let detail = answer.into_inner().container.unwrap_or_default();
                    return Ok(inspect::container::document(&detail));
                }
                Err(status) if self.kind.is_some() || status.code() != Code::NotFound => {
                    return Err(status.into());
                }
                Err(_) => {}
            }
        }
        let request = ImageInspectRequest {
            reference: object.to_owned(),
            platform: None,
        };
        match session.engine.images().inspect(request).await {
            Ok(answer) => Ok(inspect::image::document(&answer.into_inner())),
            // What is no image's name may still have been meant as a container's.
            Err(status)
                if self.kind.is_none()
                    && matches!(status.code(), Code::NotFound | Code::InvalidArgument) =>
            {
                match volume(session, object).await {
                    Err(status) if status.code() == Code::NotFound => {
                        network(session, object).await.map_err(|_none| {
                            Failure::new(format!(
                                "there is neither a container nor an image nor a volume nor a network {object:?}"
                            ))
                        })
                    }
                    outcome => outcome.map_err(Failure::from),
                }
            }
            Err(status) => Err(status.into()),
        }
    }
}

/// A network, with the containers that are on it.
async fn network(session: &Session, name: &str) -> Result<Data, Failure> {
    let request = ListNetworksRequest {};
    let networks = session.engine.networks().list_networks(request).await?;
    let mut networks = networks.into_inner().networks.into_iter();
    let Some(network) = networks.find(|network| network.name == name) else {
        return Err(Failure::new(format!("no such network: {name}")));
    };
    let mut containers = session.engine.containers();
    let filter = Filter {
        key: "network".to_owned(),
        value: name.to_owned(),
    };
    let request = ListRequest {
        filters: vec![filter],
        ..ListRequest::default()
    };
    let listed = lists::containers(containers.clone(), request).await?;
    let mut on_it = Vec::new();
    for container in listed {
        let request = InspectRequest {
            container: container.id,
            size: false,
        };
        // One that is gone meanwhile is not on it.
        if let Ok(answer) = containers.inspect(request).await {
            on_it.extend(answer.into_inner().container);
        }
    }
    Ok(inspect::network::document(&network, &on_it))
}

async fn volume(session: &Session, name: &str) -> Result<Data, tonic::Status> {
    let request = InspectVolumeRequest {
        name: name.to_owned(),
    };
    let answer = session.engine.volumes().inspect_volume(request).await?;
    let volume = answer.into_inner().volume.unwrap_or_default();
    Ok(inspect::volume::document(&volume))
}
