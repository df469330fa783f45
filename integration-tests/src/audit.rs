//! The leak audit: what an engine may not leave behind.
//!
//! It looks at the machine, not at the engine's own account of itself: /proc,
//! the cgroup file systems, the interfaces, the firewall, the files. Whatever
//! carries a mark of the engine (its root directory, its bridge, its firewall
//! table, its cgroup, the id of one of its containers) is a trace of it.
//!
//! Two audits: [`traces_of_containers`] while the engine runs and holds no
//! container, and [`traces_of_engine`] once it has been stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{command, firewall};

/// What marks something as an engine's.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// The engine's root directory.
    pub root: PathBuf,
    pub bridge: String,
    /// Name of its nftables table.
    pub table: String,
    /// Name of the directory that its containers' cgroups are in.
    pub cgroup: String,
    /// Process ids of its services, which may live on in the first audit.
    pub services: BTreeSet<i32>,
    /// Ids of containers that it has had, as far as the test knows.
    pub containers: BTreeSet<String>,
}

/// Endpoints that an engine keeps ready for containers to come
/// (`network.warm_pool`): while it runs these are nobody's traces.
const WARM_POOL: usize = 4;

/// What is left of containers while their engine runs on.
///
/// # Errors
/// A part of the machine cannot be looked at.
pub fn traces_of_containers(marks: &Marks) -> Result<Vec<String>> {
    let mut traces = Vec::new();
    processes(marks, &mut traces)?;
    mounts(marks, true, &mut traces)?;
    cgroups(marks, &mut traces)?;
    firewall_elements(marks, &mut traces)?;
    container_files(&marks.root, &mut traces)?;
    let mut endpoints = Vec::new();
    entries(&marks.root.join("run/netns"), &mut endpoints)?;
    bridge_ports(marks, &mut endpoints);
    if endpoints.len() > 2 * WARM_POOL {
        traces.append(&mut endpoints);
    }
    Ok(traces)
}

/// What is left of an engine that has been stopped.
///
/// # Errors
/// As [`traces_of_containers`].
pub fn traces_of_engine(marks: &Marks) -> Result<Vec<String>> {
    let marks = Marks {
        services: BTreeSet::new(),
        ..marks.clone()
    };
    let mut traces = Vec::new();
    processes(&marks, &mut traces)?;
    mounts(&marks, false, &mut traces)?;
    cgroups(&marks, &mut traces)?;
    if Path::new("/sys/class/net").join(&marks.bridge).exists() {
        traces.push(format!("interface {}", marks.bridge));
    }
    if firewall::tables()?.contains(&marks.table) {
        traces.push(format!("nftables table {}", marks.table));
    }
    container_files(&marks.root, &mut traces)?;
    entries(&marks.root.join("run/netns"), &mut traces)?;
    Ok(traces)
}

/// Waits until `look` finds nothing: the kernel ends namespaces and cgroups in
/// its own time, a moment after the last process in them.
///
/// # Errors
/// Something is still there at the deadline; the error names all of it.
pub fn nothing_left(
    what: &str,
    deadline: Duration,
    look: impl Fn() -> Result<Vec<String>>,
) -> Result<()> {
    let end = Instant::now() + deadline;
    loop {
        let traces = look()?;
        if traces.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("{what} left behind:\n  {}", traces.join("\n  "));
        }
        // The kernel announces none of these, so this is a poll.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Open files of each of `pids`, by process id.
#[must_use]
pub fn open_files(pids: &BTreeSet<i32>) -> BTreeMap<i32, usize> {
    pids.iter()
        .filter_map(|&pid| {
            let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
            Some((pid, entries.count()))
        })
        .collect()
}

/// The ids of all processes.
///
/// # Errors
/// /proc cannot be read.
pub fn all_processes() -> Result<Vec<i32>> {
    let entries = fs::read_dir("/proc").context("/proc")?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}

/// A process's command line with spaces between its words.
#[must_use]
pub fn command_of(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .replace('\0', " ")
        .trim()
        .to_owned()
}

fn processes(marks: &Marks, traces: &mut Vec<String>) -> Result<()> {
    let root = marks.root.to_string_lossy().into_owned();
    for pid in all_processes()? {
        if marks.services.contains(&pid) || pid.cast_unsigned() == std::process::id() {
            continue;
        }
        let command = command_of(pid);
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let in_cgroup = cgroup.lines().any(|line| is_marked(line, marks));
        if in_cgroup || command.contains(&root) {
            // A zombie has no command line; it is its parent's to reap.
            traces.push(format!(
                "process {pid} ({command:?}, cgroup {:?})",
                cgroup.lines().next()
            ));
        }
    }
    Ok(())
}

/// Whether a path of a cgroup belongs to the engine.
fn is_marked(path: &str, marks: &Marks) -> bool {
    path.split(['/', ':', '-', '.']).any(|part| {
        (!marks.cgroup.is_empty() && part == marks.cgroup)
            || (!part.is_empty() && marks.containers.contains(part))
    }) || (!marks.cgroup.is_empty() && path.contains(&marks.cgroup))
}

/// Mounts that name the root, in every mount namespace of the machine. While
/// the engine runs, pinned network namespaces are where they should be in ours,
/// and in those that others had before.
fn mounts(marks: &Marks, running: bool, traces: &mut Vec<String>) -> Result<()> {
    let root = format!("{}/", marks.root.display());
    let pins = format!("{root}run/netns/");
    let mut seen = BTreeSet::new();
    for pid in all_processes()? {
        let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/mnt")) else {
            continue;
        };
        if !seen.insert(namespace.ino()) {
            continue;
        }
        let Ok(table) = fs::read_to_string(format!("/proc/{pid}/mountinfo")) else {
            continue;
        };
        let marked = table.lines().filter(|line| line.contains(&root));
        for line in marked.filter(|line| !(running && line.contains(&pins))) {
            traces.push(format!("mount in the namespace of process {pid}: {line}"));
        }
    }
    Ok(())
}

/// Cgroups of the engine in every hierarchy. The one that its containers' come
/// into may stay, as another engine may share it, but nothing in it.
fn cgroups(marks: &Marks, traces: &mut Vec<String>) -> Result<()> {
    let mut pending = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((directory, depth)) = pending.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // Somebody else's cgroup that ended meanwhile.
            Err(_) if depth > 0 => continue,
            Err(error) => return Err(error).context("/sys/fs/cgroup"),
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_parent = !marks.cgroup.is_empty() && name == marks.cgroup;
            let marked = is_marked(&path.to_string_lossy(), marks);
            if marked && !is_parent {
                traces.push(format!("cgroup {}", path.display()));
            }
            pending.push((path, depth + 1));
        }
    }
    Ok(())
}

/// Interfaces that hang on the engine's bridge.
fn bridge_ports(marks: &Marks, traces: &mut Vec<String>) {
    let ports = format!("/sys/class/net/{}/brif", marks.bridge);
    for port in fs::read_dir(ports).into_iter().flatten().flatten() {
        traces.push(format!(
            "interface {} on {}",
            port.file_name().to_string_lossy(),
            marks.bridge
        ));
    }
}

/// Elements of sets and maps of the engine's table: published ports. Read with
/// the `nft` command where there is one, as `make test` sees to.
fn firewall_elements(marks: &Marks, traces: &mut Vec<String>) -> Result<()> {
    for family in ["inet", "ip"] {
        let listing = command::run(
            Command::new("nft").args(["list", "table", family, &marks.table]),
            b"",
            Duration::from_secs(10),
        );
        let Ok(listing) = listing else {
            // The demo runs without any package.
            return Ok(());
        };
        for line in listing.stdout.lines().filter(|l| l.contains("elements = ")) {
            traces.push(format!("nftables, table {}: {}", marks.table, line.trim()));
        }
    }
    Ok(())
}

/// Files that only a container can be the reason for.
fn container_files(root: &Path, traces: &mut Vec<String>) -> Result<()> {
    for below in [
        "run/containers",
        "log/containers",
        "lib/image/writable",
        "lib/image/ingest",
    ] {
        entries(&root.join(below), traces)?;
    }
    Ok(())
}

/// Content that only an image or a volume can be the reason for; for an engine
/// of which all have been removed.
///
/// # Errors
/// A directory cannot be read.
pub fn image_files(root: &Path) -> Result<Vec<String>> {
    let mut traces = Vec::new();
    for below in [
        "lib/image/blobs/sha256",
        "lib/image/layers",
        "lib/image/loads",
        "lib/image/volumes",
    ] {
        entries(&root.join(below), &mut traces)?;
    }
    Ok(traces)
}

fn entries(directory: &Path, traces: &mut Vec<String>) -> Result<()> {
    match fs::read_dir(directory) {
        Ok(entries) => {
            for entry in entries.flatten() {
                traces.push(format!("file {}", entry.path().display()));
            }
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| directory.display().to_string()),
    }
}
