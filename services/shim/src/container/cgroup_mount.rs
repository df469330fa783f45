//! A mount of type `cgroup`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::context::During;
use super::error::{Error, Result};
use super::mount_options::MountOptions;
use super::mounts::{self, PlannedMount};
use super::setup::Setup;
use super::{beneath, rootfs};

/// Mounts it: on v2 the hierarchy as the cgroup namespace shows it, on v1 a directory with the container's
/// own group of each hierarchy.
pub(super) fn mount(setup: &Setup<'_>, mount: &PlannedMount, root: BorrowedFd<'_>) -> Result<()> {
    let layout = &setup.cgroup.layout;
    if layout.is_v2() {
        let unified = PlannedMount {
            destination: mount.destination.clone(),
            kind: "cgroup2".to_owned(),
            source: Some("cgroup".into()),
            options: mount.options.clone(),
            id_map: None,
            ready: None,
        };
        return match unified.mount(root) {
            // With the host's cgroup namespace in a user namespace: then the host's own mount.
            Err(Error::Step { source, .. })
                if matches!(source.raw_os_error(), Some(libc::EPERM | libc::EBUSY)) =>
            {
                let from = layout.unified.clone().unwrap_or_default();
                let mut options = mount.options.clone();
                options.bind = Some(true);
                PlannedMount {
                    destination: mount.destination.clone(),
                    kind: "bind".to_owned(),
                    source: Some(from),
                    options,
                    id_map: None,
                    ready: None,
                }
                .mount(root)
            }
            other => other,
        };
    }
    let object = mount.destination.display();
    let tmpfs = (|| {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", "tmpfs")?;
        fsconfig_set_string(&context, "mode", "755")?;
        fsconfig_create(&context)?;
        fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        )
    })()
    .during("mount", format_args!("tmpfs on {object}"))?;
    let target = mount.target(root, beneath::Kind::Directory)?;
    mounts::attach(&tmpfs, &target).during("mount", format_args!("tmpfs on {object}"))?;
    for (hierarchy, directory) in setup.cgroup.directories() {
        let Some(name) = hierarchy.mount_point.file_name() else {
            continue;
        };
        let options = mount.options.clone();
        bind_group(&tmpfs, Path::new(name), directory, options)?;
        let text = name.to_string_lossy();
        for controller in hierarchy.controllers.iter().filter(|_| text.contains(',')) {
            rustix::fs::symlinkat(name, &tmpfs, controller.as_str())
                .during("link", format_args!("{object}/{controller}"))?;
        }
    }
    if let Some(directory) = setup.cgroup.unified_directory() {
        bind_group(
            &tmpfs,
            Path::new("unified"),
            directory,
            mount.options.clone(),
        )?;
    }
    if mount.options.set & gantry_sys::mount::RDONLY != 0 {
        rootfs::seal(tmpfs.as_fd())?;
    }
    Ok(())
}

fn bind_group(
    tmpfs: &OwnedFd,
    name: &Path,
    directory: PathBuf,
    mut options: MountOptions,
) -> Result<()> {
    options.bind = Some(false);
    options.data.clear();
    PlannedMount {
        destination: name.to_owned(),
        kind: "bind".to_owned(),
        source: Some(directory),
        options,
        id_map: None,
        ready: None,
    }
    .mount(tmpfs.as_fd())
}
