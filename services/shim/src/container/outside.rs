//! For a container that another runtime makes: what that one cannot be asked for by the specification alone.
//!
//! ```text
//! enter_own_mounts   a mount namespace for this process, in which nothing that is mounted at `place` is seen by the host
//! prepare            the root mounted there, and the specification rewritten to what every runtime understands:
//!   root             the layers at <place>/rootfs
//!   process.user     names looked up in the root's own /etc/passwd and /etc/group; HOME
//!   mounts           a part of a source, an image's layers, mapped ids: mounted at <place>/mounts/N and bound from there
//!   domainname       as the sysctl that it is
//! let_go             what the host has mounted for other containers, once this one is made
//! leave              all of it unmounted
//! ```
//! The caller has one thread.

use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Process, Spec, User};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::context::During;
use super::error::{Error, Result};
use super::mount_options::SUBPATH;
use super::mounts::{self, PlannedMount};
use super::options::Overlay;
use super::{beneath, identity, rootfs, stand_in};

const ROOT: &str = "rootfs";
const MOUNTS: &str = "mounts";
const TABLE: &str = "/proc/self/mountinfo";

/// Gives this process a mount namespace of its own. The mount that `place` is on no longer tells the host of what is
/// mounted on it; all others stay in the host's peer groups, so that a mount with `rshared` propagation works.
pub fn enter_own_mounts(place: &Path) -> Result<()> {
    gantry_sys::clone::unshare(gantry_sys::clone::MOUNT_NAMESPACE)
        .during("make", "mount namespace of the shim")?;
    let holder = mount_point_of(place)?;
    mounts::propagate(&holder.to_string_lossy(), libc::MS_SLAVE)
}

/// Where the mount that a path is on is mounted.
fn mount_point_of(path: &Path) -> Result<PathBuf> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)
        .during("look at", path.display())?;
    let id = stat.stx_mnt_id.to_string();
    let table = fs::read_to_string(TABLE).during("read", TABLE)?;
    table
        .lines()
        .map(|line| line.split(' '))
        .find_map(|mut fields| (fields.next() == Some(id.as_str())).then(|| fields.nth(3)))
        .flatten()
        .map(unescaped)
        .ok_or_else(|| {
            Error::step(
                "find the mount of",
                path.display().to_string(),
                std::io::Error::from(std::io::ErrorKind::NotFound),
            )
        })
}

/// Detaches the namespaces that the host keeps by mounts, here alone. The copies in this process' mount namespace would keep
/// them alive after the host has let go of them, where the host's mounts are private; where they are shared, the host's
/// unmounting reaches them, and ours would reach the host's.
pub fn let_go() -> Result<()> {
    let table = fs::read_to_string(TABLE).during("read", TABLE)?;
    for path in private_namespaces(&table) {
        match rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // The host has let go of it just now, and that reached us.
            Err(Errno::INVAL | Errno::NOENT) => {}
            other => other.during("unmount", path.display())?,
        }
    }
    Ok(())
}

/// Mounts of type nsfs, on mounts from which no event reaches another mount namespace.
fn private_namespaces(table: &str) -> Vec<PathBuf> {
    // Field 1: the mount; 2: what it is on; 5: where; from 7 to the dash: to whom it tells its events.
    let lines = || table.lines().filter_map(|line| line.split_once(" - "));
    let shared: Vec<&str> = lines()
        .filter(|(left, _)| {
            left.split(' ')
                .skip(6)
                .any(|tag| tag.starts_with("shared:"))
        })
        .filter_map(|(left, _)| left.split(' ').next())
        .collect();
    lines()
        .filter(|(_, right)| right.starts_with("nsfs "))
        .filter_map(|(left, _)| {
            let mut fields = left.split(' ').skip(1);
            let parent = fields.next()?;
            (!shared.contains(&parent)).then(|| fields.nth(2).map(unescaped))?
        })
        .collect()
}

/// A path of the mount table, in which four characters are written as octal numbers.
pub(super) fn unescaped(field: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let number = after
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match number {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// What [`prepare`] is to do.
#[derive(Debug)]
pub struct Outside<'a> {
    /// A directory of the caller's own, on the mount that [`enter_own_mounts`] was told of. `rootfs` and `mounts` are
    /// made in it.
    pub place: &'a Path,
    /// Where relative paths of the specification start.
    pub bundle: &'a Path,
    /// `None`: the specification's `root.path`.
    pub overlay: Option<&'a Overlay>,
    /// As in [`CreateOptions::user`](super::CreateOptions::user).
    pub user: Option<&'a str>,
}

/// Mounts what is to be mounted and rewrites the specification. Returns the names of supplementary groups that further
/// processes are to have too.
pub fn prepare(spec: &mut Spec, outside: &Outside<'_>) -> Result<Vec<String>> {
    let groups = take_annotations(spec)?;
    let user_namespace = spec.linux().as_ref().is_some_and(|linux| {
        linux
            .uid_mappings()
            .as_ref()
            .is_some_and(|ids| !ids.is_empty())
    });
    if user_namespace && outside.overlay.is_some() {
        return Err(Error::Unsupported {
            what: "a user namespace".to_owned(),
            why: "the container is made by another runtime, for which the layers' owners would have to be changed"
                .to_owned(),
        });
    }
    let root = settle_root(spec, outside)?;
    if let Some(process) = spec.process_mut() {
        settle_user(root.as_fd(), process, outside.user, &groups)?;
    }
    settle_mounts(spec, outside)?;
    settle_domain_name(spec);
    Ok(groups)
}

/// Unmounts what [`prepare`] mounted at `place`, as far as it came.
pub fn leave(place: &Path) {
    let numbered = fs::read_dir(place.join(MOUNTS)).into_iter().flatten();
    let mounted = numbered.flatten().map(|entry| entry.path());
    for path in mounted.chain([place.join(ROOT)]) {
        // What is not mounted needs no unmounting, and all of it ends with this process' namespace.
        let _not_mounted = rustix::mount::unmount(&path, UnmountFlags::DETACH);
    }
}

/// Gantry's own annotations: another runtime would pass over them in silence.
fn take_annotations(spec: &mut Spec) -> Result<Vec<String>> {
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    if annotations
        .remove(stand_in::ANNOTATION)
        .is_some_and(|on| on == "true")
    {
        return Err(Error::Unsupported {
            what: "an init of the engine's own (--init)".to_owned(),
            why: "the container is made by another runtime".to_owned(),
        });
    }
    let groups = identity::group_names(&annotations);
    annotations.remove(identity::GROUPS_ANNOTATION);
    spec.set_annotations((!annotations.is_empty()).then_some(annotations));
    Ok(groups)
}

fn settle_root(spec: &mut Spec, outside: &Outside<'_>) -> Result<OwnedFd> {
    let mut root = spec.root().clone().unwrap_or_default();
    let path = match outside.overlay {
        Some(overlay) => {
            let path = outside.place.join(ROOT);
            make_directory(&path)?;
            rootfs::attach(&rootfs::mount_overlay(overlay)?, &path)?;
            path
        }
        None => outside.bundle.join(root.path()),
    };
    let opened = rootfs::open_in_place(&path)?;
    root.set_path(path);
    spec.set_root(Some(root));
    Ok(opened)
}

fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .during("make", path.display())
}

/// Settles who a process is, beneath `root`: numbers for the names, and a HOME where it has none.
pub fn settle_user(
    root: BorrowedFd<'_>,
    process: &mut Process,
    wanted: Option<&str>,
    groups: &[String],
) -> Result<()> {
    let mut environment = process.env().clone().unwrap_or_default();
    let homeless = !environment.iter().any(|one| one.starts_with("HOME="));
    let who = identity::resolve(root, process.user(), wanted, groups, homeless)?;
    let mut user: User = process.user().clone();
    user.set_uid(who.uid);
    user.set_gid(who.gid);
    user.set_additional_gids((!who.groups.is_empty()).then_some(who.groups));
    process.set_user(user);
    if homeless {
        environment.push(format!("HOME={}", who.home));
    }
    process.set_env(Some(environment));
    Ok(())
}

/// The root of a process of the container, to look names up in.
pub fn root_of(pid: i32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/root");
    rustix::fs::open(
        &*path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .during("open", path)
}

fn settle_mounts(spec: &mut Spec, outside: &Outside<'_>) -> Result<()> {
    let Some(mut all) = spec.mounts().clone() else {
        return Ok(());
    };
    let directory = outside.place.join(MOUNTS);
    make_directory(&directory)?;
    for (index, mount) in all.iter_mut().enumerate() {
        if needs_us(mount) {
            let place = directory.join(index.to_string());
            let planned = PlannedMount::plan(mount, index, outside.bundle, spec.linux().as_ref())?;
            put(&planned, &place)?;
            bind_from(mount, place);
        } else if is_bind(mount)
            && let Some(source) = mount.source()
        {
            let absolute = outside.bundle.join(source);
            mount.set_source(Some(absolute));
        }
    }
    spec.set_mounts(Some(all));
    Ok(())
}

fn options(mount: &Mount) -> &[String] {
    mount.options().as_deref().unwrap_or_default()
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || options(mount)
            .iter()
            .any(|option| matches!(option.as_str(), "bind" | "rbind"))
}

/// Whether it says something that only this engine understands, or that many runtimes pass over in silence.
fn needs_us(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("overlay")
        || mount.uid_mappings().is_some()
        || mount.gid_mappings().is_some()
        || options(mount).iter().any(|option| {
            matches!(option.as_str(), "idmap" | "ridmap") || option.starts_with(SUBPATH)
        })
}

/// Makes the mount and attaches it to a new file or directory at `place`.
fn put(planned: &PlannedMount, place: &Path) -> Result<()> {
    make_directory(place)?;
    let at = rootfs::open_in_place(place)?;
    let tree = planned.ready_at(at.as_fd())?;
    if beneath::is_directory(&tree).during("look at mount", place.display())? {
        return rootfs::attach(&tree, place);
    }
    drop(at);
    fs::remove_dir(place).during("remove", place.display())?;
    File::create(place).during("make", place.display())?;
    rootfs::attach(&tree, place)
}

/// The mount as a bind of what is ready at `place`, with the flags and the propagation it had.
fn bind_from(mount: &mut Mount, place: PathBuf) {
    let kept = |option: &&String| {
        let other = matches!(option.as_str(), "bind" | "rbind" | "idmap" | "ridmap");
        !other && !option.contains('=')
    };
    let mut options = vec!["rbind".to_owned()];
    options.extend(self::options(mount).iter().filter(kept).cloned());
    mount.set_options(Some(options));
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(place));
    mount.set_uid_mappings(None);
    mount.set_gid_mappings(None);
}

/// Most runtimes do not know the specification's `domainname` yet; its sysctl they know.
fn settle_domain_name(spec: &mut Spec) {
    const SYSCTL: &str = "kernel.domainname";
    let Some(name) = spec.domainname().clone() else {
        return;
    };
    let Some(mut linux) = spec.linux().clone() else {
        return;
    };
    let mut sysctls = linux.sysctl().clone().unwrap_or_default();
    sysctls.entry(SYSCTL.to_owned()).or_insert(name);
    linux.set_sysctl(Some(sysctls));
    spec.set_linux(Some(linux));
    spec.set_domainname(None);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Spec {
        serde_json::from_str(text).unwrap()
    }

    /// A root with the users `app` and the group `staff`.
    fn root() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let etc = directory.path().join("root/etc");
        fs::create_dir_all(&etc).unwrap();
        fs::write(etc.join("passwd"), "app:x:1000:1001::/home/app:/bin/sh\n").unwrap();
        fs::write(etc.join("group"), "staff:x:50:\n").unwrap();
        directory
    }

    fn prepared(spec: &mut Spec, directory: &Path, user: Option<&str>) -> Result<Vec<String>> {
        prepare(
            spec,
            &Outside {
                place: directory,
                bundle: directory,
                overlay: None,
                user,
            },
        )
    }

    #[test]
    fn names_become_numbers_and_annotations_that_are_ours_go() {
        let directory = root();
        let mut spec = spec(
            r#"{"ociVersion":"1.2.0","root":{"path":"root"},
                "process":{"cwd":"/","args":["a"],"user":{"uid":0,"gid":0},"env":["A=1"]},
                "annotations":{"dev.gantry.groups":"staff","a":"b"},
                "domainname":"example","linux":{"sysctl":{"a.b":"1"}},
                "mounts":[{"destination":"/d","type":"bind","source":"data","options":["rbind"]}]}"#,
        );
        let groups = prepared(&mut spec, directory.path(), Some("app")).unwrap();
        assert_eq!(groups, ["staff"]);
        let process = spec.process().as_ref().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (1000, 1001));
        let groups = process.user().additional_gids().as_deref();
        assert_eq!(groups, Some(&[1001, 50][..]));
        assert_eq!(
            process.env().as_deref().unwrap(),
            ["A=1", "HOME=/home/app"].map(str::to_owned)
        );
        let annotations = spec.annotations().as_ref().unwrap();
        assert_eq!(annotations.len(), 1);
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(
            linux.sysctl().as_ref().unwrap()["kernel.domainname"],
            "example"
        );
        assert_eq!(spec.domainname(), &None);
        let source = spec.mounts().as_ref().unwrap()[0].source().clone().unwrap();
        assert_eq!(source, directory.path().join("data"));
        assert_eq!(
            spec.root().as_ref().unwrap().path(),
            &directory.path().join("root")
        );
    }

    #[test]
    fn what_another_runtime_would_pass_over_in_silence_is_refused() {
        let directory = root();
        let mut spec = spec(
            r#"{"ociVersion":"1.2.0","root":{"path":"root"},
                "annotations":{"dev.gantry.init":"true"}}"#,
        );
        let error = prepared(&mut spec, directory.path(), None).unwrap_err();
        assert!(error.to_string().contains("--init"), "{error}");
    }

    #[test]
    fn a_mount_that_only_we_understand_is_told_from_the_others() {
        let mount = |text: &str| -> Mount { serde_json::from_str(text).unwrap() };
        for ours in [
            r#"{"destination":"/a","type":"bind","source":"/s","options":["rbind","x-gantry.subpath=p"]}"#,
            r#"{"destination":"/a","type":"overlay","source":"overlay","options":["lowerdir+=/l"]}"#,
            r#"{"destination":"/a","type":"bind","source":"/s","options":["bind","ridmap"]}"#,
        ] {
            assert!(needs_us(&mount(ours)), "{ours}");
        }
        let plain = r#"{"destination":"/a","type":"bind","source":"/s","options":["rbind","rro"]}"#;
        assert!(!needs_us(&mount(plain)));
        let mut image = mount(
            r#"{"destination":"/a","type":"overlay","source":"overlay","options":["lowerdir+=/l","ro","x-gantry.subpath=p"]}"#,
        );
        bind_from(&mut image, "/ready".into());
        assert_eq!(options(&image), ["rbind", "ro"]);
        assert_eq!(image.typ().as_deref(), Some("bind"));
    }

    #[test]
    fn only_a_namespace_whose_end_the_host_cannot_tell_is_let_go_of() {
        let table = "\
20 1 0:1 / / rw,relatime - ext4 /dev/a rw
21 20 0:2 / /run rw shared:7 - tmpfs tmpfs rw
22 20 0:2 / /var rw master:7 - tmpfs tmpfs rw
30 20 0:4 net:[1] /on\\040private rw - nsfs nsfs rw
31 21 0:4 net:[2] /run/on-shared rw shared:9 - nsfs nsfs rw
32 22 0:4 net:[3] /var/on-slave rw shared:8 - nsfs nsfs rw
33 20 0:5 / /other rw - nfs nsfs rw
";
        assert_eq!(
            private_namespaces(table),
            [Path::new("/on private"), Path::new("/var/on-slave")]
        );
    }

    #[test]
    fn a_mount_point_is_read_as_it_was_written() {
        assert_eq!(unescaped(r"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescaped("/plain"), Path::new("/plain"));
        assert!(
            mount_point_of(Path::new("/proc/self/stat"))
                .unwrap()
                .starts_with("/proc")
        );
    }
}
