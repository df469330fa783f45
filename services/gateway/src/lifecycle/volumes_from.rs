//! What is mounted in a container: what was asked for, and what `--volumes-from`
//! takes of other containers.

use std::path::Path;

use crate::container::Record;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::wanted::{Mount, MountKind, Wanted};

/// All mounts of a container that is to be, before its image is known.
///
/// # Errors
/// A container that is named is not there, or is not ready.
pub(super) fn mounts(engine: &Engine, wanted: &Wanted) -> Result<Vec<Mount>> {
    let mut all = wanted.mounts.clone();
    // The last that has something for a place counts.
    for from in wanted.volumes_from.iter().rev() {
        let (name, read_only) = parse(from)?;
        let other = engine.roster.find(name)?.record();
        if other.rootfs.is_none() {
            return Err(Error::WrongState {
                name: other.name.clone(),
                verb: "take the volumes of",
                state: other.state,
            });
        }
        for mount in taken(&other, read_only) {
            let there = |own: &Mount| same_path(&own.target, &mount.target);
            if !all.iter().any(there) {
                all.push(mount);
            }
        }
    }
    Ok(all)
}

fn same_path(a: &str, b: &str) -> bool {
    Path::new(a).components().eq(Path::new(b).components())
}

/// "NAME[:ro|rw]".
fn parse(text: &str) -> Result<(&str, bool)> {
    match text.split_once(':') {
        None | Some((_, "" | "rw")) => Ok((text.split(':').next().unwrap_or(text), false)),
        Some((name, "ro")) => Ok((name, true)),
        // Labels of other systems mean nothing here.
        Some((name, "z" | "Z")) => Ok((name, false)),
        Some((_, mode)) => Err(Error::invalid(
            "volumes-from",
            format!("{text:?}: the mode {mode:?} is neither ro nor rw"),
        )),
    }
}

/// The binds and volumes of a container, as another one has them.
fn taken(other: &Record, read_only: bool) -> Vec<Mount> {
    let mounts = other.mounts().iter();
    let mounts = mounts.filter(|mount| matches!(mount.kind, MountKind::Bind | MountKind::Volume));
    let mounts = mounts.map(|mount| {
        let mut mount = mount.clone();
        mount.read_only |= read_only;
        if let Some(found) = mount.found.take() {
            mount.source = found.volume;
            // It is filled, or not to be.
            mount.volume_no_copy = true;
            mount.volume_must_exist = true;
        }
        mount
    });
    mounts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_may_be_named_with_a_mode() {
        assert_eq!(parse("web").unwrap(), ("web", false));
        assert_eq!(parse("web:rw").unwrap(), ("web", false));
        assert_eq!(parse("web:ro").unwrap(), ("web", true));
        assert!(parse("web:rx").is_err());
    }
}
