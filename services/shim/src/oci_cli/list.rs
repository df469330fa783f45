//! `list`.

use super::CliError;
use super::arguments::{Arguments, Globals};
use super::{output, state, store};

/// `list [-q] [-f table|json]`.
pub(super) fn list(globals: &Globals, mut words: Arguments) -> Result<u8, CliError> {
    let (mut quiet, mut json) = (false, false);
    while let Some(flag) = words.flag() {
        match flag.name.as_str() {
            "quiet" | "q" => quiet = flag.is_on(),
            "format" | "f" => match words.value(&flag)?.as_str() {
                "json" => json = true,
                "table" => {}
                other => {
                    return Err(CliError::usage(format!(
                        "--format {other:?} is neither table nor json"
                    )));
                }
            },
            _ => return Err(flag.unknown("list")),
        }
    }
    words.end()?;
    let mut states = Vec::new();
    for id in store::ids(globals)? {
        // One may be made or removed at this moment.
        if let Ok((_, container)) = store::open(globals, &id) {
            states.push(state::describe(&container)?);
        }
    }
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if quiet {
        let ids: String = states
            .iter()
            .map(|state| text(&state["id"]) + "\n")
            .collect();
        return if ids.is_empty() {
            Ok(0)
        } else {
            output::print(&ids)
        };
    }
    if json {
        // runc says null for none.
        return if states.is_empty() {
            output::print("null")
        } else {
            output::print(&serde_json::json!(states).to_string())
        };
    }
    let columns = ["id", "pid", "status", "bundle", "created", "owner"];
    let mut rows = vec![columns.map(str::to_uppercase)];
    rows.extend(
        states
            .iter()
            .map(|state| columns.map(|column| text(&state[column]))),
    );
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    let mut table = String::new();
    for row in rows {
        for (cell, width) in row.iter().zip(&widths) {
            table.push_str(&format!("{cell:<width$}   "));
        }
        table.truncate(table.trim_end().len());
        table.push('\n');
    }
    output::print(&table)
}
