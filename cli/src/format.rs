//! `--format`: Docker's Go templates over the fields of each row.
//!
//! | value | output |
//! | --- | --- |
//! | none, `table` | the verb's own table |
//! | `table TEMPLATE` | a table of the template's columns, tabs between them |
//! | `json` | an object per line |
//! | anything else | the template, once per row |

mod data;
mod evaluate;
mod functions;
mod lexer;
mod parser;
mod show;

use serde_json::Value;

use crate::display;

pub(crate) use data::{Data, Field, Nil};
pub(crate) use evaluate::Template;

/// A template that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("template {template:?}: {what}")]
pub(crate) struct TemplateError {
    pub(crate) template: String,
    pub(crate) what: String,
}

/// How rows are to be shown.
#[derive(Clone, Debug)]
pub(crate) enum Format {
    /// The verb's own columns.
    Table,
    Columns(Template),
    Json,
    Each(Template),
}

impl Format {
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, TemplateError> {
        match text {
            None | Some("" | "table") => Ok(Self::Table),
            Some("json") => Ok(Self::Json),
            Some(text) => match text.strip_prefix("table ") {
                Some(columns) => Ok(Self::Columns(Template::parse(&unescaped(columns))?)),
                None => Ok(Self::Each(Template::parse(&unescaped(text))?)),
            },
        }
    }

    /// The rows as text. `default` is the verb's own table; `headings` names the
    /// columns of a field.
    pub(crate) fn rows(
        &self,
        rows: &[Value],
        default: &str,
        headings: &[(&str, &str)],
    ) -> Result<String, TemplateError> {
        let mut text = String::new();
        match self {
            Self::Table => {
                let template = Template::parse(default)?;
                return columns(&template, rows, headings);
            }
            Self::Columns(template) => return columns(template, rows, headings),
            Self::Json => {
                for row in rows {
                    text.push_str(&visible(row).to_string());
                    text.push('\n');
                }
            }
            Self::Each(template) => {
                for row in rows {
                    text.push_str(&template.render(&row.clone().into())?);
                    text.push('\n');
                }
            }
        }
        Ok(text)
    }
}

fn columns(
    template: &Template,
    rows: &[Value],
    headings: &[(&str, &str)],
) -> Result<String, TemplateError> {
    let names: serde_json::Map<String, Value> = headings
        .iter()
        .map(|(field, heading)| ((*field).to_owned(), Value::from(*heading)))
        .collect();
    let cells = |line: String| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
    let mut table = vec![cells(template.headings(&names.into())?)];
    for row in rows {
        table.push(cells(template.render(&escaped(row).into())?));
    }
    Ok(crate::table::lines(&table))
}

/// A row for a table: a tab or a newline in a value would be taken for the
/// table's own.
fn escaped(value: &Value) -> Value {
    match value {
        Value::String(text) => display::escaped(text).into(),
        Value::Array(values) => values.iter().map(escaped).collect(),
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(key, value)| (key.clone(), escaped(value)))
                .collect(),
        ),
        other => other.clone(),
    }
}

/// Without what only functions of templates read (see [`hidden`]).
fn visible(row: &Value) -> Value {
    match row {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .filter(|(_, value)| !value.is_object())
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        ),
        other => other.clone(),
    }
}

/// `\t` and `\n`, which a shell's quotes leave as they are.
fn unescaped(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(format: &str) -> String {
        let rows = [
            json!({"ID": "1", "Names": "a", "Label": {"k": "v"}}),
            json!({"ID": "2", "Names": "b", "Label": {}}),
        ];
        Format::parse(Some(format))
            .unwrap()
            .rows(
                &rows,
                "{{.ID}}\t{{.Names}}",
                &[("ID", "ID"), ("Names", "NAMES")],
            )
            .unwrap()
    }

    #[test]
    fn rows_are_a_table_lines_or_objects() {
        assert_eq!(
            shown("table"),
            "ID        NAMES\n1         a\n2         b\n"
        );
        assert_eq!(
            shown("table {{.Names}}\\t{{.ID}}"),
            "NAMES     ID\na         1\nb         2\n"
        );
        assert_eq!(shown("{{.ID}}={{.Names}}"), "1=a\n2=b\n");
        assert_eq!(
            shown("json"),
            "{\"ID\":\"1\",\"Names\":\"a\"}\n{\"ID\":\"2\",\"Names\":\"b\"}\n"
        );
        assert_eq!(shown("{{.Label \"k\"}}"), "v\n\n");
        assert_eq!(
            shown("table {{.ID}}\\t{{.Label \"a.the-k\"}}"),
            "ID        the k\n1         \n2         \n"
        );
    }

    #[test]
    fn a_value_cannot_break_its_table_and_stays_as_it_is_elsewhere() {
        let rows = [json!({"Names": "a\tb\n\u{1b}[31m"})];
        let shown = |format: &str| {
            let format = Format::parse(Some(format)).unwrap();
            format.rows(&rows, "{{.Names}}\t{{.Names}}", &[("Names", "NAMES")])
        };
        assert_eq!(
            shown("table").unwrap(),
            "NAMES            NAMES\na\\tb\\n\\x1b[31m   a\\tb\\n\\x1b[31m\n"
        );
        assert_eq!(shown("{{.Names}}").unwrap(), "a\tb\n\u{1b}[31m\n");
    }
}
