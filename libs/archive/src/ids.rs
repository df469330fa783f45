//! Users and groups of a tree that have other numbers here than in an archive:
//! those of a container in a user namespace (user_namespaces(7)).

use std::io;
use std::path::Path;

use rustix::fs::Stat;

/// What the kernel shows for an id that has no number (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65_534;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

/// How ids of an archive and of files here belong together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// None: each is itself.
    uids: Option<Vec<Range>>,
    gids: Option<Vec<Range>>,
}

/// An id of an archive that there is none for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchId(pub u32);

impl Ids {
    /// Those of a process' user namespace, as the caller sees them.
    ///
    /// # Errors
    /// The process is gone.
    pub fn of_process(pid: i32) -> io::Result<Self> {
        let read = |file| {
            let path = Path::new("/proc").join(pid.to_string()).join(file);
            std::fs::read_to_string(path).map(|text| ranges(&text))
        };
        Ok(Self {
            uids: read("uid_map")?,
            gids: read("gid_map")?,
        })
    }

    /// Whether each id is itself.
    #[must_use]
    pub fn are_plain(&self) -> bool {
        self.uids.is_none() && self.gids.is_none()
    }

    /// What an archive says of a file that is here.
    #[must_use]
    pub fn inside(&self, stat: &Stat) -> Stat {
        let mut stat = *stat;
        stat.st_uid = inside(self.uids.as_deref(), stat.st_uid);
        stat.st_gid = inside(self.gids.as_deref(), stat.st_gid);
        stat
    }

    /// Whose a file is here that an archive says is this user's and group's.
    ///
    /// # Errors
    /// One of them is nobody here.
    pub fn outside(&self, uid: u32, gid: u32) -> Result<(u32, u32), NoSuchId> {
        Ok((
            outside(self.uids.as_deref(), uid)?,
            outside(self.gids.as_deref(), gid)?,
        ))
    }
}

/// The lines of a `uid_map`; None: all ids as they are.
fn ranges(text: &str) -> Option<Vec<Range>> {
    let ranges: Vec<Range> = text
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            Some(Range {
                inside: numbers.next()?.ok()?,
                outside: numbers.next()?.ok()?,
                count: numbers.next()?.ok()?,
            })
        })
        .collect();
    let whole = Range {
        inside: 0,
        outside: 0,
        count: u32::MAX,
    };
    (ranges != [whole]).then_some(ranges)
}

fn inside(ranges: Option<&[Range]>, id: u32) -> u32 {
    let Some(ranges) = ranges else { return id };
    let found = ranges.iter().find_map(|range| {
        let offset = id.checked_sub(range.outside)?;
        (offset < range.count).then(|| range.inside + offset)
    });
    found.unwrap_or(NOBODY)
}

fn outside(ranges: Option<&[Range]>, id: u32) -> Result<u32, NoSuchId> {
    let Some(ranges) = ranges else { return Ok(id) };
    let found = ranges.iter().find_map(|range| {
        let offset = id.checked_sub(range.inside)?;
        (offset < range.count).then(|| range.outside + offset)
    });
    found.ok_or(NoSuchId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_both_ways_and_what_has_none_is_nobody() {
        let map = "         0 1000000      65536\n     70000    5000          2\n";
        let ids = Ids {
            uids: ranges(map),
            gids: ranges("0 0 4294967295\n"),
        };
        assert!(!ids.are_plain());
        assert_eq!(ids.outside(0, 7), Ok((1_000_000, 7)));
        assert_eq!(ids.outside(70_001, 7), Ok((5_001, 7)));
        assert_eq!(ids.outside(65_536, 7), Err(NoSuchId(65_536)));
        let ranges = ids.uids.as_deref();
        assert_eq!(inside(ranges, 1_000_033), 33);
        assert_eq!(inside(ranges, 5_000), 70_000);
        assert_eq!(inside(ranges, 0), NOBODY);
    }

    #[test]
    fn a_process_of_the_hosts_has_plain_ids() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(Ids::of_process(own).unwrap(), Ids::default());
    }
}
