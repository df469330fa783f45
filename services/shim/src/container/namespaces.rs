//! Which namespaces are made and which are joined.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, Spec};

use super::context::During;
use super::error::{Error, Result};

/// The order to join in: the user namespace first, for it gives the right to join those it owns;
/// the mount namespace last, for the paths to the others are the host's.
const ORDER: [LinuxNamespaceType; 8] = [
    LinuxNamespaceType::User,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Uts,
    LinuxNamespaceType::Network,
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Cgroup,
    LinuxNamespaceType::Time,
    LinuxNamespaceType::Mount,
];

/// The bit of clone(2) for a kind.
pub(super) fn flag(kind: LinuxNamespaceType) -> u64 {
    kind as u64
}

/// The file's name under /proc/PID/ns.
pub(super) fn file_name(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mnt",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Time => "time",
    }
}

/// A namespace that exists and is to be joined.
#[derive(Debug)]
pub(super) struct Join {
    pub(super) kind: LinuxNamespaceType,
    pub(super) path: PathBuf,
    pub(super) fd: OwnedFd,
}

/// The spec's namespaces, opened and checked.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    /// `CLONE_NEW…` of those to be made.
    pub(super) new: u64,
    /// Those to be joined, in [`ORDER`].
    pub(super) join: Vec<Join>,
}

impl Namespaces {
    /// Opens what is to be joined.
    pub(super) fn from_spec(spec: &Spec) -> Result<Self> {
        let none = Vec::new();
        let wanted: &Vec<LinuxNamespace> = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_ref())
            .unwrap_or(&none);
        let mut namespaces = Self::default();
        for kind in ORDER {
            let mut entries = wanted.iter().filter(|entry| entry.typ() == kind);
            let Some(entry) = entries.next() else {
                continue;
            };
            if entries.next().is_some() {
                return Err(Error::invalid(
                    "linux.namespaces",
                    format!("\"{}\" is there twice", file_name(kind)),
                ));
            }
            match entry.path().as_deref() {
                None => namespaces.new |= flag(kind),
                Some(path) if path.as_os_str().is_empty() => namespaces.new |= flag(kind),
                Some(path) => {
                    let fd = File::open(path)
                        .map_err(|source| {
                            Error::step("open namespace", path.display().to_string(), source)
                        })?
                        .into();
                    namespaces.join.push(Join {
                        kind,
                        path: path.to_owned(),
                        fd,
                    });
                }
            }
        }
        let users = namespaces.has_new(LinuxNamespaceType::User);
        let mapped = spec
            .linux()
            .as_ref()
            .is_some_and(|linux| linux.uid_mappings().as_ref().is_some_and(|m| !m.is_empty()));
        if mapped && !users && !namespaces.joins(LinuxNamespaceType::User) {
            return Err(Error::invalid(
                "linux.uidMappings",
                "given without a user namespace: add {\"type\": \"user\"} to linux.namespaces",
            ));
        }
        Ok(namespaces)
    }

    pub(super) fn has_new(&self, kind: LinuxNamespaceType) -> bool {
        self.new & flag(kind) != 0
    }

    pub(super) fn joins(&self, kind: LinuxNamespaceType) -> bool {
        self.join.iter().any(|join| join.kind == kind)
    }

    /// New or joined: not the runtime's own.
    pub(super) fn separate(&self, kind: LinuxNamespaceType) -> bool {
        self.has_new(kind) || self.joins(kind)
    }

    /// What clone3 makes: not the cgroup namespace (its root is the cgroup one is in when it is made) nor the time
    /// namespace (its offsets can be set only before anybody is in it).
    pub(super) fn clone_flags(&self) -> u64 {
        self.new & !(flag(LinuxNamespaceType::Cgroup) | flag(LinuxNamespaceType::Time))
    }
}

/// Enters a namespace.
pub(super) fn enter(join: &Join) -> Result<()> {
    gantry_sys::clone::enter_namespaces(join.fd.as_fd(), flag(join.kind)).during(
        "join namespace",
        format_args!("{} ({})", file_name(join.kind), join.path.display()),
    )
}

/// Lends this process to other namespaces while a child is cloned, and takes it back when dropped.
///
/// A PID namespace can only be given to a child; and a child that is born in a new user namespace has no right
/// any more to join those of the host.
#[derive(Debug, Default)]
pub(super) struct Lent {
    back: Vec<(LinuxNamespaceType, OwnedFd)>,
}

impl Lent {
    /// Enters `join`, remembering the own namespace.
    pub(super) fn to(&mut self, join: &Join) -> Result<()> {
        // For PID and time, what setns changes is the namespace of children.
        let own = Path::new("/proc/self/ns").join(file_name(join.kind));
        let own = File::open(&own).during("open namespace", own.display())?;
        enter(join)?;
        self.back.push((join.kind, own.into()));
        Ok(())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        for (kind, fd) in self.back.drain(..).rev() {
            // There is no way on for a process that is stuck in a container's namespaces.
            if gantry_sys::clone::enter_namespaces(fd.as_fd(), flag(kind)).is_err() {
                std::process::abort();
            }
        }
    }
}

/// Writes the id mappings of a new user namespace. Without any in the spec, each id that this process has is itself.
pub(super) fn write_id_maps(pid: i32, spec: &Spec) -> Result<()> {
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    for (file, mappings) in [
        ("uid_map", linux.uid_mappings()),
        ("gid_map", linux.gid_mappings()),
    ] {
        let path = format!("/proc/{pid}/{file}");
        let text = match mappings.as_deref().filter(|mappings| !mappings.is_empty()) {
            Some(mappings) => id_map(mappings),
            None => own_ids(file)?,
        };
        std::fs::write(&path, text).during("map ids", &path)?;
    }
    Ok(())
}

/// The identity on the ids of this process' own user namespace.
fn own_ids(file: &str) -> Result<String> {
    let own = Path::new("/proc/self").join(file);
    let text = std::fs::read_to_string(&own).during("read", own.display())?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace();
            let (first, count) = (numbers.next()?, numbers.nth(1)?);
            Some(format!("{first} {first} {count}\n"))
        })
        .collect())
}

/// An id of the container as the host sees it.
pub(super) fn host_id(mappings: Option<&Vec<LinuxIdMapping>>, id: u32) -> u32 {
    let Some(mappings) = mappings.filter(|mappings| !mappings.is_empty()) else {
        return id;
    };
    mappings
        .iter()
        .find_map(|map| {
            let offset = id.checked_sub(map.container_id())?;
            (offset < map.size()).then(|| map.host_id().saturating_add(offset))
        })
        .unwrap_or(id)
}

fn id_map(mappings: &[LinuxIdMapping]) -> String {
    mappings
        .iter()
        .map(|map| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size()))
        .collect()
}

/// A user namespace with these mappings, held by nobody but the descriptor: for id-mapped mounts.
pub(super) fn user_namespace_with(
    uids: &[LinuxIdMapping],
    gids: &[LinuxIdMapping],
) -> Result<OwnedFd> {
    gantry_sys::user_namespace::make(&id_map(uids), &id_map(gids), false)
        .map(|made| made.user)
        .during("map ids", "an id-mapped mount")
}
