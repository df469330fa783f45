//! Mounts: the kernel's file systems that every container has, then what a
//! person asked for. A person's mount on the place of a default one replaces it.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::own_ids::OwnIds;
use crate::wanted::{Found, IdRange, Mount, MountKind, NamespaceMode, Wanted};

/// Docker's default for /dev/shm.
const SHM_BYTES: u64 = 64 << 20;

/// The option by which the shim is told what of a source to mount: it is looked
/// up beneath the source, at the moment of the mount.
pub const SUBPATH_OPTION: &str = "x-gantry.subpath=";

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": target, "type": kind, "source": source, "options": options})
}

/// All mounts of a container, in the order they are made.
///
/// # Errors
/// One of them cannot be made as it is asked for.
pub fn mounts(wanted: &Wanted, own: &[Mount], ids: Option<OwnIds>) -> Result<Vec<Value>> {
    let mut own = own.to_vec();
    // The shallow ones first: "/a" must not cover "/a/b".
    own.sort_by_key(|mount| Path::new(&mount.target).components().count());
    let replaced = |target: &str| own.iter().any(|mount| same_path(&mount.target, target));
    let mut all: Vec<Value> = defaults(wanted)
        .into_iter()
        .filter(|mount| {
            mount["destination"]
                .as_str()
                .is_none_or(|target| !replaced(target))
        })
        .collect();
    for mount in &own {
        all.push(person(mount, ids)?);
    }
    Ok(all)
}

pub(super) fn same_path(a: &str, b: &str) -> bool {
    Path::new(a).components().eq(Path::new(b).components())
}

fn defaults(wanted: &Wanted) -> Vec<Value> {
    let access = if wanted.privileged { "rw" } else { "ro" };
    let shm = match wanted.shm_size_bytes {
        0 => SHM_BYTES,
        bytes => bytes,
    };
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", access],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ),
    ];
    // That of the namespace it is in, also where that is the host's.
    all.push(mount(
        "/dev/mqueue",
        "mqueue",
        "mqueue",
        &["nosuid", "noexec", "nodev"],
    ));
    if wanted.ipc() == Some(NamespaceMode::Host) {
        all.push(mount(
            "/dev/shm",
            "bind",
            "/dev/shm",
            &["rbind", "rprivate"],
        ));
    } else if wanted.ipc_mode != "none" {
        let options = [
            "nosuid",
            "noexec",
            "nodev",
            "mode=1777",
            &format!("size={shm}"),
        ];
        all.push(mount("/dev/shm", "tmpfs", "shm", &options));
    }
    all
}

fn person(mount: &Mount, ids: Option<OwnIds>) -> Result<Value> {
    let mut made = match (mount.kind, &mount.found) {
        (MountKind::Bind, _) => json!({
            "type": "bind", "source": mount.source, "options": bind_options(mount),
        }),
        (MountKind::Tmpfs, _) => json!({
            "type": "tmpfs", "source": "tmpfs", "options": tmpfs_options(mount),
        }),
        (MountKind::Volume | MountKind::Image, Some(found)) => found_mount(mount, found, ids),
        (MountKind::Volume | MountKind::Image, None) => {
            return Err(Error::invalid(
                "mount",
                format!("what is to be mounted on {} is not made yet", mount.target),
            ));
        }
    };
    made["destination"] = json!(mount.target);
    // Without ranges it is the container's own that count, which the specification has.
    if let Some(map) = &mount.id_map
        && !(map.uids.is_empty() && map.gids.is_empty())
    {
        made["uidMappings"] = id_ranges(&map.uids, ids);
        made["gidMappings"] = id_ranges(&map.gids, ids);
    }
    Ok(made)
}

/// OCI runtime specification, "POSIX-platform Mounts": `containerID` is what the
/// files have, `hostID` what the host sees, which for a container with ids of its
/// own is not what is seen inside. No ranges: all as they are.
fn id_ranges(ranges: &[IdRange], ids: Option<OwnIds>) -> Value {
    let all = IdRange {
        on_disk: 0,
        seen: 0,
        count: ids.map_or(u32::MAX, |ids| ids.count),
    };
    let first = ids.map_or(0, |ids| ids.first);
    let ranges = if ranges.is_empty() { &[all] } else { ranges };
    let ranges = ranges.iter().map(|range| {
        json!({"containerID": range.on_disk, "hostID": first + range.seen, "size": range.count})
    });
    ranges.collect()
}

/// A volume or an image's files.
fn found_mount(mount: &Mount, found: &Found, ids: Option<OwnIds>) -> Value {
    let mut options = Vec::new();
    match found.kind.as_str() {
        "tmpfs" => {
            let plain = Mount {
                read_only: mount.read_only,
                options: found.options.clone(),
                ..Mount::default()
            };
            return json!({
                "type": "tmpfs", "source": "tmpfs", "options": tmpfs_options(&plain),
            });
        }
        "overlay" => {
            let layers = found.layers.iter();
            options.extend(layers.map(|layer| format!("lowerdir+={layer}")));
            options.push("ro".to_owned());
        }
        _ => {
            options.extend(bind_options(mount));
            options.extend(found.options.iter().cloned());
            // A volume's files have the ids that they have inside, whoever mounts it.
            if ids.is_some() && mount.id_map.is_none() {
                options.push("ridmap".to_owned());
            }
            if mount.read_only {
                options.push("ro".to_owned());
            }
        }
    }
    if !mount.subpath.is_empty() {
        options.push(format!("{SUBPATH_OPTION}{}", mount.subpath));
    }
    json!({
        "type": if found.kind == "overlay" { "overlay" } else { "bind" },
        "source": if found.kind == "overlay" { "overlay" } else { &found.source },
        "options": options,
    })
}

fn bind_options(mount: &Mount) -> Vec<String> {
    let mut options = vec![
        if mount.non_recursive { "bind" } else { "rbind" }.to_owned(),
        match (mount.read_only, mount.read_only_non_recursive) {
            (false, _) => "rw",
            // What is mounted below would otherwise be a way to write.
            (true, false) => "rro",
            (true, true) => "ro",
        }
        .to_owned(),
        if mount.propagation.is_empty() {
            "rprivate".to_owned()
        } else {
            mount.propagation.clone()
        },
    ];
    options.extend(mount.options.iter().cloned());
    if mount.id_map.is_some() {
        options.push(
            if mount.non_recursive {
                "idmap"
            } else {
                "ridmap"
            }
            .to_owned(),
        );
    }
    options
}

fn tmpfs_options(mount: &Mount) -> Vec<String> {
    let mut options: Vec<String> = [("noexec", "exec"), ("nosuid", "suid"), ("nodev", "dev")]
        .into_iter()
        .filter(|(_, opposite)| !mount.options.iter().any(|option| option == opposite))
        .map(|(option, _)| option.to_owned())
        .collect();
    options.push(if mount.read_only { "ro" } else { "rw" }.to_owned());
    if mount.tmpfs_size_bytes > 0 {
        options.push(format!("size={}", mount.tmpfs_size_bytes));
    }
    if mount.tmpfs_mode > 0 {
        options.push(format!("mode={:o}", mount.tmpfs_mode));
    }
    for option in &mount.options {
        if !options.contains(option) {
            options.push(option.clone());
        }
    }
    options
}

/// Whether a person's mount covers `target` or what it is in.
#[must_use]
pub fn covers(mounts: &[Mount], target: &str) -> bool {
    mounts.iter().any(|mount| same_path(&mount.target, target))
}

#[cfg(test)]
mod tests {
    use super::super::mount_checks::check;
    use super::*;
    use crate::wanted::IdMap;

    fn bind(source: &str, target: &str) -> Mount {
        Mount {
            source: source.to_owned(),
            target: target.to_owned(),
            ..Mount::default()
        }
    }

    #[test]
    fn a_persons_mount_replaces_a_default_one() {
        let wanted = Wanted {
            mounts: vec![
                bind("/tmp/b", "/b/c"),
                bind("/tmp", "/b"),
                Mount {
                    kind: MountKind::Tmpfs,
                    target: "/dev/shm".to_owned(),
                    tmpfs_size_bytes: 4096,
                    options: vec!["exec".to_owned()],
                    ..Mount::default()
                },
            ],
            ..Wanted::default()
        };
        let all = mounts(&wanted, &wanted.mounts, None).unwrap();
        let targets: Vec<_> = all
            .iter()
            .map(|mount| mount["destination"].as_str().unwrap())
            .collect();
        assert_eq!(targets[targets.len() - 3..], ["/b", "/b/c", "/dev/shm"][..]);
        let shm = all.last().unwrap();
        assert_eq!(
            shm["options"],
            json!(["nosuid", "nodev", "rw", "size=4096", "exec"])
        );
        assert_eq!(targets.iter().filter(|t| **t == "/dev/shm").count(), 1);
    }

    #[test]
    fn ids_are_mapped_as_asked_and_what_cannot_be_mapped_is_refused() {
        let range = |on_disk, seen, count| IdRange {
            on_disk,
            seen,
            count,
        };
        let with = |uids: &[IdRange], gids: &[IdRange]| Mount {
            id_map: Some(IdMap {
                uids: uids.to_vec(),
                gids: gids.to_vec(),
            }),
            ..bind("/", "/a")
        };
        let one = [range(0, 1000, 1), range(1, 5000, 10)];
        let mapped = with(&one, &[]);
        check(std::slice::from_ref(&mapped), None).unwrap();
        let made = person(&mapped, None).unwrap();
        assert_eq!(
            made["uidMappings"][1],
            json!({"containerID": 1, "hostID": 5000, "size": 10})
        );
        assert_eq!(
            made["gidMappings"][0]["size"],
            u32::MAX,
            "groups as they are"
        );
        let options = made["options"].as_array().unwrap();
        assert!(options.contains(&json!("ridmap")), "{options:?}");
        for bad in [
            with(&[], &[]),
            with(&[range(0, 1, 0)], &[]),
            with(&[range(u32::MAX, 1, 2)], &[]),
            with(&[range(0, 10, 5), range(4, 100, 1)], &[]),
            with(&[range(0, 10, 5), range(10, 14, 1)], &[]),
            Mount {
                kind: MountKind::Tmpfs,
                ..with(&one, &[])
            },
        ] {
            assert!(check(std::slice::from_ref(&bad), None).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn with_ids_of_its_own_a_map_is_of_those() {
        let own = OwnIds {
            first: 700_000,
            count: 2_000,
        };
        let with = |ranges: &[IdRange]| Mount {
            id_map: Some(IdMap {
                uids: ranges.to_vec(),
                gids: Vec::new(),
            }),
            ..bind("/", "/a")
        };
        let range = |seen| IdRange {
            on_disk: 0,
            seen,
            count: 1,
        };
        let checked = |mount: &Mount| check(std::slice::from_ref(mount), Some(own.count));
        let all = with(&[]);
        checked(&all).unwrap();
        let made = person(&all, Some(own)).unwrap();
        assert!(made.get("uidMappings").is_none(), "{made}");
        let one = with(&[range(1999)]);
        checked(&one).unwrap();
        let made = person(&one, Some(own)).unwrap();
        let wanted = json!([{"containerID": 0, "hostID": 701_999, "size": 1}]);
        assert_eq!(made["uidMappings"], wanted);
        assert_eq!(made["gidMappings"][0]["size"], 2_000);
        assert!(checked(&with(&[range(2000)])).is_err());
    }

    #[test]
    fn what_is_read_only_is_so_with_all_that_is_mounted_below_it() {
        let mut mount = bind("/", "/a");
        mount.read_only = true;
        assert!(bind_options(&mount).contains(&"rro".to_owned()));
        mount.read_only_non_recursive = true;
        assert!(bind_options(&mount).contains(&"ro".to_owned()));
        let image = Mount {
            kind: MountKind::Image,
            target: "/i".to_owned(),
            subpath: "etc".to_owned(),
            found: Some(Found {
                kind: "overlay".to_owned(),
                layers: vec!["/top".to_owned(), "/low".to_owned()],
                ..Found::default()
            }),
            ..Mount::default()
        };
        let made = person(&image, None).unwrap();
        assert_eq!(made["type"], "overlay");
        assert_eq!(
            made["options"],
            json!([
                "lowerdir+=/top",
                "lowerdir+=/low",
                "ro",
                "x-gantry.subpath=etc"
            ])
        );
    }
}
