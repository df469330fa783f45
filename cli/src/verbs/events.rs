//! `gantry events`: what happens, as it happens.

use clap::Args;
use gantry_proto::gateway::v1::{EventsRequest, EventsResponse};
use gantry_proto::image::v1::Filter;
use serde_json::{Map, Value, json};

use crate::display;
use crate::exit::Failure;
use crate::filters;
use crate::format::Format;
use crate::parse::times;
use crate::session::Session;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Also what happened from this time on: 10m, 2006-01-02T15:04:05Z
    #[arg(long, value_name = "TIME", value_parser = times::point)]
    since: Option<prost_types::Timestamp>,
    /// Until this time
    #[arg(long, value_name = "TIME", value_parser = times::point)]
    until: Option<prost_types::Timestamp>,
    /// Only those that match: container, event, image, label, type
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filters::filter)]
    filter: Vec<Filter>,
    /// json, or a template
    #[arg(long)]
    format: Option<String>,
}

impl Events {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let format = Format::parse(self.format.as_deref()).map_err(|e| Failure::of(&e))?;
        if matches!(format, Format::Columns(_)) {
            return Err(Failure::new("events are no table: leave out \"table\""));
        }
        let request = EventsRequest {
            since: self.since,
            until: self.until,
            filters: self.filter,
        };
        let mut client = session.engine.containers();
        let mut events = client.events(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            let line = match &format {
                Format::Json => data(&event).to_string(),
                Format::Each(template) => template
                    .render(&data(&event))
                    .map_err(|e| Failure::of(&e))?,
                Format::Table | Format::Columns(_) => line(&event),
            };
            terminal::println(&line)?;
        }
        Ok(0)
    }
}

/// "2006-01-02T15:04:05.000000000Z container start ID (image=x, name=y)"
fn line(event: &EventsResponse) -> String {
    let time = event.time.unwrap_or_default();
    let mut attributes: Vec<String> = event
        .attributes
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    attributes.sort();
    let mut line = format!(
        "{} {} {} {}",
        display::rfc3339_nanos(&time),
        event.r#type,
        event.action,
        event.id
    );
    if !attributes.is_empty() {
        line.push_str(&format!(" ({})", attributes.join(", ")));
    }
    line
}

/// In the shape of Docker's events.
fn data(event: &EventsResponse) -> Value {
    let time = event.time.unwrap_or_default();
    let attributes: Map<String, Value> = event
        .attributes
        .iter()
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect();
    json!({
        "status": event.action,
        "Status": event.action,
        "id": event.id,
        "ID": event.id,
        "from": event.attributes.get("image"),
        "From": event.attributes.get("image"),
        "Type": event.r#type,
        "Action": event.action,
        "Actor": {"ID": event.id, "Attributes": attributes},
        "scope": "local",
        "Scope": "local",
        "time": time.seconds,
        "Time": time.seconds,
        "timeNano": time.seconds * 1_000_000_000 + i64::from(time.nanos),
        "TimeNano": time.seconds * 1_000_000_000 + i64::from(time.nanos),
    })
}
