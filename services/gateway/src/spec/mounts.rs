//! Mounts: the kernel's file systems that every container has, then what a
//! person asked for. A person's mount on the place of a default one replaces it.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::wanted::{Mount, MountKind, NamespaceMode, Wanted};

/// Docker's default for /dev/shm.
const SHM_BYTES: u64 = 64 << 20;

const PROPAGATIONS: [&str; 6] = [
    "rprivate", "private", "rshared", "shared", "rslave", "slave",
];

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": target, "type": kind, "source": source, "options": options})
}

/// All mounts of a container, in the order they are made.
///
/// # Errors
/// One of them cannot be made as it is asked for.
pub fn mounts(wanted: &Wanted) -> Result<Vec<Value>> {
    let mut own = wanted.mounts.clone();
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
        all.push(person(mount)?);
    }
    Ok(all)
}

fn same_path(a: &str, b: &str) -> bool {
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
    if NamespaceMode::parse(&wanted.ipc_mode) == Some(NamespaceMode::Host) {
        for target in ["/dev/mqueue", "/dev/shm"] {
            all.push(mount(target, "bind", target, &["rbind", "rprivate"]));
        }
    } else {
        all.push(mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ));
        all.push(mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &[
                "nosuid",
                "noexec",
                "nodev",
                "mode=1777",
                &format!("size={shm}"),
            ],
        ));
    }
    all
}

fn person(mount: &Mount) -> Result<Value> {
    let options = match mount.kind {
        MountKind::Bind => bind_options(mount),
        MountKind::Tmpfs => tmpfs_options(mount),
        MountKind::Volume => return Err(no_volumes(mount)),
    };
    Ok(match mount.kind {
        MountKind::Tmpfs => json!({
            "destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options,
        }),
        _ => json!({
            "destination": mount.target, "type": "bind", "source": mount.source, "options": options,
        }),
    })
}

fn bind_options(mount: &Mount) -> Vec<String> {
    let mut options = vec![
        if mount.non_recursive { "bind" } else { "rbind" }.to_owned(),
        if mount.read_only { "ro" } else { "rw" }.to_owned(),
        if mount.propagation.is_empty() {
            "rprivate".to_owned()
        } else {
            mount.propagation.clone()
        },
    ];
    options.extend(mount.options.iter().cloned());
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

fn no_volumes(mount: &Mount) -> Error {
    Error::invalid(
        "volume",
        format!(
            "{:?}: named volumes are not there yet; give the absolute path of a directory",
            mount.source
        ),
    )
}

/// Refuses mounts that cannot be made, before anything is changed; makes the
/// sources that are to be made.
///
/// # Errors
/// A target or source is malformed, a source is missing, or a target is taken
/// twice.
pub fn check(mounts: &[Mount]) -> Result<()> {
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
            MountKind::Volume => return Err(no_volumes(mount)),
            MountKind::Tmpfs => {}
        }
    }
    // Only when all of them are right.
    for mount in mounts {
        let missing = mount.kind == MountKind::Bind && !Path::new(&mount.source).exists();
        if missing {
            fs::create_dir_all(&mount.source)
                .map_err(|source| Error::file("make the bind source", &mount.source, source))?;
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

/// Whether a person's mount covers `target` or what it is in.
#[must_use]
pub fn covers(mounts: &[Mount], target: &str) -> bool {
    mounts.iter().any(|mount| same_path(&mount.target, target))
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
            check(std::slice::from_ref(&mount)),
            Err(Error::BindSourceMissing { .. })
        ));
        mount.create_source = true;
        let wrong = bind("/", "relative");
        assert!(check(&[mount.clone(), wrong]).is_err());
        assert!(!source.exists(), "nothing is made before all is checked");
        check(std::slice::from_ref(&mount)).unwrap();
        assert!(source.is_dir());
    }

    #[test]
    fn malformed_mounts_are_refused() {
        for target in ["", "data", "/", "/a/../b", "//"] {
            assert!(check(&[bind("/", target)]).is_err(), "{target:?}");
        }
        assert!(check(&[bind("relative", "/a")]).is_err());
        assert!(check(&[bind("/", "/a"), bind("/", "/a/")]).is_err());
        let mut odd = bind("/", "/a");
        odd.propagation = "public".to_owned();
        assert!(check(&[odd]).is_err());
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
        let all = mounts(&wanted).unwrap();
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
}
