//! `gantry images`: lists images.

use clap::Args;
use gantry_proto::image::v1::{Filter, Image, ListRequest};
use serde_json::{Value, json};

use super::image_tree;
use crate::display;
use crate::exit::Failure;
use crate::filters;
use crate::format::Format;
use crate::lists;
use crate::session::Session;
use crate::terminal;

const TABLE: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";
const TABLE_WITH_DIGESTS: &str =
    "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";

const HEADINGS: [(&str, &str); 7] = [
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
];

/// What stands for a name, tag or digest that is not there.
const NONE: &str = "<none>";

#[derive(Debug, Args)]
pub(crate) struct Images {
    /// Also images without a name that others are made of
    #[arg(short, long)]
    all: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Cut nothing
    #[arg(long)]
    no_trunc: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Only those that match: reference, label, dangling, before, since, until
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filters::filter)]
    filter: Vec<Filter>,
    /// table, json, or a template
    #[arg(long)]
    format: Option<String>,
    /// Each image with its layers, their sizes, and which are shared
    #[arg(long, conflicts_with_all = ["quiet", "format", "digests"])]
    tree: bool,
    /// Only this repository, or this image
    reference: Option<String>,
}

impl Images {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let format = Format::parse(self.format.as_deref()).map_err(|e| Failure::of(&e))?;
        let mut filters = self.filter;
        filters.extend(self.reference.map(|value| Filter {
            key: "reference".to_owned(),
            value,
        }));
        let request = ListRequest {
            all: self.all,
            filters,
            ..ListRequest::default()
        };
        let images = lists::images(session.engine.images(), request).await?;
        if self.tree {
            terminal::print(&image_tree::text(&images, self.no_trunc))?;
            return Ok(0);
        }
        let rows: Vec<Value> = images
            .iter()
            .flat_map(|image| rows(image, self.no_trunc, self.digests))
            .collect();
        if self.quiet && self.format.is_none() {
            let mut ids = String::new();
            for row in &rows {
                ids.push_str(row["ID"].as_str().unwrap_or_default());
                ids.push('\n');
            }
            terminal::print(&ids)?;
            return Ok(0);
        }
        let table = if self.digests {
            TABLE_WITH_DIGESTS
        } else {
            TABLE
        };
        let text = format
            .rows(&rows, table, &HEADINGS)
            .map_err(|e| Failure::of(&e))?;
        terminal::print(&text)?;
        Ok(0)
    }
}

/// A row per tag; one for an image without.
pub(crate) fn rows(image: &Image, whole: bool, digests: bool) -> Vec<Value> {
    let digest_of = |repository: &str| {
        image
            .digests
            .iter()
            .filter_map(|name| name.split_once('@'))
            .find(|(name, _)| *name == repository)
            .map_or(NONE, |(_, digest)| digest)
    };
    let mut names: Vec<(String, String, String)> = image
        .tags
        .iter()
        .map(|name| {
            let (repository, tag) = split(name);
            let digest = digest_of(repository);
            (repository.to_owned(), tag.to_owned(), digest.to_owned())
        })
        .collect();
    if names.is_empty() || digests {
        // Known by digest alone: an image that lost its tag, or was pulled so.
        for name in &image.digests {
            if let Some((repository, digest)) = name.split_once('@')
                && !names.iter().any(|(known, _, _)| known == repository)
            {
                let digest = if digests || !image.tags.is_empty() {
                    digest
                } else {
                    NONE
                };
                names.push((repository.to_owned(), NONE.to_owned(), digest.to_owned()));
            }
        }
    }
    if names.is_empty() {
        names.push((NONE.to_owned(), NONE.to_owned(), NONE.to_owned()));
    }
    let id = if whole {
        image.id.clone()
    } else {
        display::short_id(&image.id)
    };
    names
        .into_iter()
        .map(|(repository, tag, digest)| {
            json!({
                "ID": id,
                "Repository": repository,
                "Tag": tag,
                "Digest": digest,
                "CreatedSince": display::ago(image.created.as_ref()),
                "CreatedAt": display::date_time(image.created.as_ref()),
                "Size": display::size(image.size),
                "Containers": "N/A",
                "SharedSize": "N/A",
                "UniqueSize": "N/A",
                "VirtualSize": display::exact_size(image.size),
            })
        })
        .collect()
}

/// "host:5000/a/b:1" as its repository and its tag.
fn split(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, NONE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_row_for_each_tag() {
        let image = Image {
            id: format!("sha256:{}", "ab".repeat(32)),
            tags: vec!["debian:12".to_owned(), "host:5000/d:x".to_owned()],
            digests: vec![format!("debian@sha256:{}", "0".repeat(64))],
            size: 1_230_000,
            ..Image::default()
        };
        let rows = rows(&image, false, false);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["ID"], "abababababab");
        assert_eq!(rows[0]["Repository"], "debian");
        assert_eq!(rows[1]["Repository"], "host:5000/d");
        assert_eq!(rows[1]["Tag"], "x");
        assert_eq!(rows[1]["Digest"], NONE);
        assert_eq!(rows[0]["Size"], "1.23MB");
        assert_eq!(rows[0]["CreatedSince"], "N/A");
    }

    #[test]
    fn an_image_without_a_name_has_one_row() {
        let rows = rows(&Image::default(), false, false);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0]["Repository"], NONE);
    }
}
