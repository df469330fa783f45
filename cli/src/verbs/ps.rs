//! `gantry ps`: lists containers.

use clap::Args;
use gantry_proto::gateway::v1::{ContainerState, ContainerSummary, ListRequest, MountType};
use gantry_proto::image::v1::Filter;
use serde_json::{Value, json};

use crate::display;
use crate::exit::Failure;
use crate::filters;
use crate::format::Format;
use crate::lists;
use crate::session::Session;
use crate::terminal;

/// Docker's own table.
const TABLE: &str =
    "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";

const SIZED_TABLE: &str = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}\t{{.Size}}";

const HEADINGS: [(&str, &str); 14] = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("State", "STATE"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("Networks", "NETWORKS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Size", "SIZE"),
];

/// Characters of a command in the table.
const COMMAND_WIDTH: usize = 20;

/// Characters of a mount's source or name.
const MOUNT_WIDTH: usize = 15;

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Only the newest
    #[arg(short, long)]
    latest: bool,
    /// Only so many of the newest
    #[arg(short = 'n', long, value_name = "COUNT", allow_negative_numbers = true)]
    last: Option<i32>,
    /// Show the sizes of their files
    #[arg(short, long)]
    size: bool,
    /// Cut nothing
    #[arg(long)]
    no_trunc: bool,
    /// Only those that match: name, id, label, status, ancestor, …
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filters::filter)]
    filter: Vec<Filter>,
    /// table, json, or a template
    #[arg(long)]
    format: Option<String>,
}

impl Ps {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let format = Format::parse(self.format.as_deref()).map_err(|e| Failure::of(&e))?;
        let last = match self.last.and_then(|count| u32::try_from(count).ok()) {
            Some(count) if count > 0 => count,
            _ => u32::from(self.latest),
        };
        let request = ListRequest {
            all: self.all || last > 0,
            limit: last,
            filters: self.filter,
            // As Docker: also where a template names it.
            size: self.size
                || self
                    .format
                    .as_ref()
                    .is_some_and(|text| text.contains(".Size")),
            ..ListRequest::default()
        };
        let containers = lists::containers(session.engine.containers(), request).await?;
        if self.quiet {
            if self.format.is_some() {
                eprintln!("WARNING: --quiet shows ids, and --format has no effect beside it");
            }
            let ids: String = containers
                .iter()
                .map(|container| id(container, self.no_trunc) + "\n")
                .collect();
            terminal::print(&ids)?;
            return Ok(0);
        }
        let rows: Vec<Value> = containers
            .iter()
            .map(|container| row(container, self.no_trunc))
            .collect();
        let text = format
            .rows(
                &rows,
                if self.size { SIZED_TABLE } else { TABLE },
                &HEADINGS,
            )
            .map_err(|e| Failure::of(&e))?;
        terminal::print(&text)?;
        Ok(0)
    }
}

fn id(container: &ContainerSummary, whole: bool) -> String {
    if whole {
        container.id.clone()
    } else {
        display::short_id(&container.id)
    }
}

pub(crate) fn row(container: &ContainerSummary, whole: bool) -> Value {
    let command = command_line(&container.command);
    let command = if whole {
        command
    } else {
        display::shortened(&command, COMMAND_WIDTH)
    };
    let image = if whole || !container.image.starts_with("sha256:") {
        container.image.clone()
    } else {
        display::short_id(&container.image)
    };
    let mut labels: Vec<String> = container
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.sort();
    let mounts: Vec<String> = container
        .mounts
        .iter()
        .map(|mount| match mount.name.as_str() {
            "" => mount.source.as_str(),
            name => name,
        })
        .filter(|source| !source.is_empty())
        .map(|source| {
            if whole {
                source.to_owned()
            } else {
                display::shortened(source, MOUNT_WIDTH)
            }
        })
        .collect();
    let volumes = container
        .mounts
        .iter()
        .filter(|mount| mount.r#type() == MountType::Volume)
        .count();
    json!({
        "ID": id(container, whole),
        "Image": image,
        "Command": display::quoted(&command),
        "CreatedAt": display::date_time(container.created.as_ref()),
        "RunningFor": display::ago(container.created.as_ref()),
        "Status": status(container),
        "State": state_word(container.state()),
        "Ports": ports(container),
        "Names": container.name,
        "Labels": labels.join(","),
        "Label": container.labels,
        "Mounts": mounts.join(","),
        "Networks": networks(&container.network_mode),
        "LocalVolumes": volumes.to_string(),
        "Size": size(container),
    })
}

/// As Docker writes it: an argument with a blank in single quotes.
fn command_line(words: &[String]) -> String {
    let words =
        words
            .iter()
            .enumerate()
            .map(|(index, word)| match index > 0 && word.contains(' ') {
                true => format!("'{word}'"),
                false => word.clone(),
            });
    words.collect::<Vec<_>>().join(" ")
}

/// One that shares another container's is on none itself.
fn networks(mode: &str) -> &str {
    match mode {
        "" => "bridge",
        shared if shared.starts_with("container:") => "",
        name => name,
    }
}

/// "2B (virtual 1.24MB)"; "0B" where it was not asked for, as Docker.
fn size(container: &ContainerSummary) -> String {
    let own = display::size(container.size_rw_bytes.unwrap_or_default());
    match container.size_root_bytes {
        Some(whole) if whole > 0 => format!("{own} (virtual {})", display::size(whole)),
        _ => own,
    }
}

fn ports(container: &ContainerSummary) -> String {
    match container.state() {
        ContainerState::Running | ContainerState::Paused => {
            display::ports(&container.ports, &container.exposed_ports)
        }
        _ => String::new(),
    }
}

/// "running", as `inspect` and filters have it.
pub(crate) fn state_word(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Unspecified => "unknown",
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Paused => "paused",
        ContainerState::Restarting => "restarting",
        ContainerState::Exited => "exited",
        ContainerState::Removing => "removing",
        ContainerState::Dead => "dead",
    }
}

/// "Up 5 minutes", "Exited (0) 2 hours ago".
fn status(container: &ContainerSummary) -> String {
    let up =
        || display::age_of(container.started_at.as_ref()).unwrap_or_else(|| "some time".to_owned());
    let ended = || {
        let exit = container.exit.clone().unwrap_or_default();
        format!("({}) {}", exit.code, display::ago(exit.exited_at.as_ref()))
    };
    let status = match container.state() {
        ContainerState::Unspecified => "Unknown".to_owned(),
        ContainerState::Created => "Created".to_owned(),
        ContainerState::Running => match container.health.as_str() {
            "" => format!("Up {}", up()),
            "starting" => format!("Up {} (health: starting)", up()),
            health => format!("Up {} ({health})", up()),
        },
        ContainerState::Paused => format!("Up {} (Paused)", up()),
        ContainerState::Restarting => format!("Restarting {}", ended()),
        ContainerState::Exited => format!("Exited {}", ended()),
        ContainerState::Removing => "Removal In Progress".to_owned(),
        ContainerState::Dead => "Dead".to_owned(),
    };
    if container.sick.is_empty() {
        status
    } else {
        format!("{status} (sick: {})", container.sick)
    }
}
