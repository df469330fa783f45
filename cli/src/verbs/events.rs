//! `gantry events`: what happens, as it happens.

use clap::Args;
use gantry_proto::gateway::v1::{EventsRequest, EventsResponse};
use gantry_proto::image::v1::Filter;

use crate::display;
use crate::exit::Failure;
use crate::filters;
use crate::format::{Data, Field, Format};
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
                Format::Json => data(&event).json(),
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
fn data(event: &EventsResponse) -> Data {
    let time = event.time.unwrap_or_default();
    let attributes = event.attributes.clone();
    let image = event.attributes.get("image");
    let nanos = time.seconds * 1_000_000_000 + i64::from(time.nanos);
    Data::fields([
        ("status", event.action.as_str().into()).into(),
        Field::for_templates("Status", event.action.as_str()),
        ("id", event.id.as_str().into()).into(),
        Field::for_templates("ID", event.id.as_str()),
        ("from", image.map_or("", String::as_str).into()).into(),
        Field::for_templates("From", image.map_or("", String::as_str)),
        ("Type", event.r#type.as_str().into()).into(),
        ("Action", event.action.as_str().into()).into(),
        (
            "Actor",
            Data::fields([
                ("ID", event.id.as_str().into()),
                ("Attributes", Data::map(attributes)),
            ]),
        )
            .into(),
        ("scope", "local".into()).into(),
        Field::for_templates("Scope", "local"),
        ("time", time.seconds.into()).into(),
        Field::for_templates("Time", time.seconds),
        ("timeNano", nanos.into()).into(),
        Field::for_templates("TimeNano", nanos),
    ])
}
