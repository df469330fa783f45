//! /dev: the devices and links that every container has, and those the spec adds.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use gantry_sys::mount::{Attributes, NOEXEC, NOSUID, set_attributes};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Spec};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, makedev};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, open_tree,
};

use super::beneath::{self, Kind};
use super::context::During;
use super::error::{Error, Result};
use super::{mounts, namespaces};

/// The specification's default devices: name, major, minor.
pub(super) const DEFAULT: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// A device to be made.
#[derive(Debug)]
pub(super) struct PlannedDevice {
    path: PathBuf,
    kind: FileType,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    /// A detached mount of the device, where it was made before the container's first process.
    ready: Option<OwnedFd>,
}

impl PlannedDevice {
    pub(super) fn ready(&self) -> Option<BorrowedFd<'_>> {
        self.ready.as_ref().map(AsFd::as_fd)
    }
}

/// Makes the devices of a container with a user namespace, in which nobody may make any: on a file system that is mounted
/// nowhere, owned by the ids that the container's are on the host. Where that can not be (no right to make them here either;
/// before Linux 6.15 no part of a detached mount can be mounted) the host's are bound later.
pub(super) fn prepare(devices: &mut [PlannedDevice], linux: Option<&Linux>) {
    let Ok(directory) = nowhere() else {
        return;
    };
    let uids = linux.and_then(|linux| linux.uid_mappings().as_ref());
    let gids = linux.and_then(|linux| linux.gid_mappings().as_ref());
    for (index, device) in devices.iter_mut().enumerate() {
        if device.kind == FileType::Fifo {
            continue;
        }
        let name = index.to_string();
        let made = (|| {
            // The umask is the caller's here.
            rustix::fs::mknodat(
                &directory,
                &name,
                device.kind,
                Mode::empty(),
                makedev(device.major, device.minor),
            )?;
            rustix::fs::chmodat(
                &directory,
                &name,
                Mode::from_raw_mode(device.mode),
                AtFlags::empty(),
            )?;
            rustix::fs::chownat(
                &directory,
                &name,
                Some(Uid::from_raw(namespaces::host_id(uids, device.uid))),
                Some(Gid::from_raw(namespaces::host_id(gids, device.gid))),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
            open_tree(
                &directory,
                &name,
                OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
            )
        })();
        device.ready = made.ok();
    }
}

/// A small file system, mounted nowhere.
fn nowhere() -> std::result::Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "devices")?;
    fsconfig_set_string(&context, "size", "64k")?;
    fsconfig_create(&context)?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}

/// The spec's devices, and the default ones it does not name itself.
pub(super) fn plan(spec: &Spec) -> Result<Vec<PlannedDevice>> {
    let none = Vec::new();
    let wanted: &Vec<LinuxDevice> = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.devices().as_ref())
        .unwrap_or(&none);
    let mut devices = Vec::with_capacity(wanted.len() + DEFAULT.len());
    for (name, major, minor) in DEFAULT {
        let path = Path::new("/dev").join(name);
        if !wanted.iter().any(|device| device.path() == &path) {
            devices.push(PlannedDevice {
                path,
                kind: FileType::CharacterDevice,
                major,
                minor,
                mode: 0o666,
                uid: 0,
                gid: 0,
                ready: None,
            });
        }
    }
    for (index, device) in wanted.iter().enumerate() {
        let kind = match device.typ() {
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::A => {
                return Err(Error::invalid(
                    format!("linux.devices[{index}].type"),
                    "\"a\" is for device rules; here b, c, u or p",
                ));
            }
        };
        let number = |value: i64, name: &str| {
            u32::try_from(value).map_err(|_| {
                Error::invalid(
                    format!("linux.devices[{index}].{name}"),
                    format!("{value} is not a device number"),
                )
            })
        };
        devices.push(PlannedDevice {
            path: device.path().clone(),
            kind,
            major: number(device.major(), "major")?,
            minor: number(device.minor(), "minor")?,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
            ready: None,
        });
    }
    Ok(devices)
}

/// Makes them. `bind`: in a user namespace nobody may make device files, so those made before are bound, or the host's.
pub(super) fn make(root: BorrowedFd<'_>, devices: &[PlannedDevice], bind: bool) -> Result<()> {
    let mut open_directory: Option<(PathBuf, std::os::fd::OwnedFd)> = None;
    for device in devices {
        let object = device.path.display();
        if bind && device.kind != FileType::Fifo {
            bind_device(root, device)?;
            continue;
        }
        let parent = device.path.parent().unwrap_or(Path::new("/"));
        let Some(name) = device.path.file_name() else {
            return Err(Error::invalid(
                "linux.devices",
                format!("{object} is not a path of a file"),
            ));
        };
        if open_directory
            .as_ref()
            .is_none_or(|(path, _)| path != parent)
        {
            let fd = beneath::open_or_make(root, parent, Kind::Directory)
                .during("make directory", parent.display())?;
            open_directory = Some((parent.to_owned(), fd));
        }
        let Some((_, directory)) = &open_directory else {
            continue;
        };
        // The umask is 0 here.
        match rustix::fs::mknodat(
            directory,
            name,
            device.kind,
            Mode::from_raw_mode(device.mode),
            makedev(device.major, device.minor),
        ) {
            Ok(()) => {
                if device.uid != 0 || device.gid != 0 {
                    rustix::fs::chownat(
                        directory,
                        name,
                        Some(Uid::from_raw(device.uid)),
                        Some(Gid::from_raw(device.gid)),
                        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
                    )
                    .during("own device", object)?;
                }
            }
            Err(Errno::EXIST) => {
                let stat =
                    rustix::fs::statat(directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                        .during("make device", &object)?;
                let same = FileType::from_raw_mode(stat.st_mode) == device.kind
                    && (device.kind == FileType::Fifo
                        || stat.st_rdev == makedev(device.major, device.minor));
                if !same {
                    return Err(Error::step(
                        "make device",
                        object.to_string(),
                        std::io::Error::from_raw_os_error(libc::EEXIST),
                    ));
                }
            }
            Err(Errno::PERM) => bind_device(root, device)?,
            Err(error) => return Err(error).during("make device", object),
        }
    }
    Ok(())
}

fn bind_device(root: BorrowedFd<'_>, device: &PlannedDevice) -> Result<()> {
    let object = device.path.display();
    let host;
    let tree = match &device.ready {
        Some(ready) => ready,
        None => {
            let source = rustix::fs::open(
                &device.path,
                rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
                Mode::empty(),
            )
            .during("open the host's device", &object)?;
            host = mounts::clone_of(&source, false).during("bind device", &object)?;
            &host
        }
    };
    let attributes = Attributes {
        set: NOSUID | NOEXEC,
        ..Attributes::default()
    };
    set_attributes(tree.as_fd(), c"", false, attributes).during("set mount flags", &object)?;
    let target = beneath::open_or_make(root, &device.path, Kind::File)
        .during("make mount point", &object)?;
    mounts::attach(tree, &target).during("bind device", &object)
}

/// /dev/fd, stdin, stdout, stderr and ptmx, and core where the kernel has it.
pub(super) fn link(root: BorrowedFd<'_>) -> Result<()> {
    let dev =
        beneath::open_or_make(root, Path::new("/dev"), Kind::Directory).during("open", "/dev")?;
    for (target, name) in LINKS {
        make_link(dev.as_fd(), target, name)?;
    }
    Ok(())
}

fn make_link(dev: BorrowedFd<'_>, target: &str, name: &str) -> Result<()> {
    match rustix::fs::symlinkat(target, dev, name) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) if name == "ptmx" => {
            // A device file of the image's would lead to the host's terminals.
            rustix::fs::unlinkat(dev, name, rustix::fs::AtFlags::empty())
                .and_then(|()| rustix::fs::symlinkat(target, dev, name))
                .during("link", "/dev/ptmx")
        }
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).during("link", format_args!("/dev/{name}")),
    }
}
