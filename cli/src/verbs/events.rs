//! `gantry events`: what happens, as it happens.

use clap::Args;
use gantry_proto::gateway::v1::{EventsRequest, EventsResponse};
use gantry_proto::image::v1::Filter;
use serde_json::{Map, Value, json};

use crate::display;
use crate::exit::Failure;
use crate::filters;
use crate::format::{AS_JSON, Format};
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
                Format::Json => as_json(&event).to_string(),
                Format::Each(template) => template
                    .render(&fields(&event))
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

fn actor(event: &EventsResponse) -> Value {
    let attributes = event.attributes.iter();
    let attributes: Map<String, Value> = attributes
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect();
    json!({"ID": event.id, "Attributes": attributes})
}

/// Whether Docker has an event's words at its top, too, as its first events had.
fn is_of_old_kind(event: &EventsResponse) -> bool {
    matches!(event.r#type.as_str(), "container" | "image")
}

fn image_of(event: &EventsResponse) -> &str {
    let image = event.attributes.get("image").map(String::as_str);
    image.filter(|_| is_of_old_kind(event)).unwrap_or_default()
}

fn nanos(event: &EventsResponse) -> (i64, i64) {
    let time = event.time.unwrap_or_default();
    let nanos = time.seconds.saturating_mul(1_000_000_000);
    (time.seconds, nanos.saturating_add(time.nanos.into()))
}

/// Docker's JSON: what is empty is left out.
fn as_json(event: &EventsResponse) -> Value {
    let (time, time_nano) = nanos(event);
    let mut data = json!({
        "Type": event.r#type,
        "Action": event.action,
        "Actor": actor(event),
        "scope": "local",
        "time": time,
        "timeNano": time_nano,
    });
    if is_of_old_kind(event) {
        data["status"] = event.action.as_str().into();
        for (key, value) in [("id", event.id.as_str()), ("from", image_of(event))] {
            if !value.is_empty() {
                data[key] = value.into();
            }
        }
    }
    data
}

/// Docker's names in templates.
fn fields(event: &EventsResponse) -> Value {
    let (time, time_nano) = nanos(event);
    let old = is_of_old_kind(event);
    let if_old = |text: &str| if old { text } else { "" }.to_owned();
    json!({
        "Status": if_old(&event.action),
        "ID": if_old(&event.id),
        "From": image_of(event),
        "Type": event.r#type,
        "Action": event.action,
        "Actor": actor(event),
        "Scope": "local",
        "Time": time,
        "TimeNano": time_nano,
        AS_JSON: as_json(event),
    })
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
        template.render(&fields(event)).unwrap()
    }

    #[test]
    fn an_event_is_shown_as_docker_does() {
        let container = event("container", "c1", &[("name", "web"), ("image", "debian")]);
        let volume = event("volume", "data", &[("driver", "local")]);
        assert_eq!(
            line(&container),
            "2020-01-02T00:00:00.000000005Z container create c1 (image=debian, name=web)"
        );
        let both = "{\"Action\":\"create\",\"Actor\":{\"Attributes\":{\"driver\":\"local\"},\"ID\":\"data\"},\"Type\":\"volume\",\"scope\":\"local\",\"time\":1577923200,\"timeNano\":1577923200000000005}";
        assert_eq!(rendered("{{json .}}", &volume), both);
        assert_eq!(as_json(&volume).to_string(), both);
        let json = as_json(&container);
        let words = [&json["status"], &json["id"], &json["from"]];
        assert_eq!(words, ["create", "c1", "debian"]);
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
