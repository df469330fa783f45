//! The local driver's options: what is mounted for a volume.
//!
//! They are those of mount(8), as Docker's driver has them. Of file systems
//! there are a tmpfs, and a directory of the host: they need no helper program
//! and no name service. A tmpfs is each container's own: Gantry mounts nothing
//! on the host that containers could share.

use std::collections::BTreeMap;
use std::path::{Component, PathBuf};

use crate::error::ImageError;

/// What is behind a volume's name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Backing {
    /// Its directory in the store.
    Directory,
    /// A file system in memory, new for each start of each container.
    Tmpfs { options: Vec<String> },
    /// A directory of the host.
    Bind {
        device: PathBuf,
        options: Vec<String>,
    },
}

/// Flags that any mount takes.
const FLAGS: [&str; 14] = [
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "noatime",
    "atime",
    "nodiratime",
    "diratime",
    "relatime",
    "strictatime",
];

/// What a tmpfs takes beside them.
const TMPFS_KEYS: [&str; 7] = [
    "size",
    "nr_blocks",
    "nr_inodes",
    "mode",
    "uid",
    "gid",
    "huge",
];

const PROPAGATIONS: [&str; 6] = [
    "private", "rprivate", "shared", "rshared", "slave", "rslave",
];

fn wrong(reason: impl Into<String>) -> ImageError {
    ImageError::VolumeOptions {
        reason: reason.into(),
    }
}

/// What the options mean.
pub(crate) fn backing(options: &BTreeMap<String, String>) -> Result<Backing, ImageError> {
    if options.is_empty() {
        return Ok(Backing::Directory);
    }
    for key in options.keys() {
        match key.as_str() {
            "type" | "device" | "o" => {}
            "size" => {
                return Err(wrong(
                    "size needs quotas of the file system, which Gantry does not set; a tmpfs takes o=size=…",
                ));
            }
            _ => {
                return Err(wrong(format!(
                    "{key:?} is not known; there are type, device and o"
                )));
            }
        }
    }
    let text = |key: &str| options.get(key).map_or("", String::as_str);
    let (kind, device) = (text("type"), text("device"));
    let given: Vec<&str> = text("o").split(',').filter(|o| !o.is_empty()).collect();
    let binds = given
        .iter()
        .any(|option| matches!(*option, "bind" | "rbind"));
    match kind {
        "tmpfs" => Ok(Backing::Tmpfs {
            options: tmpfs(&given)?,
        }),
        "none" | "bind" | "" if binds => bind(device, &given),
        "none" | "bind" | "" => Err(wrong(
            "a directory of the host needs o=bind and device=/PATH",
        )),
        _ => Err(wrong(format!(
            "type {kind:?} is not supported; there are type=tmpfs, and type=none with o=bind and device=/PATH of what the host has mounted"
        ))),
    }
}

fn tmpfs(given: &[&str]) -> Result<Vec<String>, ImageError> {
    for option in given {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let known = FLAGS.contains(option) || (TMPFS_KEYS.contains(&key) && !value.is_empty());
        if !known {
            return Err(wrong(format!("a tmpfs has no option {option:?}")));
        }
    }
    Ok(given.iter().map(|option| (*option).to_owned()).collect())
}

fn bind(device: &str, given: &[&str]) -> Result<Backing, ImageError> {
    let path = PathBuf::from(device);
    let plain = path.is_absolute()
        && !device.contains('\0')
        && !path.components().any(|part| part == Component::ParentDir);
    if !plain {
        return Err(wrong(format!(
            "device {device:?} is not an absolute path without '..'"
        )));
    }
    for option in given {
        let known = FLAGS.contains(option)
            || PROPAGATIONS.contains(option)
            || matches!(*option, "bind" | "rbind");
        if !known {
            return Err(wrong(format!("a bind has no option {option:?}")));
        }
    }
    Ok(Backing::Bind {
        device: path,
        options: given.iter().map(|option| (*option).to_owned()).collect(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(options: &[(&str, &str)]) -> Result<Backing, ImageError> {
        let options = options.iter();
        backing(&options.map(|(k, v)| ((*k).into(), (*v).into())).collect())
    }

    #[test]
    fn a_volume_is_a_directory_a_tmpfs_or_a_directory_of_the_host() {
        assert_eq!(of(&[]).unwrap(), Backing::Directory);
        let tmpfs = [
            ("type", "tmpfs"),
            ("device", "tmpfs"),
            ("o", "size=1m,uid=7"),
        ];
        let options = ["size=1m", "uid=7"].map(str::to_owned).to_vec();
        assert_eq!(of(&tmpfs).unwrap(), Backing::Tmpfs { options });
        let bind = [("type", "none"), ("device", "/srv/x"), ("o", "bind,ro")];
        let options = ["bind", "ro"].map(str::to_owned).to_vec();
        let device = PathBuf::from("/srv/x");
        assert_eq!(of(&bind).unwrap(), Backing::Bind { device, options });
    }

    #[test]
    fn options_that_mean_nothing_are_refused() {
        for bad in [
            &[("type", "nfs"), ("device", ":/x"), ("o", "addr=1.2.3.4")][..],
            &[("type", "none"), ("device", "/x")],
            &[("type", "none"), ("device", "x"), ("o", "bind")],
            &[("type", "none"), ("device", "/a/../b"), ("o", "bind")],
            &[
                ("type", "none"),
                ("device", "/a"),
                ("o", "bind,upperdir=/x"),
            ],
            &[("type", "tmpfs"), ("o", "bind")],
            &[("type", "tmpfs"), ("o", "size")],
            &[("size", "10m")],
            &[("colour", "red")],
        ] {
            let refused = of(bad);
            assert!(
                matches!(refused, Err(ImageError::VolumeOptions { .. })),
                "{bad:?}"
            );
        }
    }
}
