use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;

/// A directory that cannot be removed: something is mounted on it, with a file in it.
struct Mounted(PathBuf);

impl Mounted {
    fn at(path: &Path) -> Self {
        fs::create_dir_all(path).unwrap();
        mount("none", path, "tmpfs", MountFlags::empty(), None).unwrap();
        let mounted = Self(path.to_owned());
        fs::write(mounted.file(), "x").unwrap();
        mounted
    }

    fn file(&self) -> PathBuf {
        self.0.join("precious")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test]
async fn a_leftover_that_cannot_be_removed_does_not_keep_the_registry_from_starting() {
    let registry = Fixture::new();
    let state = registry.root.path().join("registry");
    let mounted = [
        Mounted::at(&state.join("aside/x")),
        Mounted::at(&state.join("aside-1")),
    ];
    let registry = registry.restarted();
    let digest = registry.image("a", "v1", b"layer").await;
    let reply = registry.get("/v2/a/manifests/v1").await;
    assert_eq!(reply.header("docker-content-digest"), digest.as_str());
    for each in &mounted {
        assert!(
            each.file().exists(),
            "what is mounted is not ours to delete"
        );
    }
    drop(mounted);
    let _registry = registry.restarted();
    assert!(!state.join("aside/x").exists());
}

#[tokio::test]
async fn an_upload_that_cannot_be_removed_does_not_keep_the_others() {
    let registry = Fixture::new();
    let uploads = registry.root.path().join("registry/uploads");
    let mounted = Mounted::at(&uploads.join("0"));
    registry.begin("a").await;
    let gone = registry.registry.uploads.expire(Duration::ZERO).await;
    assert_eq!(gone.unwrap(), 1);
    assert!(mounted.file().exists());
}
