//! Points in time as people write them: a timestamp, seconds since 1970, or how
//! long ago ("90s", "1h30m"). A timestamp without a zone is UTC.

use std::time::Duration;

use jiff::civil;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// What a text can not be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    #[error(
        "{0:?} is not a time; say how long ago (10m), seconds since 1970, or 2006-01-02T15:04:05Z"
    )]
    Point(String),
    #[error("{0:?} is not a duration; say 90s, 10m or 1h30m")]
    Duration(String),
}

/// The point in time that a text means at `now`.
///
/// # Errors
/// It is none.
pub fn point(text: &str, now: Timestamp) -> Result<Timestamp, TimeError> {
    let wrong = || TimeError::Point(text.to_owned());
    if let Some((seconds, nanos)) = unix(text) {
        return Timestamp::new(seconds, nanos).map_err(|_| wrong());
    }
    if let Ok(ago) = duration(text) {
        let ago = SignedDuration::try_from(ago).map_err(|_| wrong())?;
        return now.checked_sub(ago).map_err(|_| wrong());
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let civil = text
        .parse::<civil::DateTime>()
        .or_else(|_| text.parse::<civil::Date>().map(civil::DateTime::from))
        .map_err(|_| wrong())?;
    TimeZone::UTC.to_timestamp(civil).map_err(|_| wrong())
}

/// "1136073845.000000001"
fn unix(text: &str) -> Option<(i64, i32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(seconds) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let nanos = format!("{fraction:0<9}").parse().ok()?;
    Some((seconds.parse().ok()?, nanos))
}

/// A duration as Go writes it: "1h30m", "1.5s", "500ms".
///
/// # Errors
/// It is none.
pub fn duration(text: &str) -> Result<Duration, TimeError> {
    let wrong = || TimeError::Duration(text.to_owned());
    let mut rest = text;
    let mut total = 0f64;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let letters = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        total += number.parse::<f64>().map_err(|_| wrong())? * scale;
        rest = after;
    }
    Duration::try_from_secs_f64(total).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up() {
        for (text, millis) in [
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("1.5s", 1500),
            ("500ms", 500),
        ] {
            assert_eq!(duration(text).unwrap().as_millis(), millis, "{text}");
        }
        for bad in ["", "5", "s", "5x", "-5s", "1.2.3s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_time_is_relative_or_absolute() {
        let now: Timestamp = "2020-01-02T00:00:00Z".parse().unwrap();
        for (text, seconds, nanos) in [
            ("1h", 1_577_919_600, 0),
            ("1577923200", 1_577_923_200, 0),
            ("1577923200.5", 1_577_923_200, 500_000_000),
            ("2020-01-01", 1_577_836_800, 0),
            ("2020-01-01T00:00:01", 1_577_836_801, 0),
            ("2020-01-01T00:00:01.25Z", 1_577_836_801, 250_000_000),
            ("2020-01-01T01:00:00+01:00", 1_577_836_800, 0),
        ] {
            let expected = Timestamp::new(seconds, nanos).unwrap();
            assert_eq!(point(text, now).unwrap(), expected, "{text}");
        }
        for bad in ["", "yesterday", "2020-13-01", "1.2.3"] {
            assert!(point(bad, now).is_err(), "{bad}");
        }
    }
}
