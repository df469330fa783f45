//! A container's OCI runtime specification (config.json), from what a person
//! wants, what the image says, and Docker's defaults.
//!
//! [`build`] is a function of its arguments alone, so that the specification
//! need not be kept: `inspect` makes it again. The user goes beside it by name
//! (see [`process::user`]): names are in the image's files, which only the
//! container's own first process opens. The root file system goes beside it too.
//!
//! Facts: OCI runtime specification 1.2 (config.md, config-linux.md).

pub mod capabilities;
pub mod devices;
pub mod mount_checks;
pub mod mounts;
pub mod process;
pub mod propagation;
pub mod resources;
pub mod seccomp;
mod seccomp_table;

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::container::Record;
use crate::error::{Error, Result};
use crate::own_ids;
use crate::wanted::{NamespaceMode, NetworkMode, Wanted};
use capabilities::Set;

/// The container's own init reaps orphans and forwards signals (`--init`): asked
/// of the shim by this annotation, since no program of the host could run in
/// every image.
pub const INIT_ANNOTATION: &str = "dev.gantry.init";

/// Names of supplementary groups, with commas between them: only the container's
/// own /etc/group knows their numbers.
pub const GROUPS_ANNOTATION: &str = "dev.gantry.groups";

/// Paths that show more of the host than a container needs to see.
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/debug",
];

/// Paths by which the host could be changed.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What the machine and the engine allow.
#[derive(Clone, Debug)]
pub struct Host {
    /// Capabilities the engine holds.
    pub capabilities: Set,
    /// Whether the kernel limits swap.
    pub swap_limit: bool,
    pub cpus: usize,
    /// Processes of a container that names no limit. 0: no limit.
    pub pids_limit: i64,
    /// The cgroup that containers' cgroups are made in, from the root of each
    /// hierarchy.
    pub cgroup_parent: String,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            capabilities: Set::EVERY,
            swap_limit: true,
            cpus: 1,
            pids_limit: 0,
            cgroup_parent: "gantry".to_owned(),
        }
    }
}

impl Host {
    /// This machine.
    #[must_use]
    pub fn of_this_machine(pids_limit: i64, cgroup_parent: &str) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        Self {
            capabilities: Set::held(),
            swap_limit: !v1.exists() || v1.join("memory.memsw.limit_in_bytes").exists(),
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            pids_limit,
            cgroup_parent: cgroup_parent.trim_matches('/').to_owned(),
        }
    }
}

/// Where a namespace of a container comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Namespace {
    /// A new one.
    #[default]
    New,
    /// The host's.
    Host,
    /// The one at this path.
    Path(String),
}

/// The namespaces that a container may share with others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Path of the user namespace of a container with ids of its own. None: a new
    /// one.
    pub user: Option<String>,
    pub network: Namespace,
    pub pid: Namespace,
    pub ipc: Namespace,
    pub uts: Namespace,
    pub cgroup: Namespace,
}

impl Namespaces {
    fn list(&self) -> Vec<Value> {
        let mut all = vec![json!({"type": "mount"})];
        for (kind, namespace) in [
            ("network", &self.network),
            ("uts", &self.uts),
            ("pid", &self.pid),
            ("ipc", &self.ipc),
            ("cgroup", &self.cgroup),
        ] {
            match namespace {
                Namespace::New => all.push(json!({"type": kind})),
                Namespace::Path(path) => all.push(json!({"type": kind, "path": path})),
                Namespace::Host => {}
            }
        }
        all
    }
}

/// What `--security-opt` says.
#[derive(Debug, Default)]
struct Security<'a> {
    no_new_privileges: bool,
    /// None: the default. "unconfined", or a profile's JSON.
    seccomp: Option<&'a str>,
    /// Nothing masked, nothing read-only.
    system_paths_open: bool,
}

fn security(wanted: &Wanted) -> Result<Security<'_>> {
    let mut security = Security::default();
    for option in &wanted.security_opts {
        let (key, value) = option
            .split_once('=')
            .or_else(|| option.split_once(':'))
            .unwrap_or((option, ""));
        match (key, value) {
            ("no-new-privileges", "" | "true") => security.no_new_privileges = true,
            ("no-new-privileges", "false") => security.no_new_privileges = false,
            ("seccomp", profile) if !profile.is_empty() => security.seccomp = Some(profile),
            ("systempaths", "unconfined") => security.system_paths_open = true,
            // Gantry confines by neither: "not confined" is what there is.
            ("apparmor", "unconfined") | ("label", "disable") => {}
            _ => {
                return Err(Error::invalid(
                    "security-opt",
                    format!(
                        "{option:?} is not known; there are no-new-privileges, seccomp=…, systempaths=unconfined"
                    ),
                ));
            }
        }
    }
    Ok(security)
}

fn capability_set(wanted: &Wanted, host: &Host) -> Result<Set> {
    capabilities::resolve(
        &wanted.cap_add,
        &wanted.cap_drop,
        wanted.privileged,
        host.capabilities,
    )
}

fn seccomp_profile(wanted: &Wanted, set: Set) -> Result<Option<Value>> {
    match security(wanted)?.seccomp {
        Some("unconfined") => Ok(None),
        Some(profile) => Ok(Some(seccomp::own_profile(profile, set)?)),
        None if wanted.privileged => Ok(None),
        None => Ok(Some(seccomp::default_profile(set))),
    }
}

/// The OCI process object of the first process.
fn first_process(record: &Record, set: Set) -> Result<Value> {
    let wanted = &record.wanted;
    let mut process = json!({
        "terminal": wanted.tty,
        "user": {"uid": 0, "gid": 0},
        "args": process::args(record)?,
        "env": process::env(record),
        "cwd": process::cwd(record)?,
        "capabilities": process::capabilities(set),
        "noNewPrivileges": security(wanted)?.no_new_privileges,
        "oomScoreAdj": wanted.oom_score_adj,
    });
    let (groups, _) = process::additional_gids(&wanted.groups)?;
    if !groups.is_empty() {
        process["user"]["additionalGids"] = json!(groups);
    }
    let rlimits = process::rlimits(&wanted.ulimits)?;
    if !rlimits.is_empty() {
        process["rlimits"] = json!(rlimits);
    }
    Ok(process)
}

/// The whole specification.
///
/// # Errors
/// Something that is wanted is malformed, unknown or not there.
pub fn build(record: &Record, namespaces: &Namespaces, host: &Host) -> Result<Value> {
    let wanted = &record.wanted;
    let set = capability_set(wanted, host)?;
    let devices = devices::devices(wanted)?;
    let mut resources = resources::resources(&wanted.resources, host)?;
    resources.insert("devices".to_owned(), Value::Array(devices.rules));
    let mut linux = Map::new();
    let mut list = namespaces.list();
    if let Some(ids) = record.own_ids {
        let mappings = json!([{"containerID": 0, "hostID": ids.first, "size": ids.count}]);
        linux.insert("uidMappings".to_owned(), mappings.clone());
        linux.insert("gidMappings".to_owned(), mappings);
        list.push(match &namespaces.user {
            Some(path) => json!({"type": "user", "path": path}),
            None => json!({"type": "user"}),
        });
    }
    linux.insert("namespaces".to_owned(), json!(list));
    linux.insert("cgroupsPath".to_owned(), json!(cgroup(record, host)));
    linux.insert("resources".to_owned(), Value::Object(resources));
    if !devices.nodes.is_empty() {
        linux.insert("devices".to_owned(), Value::Array(devices.nodes));
    }
    let sysctls = resources::sysctls(wanted)?;
    if !sysctls.is_empty() {
        linux.insert("sysctl".to_owned(), json!(sysctls));
    }
    if let Some(profile) = seccomp_profile(wanted, set)? {
        linux.insert("seccomp".to_owned(), profile);
    }
    if !wanted.privileged && !security(wanted)?.system_paths_open {
        linux.insert("maskedPaths".to_owned(), json!(MASKED));
        linux.insert("readonlyPaths".to_owned(), json!(READ_ONLY));
    }
    if let Some(propagation) = propagation::of_root(record.mounts()) {
        linux.insert("rootfsPropagation".to_owned(), json!(propagation));
    }
    let mut annotations = wanted.annotations.clone();
    if wanted.init {
        annotations.insert(INIT_ANNOTATION.to_owned(), "true".to_owned());
    }
    let (_, groups) = process::additional_gids(&wanted.groups)?;
    if !groups.is_empty() {
        annotations.insert(GROUPS_ANNOTATION.to_owned(), groups.join(","));
    }
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": wanted.read_only},
        "process": first_process(record, set)?,
        "mounts": mounts::mounts(wanted, record.mounts(), record.own_ids)?,
        "linux": linux,
    });
    if !annotations.is_empty() {
        spec["annotations"] = json!(annotations);
    }
    if namespaces.uts == Namespace::New {
        spec["hostname"] = json!(record.hostname());
        if !wanted.domainname.is_empty() {
            spec["domainname"] = json!(wanted.domainname);
        }
    }
    Ok(spec)
}

/// The cgroup of a container, below each hierarchy's root.
#[must_use]
pub fn cgroup(record: &Record, host: &Host) -> String {
    let parent = match record.wanted.cgroup_parent.trim_matches('/') {
        "" => &host.cgroup_parent,
        own => own,
    };
    format!("/{parent}/{}", record.id)
}

/// A parent is below the root, by plain names: as it is read it is made.
fn check_cgroup_parent(parent: &str) -> Result<()> {
    let path = parent.trim_matches('/');
    let is_name = |name: &str| !matches!(name, "" | "." | "..") && !name.contains(['\0', '\n']);
    if path.split('/').all(is_name) {
        return Ok(());
    }
    Err(Error::invalid(
        "cgroup-parent",
        format!("{parent:?} is not a path from the root of the cgroups; say one as /shop/web"),
    ))
}

/// Refuses what [`build`] would, before an image is there.
///
/// # Errors
/// As [`build`].
pub fn check(wanted: &Wanted, host: &Host) -> Result<()> {
    let set = capability_set(wanted, host)?;
    // The default profile cannot be wrong; a person's can.
    if security(wanted)?.seccomp.is_some() {
        seccomp_profile(wanted, set)?;
    }
    resources::resources(&wanted.resources, host)?;
    resources::sysctls(wanted)?;
    devices::devices(wanted)?;
    process::rlimits(&wanted.ulimits)?;
    process::additional_gids(&wanted.groups)?;
    if !wanted.working_dir.is_empty() && !wanted.working_dir.starts_with('/') {
        return Err(Error::invalid(
            "workdir",
            format!("{:?} is not an absolute path", wanted.working_dir),
        ));
    }
    if !(-1000..=1000).contains(&wanted.oom_score_adj) {
        return Err(Error::invalid("oom-score-adj", "give -1000 to 1000"));
    }
    if own_ids::wanted(&wanted.userns_mode)?.is_some() {
        check_own_ids(wanted)?;
    }
    if NamespaceMode::parse(&wanted.uts_mode) == Some(NamespaceMode::Host)
        && !wanted.hostname.is_empty()
    {
        return Err(Error::invalid(
            "hostname",
            "with the host's UTS namespace the name is the host's; leave out one of --hostname and --uts",
        ));
    }
    if !wanted.cgroup_parent.is_empty() {
        check_cgroup_parent(&wanted.cgroup_parent)?;
    }
    let of = NamespaceMode::parse;
    for (field, mode, known, modes) in [
        ("pid", &wanted.pid_mode, of(&wanted.pid_mode), "private"),
        (
            "ipc",
            &wanted.ipc_mode,
            wanted.ipc(),
            "none, private, shareable",
        ),
        ("uts", &wanted.uts_mode, of(&wanted.uts_mode), "private"),
        (
            "cgroupns",
            &wanted.cgroupns_mode,
            of(&wanted.cgroupns_mode),
            "private",
        ),
    ] {
        if known.is_none() {
            let problem = format!("{mode:?} is not known; give {modes}, host or container:NAME");
            return Err(Error::invalid(field, problem));
        }
    }
    Ok(())
}

/// Refuses what a container with ids of its own cannot have: what belongs to the
/// host, or to another container, and so to ids that it has not.
fn check_own_ids(wanted: &Wanted) -> Result<()> {
    let refused = |what: &str| {
        Err(Error::invalid(
            "userns",
            format!("{what} needs the host's users; leave out one of the two"),
        ))
    };
    if wanted.privileged {
        return refused("--privileged");
    }
    if let NetworkMode::Host | NetworkMode::Container(_) = wanted.network() {
        return refused(&format!("--network {}", wanted.network_mode));
    }
    for (option, mode) in [
        ("pid", &wanted.pid_mode),
        ("ipc", &wanted.ipc_mode),
        ("uts", &wanted.uts_mode),
        ("cgroupns", &wanted.cgroupns_mode),
    ] {
        if let Some(NamespaceMode::Host | NamespaceMode::Container(_)) = NamespaceMode::parse(mode)
        {
            return refused(&format!("--{option} {mode}"));
        }
    }
    Ok(())
}

/// One more process in a container.
#[derive(Clone, Copy, Debug)]
pub struct Exec<'a> {
    pub args: &'a [String],
    /// Beside the container's.
    pub env: &'a [String],
    /// Empty: the container's.
    pub working_dir: &'a str,
    pub tty: bool,
    /// With all rights the engine has, instead of the container's.
    pub privileged: bool,
}

/// The OCI process object of one more process in a container.
///
/// # Errors
/// The working directory is not absolute, or the container's own configuration
/// is not usable any more.
pub fn exec_process(record: &Record, host: &Host, exec: &Exec<'_>) -> Result<Value> {
    let set = if exec.privileged {
        host.capabilities
    } else {
        capability_set(&record.wanted, host)?
    };
    let mut process = first_process(record, set)?;
    let mut env = process::env(record);
    if exec.tty && !record.wanted.tty {
        process::merge(&mut env, &["TERM=xterm".to_owned()]);
    }
    process::merge(&mut env, exec.env);
    process["args"] = json!(exec.args);
    process["env"] = json!(env);
    process["terminal"] = json!(exec.tty);
    if !exec.working_dir.is_empty() {
        if !exec.working_dir.starts_with('/') {
            return Err(Error::invalid(
                "workdir",
                format!("{:?} is not an absolute path", exec.working_dir),
            ));
        }
        process["cwd"] = json!(exec.working_dir);
    }
    Ok(process)
}

#[cfg(test)]
mod tests;
