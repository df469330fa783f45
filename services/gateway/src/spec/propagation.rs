//! Whether mounts pass between a bind's source and the host, and what the
//! container's own root has to be for that (mount_namespaces(7)).
//!
//! A container's root is made the host's slave, so that nothing that is mounted
//! in it gets out. For a bind that shares its mounts (`rshared`) the root stays
//! in the host's peer groups until the bind is made.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::wanted::{Mount, MountKind};

/// What a bind's propagation needs of the mount that its source is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    /// It gets mounts from the host.
    Receives,
    /// It gives and gets.
    Shares,
}

fn need(mount: &Mount) -> Need {
    match mount.propagation.as_str() {
        _ if mount.kind != MountKind::Bind => Need::Nothing,
        "shared" | "rshared" => Need::Shares,
        "slave" | "rslave" => Need::Receives,
        _ => Need::Nothing,
    }
}

/// The propagation of a container's root. None: the shim's own.
#[must_use]
pub fn of_root(mounts: &[Mount]) -> Option<&'static str> {
    let shares = mounts.iter().any(|mount| need(mount) == Need::Shares);
    shares.then_some("rshared")
}

/// Refuses a propagation that the source's mount does not have: it would do
/// nothing, and nobody would be told.
///
/// # Errors
/// The source is not on such a mount.
pub fn check(mount: &Mount) -> Result<()> {
    let need = need(mount);
    if need == Need::Nothing {
        return Ok(());
    }
    let table = "/proc/self/mountinfo";
    let text = fs::read_to_string(table).map_err(|source| Error::file("read", table, source))?;
    // What is not there yet is made on the mount of what is.
    let source = existing(Path::new(&mount.source));
    let Some((point, fields)) = mount_of(&text, &source) else {
        return Ok(());
    };
    let is_shared = fields.iter().any(|field| field.starts_with("shared:"));
    let is_slave = fields.iter().any(|field| field.starts_with("master:"));
    if is_shared || (need == Need::Receives && is_slave) {
        return Ok(());
    }
    let kind = match need {
        Need::Shares => "shared",
        _ => "shared or slave",
    };
    Err(Error::invalid(
        "mount",
        format!(
            "path {} is mounted on {} but it is not a {kind} mount; make it one (mount --make-rshared {}), or leave out {}",
            mount.source,
            point.display(),
            point.display(),
            mount.propagation
        ),
    ))
}

fn existing(path: &Path) -> PathBuf {
    let mut path = path;
    loop {
        match (path.canonicalize(), path.parent()) {
            (Ok(found), _) => return found,
            (Err(_), Some(parent)) => path = parent,
            (Err(_), None) => return PathBuf::from("/"),
        }
    }
}

/// The mount that a path is on, by a mountinfo table (proc(5)): where it is
/// mounted, and its optional fields.
fn mount_of<'a>(table: &'a str, path: &Path) -> Option<(PathBuf, Vec<&'a str>)> {
    let mounts = table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let point = PathBuf::from(unescaped(fields.nth(4)?));
        let optional = fields.skip(1).take_while(|field| *field != "-");
        path.starts_with(&point)
            .then(|| (point, optional.collect::<Vec<_>>()))
    });
    // Of several at one place the last covers the others.
    mounts.max_by_key(|(point, _)| point.components().count())
}

/// `\040` and its kind.
fn unescaped(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (code, plain)| {
        text.replace(code, plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_a_path_is_the_deepest_and_of_these_the_last() {
        let table = "\
1 0 8:1 / / rw - ext4 /dev/a rw
2 1 8:1 / /srv rw shared:7 - ext4 /dev/b rw
3 1 8:1 / /srv rw,nodev master:3 propagate_from:2 - tmpfs tmpfs rw
4 1 8:1 / /with\\040space rw shared:9 - tmpfs tmpfs rw
";
        let of = |path: &str| {
            let (point, fields) = mount_of(table, Path::new(path)).unwrap();
            (point.display().to_string(), fields.join(" "))
        };
        assert_eq!(of("/srvx/y"), ("/".to_owned(), String::new()));
        assert_eq!(
            of("/srv/x"),
            ("/srv".to_owned(), "master:3 propagate_from:2".to_owned())
        );
        assert_eq!(
            of("/with space/x"),
            ("/with space".to_owned(), "shared:9".to_owned())
        );
    }
}
