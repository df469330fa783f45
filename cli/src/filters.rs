//! `--filter KEY=VALUE`.

use gantry_proto::image::v1::Filter;

use crate::parse::{ParseError, Parsed};

pub(crate) fn filter(text: &str) -> Parsed<Filter> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok(Filter {
            key: key.to_ascii_lowercase().trim().to_owned(),
            value: value.trim().to_owned(),
        }),
        _ => Err(ParseError::new(format!(
            "{text:?} is not a filter; say KEY=VALUE, as in status=exited"
        ))),
    }
}
