//! A container's root as the kernel mounts it, and trees described so that they can be compared.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gantry_image::snapshots::Snapshot;
use gantry_oci::Digest;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

/// A mount that is attached nowhere: it ends with its descriptor.
pub(crate) struct Overlay {
    mount: OwnedFd,
}

impl Overlay {
    pub(crate) fn mount(snapshot: &Snapshot, options: &[(&str, &str)]) -> Self {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        for lower in &snapshot.lower {
            fsconfig_set_string(&context, "lowerdir+", lower).unwrap();
        }
        fsconfig_set_string(&context, "upperdir", &snapshot.upper).unwrap();
        fsconfig_set_string(&context, "workdir", &snapshot.work).unwrap();
        for (key, value) in options {
            fsconfig_set_string(&context, *key, *value).unwrap();
        }
        fsconfig_create(&context).unwrap();
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        Self {
            mount: fsmount(&context, flags, MountAttrFlags::empty()).unwrap(),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!(
            "/proc/{}/fd/{}/",
            std::process::id(),
            self.mount.as_raw_fd()
        )
        .into()
    }

    /// Runs a shell script in the root.
    pub(crate) fn sh(&self, script: &str) {
        let status = Command::new("sh")
            .args(["-euc", script])
            .current_dir(self.path())
            // A mount that is attached nowhere has no path that a shell could find out.
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{script}");
    }
}

/// Everything beneath a directory that an image should keep, by path.
pub(crate) fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut paths = Vec::new();
    collect(root, Path::new(""), &mut paths);
    paths.sort();
    let mut names: HashMap<(u64, u64), Vec<String>> = HashMap::new();
    for path in paths {
        let at = root.join(&path);
        let meta = fs::symlink_metadata(&at).unwrap();
        let kind = meta.file_type();
        let shown = String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned();
        let mut text = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
        if kind.is_socket() {
            continue;
        }
        if !path.as_os_str().is_empty() {
            text += &format!(" {}.{:09}", meta.mtime(), meta.mtime_nsec());
        }
        if kind.is_file() {
            text += &format!(" {}", Digest::sha256_of(&fs::read(&at).unwrap()));
        }
        if kind.is_symlink() {
            text += &format!(" -> {:?}", fs::read_link(&at).unwrap());
        }
        if kind.is_char_device() || kind.is_block_device() {
            text += &format!(" device {}", meta.rdev());
        }
        if !kind.is_dir() && meta.nlink() > 1 {
            let same = names.entry((meta.dev(), meta.ino())).or_default();
            same.push(shown.clone());
        }
        for (key, value) in xattrs(&at) {
            text += &format!(" {key}={value:?}");
        }
        found.insert(shown, text);
    }
    // Its other names may be in a layer where nobody sees them.
    for same in names.values().filter(|same| same.len() > 1) {
        for name in same {
            *found.get_mut(name).unwrap() += &format!(" = {}", same[0]);
        }
    }
    found
}

fn collect(root: &Path, path: &Path, paths: &mut Vec<PathBuf>) {
    paths.push(path.to_owned());
    let at = root.join(path);
    if fs::symlink_metadata(&at).unwrap().is_dir() {
        for entry in fs::read_dir(at).unwrap() {
            collect(root, &path.join(entry.unwrap().file_name()), paths);
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 4096];
    let size = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    let names = names[..size].split(|&b| b == 0).filter(|n| !n.is_empty());
    let names = names.filter(|name| !name.starts_with(b"trusted.overlay."));
    let read = |name: &[u8]| {
        let mut value = vec![0; 4096];
        let size = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
        value.truncate(size);
        (String::from_utf8_lossy(name).into_owned(), value)
    };
    names.map(read).collect()
}
