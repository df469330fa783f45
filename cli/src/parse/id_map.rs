//! `idmap=uids=0-1000-1#1-101000-65535;gids=0-1000-1`: other owners are seen
//! through a mount than the files have. Each range is what the files have, what
//! is seen on the host, and how many ids; `#` stands between ranges.

use gantry_proto::gateway::v1::{IdMap, IdRange};

/// What comes after `idmap`. Empty: as the container's user namespace maps them.
pub(crate) fn parse(text: &str) -> Result<IdMap, String> {
    let mut map = IdMap::default();
    for part in text.split(';').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("uids", list)) => map.uids = ranges(list)?,
            Some(("gids", list)) => map.gids = ranges(list)?,
            _ => {
                return Err(format!(
                    "idmap {part:?} is neither uids=… nor gids=…, as in uids=0-1000-1;gids=0-1000-1"
                ));
            }
        }
    }
    Ok(map)
}

fn ranges(list: &str) -> Result<Vec<IdRange>, String> {
    list.split('#').map(range).collect()
}

fn range(text: &str) -> Result<IdRange, String> {
    let wrong =
        || format!("idmap range {text:?} is not of the form FILES-SEEN-COUNT, as in 0-1000-1");
    let numbers: Vec<u32> = text
        .split('-')
        .map(|number| number.parse().map_err(|_| wrong()))
        .collect::<Result<_, _>>()?;
    match numbers[..] {
        [on_disk, seen, count] if count > 0 => Ok(IdRange {
            on_disk,
            seen,
            count,
        }),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_what_is_none_is_refused() {
        let map = parse("uids=0-1000-1#1-101000-65535;gids=0-100-10").unwrap();
        let range = |on_disk, seen, count| IdRange {
            on_disk,
            seen,
            count,
        };
        assert_eq!(map.uids, [range(0, 1000, 1), range(1, 101_000, 65535)]);
        assert_eq!(map.gids, [range(0, 100, 10)]);
        assert_eq!(parse("").unwrap(), IdMap::default());
        for bad in [
            "uids",
            "uids=",
            "uids=0-1",
            "uids=0-1-0",
            "uids=@0-1-1",
            "0-1-1",
            "gids=0-1-1-1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
