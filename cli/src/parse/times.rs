//! Points in time for `--since` and `--until`, in the forms of
//! [`gantry_kit::times`].

use gantry_kit::times;
use jiff::Timestamp;

use super::{ParseError, Parsed};

/// A point in time, as the wire has it.
pub(crate) fn point(text: &str) -> Parsed<prost_types::Timestamp> {
    times::point(text, Timestamp::now())
        .map(wire)
        .map_err(|error| ParseError::refusal(error.to_string()))
}

pub(crate) fn wire(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}
