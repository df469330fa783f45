//! Control groups, versions 1, 2, and both at once (hybrid).
//!
//! ```text
//! v2      /sys/fs/cgroup/<path>                       one directory
//! v1      /sys/fs/cgroup/<controller>/<path>          one per hierarchy
//! hybrid  the v1 ones, and /sys/fs/cgroup/unified/<path>, which has no controller but tells when the group is
//!         empty (cgroup.events), freezes it and kills it in one step
//! ```
//! A process is born into the v2 directory (`CLONE_INTO_CGROUP`). It joins the v1 ones itself, by writing "0" to their
//! `tasks` files while it has one thread: this is the one way that does not take the kernel's global lock of thread
//! groups, which costs a wait for all CPUs (milliseconds) each time.
//!
//! Only directories below `path` are ever changed; parents are made where they are missing, and left.

pub(super) mod devices;
mod freezer;
pub(super) mod limits;
mod members;
mod usage;

pub(super) use members::{Entrance, wait_readable};

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use oci_spec::runtime::LinuxResources;

use super::context::During;
use super::error::{Error, Result};

const CGROUP2_MAGIC: rustix::fs::FsWord = 0x6367_7270;
const ROOT: &str = "/sys/fs/cgroup";

/// A v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where it is mounted.
    pub(super) mount_point: PathBuf,
    /// Its controllers, or its name as `name=systemd`.
    pub(super) controllers: Vec<String>,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }
}

/// What this machine has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// v1 hierarchies; empty on a pure v2 machine.
    pub(super) v1: Vec<Hierarchy>,
    /// The v2 hierarchy.
    pub(super) unified: Option<PathBuf>,
}

impl Layout {
    /// What this machine has. It is looked for once: mounts of control groups stay where they are, and each execution
    /// in a container would read the host's whole mount table for it.
    pub(super) fn of_machine() -> Result<Self> {
        static SEEN: OnceLock<Layout> = OnceLock::new();
        if let Some(seen) = SEEN.get() {
            return Ok(seen.clone());
        }
        let layout = Self::detect()?;
        Ok(SEEN.get_or_init(|| layout).clone())
    }

    /// Looks at /sys/fs/cgroup, and at the mount table only where that is not v2.
    fn detect() -> Result<Self> {
        if let Ok(statfs) = rustix::fs::statfs(ROOT)
            && statfs.f_type == CGROUP2_MAGIC
        {
            return Ok(Self {
                v1: Vec::new(),
                unified: Some(ROOT.into()),
            });
        }
        let table = std::fs::read_to_string("/proc/self/mountinfo")
            .during("read", "/proc/self/mountinfo")?;
        let layout = Self::from_mounts(&table);
        if layout.v1.is_empty() && layout.unified.is_none() {
            return Err(Error::Unsupported {
                what: "a control group".to_owned(),
                why: format!("no cgroup file system is mounted at {ROOT}"),
            });
        }
        Ok(layout)
    }

    fn from_mounts(table: &str) -> Self {
        let mut layout = Self::default();
        for line in table.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let mut right = right.split(' ');
            let kind = right.next().unwrap_or_default();
            if !kind.starts_with("cgroup") {
                continue;
            }
            let Some(mount_point) = left.split(' ').nth(4).map(PathBuf::from) else {
                continue;
            };
            if !mount_point.starts_with(ROOT) {
                continue;
            }
            if kind == "cgroup2" {
                layout.unified = Some(mount_point);
                continue;
            }
            let controllers: Vec<String> = right
                .nth(1)
                .unwrap_or_default()
                .split(',')
                .filter(|option| option.starts_with("name=") || CONTROLLERS.contains(option))
                .map(str::to_owned)
                .collect();
            let known = layout
                .v1
                .iter()
                .any(|other| other.controllers == controllers);
            if !controllers.is_empty() && !known {
                layout.v1.push(Hierarchy {
                    mount_point,
                    controllers,
                });
            }
        }
        layout
    }

    /// Whether v2 has the controllers.
    pub(super) fn is_v2(&self) -> bool {
        self.v1.is_empty()
    }
}

const CONTROLLERS: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "net_cls",
    "net_prio",
    "blkio",
    "perf_event",
    "hugetlb",
    "pids",
    "rdma",
    "misc",
];

/// One container's groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cgroup {
    pub(super) layout: Layout,
    /// Below each hierarchy's root, without a leading slash.
    path: PathBuf,
}

impl Cgroup {
    /// The group of a container: nothing is made yet.
    pub(super) fn new(wanted: Option<&Path>, id: &str) -> Result<Self> {
        Ok(Self {
            layout: Layout::of_machine()?,
            path: below_root(wanted, id)?,
        })
    }

    /// One that exists, by the path in a record.
    pub(super) fn existing(path: &Path) -> Result<Self> {
        Ok(Self {
            layout: Layout::of_machine()?,
            path: path.strip_prefix("/").unwrap_or(path).to_owned(),
        })
    }

    /// With a leading slash, as in /proc/PID/cgroup.
    pub(super) fn path(&self) -> PathBuf {
        Path::new("/").join(&self.path)
    }

    /// Its v1 directories.
    pub(super) fn directories(&self) -> impl Iterator<Item = (&Hierarchy, PathBuf)> {
        self.layout
            .v1
            .iter()
            .map(|hierarchy| (hierarchy, hierarchy.mount_point.join(&self.path)))
    }

    /// Its v1 directory with a controller.
    pub(super) fn v1_directory(&self, controller: &str) -> Option<PathBuf> {
        self.directories()
            .find(|(hierarchy, _)| hierarchy.has(controller))
            .map(|(_, directory)| directory)
    }

    /// Its v2 directory.
    pub(super) fn unified_directory(&self) -> Option<PathBuf> {
        self.layout
            .unified
            .as_ref()
            .map(|root| root.join(&self.path))
    }

    /// Makes the v2 directory, which the container is born in.
    pub(super) fn make_unified(&self) -> Result<Option<OwnedFd>> {
        let Some(root) = &self.layout.unified else {
            return Ok(None);
        };
        if self.layout.is_v2() {
            self.delegate(root)?;
        }
        let directory = root.join(&self.path);
        make_directories(root, &self.path, |_, _| Ok(()))?;
        let opened = File::open(&directory).during("open cgroup", directory.display())?;
        Ok(Some(opened.into()))
    }

    /// v2: hands the controllers down to the group's parent's children.
    fn delegate(&self, root: &Path) -> Result<()> {
        let mut directory = root.to_owned();
        let mut components = self.path.components().peekable();
        while let Some(component) = components.next() {
            let available = read(&directory.join("cgroup.controllers")).unwrap_or_default();
            let enabled = read(&directory.join("cgroup.subtree_control")).unwrap_or_default();
            let missing: String = available
                .split_whitespace()
                .filter(|name| !enabled.split_whitespace().any(|on| on == *name))
                .map(|name| format!("+{name} "))
                .collect();
            if !missing.is_empty() {
                let file = directory.join("cgroup.subtree_control");
                // All at once; where one of them can not (a real-time process with cpu), each that can.
                if write(&file, missing.trim_end()).is_err() {
                    for one in missing.split_whitespace() {
                        let _ = write(&file, one);
                    }
                }
            }
            directory.push(component);
            if components.peek().is_some() {
                match std::fs::create_dir(&directory) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error).during("make cgroup", directory.display());
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Makes the v1 directories and sets the limits in all.
    pub(super) fn make(&self, resources: Option<&LinuxResources>) -> Result<()> {
        for hierarchy in &self.layout.v1 {
            let cpuset = hierarchy.has("cpuset");
            make_directories(&hierarchy.mount_point, &self.path, |directory, parent| {
                if cpuset {
                    inherit_cpuset(directory, parent)?;
                }
                Ok(())
            })?;
        }
        self.limit(resources)?;
        self.allow_devices(resources)
    }

    /// Sets the limits that are given.
    pub(super) fn limit(&self, resources: Option<&LinuxResources>) -> Result<()> {
        let Some(resources) = resources else {
            return Ok(());
        };
        let writes = if self.layout.is_v2() {
            let directory = self.unified_directory().unwrap_or_default();
            limits::v2(resources, |file| read(&directory.join(file)).ok())?
        } else {
            let mut writes = limits::v1(resources)?;
            let memory = self.v1_directory("memory").unwrap_or_default();
            limits::raise_swap_first(&mut writes, |file| read(&memory.join(file)).ok());
            writes
        };
        for entry in writes {
            self.apply(&entry)?;
        }
        Ok(())
    }

    fn apply(&self, entry: &limits::Entry) -> Result<()> {
        let directory = if self.layout.is_v2() {
            self.unified_directory()
        } else {
            self.v1_directory(entry.controller)
        };
        let Some(directory) = directory else {
            return Err(Error::Unsupported {
                what: format!("{} (cgroup controller {})", entry.field, entry.controller),
                why: "this machine has not mounted it".to_owned(),
            });
        };
        let mut last = None;
        for file in &entry.files {
            let path = directory.join(file);
            match write(&path, &entry.value) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    last = Some(Error::Unsupported {
                        what: format!("{} (cgroup file {file})", entry.field),
                        why: "this kernel does not have it".to_owned(),
                    });
                }
                Err(error) if limits::refuses_value(&error) && file != "cpu.rt_runtime_us" => {
                    return Err(limits::refused(entry, file, &error));
                }
                Err(error) => {
                    let hint = if file == "cpu.rt_runtime_us"
                        && error.raw_os_error() == Some(libc::EINVAL)
                    {
                        " (the groups above it must have as much real-time budget)"
                    } else {
                        ""
                    };
                    return Err(error).during(
                        "set cgroup limit",
                        format_args!(
                            "{} = {:?} for {}{hint}",
                            path.display(),
                            entry.value,
                            entry.field
                        ),
                    );
                }
            }
        }
        match last {
            Some(error) if !entry.optional => Err(error),
            _ => Ok(()),
        }
    }
}

/// The path below the roots. A systemd-style `slice:prefix:name` becomes directories of the same names.
fn below_root(wanted: Option<&Path>, id: &str) -> Result<PathBuf> {
    let Some(wanted) = wanted.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(Path::new("gantry").join(id));
    };
    let text = wanted
        .to_str()
        .ok_or_else(|| Error::invalid("linux.cgroupsPath", "is not valid UTF-8"))?;
    let parts: Vec<&str> = text.split(':').collect();
    let path = match parts.as_slice() {
        [slice, prefix, name] if !text.starts_with('/') => {
            let scope = if prefix.is_empty() {
                format!("{name}.scope")
            } else {
                format!("{prefix}-{name}.scope")
            };
            let slice = if slice.is_empty() {
                "system.slice"
            } else {
                slice
            };
            format!("{slice}/{scope}")
        }
        _ => text.to_owned(),
    };
    let mut clean = PathBuf::new();
    for component in Path::new(&path).components() {
        match component {
            std::path::Component::Normal(name) => clean.push(name),
            std::path::Component::RootDir | std::path::Component::CurDir => {}
            // As a path that starts at the root: there is nothing above.
            std::path::Component::ParentDir => {
                clean.pop();
            }
            std::path::Component::Prefix(_) => {}
        }
    }
    if clean.as_os_str().is_empty() {
        return Err(Error::invalid(
            "linux.cgroupsPath",
            format!("{text:?} is the root; name a group below it"),
        ));
    }
    Ok(clean)
}

/// mkdir -p, with a step after each directory made. The last one may exist already if it is empty of processes.
fn make_directories(
    root: &Path,
    path: &Path,
    mut after: impl FnMut(&Path, &Path) -> io::Result<()>,
) -> Result<()> {
    let full = root.join(path);
    // Most often only the last is missing.
    match std::fs::create_dir(&full) {
        Ok(()) => {
            let parent = full.parent().unwrap_or(root);
            return after(&full, parent).during("prepare cgroup", full.display());
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let members = read(&full.join("cgroup.procs")).unwrap_or_default();
            if members.trim().is_empty() {
                return Ok(());
            }
            return Err(Error::invalid(
                "linux.cgroupsPath",
                format!("{} exists and has processes in it", full.display()),
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).during("make cgroup", full.display()),
    }
    let mut directory = root.to_owned();
    for component in path.components() {
        let parent = directory.clone();
        directory.push(component);
        match std::fs::create_dir(&directory) {
            Ok(()) => after(&directory, &parent).during("prepare cgroup", directory.display())?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).during("make cgroup", directory.display()),
        }
    }
    Ok(())
}

/// A v1 cpuset begins empty, and takes no process until it has CPUs and memory nodes.
fn inherit_cpuset(directory: &Path, parent: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read(&directory.join(file))?.trim().is_empty() {
            let value = read(&parent.join(file))?;
            write(&directory.join(file), value.trim())?;
        }
    }
    Ok(())
}

/// Reads a file of a cgroup.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::with_capacity(512);
    File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a value to a file of a cgroup, in one write.
pub(super) fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let written = file.write(value.as_bytes())?;
    if written < value.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn a_hybrid_machine_has_both() {
        let layout = Layout::from_mounts(HYBRID);
        assert!(!layout.is_v2());
        assert_eq!(layout.v1.len(), 3);
        assert_eq!(layout.v1[0].controllers, ["cpu", "cpuacct"]);
        assert_eq!(layout.v1[2].controllers, ["name=systemd"]);
        assert_eq!(
            layout.unified.as_deref(),
            Some(Path::new("/sys/fs/cgroup/unified"))
        );
    }

    #[test]
    fn a_cgroups_path_never_leaves_the_root() {
        let path = |text: &str| below_root(Some(Path::new(text)), "id");
        assert_eq!(path("/a/b").unwrap(), Path::new("a/b"));
        assert_eq!(path("../../a").unwrap(), Path::new("a"));
        assert_eq!(
            path("machine.slice:libpod:x").unwrap(),
            Path::new("machine.slice/libpod-x.scope")
        );
        assert_eq!(below_root(None, "id").unwrap(), Path::new("gantry/id"));
        assert!(path("/").is_err());
        assert!(path("a/..").is_err());
    }
}
