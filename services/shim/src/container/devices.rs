//! /dev: the devices and links that every container has, and those the spec adds.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use rustix::fs::{FileType, Gid, Mode, Uid, makedev};
use rustix::io::Errno;

use super::beneath::{self, Kind};
use super::context::During;
use super::error::{Error, Result};
use super::mounts;

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
        });
    }
    Ok(devices)
}

/// Makes them. `bind`: in a user namespace nobody may make device files, so the host's are bound.
pub(super) fn make(root: BorrowedFd<'_>, devices: &[PlannedDevice], bind: bool) -> Result<()> {
    let mut open_directory: Option<(PathBuf, std::os::fd::OwnedFd)> = None;
    for device in devices {
        let object = device.path.display();
        if bind {
            bind_from_host(root, device)?;
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
            Err(Errno::PERM) => bind_from_host(root, device)?,
            Err(error) => return Err(error).during("make device", object),
        }
    }
    Ok(())
}

fn bind_from_host(root: BorrowedFd<'_>, device: &PlannedDevice) -> Result<()> {
    let object = device.path.display();
    let source = rustix::fs::open(
        &device.path,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        Mode::empty(),
    )
    .during("open the host's device", &object)?;
    let tree = mounts::clone_of(&source, false).during("bind device", &object)?;
    let target = beneath::open_or_make(root, &device.path, Kind::File)
        .during("make mount point", &object)?;
    mounts::attach(&tree, &target).during("bind device", &object)
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
