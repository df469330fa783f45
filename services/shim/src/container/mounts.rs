//! The spec's mounts, made through the mount API: each new mount is made detached, gets its attributes, and only
//! then is attached to a descriptor of its target that was resolved beneath the root.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use gantry_sys::mount::{Attributes, set_attributes};
use oci_spec::runtime::{Linux, Mount};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    open_tree,
};

use super::beneath::{self, Kind};
use super::context::During;
use super::error::{Error, Result};
use super::mount_options::MountOptions;
use super::options::Overlay;
use super::rootfs;
use super::shifted::{self, Ids};

/// The files of a procfs that may be covered by a mount.
const EMULATED: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];
const PROC_ROOT_INODE: u64 = 1;

/// A mount of the spec, checked and with its options sorted.
#[derive(Debug)]
pub(super) struct PlannedMount {
    pub(super) destination: PathBuf,
    pub(super) kind: String,
    pub(super) source: Option<PathBuf>,
    pub(super) options: MountOptions,
    /// The user namespace of an id-mapped mount.
    pub(super) id_map: Option<OwnedFd>,
    /// The detached mount, where it was made before the container's first process ([`Self::prepare`]).
    pub(super) ready: Option<OwnedFd>,
}

impl PlannedMount {
    /// Checks a mount of the spec. Nothing is looked up yet.
    pub(super) fn plan(
        mount: &Mount,
        index: usize,
        bundle: &Path,
        linux: Option<&Linux>,
    ) -> Result<Self> {
        let destination = mount.destination().clone();
        if destination.as_os_str().is_empty() || destination.as_os_str().as_bytes().contains(&0) {
            return Err(Error::invalid(
                format!("mounts[{index}].destination"),
                "empty, or with a NUL character",
            ));
        }
        let none = Vec::new();
        let kind = mount.typ().clone().unwrap_or_default();
        let options = MountOptions::parse(mount.options().as_ref().unwrap_or(&none), &kind, index)?;
        if options.copy_up && is_root(&destination) {
            return Err(Error::invalid(
                format!("mounts[{index}].options"),
                "\"tmpcopyup\" on the root itself would copy the whole root",
            ));
        }
        let mut source = mount.source().clone();
        if options.bind.is_some() {
            let Some(from) = source else {
                return Err(Error::invalid(
                    format!("mounts[{index}].source"),
                    "missing: a bind mount needs one",
                ));
            };
            // An absolute path stays as it is.
            source = Some(bundle.join(from));
        } else if kind.is_empty() && !options.remount && options.propagation.is_empty() {
            return Err(Error::invalid(
                format!("mounts[{index}].type"),
                "missing, and the options do not say \"bind\"",
            ));
        }
        let mut uids = mount.uid_mappings().as_deref().unwrap_or_default();
        let mut gids = mount.gid_mappings().as_deref().unwrap_or_default();
        if options.id_map.is_some() && uids.is_empty() && gids.is_empty() {
            // The container's own, as the specification allows.
            uids = linux
                .and_then(|linux| linux.uid_mappings().as_deref())
                .unwrap_or_default();
            gids = linux
                .and_then(|linux| linux.gid_mappings().as_deref())
                .unwrap_or_default();
            if uids.is_empty() || gids.is_empty() {
                return Err(Error::invalid(
                    format!("mounts[{index}].options"),
                    "\"idmap\" needs uidMappings and gidMappings, of the mount or of the container",
                ));
            }
        }
        let id_map = if uids.is_empty() && gids.is_empty() {
            None
        } else {
            Some(super::namespaces::user_namespace_with(uids, gids)?)
        };
        Ok(Self {
            destination,
            kind,
            source,
            options,
            id_map,
            ready: None,
        })
    }

    /// Makes a bind mount, or an overlay of layers, detached, while this process still has the host's rights: the first
    /// process of a container with a user namespace may not reach the source, nor map its ids. `propagation`: what
    /// takes it out of the host's. `ids`: those of the container, where they are not the host's.
    pub(super) fn prepare(&mut self, propagation: u64, ids: Option<&Ids>) -> Result<()> {
        let Some(recursive) = self.options.bind else {
            if let (Some(ids), Some(layers)) = (ids, self.layers()) {
                let tree = shifted::mount(&layers, ids)?;
                self.set(tree.as_fd(), true)?;
                self.ready = Some(tree);
            }
            return Ok(());
        };
        let tree = self.bind(recursive)?;
        rootfs::propagate_tree(tree.as_fd(), propagation)?;
        self.set(tree.as_fd(), true)?;
        self.ready = Some(tree);
        Ok(())
    }

    /// Makes the mount, detached, with all its attributes, for somebody who will only bind it. `place` is a directory that
    /// it may cover for a moment.
    pub(super) fn ready_at(&self, place: BorrowedFd<'_>) -> Result<OwnedFd> {
        let Some(recursive) = self.options.bind else {
            let tree = self.make(None)?;
            return match &self.options.subpath {
                Some(path) => self.part_of(&tree, place, path),
                None => Ok(tree),
            };
        };
        let tree = self.bind(recursive)?;
        self.set(tree.as_fd(), true)?;
        Ok(tree)
    }

    pub(super) fn has_layers(&self) -> bool {
        self.layers().is_some()
    }

    /// The layers of a read-only overlay, such as an image's files.
    fn layers(&self) -> Option<Overlay> {
        if self.kind != "overlay" {
            return None;
        }
        let mut overlay = Overlay {
            lower: Vec::new(),
            upper: None,
            work: None,
            options: Vec::new(),
        };
        for (key, value) in &self.options.data {
            match (key.as_str(), value) {
                ("lowerdir+", Some(layer)) => overlay.lower.push(layer.into()),
                // Of layers that are said otherwise nothing is known here.
                ("lowerdir" | "upperdir" | "workdir", _) => return None,
                (key, Some(value)) => overlay.options.push(format!("{key}={value}")),
                (key, None) => overlay.options.push(key.to_owned()),
            }
        }
        (!overlay.lower.is_empty()).then_some(overlay)
    }

    /// Whether it takes the place of the root.
    pub(super) fn covers_root(&self) -> bool {
        is_root(&self.destination) && !self.options.remount
    }

    /// Makes the mount on `root` itself, and returns what is the root from now on.
    pub(super) fn mount_over(&self, root: &OwnedFd) -> Result<OwnedFd> {
        let object = || self.destination.display().to_string();
        let tree = match (&self.ready, self.options.bind) {
            (Some(ready), _) => ready.try_clone().during("mount", object())?,
            (None, Some(recursive)) => {
                let tree = self.bind(recursive)?;
                self.set(tree.as_fd(), true)?;
                tree
            }
            (None, None) => {
                let tree = self.make(None)?;
                self.set(tree.as_fd(), false)?;
                tree
            }
        };
        attach(&tree, root).during("mount", object())?;
        Ok(tree)
    }

    /// Makes the mount in `root`.
    pub(super) fn mount(&self, root: BorrowedFd<'_>) -> Result<()> {
        if self.options.remount && self.options.bind.is_none() {
            return self.change(root);
        }
        let made;
        let (tree, made_here) = match (&self.ready, self.options.bind) {
            (Some(ready), _) => (ready, false),
            (None, Some(recursive)) => {
                made = self.bind(recursive)?;
                (&made, true)
            }
            (None, None) => {
                made = match self.make(self.mode_of_target(root).as_deref()) {
                    // A sysfs shows a network namespace, and only who owns that one may mount it. In a user namespace
                    // with the host's network the host's is what there is to show.
                    Err(Error::Step { source, .. })
                        if self.kind == "sysfs" && source.raw_os_error() == Some(libc::EPERM) =>
                    {
                        self.hosts_sysfs()?
                    }
                    other => other?,
                };
                (&made, true)
            }
        };
        let part;
        let tree = match &self.options.subpath {
            Some(path) if self.options.bind.is_none() => {
                part = self.part_of(tree, root, path)?;
                &part
            }
            _ => tree,
        };
        let kind = if beneath::is_directory(tree).during("mount", self.destination.display())? {
            Kind::Directory
        } else {
            Kind::File
        };
        let target = self.target(root, kind)?;
        self.check_not_inside_proc(&target)?;
        if self.options.copy_up {
            // Attached first: a file system can be written to only through a mount that is somewhere.
            let lower = target
                .try_clone()
                .during("open", self.destination.display())?;
            attach(tree, &target).during("mount", self.destination.display())?;
            super::copy_up::copy(lower.as_fd(), tree.as_fd(), !self.has_mode())
                .during("copy to tmpfs", self.destination.display())?;
            self.set(tree.as_fd(), true)?;
            return Ok(());
        }
        if made_here {
            self.set(tree.as_fd(), self.options.bind.is_some())?;
        }
        attach(tree, &target).during("mount", self.destination.display())
    }

    /// The target, made where it is missing.
    pub(super) fn target(&self, root: BorrowedFd<'_>, kind: Kind) -> Result<OwnedFd> {
        let path = &self.destination;
        // A link in the image must not lead the kernel's own file systems to another place, where what
        // is then written to /proc would reach an ordinary file.
        if matches!(self.kind.as_str(), "proc" | "sysfs") {
            match beneath::open_without_links(root, path) {
                Ok(found) => return Ok(found),
                Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                    return Err(Error::invalid(
                        "mounts",
                        format!(
                            "{} of the image is a symbolic link; {} must be mounted on ordinary directory",
                            path.display(),
                            self.kind
                        ),
                    ));
                }
                Err(_) => {}
            }
        }
        if self.options.target_link {
            match beneath::open_last_link(root, path) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => return other.during("open mount point", path.display()),
            }
        }
        beneath::open_or_make(root, path, kind).during("make mount point", path.display())
    }

    /// What the kernel tells of itself must not be replaced by what an image or a user says, but for the few files that
    /// emulations as lxcfs are about. The target is open: nothing can be put in its place.
    fn check_not_inside_proc(&self, target: &OwnedFd) -> Result<()> {
        let object = || self.destination.display().to_string();
        if !beneath::is_on_proc(target).during("look at mount point", object())? {
            return Ok(());
        }
        let mut clean = PathBuf::from("/");
        clean.extend(
            self.destination
                .components()
                .filter(|component| matches!(component, Component::Normal(_))),
        );
        let stat = rustix::fs::fstat(target).during("look at mount point", object())?;
        if stat.st_ino == PROC_ROOT_INODE || EMULATED.iter().any(|known| clean == Path::new(known))
        {
            return Ok(());
        }
        Err(Error::invalid(
            "mounts",
            format!(
                "{} cannot be mounted because it is inside /proc",
                self.destination.display()
            ),
        ))
    }

    fn has_mode(&self) -> bool {
        self.options.data.iter().any(|(key, _)| key == "mode")
    }

    /// A tmpfs that says nothing of its mode has that of the directory it covers, as with runc.
    fn mode_of_target(&self, root: BorrowedFd<'_>) -> Option<String> {
        if self.kind != "tmpfs" || self.has_mode() {
            return None;
        }
        let target = beneath::open(root, &self.destination).ok()?;
        let stat = rustix::fs::fstat(&target).ok()?;
        Some(format!("{:o}", stat.st_mode & 0o7777))
    }

    fn hosts_sysfs(&self) -> Result<OwnedFd> {
        let tree = rootfs::clone_path(Path::new("/sys"))?;
        let attributes = Attributes {
            set: self.options.set | self.options.set_recursive,
            ..Attributes::default()
        };
        set_attributes(tree.as_fd(), c"", true, attributes)
            .during("set mount flags", self.destination.display())?;
        Ok(tree)
    }

    /// What a file system has at a path. A part can be taken only of what is mounted somewhere: for that moment
    /// it covers the root, which is known by its descriptor.
    fn part_of(&self, tree: &OwnedFd, root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
        let shown = self.destination.display();
        attach(tree, root).during("mount", &shown)?;
        let part = beneath::open_beneath(tree.as_fd(), path)
            .during("find", path.display())
            .and_then(|part| clone_of(&part, true).during("mount", &shown));
        let itself = format!("/proc/self/fd/{}", tree.as_raw_fd());
        rustix::mount::unmount(&*itself, UnmountFlags::DETACH).during("unmount", &shown)?;
        part
    }

    /// What a bind's source has at a path, looked up at this moment: whoever else can write to the source may
    /// have put a link there.
    fn bind_part(&self, from: &Path, recursive: bool, path: &Path) -> Result<OwnedFd> {
        let shown = || format!("{} of {}", path.display(), from.display());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let source = rustix::fs::open(from, flags, Mode::empty()).during("open", from.display())?;
        let part = beneath::open_beneath(source.as_fd(), path).during("find", shown())?;
        clone_of(&part, recursive).during("bind", shown())
    }

    fn bind(&self, recursive: bool) -> Result<OwnedFd> {
        let from = self.source.as_deref().unwrap_or(Path::new(""));
        if let Some(path) = &self.options.subpath {
            return self.bind_part(from, recursive, path);
        }
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        if self.options.source_link {
            flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        }
        open_tree(CWD, from, flags).map_err(|error| {
            if error == rustix::io::Errno::NOENT {
                Error::MissingSource {
                    from: from.to_owned(),
                    destination: self.destination.clone(),
                }
            } else {
                Error::step(
                    "bind",
                    format!("{} on {}", from.display(), self.destination.display()),
                    error,
                )
            }
        })
    }

    fn make(&self, mode: Option<&str>) -> Result<OwnedFd> {
        let object = || format!("{} on {}", self.kind, self.destination.display());
        if let Some(overlay) = self.layers() {
            let tree = rootfs::mount_overlay(&overlay)?;
            let attributes = Attributes {
                set: self.options.set | self.options.set_recursive,
                ..Attributes::default()
            };
            set_attributes(tree.as_fd(), c"", false, attributes)
                .during("set mount flags", object())?;
            return Ok(tree);
        }
        let context = fsopen(self.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| {
            if error == rustix::io::Errno::NODEV {
                Error::Unsupported {
                    what: format!("file system {:?}", self.kind),
                    why: "this kernel does not know it".to_owned(),
                }
            } else {
                Error::step("open file system", object(), error)
            }
        })?;
        let source = self.source.as_deref().unwrap_or(Path::new("none"));
        let configured = (|| {
            fsconfig_set_string(&context, "source", source)?;
            for flag in &self.options.file_system_flags {
                fsconfig_set_flag(&context, *flag)?;
            }
            for (key, value) in &self.options.data {
                match value {
                    Some(value) => {
                        fsconfig_set_string(&context, key.as_str(), value.as_str())?;
                    }
                    None => fsconfig_set_flag(&context, key.as_str())?,
                }
            }
            if let Some(mode) = mode {
                fsconfig_set_string(&context, "mode", mode)?;
            }
            fsconfig_create(&context)?;
            let set = if self.options.copy_up {
                0
            } else {
                (self.options.set | self.options.set_recursive) as u32
            };
            fsmount(
                &context,
                FsMountFlags::FSMOUNT_CLOEXEC,
                MountAttrFlags::from_bits_retain(set),
            )
        })();
        configured.map_err(|error| {
            let mut object = object();
            if let Some(reason) = reason(&context) {
                object = format!("{object} ({reason})");
            }
            Error::step("mount", object, error)
        })
    }

    /// Attributes and propagation. `flags`: those of a bind; a new file system has them from its making.
    fn set(&self, tree: BorrowedFd<'_>, flags: bool) -> Result<()> {
        let options = &self.options;
        let object = || self.destination.display().to_string();
        if flags && (options.set_recursive | options.clear_recursive) != 0 {
            let attributes = Attributes {
                set: options.set_recursive,
                clear: options.clear_recursive,
                ..Attributes::default()
            };
            set_attributes(tree, c"", true, attributes).during("set mount flags", object())?;
        }
        if flags && (options.set | options.clear) != 0 {
            let attributes = Attributes {
                set: options.set,
                clear: options.clear,
                ..Attributes::default()
            };
            set_attributes(tree, c"", false, attributes).during("set mount flags", object())?;
        }
        if let Some(user_namespace) = &self.id_map {
            let attributes = Attributes {
                id_map: Some(user_namespace.as_fd()),
                ..Attributes::default()
            };
            let mapped = set_attributes(tree, c"", options.id_map == Some(true), attributes);
            mapped.map_err(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => Error::Unsupported {
                    what: format!("ids mapped on {}", object()),
                    why: "a file system of the source, or of what is mounted in it, cannot map ids"
                        .to_owned(),
                },
                _ => Error::step("map ids of mount", object(), error),
            })?;
        }
        for (propagation, recursive) in &options.propagation {
            let attributes = Attributes {
                propagation: propagation & !libc::MS_REC,
                ..Attributes::default()
            };
            set_attributes(tree, c"", *recursive, attributes)
                .during("set mount propagation", object())?;
        }
        Ok(())
    }

    /// `remount`: other flags for what is mounted there.
    fn change(&self, root: BorrowedFd<'_>) -> Result<()> {
        let target =
            beneath::open(root, &self.destination).during("remount", self.destination.display())?;
        self.set(target.as_fd(), true)
    }
}

fn is_root(destination: &Path) -> bool {
    destination
        .components()
        .all(|component| matches!(component, Component::RootDir | Component::CurDir))
}

/// Attaches a detached mount on what `target` is.
pub(super) fn attach(
    tree: &OwnedFd,
    target: impl AsFd,
) -> std::result::Result<(), rustix::io::Errno> {
    move_mount(
        tree,
        "",
        target,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// A detached copy of the mount at an open object, which becomes its root.
pub(super) fn clone_of(
    object: impl AsFd,
    recursive: bool,
) -> std::result::Result<OwnedFd, rustix::io::Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(object, "", flags)
}

/// What the file system itself says of its failure: the messages of its context.
pub(super) fn reason(context: &OwnedFd) -> Option<String> {
    let mut buffer = [0_u8; 512];
    let length = rustix::io::read(context, &mut buffer[..]).ok()?;
    let message = String::from_utf8_lossy(&buffer[..length]);
    // "e message": error, warning or information.
    let message = message.trim_end();
    Some(message.get(2..).unwrap_or(message).to_owned())
}

/// Changes the propagation of a path of this process' mount namespace.
pub(super) fn propagate(path: &str, flags: u64) -> Result<()> {
    let path_c = CString::new(path).during("set mount propagation", path)?;
    set_attributes(
        CWD,
        &path_c,
        flags & libc::MS_REC != 0,
        Attributes {
            propagation: flags & !libc::MS_REC,
            ..Attributes::default()
        },
    )
    .during("set mount propagation", path)
}
