//! Users and groups that a container has for its own (`--userns auto`): a range
//! of the host's ids that nobody else has, so that its root is nobody outside.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Ids of a container that says nothing of their number: all that an image can
/// be expected to use.
const USUAL: u32 = 65_536;

/// The fewest: system users, "nobody" left aside, and the group of terminals.
const FEWEST: u32 = 1_000;

/// Below are users and groups of the host itself.
const HOSTS: u32 = 65_536;

/// A container's ids, from 0 on, are these of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnIds {
    pub first: u32,
    pub count: u32,
}

impl OwnIds {
    fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }
}

/// How many ids of its own `--userns` asks for. None: it has the host's.
///
/// # Errors
/// It is no user namespace that there is.
pub fn wanted(mode: &str) -> Result<Option<u32>> {
    let unknown = || {
        Error::invalid(
            "userns",
            format!("{mode:?} is not known; give host, auto or auto:size=COUNT"),
        )
    };
    let count = match mode {
        "" | "host" => return Ok(None),
        "auto" => USUAL,
        _ => mode
            .strip_prefix("auto:size=")
            .and_then(|count| count.parse().ok())
            .ok_or_else(unknown)?,
    };
    if count < FEWEST {
        return Err(Error::invalid(
            "userns",
            format!("{count} ids are too few; give {FEWEST} or more"),
        ));
    }
    Ok(Some(count))
}

/// The first range of `pool` that has `count` ids and none of `taken`.
///
/// # Errors
/// There is none, or the pool has ids of the host's.
pub fn free(pool: OwnIds, count: u32, taken: impl Iterator<Item = OwnIds>) -> Result<OwnIds> {
    if pool.first < HOSTS || pool.end() > u64::from(u32::MAX) {
        return Err(Error::invalid(
            "userns",
            format!(
                "[gateway] userns_first_id = {} and userns_ids = {} are not between {HOSTS}, below which are the host's own, and {}",
                pool.first,
                pool.count,
                u32::MAX
            ),
        ));
    }
    let mut taken: Vec<OwnIds> = taken.collect();
    taken.sort_unstable_by_key(|ids| ids.first);
    let mut first = u64::from(pool.first);
    for ids in taken {
        if u64::from(ids.first) >= first + u64::from(count) {
            break;
        }
        first = first.max(ids.end());
    }
    u32::try_from(first)
        .ok()
        .map(|first| OwnIds { first, count })
        .filter(|ids| ids.end() <= pool.end())
        .ok_or_else(|| {
            Error::invalid(
                "userns",
                format!(
                    "no {count} ids are left of the {} that containers share; remove containers, or raise userns_ids in [gateway]",
                    pool.count
                ),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: OwnIds = OwnIds {
        first: 100_000,
        count: 10_000,
    };

    #[test]
    fn the_number_of_ids_is_docker_users_and_podmans_way_to_say_it() {
        assert_eq!(wanted("").unwrap(), None);
        assert_eq!(wanted("host").unwrap(), None);
        assert_eq!(wanted("auto").unwrap(), Some(65_536));
        assert_eq!(wanted("auto:size=5000").unwrap(), Some(5_000));
        for wrong in ["auto:size=", "auto:size=12", "auto:", "private", "nomap"] {
            assert!(wanted(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranges_never_overlap_and_gaps_are_filled() {
        let ids = |first, count| OwnIds { first, count };
        let of = |count, taken: &[OwnIds]| free(POOL, count, taken.iter().copied());
        assert_eq!(of(4_000, &[]).unwrap(), ids(100_000, 4_000));
        let taken = [ids(104_000, 2_000), ids(100_000, 2_000)];
        assert_eq!(of(2_000, &taken).unwrap(), ids(102_000, 2_000));
        assert_eq!(of(3_000, &taken).unwrap(), ids(106_000, 3_000));
        let error = of(5_000, &taken).unwrap_err().to_string();
        assert!(error.contains("no 5000 ids are left"), "{error}");
        // Of an earlier pool.
        assert_eq!(of(2_000, &[ids(5, 10)]).unwrap(), ids(100_000, 2_000));
        assert_eq!(
            of(2_000, &[ids(99_000, 2_000)]).unwrap(),
            ids(101_000, 2_000)
        );
    }

    #[test]
    fn a_pool_with_the_hosts_ids_is_refused() {
        for pool in [
            OwnIds { first: 0, ..POOL },
            OwnIds {
                first: u32::MAX,
                count: 2,
            },
        ] {
            assert!(free(pool, 1_000, std::iter::empty()).is_err());
        }
    }
}
