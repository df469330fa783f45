//! The engine's directories: made with their modes, closed again where they are
//! open, refused where another user has a say in them.
//!
//! Layers, volumes and writable layers hold set-user-ID programs and device
//! nodes that are meant for containers alone, and records hold secrets. A user
//! of the host who can reach one of them needs no further privilege, so nobody
//! but root passes the directories that hold them.
//!
//! | directory | mode | group |
//! | --- | --- | --- |
//! | state, log, and each service's own below state, run and log | 0700 | root |
//! | run, which has the sockets in it | 0710 | `engine.socket_group`; 0700 where there is none |
//! | `--root DIR` itself, where the engine makes it | as run | as run |
//!
//! - Modes are set on the open directory, so that the umask has no say.
//! - A directory of ours that is open to others, as older versions made them, is
//!   closed at the next start. One that lets a group read (0750) stays so.
//! - A directory that another user owns is refused, and so is a symbolic link of
//!   another user. With `--root DIR` so are parents of DIR that another user may
//!   rename DIR in. A link that root made is followed: state may be on another
//!   disk.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Component, Path, PathBuf};

use nix::libc::{O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW};
use nix::unistd::{Gid, Group};

use crate::paths::Paths;

/// Mode of a directory that only root passes.
pub const CLOSED: u32 = 0o700;
/// Mode of a directory that the sockets' group passes.
pub const PASSAGE: u32 = 0o710;
/// Mode of directories above the engine's own.
const PARENT: u32 = 0o755;
/// As many links as the kernel follows in one path.
const LINKS_MAX: u32 = 40;

/// Leftovers with one name that are kept for a look.
const ASIDE_MAX: u32 = 100;

/// What the name of a leftover that was set aside has before its number.
const ASIDE: &str = ".aside-";

const OTHERS_WRITE: u32 = 0o002;
const GROUP_WRITE: u32 = 0o020;
const STICKY: u32 = 0o1000;

/// A directory that cannot be made, or is not safe to use.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("cannot {step} the directory {path:?}")]
    Io {
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "{path:?} belongs to the user with id {owner}, who could change what the engine keeps there; remove it, make root its owner, or choose another directory"
    )]
    Foreign { path: PathBuf, owner: u32 },
    #[error(
        "every user may replace what is in {path:?}, the engine's directory included; `chmod o-w` it, or choose another directory"
    )]
    Exposed { path: PathBuf },
}

impl From<DirectoryError> for io::Error {
    fn from(error: DirectoryError) -> Self {
        match error {
            // Callers name the directory themselves.
            DirectoryError::Io { source, .. } => source,
            error => Self::new(io::ErrorKind::PermissionDenied, error),
        }
    }
}

/// Makes the directories of the engine at `paths`, and closes those that are
/// open to others. `group` is `engine.socket_group`.
///
/// # Errors
/// A directory cannot be made, or another user has a say in one.
pub fn prepare(paths: &Paths, group: &str) -> Result<(), DirectoryError> {
    let group = group_id(group);
    if let Some(root) = &paths.root {
        prepare_root(root, group)?;
        check_config(&paths.config, root)?;
    }
    close(&paths.state)?;
    close(&paths.log)?;
    settle(&paths.run, group)
}

/// Makes the directory at `path`, with parents, for root alone, or closes the
/// existing one.
///
/// # Errors
/// It cannot be made, or is another user's.
pub fn close(path: &Path) -> Result<(), DirectoryError> {
    settle(path, None)
}

/// Makes the directory at `path`, with parents, for root alone. An existing one
/// stays as it is.
///
/// # Errors
/// It cannot be made.
pub fn make(path: &Path) -> Result<(), DirectoryError> {
    if path.is_dir() {
        return Ok(());
    }
    close(path)
}

/// Makes the directory at `path`, with parents, for everybody to pass and list: a
/// directory that is named by a user, not one of the engine's own.
///
/// # Errors
/// It cannot be made.
pub fn make_for_all(path: &Path) -> Result<(), DirectoryError> {
    make_parents(path)
}

/// Removes a leftover: a file, or an empty directory. One that cannot be removed is
/// set aside as `<name>.aside-<n>` and reported: it must not keep a service from
/// starting. One that is missing is fine, and so is one that was set aside before.
///
/// # Errors
/// It can be neither removed nor renamed.
pub fn remove_or_set_aside(path: &Path) -> io::Result<()> {
    let is_directory = match fs::symlink_metadata(path) {
        Ok(found) => found.is_dir(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let removed = if is_directory {
        // What is in it may be somebody's.
        fs::remove_dir(path)
    } else {
        fs::remove_file(path)
    };
    let Err(error) = removed else {
        return Ok(());
    };
    if path.as_os_str().to_string_lossy().contains(ASIDE) {
        return Ok(());
    }
    let aside = (1..=ASIDE_MAX)
        .map(|number| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!("{ASIDE}{number}"));
            PathBuf::from(name)
        })
        .find(|aside| fs::symlink_metadata(aside).is_err());
    let Some(aside) = aside else {
        return Err(error);
    };
    // The first failure says more than that of the renaming.
    if fs::rename(path, &aside).is_err() {
        return Err(error);
    }
    tracing::warn!(path = %path.display(), aside = %aside.display(), %error, "a leftover cannot be removed and is set aside");
    Ok(())
}

/// The id of a group that exists.
fn group_id(name: &str) -> Option<Gid> {
    let found = Group::from_name(name).ok().flatten();
    found.map(|group| group.gid)
}

fn failed<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DirectoryError + 'a {
    move |source| DirectoryError::Io {
        step,
        path: path.to_owned(),
        source,
    }
}

/// Users that may own what the engine relies on.
fn is_ours(owner: u32) -> bool {
    owner == nix::unistd::geteuid().as_raw()
}

/// The same for what is above: root, and who became root by sudo.
fn is_trusted(owner: u32) -> bool {
    let invoker = std::env::var("SUDO_UID").ok();
    owner == 0 || is_ours(owner) || invoker.and_then(|id| id.parse().ok()) == Some(owner)
}

/// Makes `path`, or checks it, and sets its mode: [`PASSAGE`] with a group, else
/// [`CLOSED`].
fn settle(path: &Path, group: Option<Gid>) -> Result<(), DirectoryError> {
    let directory = open_or_make(path, CLOSED)?;
    let found = directory.metadata().map_err(failed("look at", path))?;
    if !is_ours(found.uid()) {
        return Err(DirectoryError::Foreign {
            path: path.to_owned(),
            owner: found.uid(),
        });
    }
    let mode = found.mode() & 0o7777;
    // Nothing for others, and no writing for the group.
    let closed = mode & 0o727 == CLOSED;
    match group {
        None if closed => {}
        None => set_mode(&directory, path, mode, CLOSED)?,
        Some(group) => {
            if found.gid() != group.as_raw() {
                std::os::unix::fs::fchown(&directory, None, Some(group.as_raw()))
                    .map_err(failed("set the group of", path))?;
            }
            if !closed || mode & 0o010 == 0 {
                set_mode(&directory, path, mode, PASSAGE)?;
            }
        }
    }
    Ok(())
}

fn set_mode(directory: &File, path: &Path, old: u32, new: u32) -> Result<(), DirectoryError> {
    directory
        .set_permissions(Permissions::from_mode(new))
        .map_err(failed("set the mode of", path))?;
    if old != CLOSED {
        tracing::info!(path = %path.display(), old = format!("{old:o}"), new = format!("{new:o}"), "a directory was closed to other users");
    }
    Ok(())
}

/// Opens a directory, which is made with `mode` where it is missing.
fn open_or_make(path: &Path, mode: u32) -> Result<File, DirectoryError> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                open_or_make(parent, mode)?;
            }
            match DirBuilder::new().mode(mode).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("make", path)(error));
                }
                _ => {}
            }
        }
        Err(error) => return Err(failed("make", path)(error)),
    }
    let found = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    let mut flags = O_DIRECTORY | O_CLOEXEC;
    if !found.is_symlink() {
        flags |= O_NOFOLLOW;
    } else if !is_trusted(found.uid()) {
        return Err(DirectoryError::Foreign {
            path: path.to_owned(),
            owner: found.uid(),
        });
    }
    OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(failed("open", path))
}

/// The directory of `--root`. One that exists keeps its mode, as long as only
/// root may change what is in it.
fn prepare_root(root: &Path, group: Option<Gid>) -> Result<(), DirectoryError> {
    check_way(root)?;
    let exists = fs::symlink_metadata(root).is_ok();
    if !exists {
        if let Some(parent) = root.parent() {
            make_parents(parent)?;
        }
        return settle(root, group);
    }
    let directory = open_or_make(root, CLOSED)?;
    let found = directory.metadata().map_err(failed("look at", root))?;
    if !is_ours(found.uid()) {
        return Err(DirectoryError::Foreign {
            path: root.to_owned(),
            owner: found.uid(),
        });
    }
    let mode = found.mode() & 0o7777;
    let mut strict = mode & !OTHERS_WRITE;
    if found.gid() != 0 {
        strict &= !GROUP_WRITE;
    }
    if strict != mode {
        set_mode(&directory, root, mode, strict)?;
    }
    Ok(())
}

fn make_parents(path: &Path) -> Result<(), DirectoryError> {
    if path.exists() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_parents(parent)?;
    }
    match DirBuilder::new().mode(PARENT).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(PARENT))
            .map_err(failed("set the mode of", path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed("make", path)(error)),
    }
}

/// Walks to `path` as the kernel does, and refuses a way that another user can
/// turn elsewhere. What does not exist yet ends the walk.
fn check_way(path: &Path) -> Result<(), DirectoryError> {
    let mut rest: VecDeque<OsString> = parts(path);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        let found = match fs::symlink_metadata(&next) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("look at", &next)(error)),
        };
        if !is_trusted(found.uid()) {
            return Err(DirectoryError::Foreign {
                path: next,
                owner: found.uid(),
            });
        }
        if found.is_symlink() {
            links += 1;
            if links > LINKS_MAX {
                let source = io::Error::from(nix::errno::Errno::ELOOP);
                return Err(failed("find", path)(source));
            }
            let target = fs::read_link(&next).map_err(failed("read the link", &next))?;
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            let mut before = parts(&target);
            before.append(&mut rest);
            rest = before;
            continue;
        }
        let mode = found.mode();
        if !rest.is_empty() && mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
            return Err(DirectoryError::Exposed { path: next });
        }
        at = next;
    }
    Ok(())
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(part) => Some(part.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// The configuration decides what root executes: the one in `root` must not be
/// another user's.
fn check_config(config: &Path, root: &Path) -> Result<(), DirectoryError> {
    if config.parent() != Some(root) {
        return Ok(());
    }
    let Ok(link) = fs::symlink_metadata(config) else {
        return Ok(());
    };
    let found = fs::metadata(config).unwrap_or(link.clone());
    for owner in [link.uid(), found.uid()] {
        if !is_trusted(owner) {
            return Err(DirectoryError::Foreign {
                path: config.to_owned(),
                owner,
            });
        }
    }
    if found.is_file() && found.mode() & OTHERS_WRITE != 0 {
        tracing::warn!(path = %config.display(), "every user may change the configuration; `chmod o-w` it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    const STRANGER: u32 = 65534;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// A directory as /tmp: anybody may make something in it.
    fn common() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        set(directory.path(), 0o1777);
        directory
    }

    fn prepared(root: &Path) -> Result<(), DirectoryError> {
        prepare(&Paths::under(root).unwrap(), "no-such-group")
    }

    #[test]
    fn a_new_engine_is_closed_to_others() {
        let common = common();
        let root = common.path().join("a/b");
        prepared(&root).unwrap();
        assert_eq!(mode(&common.path().join("a")), 0o755);
        for closed in ["", "lib", "run", "log"] {
            assert_eq!(mode(&root.join(closed)), 0o700, "{closed}");
        }
    }

    #[test]
    fn the_sockets_group_passes_to_the_sockets_and_no_further() {
        let common = common();
        let root = common.path().join("g");
        prepare(&Paths::under(&root).unwrap(), "daemon").unwrap();
        let group = group_id("daemon").unwrap().as_raw();
        for (directory, wanted, gid) in [
            ("", 0o710, group),
            ("run", 0o710, group),
            ("lib", 0o700, 0),
            ("log", 0o700, 0),
        ] {
            let found = fs::metadata(root.join(directory)).unwrap();
            assert_eq!(found.mode() & 0o7777, wanted, "{directory}");
            assert_eq!(found.gid(), gid, "{directory}");
        }
    }

    #[test]
    fn directories_of_an_older_version_are_closed() {
        let common = common();
        let root = common.path().join("old");
        for (name, old) in [("lib", 0o711), ("run", 0o755), ("log", 0o750)] {
            fs::create_dir_all(root.join(name)).unwrap();
            set(&root.join(name), old);
        }
        set(&root, 0o755);
        prepared(&root).unwrap();
        assert_eq!(mode(&root), 0o755);
        assert_eq!(mode(&root.join("lib")), 0o700);
        assert_eq!(mode(&root.join("run")), 0o700);
        // For a group to read, as an administrator may have it.
        assert_eq!(mode(&root.join("log")), 0o750);
    }

    #[test]
    fn a_root_that_others_may_write_to_is_closed_to_them() {
        let common = common();
        let root = common.path().join("open");
        fs::create_dir(&root).unwrap();
        set(&root, 0o777);
        prepared(&root).unwrap();
        assert_eq!(mode(&root), 0o775);
    }

    #[test]
    fn what_another_user_made_is_refused() {
        let common = common();
        let directory = common.path().join("theirs");
        fs::create_dir(&directory).unwrap();
        chown(&directory, Some(STRANGER), Some(STRANGER)).unwrap();
        let refused = prepared(&directory).unwrap_err();
        assert!(matches!(
            refused,
            DirectoryError::Foreign {
                owner: STRANGER,
                ..
            }
        ));
        // Nor anything below it.
        assert!(prepared(&directory.join("sub")).is_err());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    }

    #[test]
    fn links_are_followed_only_where_root_made_them() {
        let common = common();
        let target = common.path().join("target");
        fs::create_dir(&target).unwrap();
        let ours = common.path().join("ours");
        symlink(&target, &ours).unwrap();
        prepared(&ours).unwrap();
        assert!(target.join("lib").is_dir());
        let theirs = common.path().join("theirs");
        symlink(&target, &theirs).unwrap();
        std::os::unix::fs::lchown(&theirs, Some(STRANGER), None).unwrap();
        assert!(prepared(&theirs).is_err());
        assert!(prepared(&theirs.join("sub")).is_err());
    }

    #[test]
    fn a_directory_in_the_root_that_another_user_made_is_refused() {
        for name in ["lib", "run", "log"] {
            let common = common();
            let root = common.path().join("g");
            fs::create_dir(&root).unwrap();
            let inside = root.join(name);
            symlink("/nowhere", &inside).unwrap();
            std::os::unix::fs::lchown(&inside, Some(STRANGER), None).unwrap();
            assert!(prepared(&root).is_err(), "{name}: a link");
            fs::remove_file(&inside).unwrap();
            fs::create_dir(&inside).unwrap();
            chown(&inside, Some(STRANGER), None).unwrap();
            assert!(prepared(&root).is_err(), "{name}: a directory");
        }
    }

    #[test]
    fn a_root_that_anybody_can_swap_is_refused() {
        let common = common();
        let open = common.path().join("open");
        fs::create_dir(&open).unwrap();
        set(&open, 0o777);
        assert!(matches!(
            prepared(&open.join("g")),
            Err(DirectoryError::Exposed { .. })
        ));
        set(&open, 0o1777);
        prepared(&open.join("g")).unwrap();
    }

    #[test]
    fn a_leftover_that_cannot_be_removed_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("left");
        for expected in ["left.aside-1", "left.aside-2"] {
            fs::create_dir_all(path.join("inside")).unwrap();
            remove_or_set_aside(&path).unwrap();
            let aside = directory.path().join(expected);
            assert!(!path.exists() && aside.join("inside").is_dir());
            // It stays there.
            remove_or_set_aside(&aside).unwrap();
            assert!(aside.is_dir());
        }
        remove_or_set_aside(&path).unwrap();
        fs::write(&path, "").unwrap();
        remove_or_set_aside(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_configuration_that_another_user_put_there_is_refused() {
        let common = common();
        let root = common.path().join("g");
        fs::create_dir(&root).unwrap();
        let config = root.join("gantry.toml");
        fs::write(&config, "").unwrap();
        prepared(&root).unwrap();
        chown(&config, Some(STRANGER), None).unwrap();
        assert!(prepared(&root).is_err());
    }
}
