//! Signals by name and number (signal(7), x86 and ARM numbering).

use crate::error::{Error, Result};

pub const SIGKILL: u32 = 9;

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// First and last of the real-time signals, as the C library numbers them.
const REAL_TIME: (u32, u32) = (34, 64);

/// A signal's number: of "15", "TERM", "SIGTERM", "RTMIN+3", "RTMAX-1".
///
/// # Errors
/// There is no such signal.
pub fn parse(text: &str) -> Result<u32> {
    let unknown = || {
        Error::invalid(
            "signal",
            format!("there is no signal {text:?}; give a name as SIGTERM or a number"),
        )
    };
    if let Ok(number) = text.parse::<u32>() {
        return (1..=REAL_TIME.1)
            .contains(&number)
            .then_some(number)
            .ok_or_else(unknown);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(place) = NAMES.iter().position(|known| *known == name) {
        return u32::try_from(place + 1).map_err(|_| unknown());
    }
    let offset = |rest: &str, sign: char| -> Option<u32> {
        if rest.is_empty() {
            return Some(0);
        }
        rest.strip_prefix(sign)?.parse().ok()
    };
    let (first, last) = REAL_TIME;
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        offset(rest, '+').and_then(|offset| first.checked_add(offset))
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        offset(rest, '-').and_then(|offset| last.checked_sub(offset))
    } else if name == "IOT" {
        Some(6)
    } else if name == "POLL" {
        Some(29)
    } else {
        None
    };
    number
        .filter(|number| (first..=last).contains(number))
        .ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, number) in [
            ("9", 9),
            ("SIGKILL", 9),
            ("term", 15),
            ("SIGSYS", 31),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for bad in ["", "0", "65", "-1", "SIG", "FOO", "RTMIN+40", "RTMAX+1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
