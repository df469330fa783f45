//! Capabilities: Docker's default set, `--cap-add`, `--cap-drop`, and what the
//! engine itself holds.
//!
//! 'All' means all that the engine holds: it cannot give what it has not got.
//! Facts: capabilities(7), and the set Docker documents as its default.

use std::fs;

use crate::error::{Error, Result};

/// All capabilities by number (linux/capability.h).
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a container has that asks for nothing else.
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// A set of capabilities, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set(u64);

impl Set {
    pub const EVERY: Self = Self((1 << ALL.len()) - 1);

    /// What this process may hand on: its bounding set and the running kernel's
    /// own. Everything where that cannot be read.
    #[must_use]
    pub fn held() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bounding = status
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:"))
            .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
        bounding.map_or(Self::EVERY, |bits| Self(bits & Self::EVERY.0))
    }

    fn of(names: &[&str]) -> Self {
        let bits = ALL.iter().enumerate();
        Self(
            bits.filter(|(_, name)| names.contains(name))
                .fold(0, |bits, (number, _)| bits | 1 << number),
        )
    }

    #[must_use]
    pub fn contains(self, name: &str) -> bool {
        ALL.iter()
            .position(|known| *known == name)
            .is_some_and(|number| self.0 & (1 << number) != 0)
    }

    /// The names, by number.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let named = ALL.iter().enumerate();
        named
            .filter(|(number, _)| self.0 & (1 << number) != 0)
            .map(|(_, name)| *name)
            .collect()
    }
}

/// A name as a person writes it ("net_admin", "CAP_NET_ADMIN").
fn one(field: &str, text: &str) -> Result<Set> {
    let upper = text.to_ascii_uppercase();
    if upper == "ALL" || upper == "CAP_ALL" {
        return Ok(Set::EVERY);
    }
    let name = if upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    };
    let set = Set::of(&[&name]);
    if set.0 == 0 {
        return Err(Error::invalid(
            field,
            format!("there is no capability {text:?}; see capabilities(7)"),
        ));
    }
    Ok(set)
}

/// The set of a container: the default or, privileged, all; then what is dropped
/// and added, a single name being stronger than ALL. Never more than `held`.
///
/// # Errors
/// A name is unknown.
pub fn resolve(add: &[String], drop: &[String], privileged: bool, held: Set) -> Result<Set> {
    let is_all = |name: &String| one("cap", name).is_ok_and(|set| set == Set::EVERY);
    let union = |field: &str, names: &[String]| -> Result<u64> {
        let mut bits = 0;
        for name in names.iter().filter(|name| !is_all(name)) {
            bits |= one(field, name)?.0;
        }
        Ok(bits)
    };
    let (added, dropped) = (union("cap-add", add)?, union("cap-drop", drop)?);
    if privileged {
        return Ok(held);
    }
    let base = if add.iter().any(is_all) {
        Set::EVERY.0 & !dropped
    } else if drop.iter().any(is_all) {
        0
    } else {
        Set::of(&DEFAULT).0 & !dropped
    };
    Ok(Set((base | added) & held.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(add: &[&str], drop: &[&str]) -> Vec<&'static str> {
        let owned = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        resolve(&owned(add), &owned(drop), false, Set::EVERY)
            .unwrap()
            .names()
    }

    #[test]
    fn the_default_set_is_small() {
        let names = resolved(&[], &[]);
        assert_eq!(names.len(), 14);
        assert!(!names.contains(&"CAP_SYS_ADMIN") && !names.contains(&"CAP_NET_ADMIN"));
    }

    #[test]
    fn names_are_added_and_dropped_with_or_without_prefix() {
        let names = resolved(&["net_admin", "CAP_SYS_TIME"], &["MKNOD", "cap_chown"]);
        assert!(names.contains(&"CAP_NET_ADMIN") && names.contains(&"CAP_SYS_TIME"));
        assert!(!names.contains(&"CAP_MKNOD") && !names.contains(&"CAP_CHOWN"));
    }

    #[test]
    fn a_single_name_is_stronger_than_all() {
        assert_eq!(resolved(&["chown"], &["ALL"]), ["CAP_CHOWN"]);
        let names = resolved(&["ALL"], &["sys_admin"]);
        assert_eq!(names.len(), ALL.len() - 1);
        assert_eq!(resolved(&[], &["all"]), Vec::<&str>::new());
    }

    #[test]
    fn nothing_is_given_that_the_engine_has_not_got() {
        let held = Set::of(&["CAP_CHOWN", "CAP_KILL"]);
        let all = resolve(&["ALL".to_owned()], &[], false, held).unwrap();
        assert_eq!(all, held);
        assert_eq!(resolve(&[], &[], true, held).unwrap(), held);
    }

    #[test]
    fn an_unknown_name_is_refused() {
        let unknown = ["FLY".to_owned()];
        assert!(resolve(&unknown, &[], false, Set::EVERY).is_err());
        assert!(resolve(&[], &unknown, true, Set::EVERY).is_err());
    }
}
