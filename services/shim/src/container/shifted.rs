//! Layers for a container with a range of ids of its own: its files have on the disk the ids that they have inside, so
//! that layers and what is written over them are the same for every container, whatever its range.
//!
//! Each layer is mounted id-mapped (mount_setattr(2), `MOUNT_ATTR_IDMAP`; overlayfs takes such layers since Linux 5.19), and the
//! overlay put together of those. An overlay works on its upper layer with the ids of who mounted it: that is the
//! container's root here, for the host's has no id on such a layer. Before Linux 6.15 the layers must be attached
//! somewhere meanwhile: in a mount namespace that ends with the process that does all this.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use gantry_sys::clone::CloneOptions;
use gantry_sys::mount::{Attributes, set_attributes};
use oci_spec::runtime::LinuxNamespaceType as Kind;
use rustix::fs::{CWD, Mode};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsmount, fsopen, move_mount, open_tree,
};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitiesSecureBits, set_capabilities_secure_bits};

use super::context::During;
use super::error::{Error, Result};
use super::handle::wait_ended;
use super::mounts::propagate;
use super::namespaces::{self, flag, host_id};
use super::options::Overlay;
use super::rootfs;
use super::setup::Setup;
use super::wire::{self, Message};

/// The ids of a container in a user namespace.
#[derive(Debug)]
pub(super) struct Ids {
    namespace: OwnedFd,
    /// User and group of its root, as the host has them.
    root: (u32, u32),
}

impl Ids {
    /// `None`: they are the host's.
    pub(super) fn of(setup: &Setup<'_>) -> Result<Option<Self>> {
        let Some(linux) = setup.spec.linux() else {
            return Ok(None);
        };
        let (Some(uids), Some(gids)) = (linux.uid_mappings(), linux.gid_mappings()) else {
            return Ok(None);
        };
        if uids.is_empty() || gids.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            namespace: namespaces::user_namespace_with(uids, gids)?,
            root: (host_id(Some(uids), 0), host_id(Some(gids), 0)),
        }))
    }
}

/// Mounts the layers with the container's ids; the result is detached.
pub(super) fn mount(overlay: &Overlay, ids: &Ids) -> Result<OwnedFd> {
    let (near, far) = wire::pair().during("make", "socket pair")?;
    let own_mounts = CloneOptions {
        namespaces: flag(Kind::Mount),
        ..CloneOptions::default()
    };
    let (_, pidfd) = gantry_sys::clone::clone(own_mounts, || {
        let said = match put_together(overlay, ids) {
            Ok(tree) => wire::send(far.as_fd(), &Message::Root, Some(tree.as_fd())),
            Err(error) => wire::send(far.as_fd(), &Message::Failed((&error).into()), None),
        };
        i32::from(said.is_err())
    })
    .during("clone", "a process that mounts the layers")?;
    drop(far);
    let heard = wire::receive(near.as_fd()).during("hear from", "who mounts the layers");
    let how = wait_ended(pidfd.as_fd());
    match heard? {
        Some((Message::Root, Some(tree))) => Ok(tree),
        Some((Message::Failed(failure), _)) => Err(failure.into()),
        Some(_) | None => Err(Error::Died {
            step: "mount root".to_owned(),
            how,
        }),
    }
}

fn put_together(overlay: &Overlay, ids: &Ids) -> Result<OwnedFd> {
    let Ids { namespace, root } = ids;
    let ids = namespace.as_fd();
    propagate("/", libc::MS_PRIVATE | libc::MS_REC)?;
    // Each layer is held open, and there may be more than a program usually has files. This process is for it alone.
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    rustix::process::setrlimit(Resource::Nofile, raised).during("raise limit of", "open files")?;
    let lower = overlay
        .lower
        .iter()
        .map(|path| mapped(path, ids))
        .collect::<Result<Vec<_>>>()?;
    let written = overlay
        .upper
        .as_deref()
        .zip(overlay.work.as_deref())
        .map(|(upper, work)| Written::new(upper, work, ids))
        .transpose()?;
    // What is below is open already.
    let room = Room::over(&overlay.lower[0])?;
    let shifted = Overlay {
        lower: lower
            .iter()
            .enumerate()
            .map(|(number, tree)| room.attach(tree, &number.to_string()))
            .collect::<Result<_>>()?,
        upper: None,
        work: None,
        options: overlay.options.clone(),
    };
    let shifted = match written {
        Some(written) => {
            let at = room.attach(&written.tree, "written")?;
            Overlay {
                upper: Some(at.join(written.upper)),
                work: Some(at.join(written.work)),
                ..shifted
            }
        }
        None => shifted,
    };
    // The ids change, and all rights stay.
    set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
        .during("keep", "capabilities")?;
    nix::unistd::setfsgid(root.1.into());
    nix::unistd::setfsuid(root.0.into());
    rootfs::mount_overlay(&shifted)
}

/// The upper directory and the one that overlayfs works in: they must be on one mount.
struct Written<'a> {
    tree: OwnedFd,
    upper: &'a Path,
    work: &'a Path,
}

impl<'a> Written<'a> {
    fn new(upper: &'a Path, work: &'a Path, ids: BorrowedFd<'_>) -> Result<Self> {
        let name = |path: &'a Path| path.file_name().map(Path::new);
        match (upper.parent(), name(upper), name(work)) {
            (Some(parent), Some(upper), Some(work_name)) if work.parent() == Some(parent) => {
                Ok(Self {
                    tree: mapped(parent, ids)?,
                    upper,
                    work: work_name,
                })
            }
            _ => Err(Error::invalid(
                "overlay",
                "with a user namespace upper and work must be in one directory",
            )),
        }
    }
}

/// A detached, id-mapped copy of what is mounted at a directory.
fn mapped(path: &Path, ids: BorrowedFd<'_>) -> Result<OwnedFd> {
    let tree = open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .during("mount root", path.display())?;
    let attributes = Attributes {
        id_map: Some(ids),
        ..Attributes::default()
    };
    set_attributes(tree.as_fd(), c"", false, attributes)
        .during("map ids", format_args!("of layer {}", path.display()))?;
    Ok(tree)
}

/// A small file system with a directory for each layer.
struct Room {
    path: PathBuf,
    tree: OwnedFd,
}

impl Room {
    fn over(path: &Path) -> Result<Self> {
        let tree = (|| {
            let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_create(&context)?;
            let tree = fsmount(
                &context,
                FsMountFlags::FSMOUNT_CLOEXEC,
                MountAttrFlags::empty(),
            )?;
            move_mount(
                &tree,
                "",
                CWD,
                path,
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )?;
            Ok::<_, rustix::io::Errno>(tree)
        })()
        .during("make room for", "layers")?;
        Ok(Self {
            path: path.to_owned(),
            tree,
        })
    }

    fn attach(&self, layer: &OwnedFd, name: &str) -> Result<PathBuf> {
        (|| {
            rustix::fs::mkdirat(&self.tree, name, Mode::from(0o755))?;
            move_mount(
                layer,
                "",
                &self.tree,
                name,
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )
        })()
        .during("attach layer", name)?;
        Ok(self.path.join(name))
    }
}
