//! `gantry events`: what happens, as it happens.

use clap::Args;
use gantry_proto::gateway::v1::{EventsRequest, EventsResponse};
use gantry_proto::image::v1::Filter;
use gantry_proto::types::v1::Stream;

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
    /// Only those that match: type, event, container, image, network, volume, label,
    /// scope, daemon. Of several values for one key any may match, of several labels
    /// all must
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
            terminal::write(Stream::Stdout, line + "\n").await?;
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
    display::escaped(&line)
}

/// In the shape of Docker's events, whose JSON leaves out what is empty. Those of
/// containers and images have their words at the top, too, as the first had.
fn data(event: &EventsResponse) -> Data {
    let is_of_old_kind = matches!(event.r#type.as_str(), "container" | "image");
    let if_old = |text: &str| if is_of_old_kind { text } else { "" }.to_owned();
    let image = event.attributes.get("image").map_or("", String::as_str);
    let time = event.time.unwrap_or_default();
    let nanos = time.seconds.saturating_mul(1_000_000_000);
    let nanos = nanos.saturating_add(time.nanos.into());
    Data::fields([
        Field::unless_empty("status", if_old(&event.action)),
        Field::for_templates("Status", if_old(&event.action)),
        Field::unless_empty("id", if_old(&event.id)),
        Field::for_templates("ID", if_old(&event.id)),
        Field::unless_empty("from", if_old(image)),
        Field::for_templates("From", if_old(image)),
        ("Type", event.r#type.as_str().into()).into(),
        ("Action", event.action.as_str().into()).into(),
        (
            "Actor",
            Data::fields([
                ("ID", event.id.as_str().into()),
                ("Attributes", Data::map(event.attributes.clone())),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;

    fn event(kind: &str, id: &str, attributes: &[(&str, &str)]) -> EventsResponse {
        let attributes = attributes.iter();
        EventsResponse {
            time: Some(prost_types::Timestamp {
                seconds: 1_577_923_200,
                nanos: 5,
            }),
            r#type: kind.to_owned(),
            action: "create".to_owned(),
            id: id.to_owned(),
            attributes: attributes
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    fn rendered(template: &str, event: &EventsResponse) -> String {
        let Format::Each(template) = Format::parse(Some(template)).unwrap() else {
            panic!("{template} is no template");
        };
        template.render(&data(event)).unwrap()
    }

    #[test]
    fn an_event_is_shown_as_docker_does() {
        let container = event("container", "c1", &[("name", "web"), ("image", "debian")]);
        let volume = event("volume", "data", &[("driver", "local")]);
        assert_eq!(
            line(&container),
            "2020-01-02T00:00:00.000000005Z container create c1 (image=debian, name=web)"
        );
        let both = r#"{"Type":"volume","Action":"create","Actor":{"ID":"data","Attributes":{"driver":"local"}},"scope":"local","time":1577923200,"timeNano":1577923200000000005}"#;
        assert_eq!(rendered("{{json .}}", &volume), both);
        assert_eq!(data(&volume).json(), both);
        let begin = r#"{"status":"create","id":"c1","from":"debian","Type":"container","#;
        assert!(data(&container).json().starts_with(begin));
        let all =
            "{{.ID}} {{.Status}} {{.From}} {{.Actor.Attributes.name}} {{.TimeNano}} {{.Scope}}";
        assert_eq!(
            rendered(all, &container),
            "c1 create debian web 1577923200000000005 local"
        );
        // As Docker prints it: only containers and images have the first three.
        assert_eq!(
            rendered(all, &volume),
            "   <no value> 1577923200000000005 local"
        );
    }
}
