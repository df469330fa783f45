//! `gantry volume ls`: lists volumes.

use clap::Args;
use gantry_proto::image::v1::{Filter, ListVolumesRequest, Volume};
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::filters;
use crate::format::Format;
use crate::lists;
use crate::session::Session;
use crate::terminal;

const TABLE: &str = "{{.Driver}}\t{{.Name}}";

pub(crate) const HEADINGS: [(&str, &str); 7] = [
    ("Driver", "DRIVER"),
    ("Name", "VOLUME NAME"),
    ("Scope", "SCOPE"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Labels", "LABELS"),
    ("Links", "LINKS"),
    ("Size", "SIZE"),
];

#[derive(Debug, Args)]
pub(crate) struct VolumeLs {
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    /// Only those that match: name, label, dangling, driver
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filters::filter)]
    filter: Vec<Filter>,
    /// table, json, or a template
    #[arg(long)]
    format: Option<String>,
}

impl VolumeLs {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let format = Format::parse(self.format.as_deref()).map_err(|e| Failure::of(&e))?;
        let request = ListVolumesRequest {
            filters: self.filter,
            ..ListVolumesRequest::default()
        };
        let volumes = lists::volumes(session.engine.volumes(), request).await?;
        if self.quiet && self.format.is_none() {
            let names: String = volumes.iter().map(|v| v.name.clone() + "\n").collect();
            terminal::print(&names)?;
            return Ok(0);
        }
        let rows: Vec<Value> = volumes.iter().map(row).collect();
        let text = format
            .rows(&rows, TABLE, &HEADINGS)
            .map_err(|e| Failure::of(&e))?;
        terminal::print(&text)?;
        Ok(0)
    }
}

/// A volume as templates see it. How large it is and who uses it, `system df -v`
/// says.
pub(crate) fn row(volume: &Volume) -> Value {
    let mut labels: Vec<String> = volume
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.sort();
    json!({
        "Availability": "N/A",
        "Driver": volume.driver,
        "Group": "N/A",
        "Labels": labels.join(","),
        "Label": volume.labels,
        "Links": "N/A",
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Scope": "local",
        "Size": "N/A",
        "Status": "N/A",
    })
}
