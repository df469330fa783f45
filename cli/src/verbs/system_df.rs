//! `gantry system df`: what images and containers take on the disk, and what
//! frees it.

use std::collections::HashMap;

use clap::Args;
use gantry_proto::gateway::v1::{ContainerState, ContainerSummary, ListRequest};
use gantry_proto::image::v1::{DiskUsageResponse, FreedBy, Owner, OwnerKind, VolumeUsage};
use serde_json::{Value, json};

use super::{images, ps, volume_ls};
use crate::display;
use crate::exit::Failure;
use crate::format::Format;
use crate::lists;
use crate::session::Session;
use crate::terminal;

const TABLE: &str = "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";
const IMAGES: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}";
const CONTAINERS: &str = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}";
const VOLUMES: &str = "{{.Name}}\t{{.Links}}\t{{.Size}}";
const OWNERS: &str = "{{.Type}}\t{{.Name}}\t{{.Size}}\t{{.KeptBy}}\t{{.FreedBy}}";

const HEADINGS: [(&str, &str); 22] = [
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("Containers", "CONTAINERS"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("Names", "NAMES"),
    ("Name", "NAME"),
    ("Bytes", "BYTES"),
    ("KeptBy", "KEPT BY"),
    ("FreedBy", "FREED BY"),
];

#[derive(Debug, Args)]
pub(crate) struct SystemDf {
    /// Each image and each container
    #[arg(short, long, conflicts_with = "explain")]
    verbose: bool,
    /// Whom each byte belongs to, why it is kept, and what frees it
    #[arg(long)]
    explain: bool,
    /// table, json, or a template
    #[arg(long, conflicts_with = "verbose")]
    format: Option<String>,
}

impl SystemDf {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let format = Format::parse(self.format.as_deref()).map_err(|e| Failure::of(&e))?;
        let everything = ListRequest {
            all: true,
            ..ListRequest::default()
        };
        let (usage, containers) = tokio::try_join!(
            lists::disk_usage(session.engine.store()),
            lists::containers(session.engine.containers(), everything)
        )?;
        let shown_under = |rows: &[Value], table: &str, headings: &[(&str, &str)]| {
            format
                .rows(rows, table, headings)
                .map_err(|e| Failure::of(&e))
        };
        let shown = |rows: &[Value], table: &str| shown_under(rows, table, &HEADINGS);
        let text = if self.explain {
            let rows: Vec<Value> = usage
                .owners
                .iter()
                .map(|owner| owner_row(owner, &containers))
                .collect();
            let mut text = shown(&rows, OWNERS)?;
            if matches!(format, Format::Table) {
                text.push('\n');
                text.push_str(&promises(&usage));
            }
            text
        } else if self.verbose {
            format!(
                "Images space usage:\n\n{}\nContainers space usage:\n\n{}\nLocal Volumes space usage:\n\n{}",
                shown(&image_rows(&usage), IMAGES)?,
                shown_under(
                    &container_rows(&usage, &containers),
                    CONTAINERS,
                    &HEADINGS.map(|(field, heading)| match field {
                        "ID" => (field, "CONTAINER ID"),
                        _ => (field, heading),
                    }),
                )?,
                shown_under(&volume_rows(&usage), VOLUMES, &volume_ls::HEADINGS)?,
            )
        } else {
            shown(&summary(&usage, &containers), TABLE)?
        };
        terminal::print(&text)?;
        Ok(0)
    }
}

fn is_running(container: &ContainerSummary) -> bool {
    matches!(
        container.state(),
        ContainerState::Running | ContainerState::Paused | ContainerState::Restarting
    )
}

/// A row for each type, as Docker's. Sizes are of what is on the disk: an
/// image's packed layers count as its unpacked ones.
fn summary(usage: &DiskUsageResponse, containers: &[ContainerSummary]) -> Vec<Value> {
    let sum = |is: &dyn Fn(&Owner) -> bool| -> u64 {
        let owners = usage.owners.iter().filter(|owner| is(owner));
        owners.map(|owner| owner.bytes).sum()
    };
    let of_images = |owner: &Owner| {
        matches!(
            owner.kind(),
            OwnerKind::Layer | OwnerKind::PackedLayer | OwnerKind::Metadata
        ) && owner.freed_by() != FreedBy::Prune
    };
    let freed_with_images = |owner: &Owner| {
        of_images(owner)
            && matches!(
                owner.freed_by(),
                FreedBy::ImagePrune | FreedBy::ImagePruneAll
            )
    };
    let used = usage.images.iter().filter(|image| image.containers > 0);
    let running: Vec<&str> = containers
        .iter()
        .filter(|container| is_running(container))
        .map(|container| container.id.as_str())
        .collect();
    let written = |owner: &Owner| owner.kind() == OwnerKind::WritableLayer;
    let idle = |owner: &Owner| written(owner) && !running.contains(&owner.name.as_str());
    let leftovers = |owner: &Owner| owner.freed_by() == FreedBy::Prune;
    let mut rows = vec![
        row(
            "Images",
            usage.images.len(),
            used.count(),
            sum(&of_images),
            sum(&freed_with_images),
        ),
        row(
            "Containers",
            usage.snapshots.len(),
            running.len(),
            sum(&written),
            sum(&idle),
        ),
        row(
            "Local Volumes",
            usage.volumes.len(),
            usage.volumes.iter().filter(|used| is_used(used)).count(),
            usage.volumes.iter().map(|volume| volume.size).sum(),
            usage
                .volumes
                .iter()
                .filter(|used| !is_used(used))
                .map(|volume| volume.size)
                .sum(),
        ),
        // Nothing is built here; scripts that read Docker's rows find this one too.
        row("Build Cache", 0, 0, 0, 0),
    ];
    let count = usage.owners.iter().filter(|owner| leftovers(owner)).count();
    if count > 0 {
        let bytes = sum(&leftovers);
        rows.push(row("Leftovers", count, 0, bytes, bytes));
    }
    rows
}

fn row(name: &str, total: usize, active: usize, size: u64, reclaimable: u64) -> Value {
    let share = match size {
        0 => String::new(),
        _ => format!(" ({}%)", u128::from(reclaimable) * 100 / u128::from(size)),
    };
    json!({
        "Type": name,
        "TotalCount": total.to_string(),
        "Active": active.to_string(),
        "Size": display::exact_size(size),
        "Reclaimable": format!("{}{share}", display::exact_size(reclaimable)),
    })
}

fn image_rows(usage: &DiskUsageResponse) -> Vec<Value> {
    let mut rows = Vec::new();
    for usage in &usage.images {
        let image = usage.image.clone().unwrap_or_default();
        for mut row in images::rows(&image, false, false) {
            row["SharedSize"] = display::exact_size(usage.shared_size).into();
            row["UniqueSize"] = display::exact_size(usage.unique_size).into();
            row["Containers"] = usage.containers.to_string().into();
            rows.push(row);
        }
    }
    rows
}

fn is_used(usage: &VolumeUsage) -> bool {
    let volume = usage.volume.as_ref();
    volume.is_some_and(|volume| !volume.used_by.is_empty())
}

fn volume_rows(usage: &DiskUsageResponse) -> Vec<Value> {
    let rows = usage.volumes.iter().map(|usage| {
        let volume = usage.volume.clone().unwrap_or_default();
        let mut row = volume_ls::row(&volume);
        row["Links"] = volume.used_by.len().to_string().into();
        row["Size"] = display::exact_size(usage.size).into();
        row
    });
    rows.collect()
}

fn container_rows(usage: &DiskUsageResponse, containers: &[ContainerSummary]) -> Vec<Value> {
    let sizes: HashMap<&str, u64> = usage
        .snapshots
        .iter()
        .map(|snapshot| (snapshot.container_id.as_str(), snapshot.size))
        .collect();
    let rows = containers.iter().map(|container| {
        let mut row = ps::row(container, false);
        let size = sizes.get(container.id.as_str()).copied().unwrap_or(0);
        row["Size"] = display::exact_size(size).into();
        row
    });
    rows.collect()
}

fn owner_row(owner: &Owner, containers: &[ContainerSummary]) -> Value {
    let named = |id: &String| {
        let container = containers.iter().find(|container| container.id == *id);
        container.map_or_else(
            || short(id),
            |container| format!("container {}", container.name),
        )
    };
    let kept_by: Vec<String> = owner.kept_by.iter().map(named).collect();
    let name = match owner.kind() {
        OwnerKind::WritableLayer => {
            let container = containers.iter().find(|c| c.id == owner.name);
            container.map_or_else(|| short(&owner.name), |container| container.name.clone())
        }
        _ => short(&owner.name),
    };
    json!({
        "Type": kind_word(owner.kind()),
        "Name": name,
        "Size": display::exact_size(owner.bytes),
        "Bytes": owner.bytes.to_string(),
        "KeptBy": kept_by.join(", "),
        "FreedBy": freed_by_words(owner.freed_by()),
    })
}

/// A digest without its algorithm, and short; anything else as it is.
fn short(name: &str) -> String {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let is_digest = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    if is_digest {
        display::short_id(hex)
    } else {
        name.to_owned()
    }
}

const fn kind_word(kind: OwnerKind) -> &'static str {
    match kind {
        OwnerKind::Unspecified => "unknown",
        OwnerKind::Layer => "layer",
        OwnerKind::PackedLayer => "packed layer",
        OwnerKind::Metadata => "metadata",
        OwnerKind::WritableLayer => "writable layer",
        OwnerKind::PartialDownload => "partial download",
        OwnerKind::Trash => "trash",
        OwnerKind::Index => "index",
        OwnerKind::InProgress => "in progress",
        OwnerKind::Store => "store",
        OwnerKind::Foreign => "foreign file",
        OwnerKind::Volume => "volume",
    }
}

const fn freed_by_words(freed_by: FreedBy) -> &'static str {
    match freed_by {
        FreedBy::Unspecified | FreedBy::Nothing => "",
        FreedBy::Prune => "any prune",
        FreedBy::ImagePrune => "image prune",
        FreedBy::ImagePruneAll => "image prune -a",
        FreedBy::ContainerRemoval => "rm of its containers",
        FreedBy::VolumePrune => "volume prune",
        FreedBy::VolumePruneAll => "volume prune -a",
    }
}

/// What each prune would free now.
fn promises(usage: &DiskUsageResponse) -> String {
    let sum = |kinds: &[FreedBy]| -> u64 {
        let owners = usage.owners.iter();
        let freed = owners.filter(|owner| kinds.contains(&owner.freed_by()));
        freed.map(|owner| owner.bytes).sum()
    };
    let dangling = [FreedBy::Prune, FreedBy::ImagePrune];
    let all = [FreedBy::Prune, FreedBy::ImagePrune, FreedBy::ImagePruneAll];
    format!(
        "Total: {}\n`gantry image prune` frees {}\n`gantry image prune -a` frees {}\nKept by containers: {}\n",
        display::exact_size(usage.total),
        display::exact_size(sum(&dangling)),
        display::exact_size(sum(&all)),
        display::exact_size(sum(&[FreedBy::ContainerRemoval])),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(kind: OwnerKind, name: &str, bytes: u64, freed_by: FreedBy) -> Owner {
        Owner {
            kind: kind.into(),
            name: name.to_owned(),
            bytes,
            kept_by: Vec::new(),
            freed_by: freed_by.into(),
        }
    }

    #[test]
    fn the_summary_is_docker_s_over_what_is_on_the_disk() {
        let usage = DiskUsageResponse {
            owners: vec![
                owner(OwnerKind::Layer, "a", 600, FreedBy::ImagePruneAll),
                owner(OwnerKind::PackedLayer, "b", 400, FreedBy::ContainerRemoval),
                owner(
                    OwnerKind::WritableLayer,
                    "c1",
                    50,
                    FreedBy::ContainerRemoval,
                ),
                owner(
                    OwnerKind::WritableLayer,
                    "c2",
                    150,
                    FreedBy::ContainerRemoval,
                ),
                owner(OwnerKind::PartialDownload, "d", 7, FreedBy::Prune),
                owner(OwnerKind::Store, "", 4096, FreedBy::Nothing),
            ],
            images: vec![Default::default()],
            snapshots: vec![Default::default(), Default::default()],
            total: 5303,
            ..DiskUsageResponse::default()
        };
        let running = ContainerSummary {
            id: "c1".to_owned(),
            state: ContainerState::Running.into(),
            ..ContainerSummary::default()
        };
        let rows = summary(&usage, &[running]);
        let text: Vec<String> = rows
            .iter()
            .map(|row| {
                format!("{} {} {}", row["Type"], row["Size"], row["Reclaimable"]).replace('"', "")
            })
            .collect();
        assert_eq!(
            text,
            [
                "Images 1kB 600B (60%)",
                "Containers 200B 150B (75%)",
                "Local Volumes 0B 0B",
                "Build Cache 0B 0B",
                "Leftovers 7B 7B (100%)",
            ]
        );
        assert_eq!(
            promises(&usage),
            "Total: 5.303kB\n`gantry image prune` frees 7B\n`gantry image prune -a` frees 607B\nKept by containers: 600B\n"
        );
    }

    #[test]
    fn owners_are_shown_by_short_digests_and_containers_by_their_names() {
        let id = "ab".repeat(32);
        let container = ContainerSummary {
            id: id.clone(),
            name: "web".to_owned(),
            ..ContainerSummary::default()
        };
        let mut layer = owner(
            OwnerKind::Layer,
            &format!("sha256:{}", "cd".repeat(32)),
            1,
            FreedBy::ContainerRemoval,
        );
        layer.kept_by = vec!["debian:12".to_owned(), id];
        let row = owner_row(&layer, &[container]);
        assert_eq!(row["Name"], "cdcdcdcdcdcd");
        assert_eq!(row["KeptBy"], "debian:12, container web");
        assert_eq!(row["FreedBy"], "rm of its containers");
    }
}
