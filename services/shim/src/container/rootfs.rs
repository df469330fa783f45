//! The root file system: mounted, filled, entered.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

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

/// The propagation that takes a mount out of the host's. What can not be bound could not be moved to its place either:
/// that becomes so last.
pub(super) fn separation(wanted: Option<u64>) -> u64 {
    let wanted = wanted.unwrap_or(libc::MS_SLAVE | libc::MS_REC);
    if wanted & libc::MS_UNBINDABLE != 0 {
        wanted & !libc::MS_UNBINDABLE | libc::MS_PRIVATE
    } else {
        wanted
    }
}

/// Takes this mount namespace out of the host's propagation, so that no mount made here is seen there. A container
/// that shares its root (`rshared`) keeps its bind mounts in the host's peer groups: only the mount that
/// the root is attached to becomes private.
pub(super) fn separate(wanted: Option<u64>) -> Result<()> {
    let first = separation(wanted);
    propagate("/", first)?;
    if first & libc::MS_SHARED != 0 {
        propagate("/", libc::MS_PRIVATE)?;
    }
    Ok(())
}

/// Changes the propagation of a detached mount and all beneath it.
pub(super) fn propagate_tree(tree: BorrowedFd<'_>, flags: u64) -> Result<()> {
    let attributes = Attributes {
        propagation: flags & !libc::MS_REC,
        ..Attributes::default()
    };
    set_attributes(tree, c"", true, attributes).during("set mount propagation", "detached")
}

/// Layers that one overlay takes (`OVL_MAX_STACK` in the kernel).
const LAYERS_MAX: usize = 500;

/// Mounts the layers; the result is detached.
///
/// A layer given more than once counts where it is top-most: what it shows or hides further down, it shows or hides
/// there already, and overlayfs refuses a directory that it has already. More layers than one overlay takes are put
/// together in read-only overlays of the lower ones, which are layers of the last one. Those must be attached
/// somewhere meanwhile: each over its own first layer, in a mount namespace that must be apart from the host's.
pub(super) fn mount_overlay(overlay: &Overlay) -> Result<OwnedFd> {
    let mut overlay = overlay.clone();
    let mut seen = HashSet::new();
    overlay.lower.retain(|layer| seen.insert(layer.clone()));
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
    let Some(direct) = direct_layers(overlay.lower.len()) else {
        return Err(Error::invalid(
            "root",
            format!(
                "has {} layers; at most {} can be mounted",
                overlay.lower.len(),
                LAYERS_MAX * LAYERS_MAX
            ),
        ));
    };
    let below = overlay.lower.split_off(direct);
    let mut attached = Attached(Vec::new());
    for group in below.chunks(LAYERS_MAX) {
        if let [only] = group {
            overlay.lower.push(only.clone());
            continue;
        }
        let tree = mount_layers(&Overlay {
            lower: group.to_vec(),
            upper: None,
            work: None,
            options: overlay.options.clone(),
        })?;
        attach(&tree, &group[0])?;
        attached.0.push(group[0].clone());
        overlay.lower.push(group[0].clone());
    }
    // It holds what it is made of by itself.
    mount_layers(&overlay)
}

/// How many of the top-most layers are given to the last overlay as they are, where the others go into overlays of
/// their own. `None`: there are too many layers even so.
fn direct_layers(count: usize) -> Option<usize> {
    if count <= LAYERS_MAX {
        return Some(count);
    }
    let groups = (count - LAYERS_MAX).div_ceil(LAYERS_MAX - 1);
    LAYERS_MAX.checked_sub(groups)
}

/// Mounts over layers that are taken off again.
struct Attached(Vec<PathBuf>);

impl Drop for Attached {
    fn drop(&mut self) {
        for path in &self.0 {
            // What stays goes with the mount namespace.
            let _stays = rustix::mount::unmount(path, UnmountFlags::DETACH);
        }
    }
}

/// Mounts as many layers as one overlay takes.
fn mount_layers(overlay: &Overlay) -> Result<OwnedFd> {
    let top = || match &overlay.upper {
        Some(upper) => upper.display().to_string(),
        None => overlay
            .lower
            .first()
            .map(|lower| lower.display().to_string())
            .unwrap_or_default(),
    };
    match configure(overlay, &top(), true) {
        // Before Linux 6.5 there is only the one string.
        Err(Error::Step { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
            configure(overlay, &top(), false)
        }
        other => other,
    }
}

/// `each`: with an option for each lower layer. `top` names the overlay in errors.
fn configure(overlay: &Overlay, top: &str, each: bool) -> Result<OwnedFd> {
    let context =
        fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).during("open file system", "overlay")?;
    let made = (|| {
        fsconfig_set_string(&context, "source", "overlay")?;
        // Until the layers are looked up.
        let mut held = Vec::new();
        if each {
            for lower in &overlay.lower {
                let lower = Value::of(lower)?;
                fsconfig_set_string(&context, "lowerdir+", &lower.path)?;
            }
        } else {
            let mut text = joined(overlay.lower.iter().map(PathBuf::as_path));
            if text.len() > VALUE_MAX {
                for lower in &overlay.lower {
                    held.push(Value::by_descriptor(lower)?);
                }
                text = joined(held.iter().map(|value| value.path.as_path()));
            }
            fsconfig_set_string(&context, "lowerdir", text)?;
        }
        if let Some(upper) = &overlay.upper {
            let upper = Value::of(upper)?;
            fsconfig_set_string(&context, "upperdir", &upper.path)?;
            held.push(upper);
            if let Some(work) = &overlay.work {
                let work = Value::of(work)?;
                fsconfig_set_string(&context, "workdir", &work.path)?;
                held.push(work);
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
            Some(reason) => format!("overlay of {top} ({reason})"),
            None => format!("overlay of {top}"),
        };
        Error::step("mount root", object, error)
    })
}

/// Longest value of a mount option (fsconfig(2)).
const VALUE_MAX: usize = 255;

/// A path as the value of a mount option: a long one by way of a descriptor, for as
/// long as this lives.
struct Value {
    path: PathBuf,
    _directory: Option<OwnedFd>,
}

impl Value {
    fn of(path: &Path) -> std::result::Result<Self, Errno> {
        if path.as_os_str().len() > VALUE_MAX {
            return Self::by_descriptor(path);
        }
        Ok(Self {
            path: path.to_owned(),
            _directory: None,
        })
    }

    fn by_descriptor(path: &Path) -> std::result::Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self {
            path: format!("/proc/self/fd/{}", directory.as_raw_fd()).into(),
            _directory: Some(directory),
        })
    }
}

/// The old option: paths with colons between them, colons and backslashes in them escaped.
fn joined<'a>(layers: impl Iterator<Item = &'a Path>) -> std::ffi::OsString {
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

/// Attaches the detached root to a directory of this mount namespace. At "/" it covers the host's: from here on it is a
/// mount like any other, and no directory of the host is needed to hold it. Paths of this process still start at the host's
/// root.
pub(super) fn attach(root: &OwnedFd, at: &Path) -> Result<()> {
    move_mount(root, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .during("attach root", at.display())
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
    let old = open_in_place(Path::new("/"))?;
    rustix::process::fchdir(root).during("enter root", "/")?;
    // Both names may be the same: the old root is then mounted over the new one, and taken off again.
    rustix::process::pivot_root(".", ".").during("pivot root", "/")?;
    // From within the old one: where both are, "." is the new one, whose mounts keep their propagation.
    rustix::process::fchdir(&old).during("enter root", "of the host")?;
    propagate(".", libc::MS_SLAVE | libc::MS_REC)?;
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
    fn any_number_of_layers_is_cut_into_overlays_that_the_kernel_takes() {
        for count in [1, 499, 500, 501, 999, 1000, 1001, 5000, 250_000] {
            let direct = direct_layers(count).unwrap();
            let groups = (count - direct).div_ceil(LAYERS_MAX);
            assert!(direct + groups <= LAYERS_MAX, "{count}");
        }
        assert_eq!(direct_layers(500), Some(500));
        assert_eq!(direct_layers(501), Some(499));
        assert_eq!(direct_layers(250_001), None);
    }

    #[test]
    fn a_colon_in_a_layers_path_is_escaped() {
        let layers = ["/a:b", "/c"].map(Path::new);
        assert_eq!(joined(layers.into_iter()), "/a\\:b:/c");
    }
}
