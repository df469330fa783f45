//! Container names: what is one, and made-up ones for containers that get none:
//! an adjective and somebody whom ports, ships or computing owe something.

use crate::error::{Error, Result};

/// Longest name. Names become host names of endpoints and file names.
const NAME_MAX: usize = 128;

const ADJECTIVES: [&str; 64] = [
    "able", "amber", "ample", "apt", "azure", "bold", "brave", "breezy", "bright", "brisk", "calm",
    "candid", "careful", "chatty", "cheery", "clear", "clever", "coastal", "crisp", "curious",
    "daring", "deft", "eager", "early", "earnest", "fair", "fearless", "fleet", "fond", "frank",
    "fresh", "gentle", "glad", "golden", "hardy", "hasty", "honest", "humble", "jolly", "keen",
    "kind", "lively", "loyal", "lucid", "mellow", "merry", "mild", "modest", "nimble", "noble",
    "patient", "placid", "plucky", "polite", "proud", "quick", "quiet", "salty", "sober", "steady",
    "sunny", "swift", "tidy", "witty",
];

const SURNAMES: [&str; 80] = [
    "allen",
    "amundsen",
    "babbage",
    "backus",
    "baret",
    "barents",
    "bartik",
    "bering",
    "boole",
    "borg",
    "brunel",
    "cabot",
    "cerf",
    "church",
    "clarke",
    "codd",
    "cook",
    "curie",
    "dahl",
    "darwin",
    "dias",
    "dijkstra",
    "drake",
    "earhart",
    "easley",
    "eckert",
    "engelbart",
    "erikson",
    "euler",
    "fitch",
    "floyd",
    "franklin",
    "fulton",
    "galois",
    "gauss",
    "germain",
    "godel",
    "hamilton",
    "hamming",
    "harrison",
    "hoare",
    "holberton",
    "hopper",
    "ibarra",
    "iverson",
    "johnson",
    "kahn",
    "kepler",
    "knuth",
    "lamarr",
    "lamport",
    "lovelace",
    "magellan",
    "mauchly",
    "mclean",
    "mercator",
    "milner",
    "moore",
    "nansen",
    "naur",
    "neumann",
    "noether",
    "nygaard",
    "parsons",
    "perlman",
    "polo",
    "postel",
    "ritchie",
    "ross",
    "shackleton",
    "shannon",
    "slocum",
    "spaarndam",
    "tasman",
    "thompson",
    "turing",
    "vaughan",
    "wilkes",
    "wirth",
    "zuse",
];

/// Refuses what is not a name: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`.
///
/// # Errors
/// It is not one.
pub fn check(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let first = bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if first && rest && name.len() <= NAME_MAX {
        Ok(())
    } else {
        Err(Error::InvalidName {
            name: name.to_owned(),
        })
    }
}

/// Makes a name up out of 32 random bits; from the fourth `attempt` on with a
/// number behind it, so that there is always a free one.
#[must_use]
pub fn made_up(random: u32, attempt: u32) -> String {
    let random = random as usize;
    let adjective = ADJECTIVES[random % ADJECTIVES.len()];
    let surname = SURNAMES[(random / ADJECTIVES.len()) % SURNAMES.len()];
    if attempt < 3 {
        format!("{adjective}_{surname}")
    } else {
        format!("{adjective}_{surname}{}", (random >> 16) + attempt as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_names() {
        for random in [0, 1, 63, 64, 5119, 5120, u32::MAX] {
            for attempt in [0, 3, 9] {
                check(&made_up(random, attempt)).unwrap();
            }
        }
        assert_ne!(made_up(7, 3), made_up(7, 4));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in ["", "-a", ".a", "_a", "a b", "a/b", "ä", "a:b"] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check(&"a".repeat(NAME_MAX + 1)).is_err());
        check("a").unwrap();
        check("0web-1.x_y").unwrap();
    }
}
