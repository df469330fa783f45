//! The root file system: mounted, filled, entered.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use gantry_sys::mount::{Attributes, RDONLY, set_attributes};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    open_tree,
};

use super::context::During;
use super::error::{Error, Result};
use super::mounts::{propagate, reason};
use super::options::Overlay;

/// The propagation that the spec's `linux.rootfsPropagation` names.
pub(super) fn propagation(name: Option<&str>) -> Result<Option<u64>> {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let (plain, recursive) = match name.strip_prefix('r') {
        Some(plain) => (plain, libc::MS_REC),
        None => (name, 0),
    };
    let flag = match plain {
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => {
            return Err(Error::invalid(
                "linux.rootfsPropagation",
                format!("{name:?} is not one of [r]shared, [r]slave, [r]private, [r]unbindable"),
            ));
        }
    };
    Ok(Some(flag | recursive))
}

/// Takes this mount namespace out of the host's propagation, so that no mount made here is seen there. A container
/// that shares its root (`rshared`) keeps its bind mounts in the host's peer groups: only the mount that
/// the root is attached to becomes private.
pub(super) fn separate(wanted: Option<u64>) -> Result<()> {
    let first = wanted.unwrap_or(libc::MS_SLAVE | libc::MS_REC);
    propagate(
        "/",
        first & !libc::MS_UNBINDABLE
            | if first & libc::MS_UNBINDABLE != 0 {
                libc::MS_PRIVATE
            } else {
                0
            },
    )?;
    if first & libc::MS_SHARED != 0 {
        propagate("/", libc::MS_PRIVATE)?;
    }
    Ok(())
}

/// Mounts the layers; the result is detached.
pub(super) fn mount_overlay(overlay: &Overlay) -> Result<OwnedFd> {
    let top = || match &overlay.upper {
        Some(upper) => upper.display().to_string(),
        None => overlay
            .lower
            .first()
            .map(|lower| lower.display().to_string())
            .unwrap_or_default(),
    };
    // One layer alone needs no overlay: a read-only view of it is the same, and cheaper.
    if let ([only], None) = (overlay.lower.as_slice(), &overlay.upper) {
        let tree = clone_path(only)?;
        set_attributes(
            tree.as_fd(),
            c"",
            true,
            Attributes {
                set: RDONLY,
                ..Attributes::default()
            },
        )
        .during("set mount flags", only.display())?;
        return Ok(tree);
    }
    let configure = |each: bool| -> Result<OwnedFd> {
        let context =
            fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).during("open file system", "overlay")?;
        let made = (|| {
            fsconfig_set_string(&context, "source", "overlay")?;
            if each {
                for lower in &overlay.lower {
                    fsconfig_set_string(&context, "lowerdir+", lower)?;
                }
            } else {
                fsconfig_set_string(&context, "lowerdir", joined(&overlay.lower))?;
            }
            if let Some(upper) = &overlay.upper {
                fsconfig_set_string(&context, "upperdir", upper)?;
                if let Some(work) = &overlay.work {
                    fsconfig_set_string(&context, "workdir", work)?;
                }
            }
            for option in &overlay.options {
                match option.split_once('=') {
                    Some((key, value)) => fsconfig_set_string(&context, key, value)?,
                    None => fsconfig_set_flag(&context, option.as_str())?,
                }
            }
            fsconfig_create(&context)?;
            fsmount(
                &context,
                FsMountFlags::FSMOUNT_CLOEXEC,
                MountAttrFlags::empty(),
            )
        })();
        made.map_err(|error| {
            let object = match reason(&context) {
                Some(reason) => format!("overlay of {} ({reason})", top()),
                None => format!("overlay of {}", top()),
            };
            Error::step("mount root", object, error)
        })
    };
    match configure(true) {
        // Before Linux 6.5 there is only the one string, of at most a page.
        Err(Error::Step { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
            configure(false)
        }
        other => other,
    }
}

/// The old option: paths with colons between them, colons and backslashes in them escaped.
fn joined(layers: &[std::path::PathBuf]) -> std::ffi::OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut text = Vec::new();
    for layer in layers {
        if !text.is_empty() {
            text.push(b':');
        }
        for byte in layer.as_os_str().as_bytes() {
            if matches!(byte, b':' | b'\\') {
                text.push(b'\\');
            }
            text.push(*byte);
        }
    }
    std::ffi::OsString::from_vec(text)
}

/// A detached copy of a directory with all that is mounted in it.
pub(super) fn clone_path(path: &Path) -> Result<OwnedFd> {
    open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE,
    )
    .during("mount root", path.display())
}

/// Attaches the detached root to "/" of this mount namespace, where it covers the host's: from here on it is a mount
/// like any other, and no directory of the host is needed to hold it. Paths of this process still start at the host's root.
pub(super) fn attach(root: &OwnedFd) -> Result<()> {
    move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .during("attach root", "/")
}

/// Makes the root's own mount read-only.
pub(super) fn seal(root: BorrowedFd<'_>) -> Result<()> {
    set_attributes(
        root,
        c"",
        false,
        Attributes {
            set: RDONLY,
            ..Attributes::default()
        },
    )
    .during("make root read-only", "/")
}

/// Makes `root` the root of this mount namespace and lets go of the host's.
pub(super) fn pivot(root: BorrowedFd<'_>) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty()).during("open host's root", "/")?;
    rustix::process::fchdir(root).during("enter root", "/")?;
    // Both names may be the same: the old root is then mounted over the new one, and taken off again.
    rustix::process::pivot_root(".", ".").during("pivot root", "/")?;
    // By its descriptor: "." is the new root still, whose mounts may be the host's peers. What is taken off here
    // must not be taken off the host.
    set_attributes(
        old.as_fd(),
        c"",
        true,
        Attributes {
            propagation: libc::MS_SLAVE,
            ..Attributes::default()
        },
    )
    .during("set mount propagation", "host's root")?;
    rustix::process::fchdir(&old).during("enter host's root", "/")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).during("unmount host's root", "/")?;
    rustix::process::chdir("/").during("enter root", "/")
}

/// `--no-pivot`: moves the root over the host's and changes into it.
pub(super) fn move_root(root: BorrowedFd<'_>) -> Result<()> {
    // The root is attached over "/" already: what is left is to be in it.
    rustix::process::fchdir(root).during("enter root", "/")?;
    rustix::process::chroot(".").during("change root", "/")?;
    rustix::process::chdir("/").during("enter root", "/")
}

/// Opens a root that is used in place, for a container without a mount namespace of its own.
pub(super) fn open_in_place(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error: Errno| Error::step("open root", path.display().to_string(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn propagation_names_are_those_of_the_specification() {
        assert_eq!(propagation(None).unwrap(), None);
        assert_eq!(
            propagation(Some("rslave")).unwrap(),
            Some(libc::MS_SLAVE | libc::MS_REC)
        );
        assert_eq!(propagation(Some("shared")).unwrap(), Some(libc::MS_SHARED));
        assert!(propagation(Some("rubbish")).is_err());
    }

    #[test]
    fn a_colon_in_a_layers_path_is_escaped() {
        let layers = ["/a:b".into(), "/c".into()];
        assert_eq!(joined(&layers), "/a\\:b:/c");
    }
}
