//! Who the program runs as: numbers from the spec, or a `user[:group]` looked up in the container's own
//! /etc/passwd and /etc/group.

use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::Path;

use oci_spec::runtime::User;
use rustix::fs::{FileType, OFlags, ResolveFlags};

use super::beneath;
use super::context::During;
use super::error::{Error, Result};

/// No honest file of users is longer.
const MAX_FILE: u64 = 16 << 20;

/// The program's user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    /// The home directory in /etc/passwd, or "/".
    pub(super) home: String,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Supplementary groups by name, with commas between them, beside the numbers of the spec.
pub(super) const GROUPS_ANNOTATION: &str = "dev.gantry.groups";

/// The names of supplementary groups that annotations ask for.
pub(super) fn group_names<'a>(
    annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Vec<String> {
    annotations
        .into_iter()
        .filter(|(key, _)| *key == GROUPS_ANNOTATION)
        .flat_map(|(_, names)| names.split(','))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Settles who it is. `wanted` overrides the spec's numbers; `names` are further groups.
pub(super) fn resolve(
    root: BorrowedFd<'_>,
    user: &User,
    wanted: Option<&str>,
    names: &[String],
    need_home: bool,
) -> Result<Identity> {
    let mut identity = resolve_user(root, user, wanted, need_home)?;
    if !names.is_empty() {
        let group = read(root, "/etc/group")?;
        add_groups(&group, names, &mut identity)?;
    }
    Ok(identity)
}

fn add_groups(group: &str, names: &[String], identity: &mut Identity) -> Result<()> {
    for name in names {
        let found = groups(group)
            .find(|entry| entry.name == name)
            .ok_or_else(|| Error::UnknownUser {
                kind: "group",
                name: name.clone(),
                file: "group",
            })?;
        if !identity.groups.contains(&found.gid) {
            identity.groups.push(found.gid);
        }
    }
    Ok(())
}

fn resolve_user(
    root: BorrowedFd<'_>,
    user: &User,
    wanted: Option<&str>,
    need_home: bool,
) -> Result<Identity> {
    let additional = user.additional_gids().as_deref().unwrap_or_default();
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
        let home = if need_home {
            let passwd = read(root, "/etc/passwd")?;
            home_of(&passwd, user.uid())
        } else {
            String::new()
        };
        return Ok(Identity {
            uid: user.uid(),
            gid: user.gid(),
            groups: additional.to_vec(),
            home,
        });
    };
    let passwd = read(root, "/etc/passwd")?;
    let group = read(root, "/etc/group")?;
    look_up(&passwd, &group, wanted, additional)
}

fn look_up(passwd: &str, group: &str, wanted: &str, additional: &[u32]) -> Result<Identity> {
    let (user, group_name) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let number = user.parse::<u32>().ok();
    let entry = if user.is_empty() {
        entries(passwd).find(|entry| entry.uid == 0)
    } else {
        // A name of digits is a name first, as everywhere in Unix.
        entries(passwd)
            .find(|entry| entry.name == user)
            .or_else(|| entries(passwd).find(|entry| Some(entry.uid) == number))
    };
    let mut identity = match (&entry, number) {
        (Some(entry), _) => Identity {
            uid: entry.uid,
            gid: entry.gid,
            groups: Vec::new(),
            home: entry.home.to_owned(),
        },
        (None, Some(uid)) if uid <= i32::MAX as u32 => Identity {
            uid,
            gid: 0,
            groups: Vec::new(),
            home: "/".to_owned(),
        },
        (None, _) if user.is_empty() => Identity {
            home: "/".to_owned(),
            ..Identity::default()
        },
        (None, _) => {
            return Err(Error::UnknownUser {
                kind: "user",
                name: user.to_owned(),
                file: "passwd",
            });
        }
    };
    match group_name.filter(|name| !name.is_empty()) {
        Some(name) => {
            let number = name.parse::<u32>().ok();
            identity.gid = groups(group)
                .find(|entry| entry.name == name)
                .or_else(|| groups(group).find(|entry| Some(entry.gid) == number))
                .map(|entry| entry.gid)
                .or(number.filter(|gid| *gid <= i32::MAX as u32))
                .ok_or_else(|| Error::UnknownUser {
                    kind: "group",
                    name: name.to_owned(),
                    file: "group",
                })?;
        }
        // Supplementary groups are those of a user whose group was not chosen.
        None => {
            if let Some(entry) = &entry {
                identity.groups = groups(group)
                    .filter(|group| group.members.split(',').any(|member| member == entry.name))
                    .map(|group| group.gid)
                    .collect();
            }
        }
    }
    // The user's own group is one of them, or a program could leave it by another's set-group-ID bit, and with it what
    // is closed to the group (CVE-2022-36109).
    for gid in additional.iter().chain([&identity.gid]) {
        if !identity.groups.contains(gid) {
            identity.groups.push(*gid);
        }
    }
    if identity.home.is_empty() {
        identity.home = "/".to_owned();
    }
    Ok(identity)
}

fn home_of(passwd: &str, uid: u32) -> String {
    entries(passwd)
        .find(|entry| entry.uid == uid)
        .map(|entry| entry.home)
        .filter(|home| !home.is_empty())
        .unwrap_or("/")
        .to_owned()
}

fn entries(passwd: &str) -> impl Iterator<Item = Passwd<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        Some(Passwd {
            name: fields.next().filter(|name| !name.is_empty())?,
            uid: fields.nth(1)?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
            home: fields.nth(1).unwrap_or(""),
        })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        Some(Group {
            name: fields.next().filter(|name| !name.is_empty())?,
            gid: fields.nth(1)?.parse().ok()?,
            members: fields.next().unwrap_or(""),
        })
    })
}

/// Reads a file of the root; one that is not there, or is no regular file, is empty.
fn read(root: BorrowedFd<'_>, path: &str) -> Result<String> {
    let opened = beneath::open_with(
        root,
        Path::new(path),
        // A FIFO in the image must not stop us.
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
        ResolveFlags::empty(),
    );
    let file = match opened {
        Ok(file) => file,
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENXIO | libc::EACCES)
            ) =>
        {
            return Ok(String::new());
        }
        Err(error) => return Err(error).during("open", path),
    };
    let stat = rustix::fs::fstat(&file).during("read", path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(MAX_FILE)
        .read_to_end(&mut bytes)
        .during("read", path)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nalice:x:1000:1001::/home/alice:/bin/sh\n42:x:7:8::/seven:\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:alice,bob\naudio:x:29:alice\nadm:x:4:root\n";

    fn find(wanted: &str) -> Result<Identity> {
        look_up(PASSWD, GROUP, wanted, &[99])
    }

    #[test]
    fn a_name_brings_its_groups_and_home() {
        let identity = find("alice").unwrap();
        assert_eq!((identity.uid, identity.gid), (1000, 1001));
        assert_eq!(identity.groups, [50, 29, 99, 1001]);
        assert_eq!(identity.home, "/home/alice");
    }

    #[test]
    fn root_by_number_has_the_groups_of_the_files() {
        let identity = find("0").unwrap();
        assert_eq!((identity.uid, identity.gid), (0, 0));
        assert_eq!(identity.groups, [4, 99, 0]);
    }

    #[test]
    fn further_groups_are_found_by_name() {
        let mut identity = find("alice").unwrap();
        let names =
            |list: &[&str]| -> Vec<String> { list.iter().map(|name| (*name).to_owned()).collect() };
        add_groups(GROUP, &names(&["audio", "root"]), &mut identity).unwrap();
        assert_eq!(identity.groups, [50, 29, 99, 1001, 0]);
        assert!(add_groups(GROUP, &names(&["nobody"]), &mut identity).is_err());
        let asked = [(GROUPS_ANNOTATION.to_owned(), "audio,staff".to_owned())];
        assert_eq!(
            group_names(asked.iter().map(|(key, value)| (key, value))),
            ["audio", "staff"]
        );
    }

    #[test]
    fn a_number_without_an_entry_is_taken_as_it_is() {
        let identity = find("4711:4712").unwrap();
        assert_eq!(identity.groups, [99, 4712]);
        assert_eq!((identity.uid, identity.gid), (4711, 4712));
        assert_eq!(identity.home, "/");
    }

    #[test]
    fn a_name_of_digits_is_a_name_first() {
        assert_eq!(find("42").unwrap().uid, 7);
    }

    #[test]
    fn a_chosen_group_replaces_the_supplementary_ones() {
        let identity = find("alice:staff").unwrap();
        assert_eq!((identity.gid, identity.groups), (50, vec![99, 50]));
    }

    #[test]
    fn unknown_names_are_told_apart() {
        assert!(matches!(
            find("mallory"),
            Err(Error::UnknownUser { kind: "user", .. })
        ));
        assert!(matches!(
            find("alice:mallory"),
            Err(Error::UnknownUser { kind: "group", .. })
        ));
    }

    #[test]
    fn a_negative_or_huge_number_is_no_user() {
        assert!(find("-1").is_err());
        assert!(find("4294967295").is_err());
    }
}
