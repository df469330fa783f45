//! `gantry port`: where a container's ports are published.

use clap::Args;
use gantry_proto::gateway::v1::InspectRequest;

use crate::display;
use crate::exit::Failure;
use crate::parse::ParseError;
use crate::parse::ports::{self, protocol_name};
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Port {
    /// Container
    container: String,
    /// Only this port of the container: PORT[/PROTOCOL]
    #[arg(value_parser = Wanted::parse)]
    port: Option<Wanted>,
}

/// A newtype, since clap takes a `Vec` for many values.
#[derive(Clone, Debug)]
struct Wanted(Vec<String>);

impl Wanted {
    fn parse(text: &str) -> Result<Self, ParseError> {
        let ports = ports::exposed(text);
        ports
            .map(Self)
            .map_err(|error| ParseError::refusal(error.to_string()))
    }
}

impl Port {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let request = InspectRequest {
            container: self.container.clone(),
            size: false,
        };
        let published = session
            .engine
            .containers()
            .inspect(request)
            .await?
            .into_inner()
            .container
            .and_then(|detail| detail.summary)
            .unwrap_or_default()
            .ports;
        let mut text = String::new();
        for port in &published {
            let inside = format!("{}/{}", port.container_port, protocol_name(port.protocol()));
            match &self.port {
                None => text.push_str(&format!("{inside} -> {}\n", display::host_side(port))),
                Some(Wanted(wanted)) if wanted.contains(&inside) => {
                    text.push_str(&format!("{}\n", display::host_side(port)));
                }
                Some(_) => {}
            }
        }
        if let (Some(Wanted(wanted)), true) = (&self.port, text.is_empty()) {
            return Err(Failure::new(format!(
                "container {} does not publish port {}",
                self.container,
                wanted.join(", ")
            )));
        }
        terminal::print(&text)?;
        Ok(0)
    }
}
