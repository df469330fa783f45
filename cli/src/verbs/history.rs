//! `gantry history`: how an image was built.

use clap::Args;
use gantry_proto::image::v1::{InspectRequest, InspectResponse};
use gantry_proto::types::v1::Platform;
use serde_json::{Value, json};

use crate::display;
use crate::exit::Failure;
use crate::format::Format;
use crate::inspect::image::configuration;
use crate::parse::limits;
use crate::session::Session;
use crate::terminal;

const TABLE: &str = "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";

const EXACT_TABLE: &str = "{{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";

const HEADINGS: [(&str, &str); 6] = [
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

/// Characters of an instruction in the table.
const WIDTH: usize = 45;

#[derive(Debug, Args)]
pub(crate) struct History {
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Cut nothing
    #[arg(long)]
    no_trunc: bool,
    /// Sizes and ages for people; false for bytes and times
    #[arg(short = 'H', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    human: bool,
    /// Refuse an image of another platform: OS/ARCHITECTURE[/VARIANT]
    #[arg(long, value_parser = limits::platform)]
    platform: Option<Platform>,
    /// table, json, or a template
    #[arg(long)]
    format: Option<String>,
    /// Image
    image: String,
}

impl History {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let format = Format::parse(self.format.as_deref()).map_err(|e| Failure::of(&e))?;
        let request = InspectRequest {
            reference: self.image.clone(),
            platform: self.platform.clone(),
        };
        let image = session.engine.images().inspect(request).await?.into_inner();
        let rows = self.rows(&image)?;
        if self.quiet {
            for row in &rows {
                terminal::println(row["ID"].as_str().unwrap_or_default())?;
            }
            return Ok(0);
        }
        let text = format
            .rows(
                &rows,
                if self.human { TABLE } else { EXACT_TABLE },
                &HEADINGS,
            )
            .map_err(|e| Failure::of(&e))?;
        terminal::print(&text)?;
        Ok(0)
    }

    /// The newest step first. Only the last step's result has a name: the image.
    fn rows(&self, response: &InspectResponse) -> Result<Vec<Value>, Failure> {
        let config = configuration(&response.config);
        let image = response.image.clone().unwrap_or_default();
        let mut sizes = response.layer_sizes.iter();
        let mut rows: Vec<Value> = config["history"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|step| {
                let empty = step["empty_layer"].as_bool().unwrap_or(false);
                let size = if empty {
                    0
                } else {
                    sizes.next().copied().unwrap_or(0)
                };
                self.row(step, size)
            })
            .collect();
        rows.reverse();
        if let Some(newest) = rows.first_mut() {
            newest["ID"] = if self.no_trunc {
                image.id.into()
            } else {
                display::short_id(&image.id).into()
            };
        }
        Ok(rows)
    }

    fn row(&self, step: &Value, size: u64) -> Value {
        let text = |key: &str| step[key].as_str().unwrap_or_default();
        let created = text("created")
            .parse::<jiff::Timestamp>()
            .ok()
            .map(crate::parse::times::wire);
        let by = text("created_by").replace('\t', " ");
        let at = display::rfc3339(created.as_ref());
        json!({
            "ID": "<missing>",
            "CreatedAt": at,
            "CreatedSince": if self.human { display::ago(created.as_ref()) } else { at.clone() },
            "CreatedBy": if self.no_trunc { by } else { display::shortened(&by, WIDTH) },
            "Size": if self.human { display::size(size) } else { size.to_string() },
            "Comment": text("comment"),
        })
    }
}
