//! A mount's options as the runtime spec writes them, sorted by what they are for.

use std::path::{Component, Path, PathBuf};

use gantry_sys::mount as sys;

use super::error::{Error, Result};

/// The options of one mount.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct MountOptions {
    /// `bind` or `rbind`; the value: with everything beneath.
    pub(super) bind: Option<bool>,
    /// `MOUNT_ATTR_…` to set on the mount itself.
    pub(super) set: u64,
    /// `MOUNT_ATTR_…` to clear on the mount itself.
    pub(super) clear: u64,
    /// The same on it and everything beneath (`rro` and its kind).
    pub(super) set_recursive: u64,
    /// The same.
    pub(super) clear_recursive: u64,
    /// `MS_…` propagation types, each with whether it goes beneath, in their order.
    pub(super) propagation: Vec<(u64, bool)>,
    /// `remount`: change the flags of what is mounted there.
    pub(super) remount: bool,
    /// Copy what the image has there into the new tmpfs.
    pub(super) copy_up: bool,
    /// `idmap`, `ridmap`: map ids, with everything beneath or not.
    pub(super) id_map: Option<bool>,
    /// `src-nofollow`, as Podman writes it: a source that is a link is bound itself.
    pub(super) source_link: bool,
    /// `dest-nofollow`: a target that is a link is covered itself.
    pub(super) target_link: bool,
    /// `x-gantry.subpath=PATH`: what of the source to mount, looked up beneath it.
    pub(super) subpath: Option<PathBuf>,
    /// Flags of the file system: `sync`, `dirsync`, `lazytime`, …
    pub(super) file_system_flags: Vec<&'static str>,
    /// What is left: options of the file system, `key` or `key=value`.
    pub(super) data: Vec<(String, Option<String>)>,
}

/// Gantry's own, as mount(8) lets programs have theirs (`x-…`).
pub(super) const SUBPATH: &str = "x-gantry.subpath=";

const RECURSIVE: u64 = libc::MS_REC;

impl MountOptions {
    /// Sorts them. `kind` is the mount's type, `index` its place in the spec, for errors.
    pub(super) fn parse(options: &[String], kind: &str, index: usize) -> Result<Self> {
        let mut parsed = Self::default();
        for option in options {
            parsed.add(option);
        }
        if kind == "bind" && parsed.bind.is_none() {
            parsed.bind = Some(false);
        }
        let stays = |path: &Path| {
            let normal = |part| matches!(part, Component::Normal(_) | Component::CurDir);
            path.components().all(normal) && !path.as_os_str().is_empty()
        };
        if parsed.subpath.as_deref().is_some_and(|path| !stays(path)) {
            return Err(Error::invalid(
                format!("mounts[{index}].options"),
                format!("{SUBPATH:?} is not followed by a relative path without \"..\""),
            ));
        }
        if parsed.copy_up && kind != "tmpfs" {
            return Err(Error::invalid(
                format!("mounts[{index}].options"),
                "\"tmpcopyup\" is for a tmpfs only",
            ));
        }
        Ok(parsed)
    }

    fn attribute(&mut self, bit: u64, on: bool, recursive: bool) {
        let (set, clear) = if recursive {
            (&mut self.set_recursive, &mut self.clear_recursive)
        } else {
            (&mut self.set, &mut self.clear)
        };
        if on {
            *set |= bit;
            *clear &= !bit;
        } else {
            *set &= !bit;
            *clear |= bit;
        }
    }

    fn access_time(&mut self, bit: u64, recursive: bool) {
        let (set, clear) = if recursive {
            (&mut self.set_recursive, &mut self.clear_recursive)
        } else {
            (&mut self.set, &mut self.clear)
        };
        // These three are one field: the kernel wants all of it cleared first.
        *set = *set & !sys::ATIME_MASK | bit;
        *clear |= sys::ATIME_MASK;
    }

    fn add(&mut self, option: &str) {
        const PROPAGATION: [(&str, u64); 4] = [
            ("shared", libc::MS_SHARED),
            ("slave", libc::MS_SLAVE),
            ("private", libc::MS_PRIVATE),
            ("unbindable", libc::MS_UNBINDABLE),
        ];
        for (name, bit) in PROPAGATION {
            if option == name {
                self.propagation.push((bit, false));
                return;
            }
            if option.strip_prefix('r') == Some(name) {
                self.propagation.push((bit | RECURSIVE, true));
                return;
            }
        }
        if let Some(path) = option.strip_prefix(SUBPATH) {
            self.subpath = Some(path.into());
            return;
        }
        // "ro" and "rw" begin as their recursive kind does: "rro" and "rrw".
        let (plain, recursive) = match option {
            "rro" | "rrw" | "rnosuid" | "rsuid" | "rnodev" | "rdev" | "rnoexec" | "rexec"
            | "rnodiratime" | "rdiratime" | "rrelatime" | "rnorelatime" | "rnoatime" | "ratime"
            | "rstrictatime" | "rnostrictatime" | "rsymfollow" | "rnosymfollow" => {
                (&option[1..], true)
            }
            _ => (option, false),
        };
        match plain {
            "defaults" | "async" | "nolazytime" => {}
            "ro" => self.attribute(sys::RDONLY, true, recursive),
            "rw" => self.attribute(sys::RDONLY, false, recursive),
            "nosuid" => self.attribute(sys::NOSUID, true, recursive),
            "suid" => self.attribute(sys::NOSUID, false, recursive),
            "nodev" => self.attribute(sys::NODEV, true, recursive),
            "dev" => self.attribute(sys::NODEV, false, recursive),
            "noexec" => self.attribute(sys::NOEXEC, true, recursive),
            "exec" => self.attribute(sys::NOEXEC, false, recursive),
            "nodiratime" => self.attribute(sys::NODIRATIME, true, recursive),
            "diratime" => self.attribute(sys::NODIRATIME, false, recursive),
            "nosymfollow" => self.attribute(sys::NOSYMFOLLOW, true, recursive),
            "symfollow" => self.attribute(sys::NOSYMFOLLOW, false, recursive),
            "noatime" => self.access_time(sys::NOATIME, recursive),
            "strictatime" => self.access_time(sys::STRICTATIME, recursive),
            "relatime" | "atime" | "norelatime" | "nostrictatime" => {
                self.access_time(0, recursive);
            }
            // Beside "rbind" it takes nothing away.
            "bind" => {
                self.bind.get_or_insert(false);
            }
            "rbind" => self.bind = Some(true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "src-nofollow" => self.source_link = true,
            "dest-nofollow" => self.target_link = true,
            "idmap" => self.id_map = Some(false),
            "ridmap" => self.id_map = Some(true),
            "sync" => self.file_system_flags.push("sync"),
            "dirsync" => self.file_system_flags.push("dirsync"),
            "lazytime" => self.file_system_flags.push("lazytime"),
            "mand" => self.file_system_flags.push("mand"),
            "nomand" | "silent" | "loud" | "iversion" | "noiversion" | "acl" | "noacl" => {}
            other => {
                let pair = match other.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (other.to_owned(), None),
                };
                self.data.push(pair);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> MountOptions {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        MountOptions::parse(&options, "none", 0).unwrap()
    }

    #[test]
    fn the_last_of_opposite_options_wins() {
        assert_eq!(parse(&["rbind", "bind"]).bind, Some(true));
        assert_eq!(parse(&["ro", "rw"]).set, 0);
        assert_eq!(parse(&["ro", "rw"]).clear, sys::RDONLY);
        assert_eq!(parse(&["rw", "ro"]).set, sys::RDONLY);
    }

    #[test]
    fn recursive_options_are_told_from_plain_ones() {
        let options = parse(&["rro", "rprivate", "rbind", "nosuid"]);
        assert_eq!(options.set_recursive, sys::RDONLY);
        assert_eq!(options.set, sys::NOSUID);
        assert_eq!(options.bind, Some(true));
        assert_eq!(
            options.propagation,
            [(libc::MS_PRIVATE | libc::MS_REC, true)]
        );
    }

    #[test]
    fn a_subpath_stays_beneath_its_source() {
        assert_eq!(
            parse(&["rbind", "x-gantry.subpath=a/b"]).subpath,
            Some("a/b".into())
        );
        for bad in ["", "/a", "..", "a/../../b"] {
            let options = [format!("{SUBPATH}{bad}")];
            assert!(MountOptions::parse(&options, "bind", 0).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_not_a_flag_goes_to_the_file_system() {
        let options = parse(&["size=64k", "mode=1777", "newinstance"]);
        assert_eq!(options.data.len(), 3);
        assert_eq!(options.data[2], ("newinstance".to_owned(), None));
    }

    #[test]
    fn a_change_of_access_time_clears_the_whole_field() {
        let options = parse(&["noatime"]);
        assert_eq!(
            (options.set, options.clear),
            (sys::NOATIME, sys::ATIME_MASK)
        );
    }
}
