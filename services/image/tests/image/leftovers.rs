//! What cannot be removed: it stays, is told, and keeps nothing from going on.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::checking::{assert_clean, check};
use crate::fixture::Fixture;
use crate::life::{imported, tar};

/// Cannot be changed or removed while this lives.
struct Immutable(File);

impl Immutable {
    fn new(path: PathBuf) -> Self {
        let file = File::open(&path).unwrap();
        let flags = ioctl_getflags(&file).unwrap();
        ioctl_setflags(&file, flags | IFlags::IMMUTABLE).unwrap();
        Self(file)
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let flags = ioctl_getflags(&self.0).unwrap();
        ioctl_setflags(&self.0, flags - IFlags::IMMUTABLE).unwrap();
    }
}

/// Something is mounted there while this lives.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

fn directory(path: PathBuf) -> PathBuf {
    fs::create_dir_all(&path).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leftover_that_cannot_be_removed_keeps_nothing_from_starting() {
    let fixture = Fixture::new();
    imported(&fixture, "a:1", tar(1)).await;
    let mut held = Vec::new();
    let layer = "layers/0000000000000000000000000000000000000000000000000000000000000000";
    let fixture = fixture.reopen_after(|root| {
        for name in [
            "layers/.new-x",
            "writable/.new-x",
            "writable/c1/upper",
            "volumes/.new-x",
            layer,
        ] {
            held.push(Immutable::new(directory(root.join(name))));
        }
        for name in ["images/.new-x", "loads/x"] {
            directory(root.join(name).parent().unwrap().to_owned());
            fs::write(root.join(name), "sha256:").unwrap();
            held.push(Immutable::new(root.join(name)));
        }
        // It can be renamed, and what is in it stays.
        held.push(Immutable::new(directory(
            root.join("writable/.new-y/inside"),
        )));
    });
    fixture.store.prepare("c2", "a:1", true).unwrap();
    imported(&fixture, "b:1", tar(2)).await;
    let (checked, found) = check(&fixture.store, true).await;
    assert!(!checked.is_clean());
    let told = |object: &str| {
        let is_it = |f: &&gantry_image::check::Finding| {
            f.object.contains(object) && f.problem.contains("cannot be removed")
        };
        found.iter().any(|finding| is_it(&finding))
    };
    for object in [
        "layers/.new-x",
        "writable/.new-x",
        "volumes/.new-x",
        "images/.new-x",
        "trash/",
        "loads/x",
        layer,
    ] {
        assert!(told(object), "{object}: {found:#?}");
    }
    held.clear();
    check(&fixture.store, true).await;
    let fixture = fixture.reopen();
    check(&fixture.store, true).await;
    assert_clean(&fixture.store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_beyond_a_mount_is_removed_with_a_leftover() {
    let fixture = Fixture::new();
    let hosts = tempfile::TempDir::new().unwrap();
    fs::write(hosts.path().join("precious"), "x").unwrap();
    let mut mounted = Vec::new();
    let bind = |at: &Path| mount_bind(hosts.path(), at).unwrap();
    let fixture = fixture.reopen_after(|root| {
        let place = directory(root.join("layers/.new-a/fs/mnt"));
        bind(&place);
        let itself = directory(root.join("layers/.new-b"));
        bind(&itself);
        mounted.push(Mounted(itself));
    });
    let (_, found) = check(&fixture.store, false).await;
    assert!(
        found.iter().any(|f| f.object.contains("layers/.new-b")),
        "{found:#?}"
    );
    let in_trash = found.iter().find(|f| f.object.contains("trash/"));
    let in_trash = in_trash.unwrap_or_else(|| panic!("{found:#?}"));
    assert_eq!(fs::read(hosts.path().join("precious")).unwrap(), b"x");
    let name = in_trash.object.strip_prefix("file ").unwrap();
    drop(Mounted(fixture.root.path().join(name).join("fs/mnt")));
    drop(mounted);
    let fixture = fixture.reopen();
    check(&fixture.store, true).await;
    assert_clean(&fixture.store).await;
    assert_eq!(fs::read(hosts.path().join("precious")).unwrap(), b"x");
}
