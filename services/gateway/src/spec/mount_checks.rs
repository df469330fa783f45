//! Mounts that cannot be made are refused before anything is.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use gantry_kit::directories;

use super::mounts::same_path;
use super::propagation;
use crate::error::{Error, Result};
use crate::wanted::{IdMap, IdRange, Mount, MountKind};

const PROPAGATIONS: [&str; 6] = [
    "rprivate", "private", "rshared", "shared", "rslave", "slave",
];

/// Refuses mounts that cannot be made, before anything is changed; makes the
/// sources that are to be made. `own_ids`: how many ids of its own the container
/// has, if it has any.
///
/// # Errors
/// A target or source is malformed, a source is missing, or a target is taken
/// twice.
pub fn check(mounts: &[Mount], own_ids: Option<u32>) -> Result<()> {
    for (place, mount) in mounts.iter().enumerate() {
        check_target(&mount.target)?;
        if mounts[..place]
            .iter()
            .any(|other| same_path(&other.target, &mount.target))
        {
            return Err(Error::invalid(
                "mount",
                format!("two mounts have the target {}", mount.target),
            ));
        }
        match mount.kind {
            MountKind::Bind => check_bind(mount)?,
            MountKind::Volume | MountKind::Image | MountKind::Tmpfs => {}
        }
        if let Some(map) = &mount.id_map {
            check_id_map(mount, map, own_ids)?;
        }
    }
    // Only when all of them are right.
    for mount in mounts {
        let missing = mount.kind == MountKind::Bind && !Path::new(&mount.source).exists();
        if missing {
            let source = Path::new(&mount.source);
            directories::make_for_all(source)
                .map_err(|error| Error::file("make the bind source", source, error.into()))?;
        }
    }
    Ok(())
}

/// How many ranges the kernel takes for one kind of ids.
const ID_RANGES_MAX: usize = 340;

fn check_id_map(mount: &Mount, map: &IdMap, own_ids: Option<u32>) -> Result<()> {
    let wrong = |problem: &str| {
        let target = &mount.target;
        Err(Error::invalid(
            "mount",
            format!("{target}: idmap: {problem}"),
        ))
    };
    if !matches!(mount.kind, MountKind::Bind | MountKind::Volume) {
        return wrong("it is for a bind or a volume");
    }
    if map.uids.is_empty() && map.gids.is_empty() && own_ids.is_none() {
        return wrong(
            "the container has no ids of its own to take; give --userns auto, or ids, as in idmap=uids=0-1000-1",
        );
    }
    for ranges in [&map.uids, &map.gids] {
        if ranges.len() > ID_RANGES_MAX {
            return wrong("there are more than 340 ranges");
        }
        let fits = |first: u32, count: u32| count > 0 && first.checked_add(count).is_some();
        if !ranges
            .iter()
            .all(|range| fits(range.on_disk, range.count) && fits(range.seen, range.count))
        {
            return wrong("a range is empty, or goes beyond the last id");
        }
        if let Some(count) = own_ids
            && ranges.iter().any(|range| range.seen + range.count > count)
        {
            return wrong("a range goes beyond the container's own ids");
        }
        let firsts: [fn(&IdRange) -> u32; 2] = [|range| range.on_disk, |range| range.seen];
        for first in firsts {
            let mut spans: Vec<(u32, u32)> = ranges
                .iter()
                .map(|range| (first(range), first(range) + range.count))
                .collect();
            spans.sort_unstable();
            if spans.windows(2).any(|pair| pair[1].0 < pair[0].1) {
                return wrong("two ranges overlap");
            }
        }
    }
    Ok(())
}

fn check_target(target: &str) -> Result<()> {
    let path = Path::new(target);
    let problem = if !path.is_absolute() {
        "is not an absolute path"
    } else if path.components().any(|part| part == Component::ParentDir) {
        "has '..' in it"
    } else if same_path(target, "/") {
        "is the root of the container"
    } else if target.contains('\0') {
        "has a zero byte in it"
    } else {
        return Ok(());
    };
    Err(Error::invalid(
        "mount",
        format!("the target {target:?} {problem}"),
    ))
}

fn check_bind(mount: &Mount) -> Result<()> {
    let source = Path::new(&mount.source);
    if !source.is_absolute() {
        return Err(Error::invalid(
            "mount",
            format!("the source {:?} is not an absolute path", mount.source),
        ));
    }
    let propagation = mount.propagation.as_str();
    if !propagation.is_empty() && !PROPAGATIONS.contains(&propagation) {
        return Err(Error::invalid(
            "mount",
            format!(
                "there is no propagation {propagation:?}; there are {}",
                PROPAGATIONS.join(", ")
            ),
        ));
    }
    propagation::check(mount)?;
    match fs::metadata(source) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if mount.create_source {
                Ok(())
            } else {
                Err(Error::BindSourceMissing {
                    path: PathBuf::from(source),
                    target: mount.target.clone(),
                })
            }
        }
        Err(error) => Err(Error::file("look at the bind source", source, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &str, target: &str) -> Mount {
        Mount {
            source: source.to_owned(),
            target: target.to_owned(),
            ..Mount::default()
        }
    }

    #[test]
    fn a_missing_source_is_refused_unless_it_is_to_be_made() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("data");
        let mut mount = bind(source.to_str().unwrap(), "/data");
        assert!(matches!(
            check(std::slice::from_ref(&mount), None),
            Err(Error::BindSourceMissing { .. })
        ));
        mount.create_source = true;
        let wrong = bind("/", "relative");
        assert!(check(&[mount.clone(), wrong], None).is_err());
        assert!(!source.exists(), "nothing is made before all is checked");
        check(std::slice::from_ref(&mount), None).unwrap();
        assert!(source.is_dir());
    }

    #[test]
    fn malformed_mounts_are_refused() {
        for target in ["", "data", "/", "/a/../b", "//"] {
            assert!(check(&[bind("/", target)], None).is_err(), "{target:?}");
        }
        assert!(check(&[bind("relative", "/a")], None).is_err());
        assert!(check(&[bind("/", "/a"), bind("/", "/a/")], None).is_err());
        let mut odd = bind("/", "/a");
        odd.propagation = "public".to_owned();
        assert!(check(&[odd], None).is_err());
    }
}
