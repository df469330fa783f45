//! Sizes in bytes: "512m", "1.5g", "64KiB". A unit is a power of 1024.

use super::{ParseError, Parsed};

/// Bytes.
pub(crate) fn size(text: &str) -> Parsed<u64> {
    let wrong = || {
        ParseError::new(format!(
            "{text:?} is not a size; say bytes, or a number with k, m, g or t, as in 512m"
        ))
    };
    let lower = text.trim().to_ascii_lowercase();
    let number_end = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(number_end);
    let unit = unit.trim_start();
    let power = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" if matches!(unit, "" | "b") => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(wrong()),
    };
    if !matches!(unit.len(), 0..=3) || unit.ends_with('i') {
        return Err(wrong());
    }
    let scale = 1u64 << (10 * power);
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale).ok_or_else(wrong);
    }
    let value = number.parse::<f64>().map_err(|_| wrong())? * scale as f64;
    if value < u64::MAX as f64 {
        Ok(value as u64)
    } else {
        Err(wrong())
    }
}

/// Bytes, or -1 for no limit.
pub(crate) fn size_or_unlimited(text: &str) -> Parsed<i64> {
    if text == "-1" {
        return Ok(-1);
    }
    i64::try_from(size(text)?).map_err(|_| ParseError::new(format!("{text:?} is too large")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512b", 512),
            ("1k", 1024),
            ("1kb", 1024),
            ("1KiB", 1024),
            ("512m", 512 << 20),
            ("1.5g", 3 << 29),
            ("2 GB", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        assert_eq!(size_or_unlimited("-1"), Ok(-1));
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in [
            "",
            "m",
            "-5",
            "5x",
            "5mm",
            "5i",
            "5bb",
            "1e3",
            "99999999999999999999",
            "99999999p",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
