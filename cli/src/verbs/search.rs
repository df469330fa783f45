//! `gantry search`: asks a registry for images by a term.

use clap::Args;
use gantry_proto::image::v1::{Filter, SearchRequest, SearchResult};
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::filters;
use crate::format::Format;
use crate::registry_auth;
use crate::session::Session;
use crate::terminal;

const TABLE: &str = "{{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}";
const TABLE_WITH_AUTOMATED: &str =
    "{{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}\t{{.IsAutomated}}";

const HEADINGS: [(&str, &str); 5] = [
    ("Name", "NAME"),
    ("Description", "DESCRIPTION"),
    ("StarCount", "STARS"),
    ("IsOfficial", "OFFICIAL"),
    ("IsAutomated", "AUTOMATED"),
];

/// Characters of a description that a table shows.
const DESCRIPTION: usize = 45;

#[derive(Debug, Args)]
pub(crate) struct Search {
    /// Show at most so many results
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=100))]
    limit: u32,
    /// Cut nothing
    #[arg(long)]
    no_trunc: bool,
    /// Only those that match: stars=N, is-official=BOOL, is-automated=BOOL
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<Filter>,
    /// Only those with at least so many stars; the same as --filter stars=N
    #[arg(short, long, value_name = "N")]
    stars: Option<u32>,
    /// Only automated builds; the same as --filter is-automated
    #[arg(long)]
    automated: bool,
    /// table, json, or a template
    #[arg(long)]
    format: Option<String>,
    /// Term: [REGISTRY/]TERM
    term: String,
}

/// As other filters, and a key alone means that it is true.
fn filter(text: &str) -> crate::parse::Parsed<Filter> {
    match text {
        "is-official" | "is-automated" => filters::filter(&format!("{text}=true")),
        _ => filters::filter(text),
    }
}

impl Search {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let format = Format::parse(self.format.as_deref()).map_err(|e| Failure::of(&e))?;
        let mut filters = self.filter;
        let more = |key: &str, value: String| Filter {
            key: key.to_owned(),
            value,
        };
        filters.extend(self.stars.map(|stars| more("stars", stars.to_string())));
        if self.automated {
            filters.push(more("is-automated", "true".to_owned()));
        }
        let by_automated = filters.iter().any(|filter| filter.key == "is-automated");
        let request = SearchRequest {
            auth: registry_auth::for_term(&self.term).await,
            term: self.term,
            limit: self.limit,
            filters,
        };
        let answer = session.engine.images().search(request).await?;
        let mut results = answer.into_inner().results;
        // Those that are equal stay as the registry has them.
        results.sort_by_key(|result| std::cmp::Reverse(result.stars));
        let rows: Vec<Value> = results.iter().map(|r| row(r, self.no_trunc)).collect();
        let table = if by_automated {
            TABLE_WITH_AUTOMATED
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

fn row(result: &SearchResult, whole: bool) -> Value {
    let ok = |is: bool| if is { "[OK]" } else { "" };
    // One line, whatever the registry wrote.
    let words: Vec<&str> = result.description.split_whitespace().collect();
    let mut description = words.join(" ");
    if !whole && description.chars().count() > DESCRIPTION {
        description = description.chars().take(DESCRIPTION - 1).collect();
        description.push('…');
    }
    json!({
        "Name": result.name,
        "Description": description,
        "StarCount": result.stars.to_string(),
        "IsOfficial": ok(result.official),
        "IsAutomated": ok(result.automated),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_one_short_line_unless_all_of_it_is_wanted() {
        let result = SearchResult {
            name: "a".to_owned(),
            description: format!("two\n\nlines {}", "x".repeat(100)),
            stars: 7,
            official: true,
            automated: false,
        };
        let short = row(&result, false);
        let text = short["Description"].as_str().unwrap();
        assert!(text.starts_with("two lines xxx") && text.ends_with('…'));
        assert_eq!(text.chars().count(), 45);
        assert_eq!(short["IsOfficial"], "[OK]");
        assert_eq!(short["IsAutomated"], "");
        let whole = row(&result, true);
        assert!(whole["Description"].as_str().unwrap().ends_with("xxx"));
    }

    #[test]
    fn a_filter_without_a_value_is_true() {
        assert_eq!(filter("is-official").unwrap().value, "true");
        assert_eq!(filter("is-automated=0").unwrap().value, "0");
        assert!(filter("stars").is_err());
    }
}
