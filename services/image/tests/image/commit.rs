//! What a container changed: listed, committed, exported. The kernel's own overlay is the judge.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use gantry_image::commit::CommitOptions;
use gantry_image::error::ImageError;
use gantry_image::files::{Change, ChangeKind};
use gantry_image::image::Image;
use gantry_image::import::ImportOptions;
use gantry_image::snapshots::Snapshot;
use gantry_oci::{ContainerConfig, Digest};
use rustix::fs::XattrFlags;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::archive::{Archive, Head};
use crate::fixture::Fixture;
use crate::life::gently;
use crate::overlay::{Overlay, tree};
use crate::umoci::{assert_same, mounted, unpacked_by_umoci};

const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// The image that everything begins with, in two layers.
fn lower() -> Vec<u8> {
    Archive::new()
        .entry(Head::new(b'5', "./").mode(0o755), b"")
        .dir("etc")
        .file("etc/passwd", b"root")
        .file("etc/hosts", b"localhost")
        .dir("usr")
        .dir("usr/share")
        .dir("usr/share/doc")
        .file("usr/share/doc/x", b"1")
        .file("usr/share/doc/y", b"22")
        .file("usr/share/doc/z", b"333")
        .symlink("link", "etc")
        .dir("lib")
        .dir("lib/deep")
        .dir("lib/deep/er")
        .file("lib/deep/er/f", [7; 100_000])
        .file("lib/one", b"several")
        .hard_link("lib/two", "lib/one")
        .entry(Head::new(b'6', "fifo"), b"")
        .finish()
}

async fn import(fixture: &Fixture, name: &str, tar: Vec<u8>) -> Arc<Image> {
    let (sender, pieces) = mpsc::channel(1);
    sender.send(Ok(tar.into())).await.unwrap();
    drop(sender);
    let options = ImportOptions {
        reference: Some(name.to_owned()),
        ..ImportOptions::default()
    };
    fixture.store.import(&options, pieces).await.unwrap()
}

/// A container over the image.
async fn container(fixture: &Fixture) -> Snapshot {
    let base = import(fixture, "base", lower()).await;
    let id = base.id().to_string();
    fixture.store.prepare("c", &id, true).unwrap().1
}

fn changes(fixture: &Fixture, container: &str) -> Vec<Change> {
    let mut all = Vec::new();
    let mut take = |changes| {
        all.extend(changes);
        true
    };
    fixture.store.diff(container, &mut take).unwrap();
    all
}

/// As `docker diff` prints it.
fn listed(changes: &[Change]) -> Vec<String> {
    let line = |change: &Change| {
        let letter = match change.kind {
            ChangeKind::Modified => 'C',
            ChangeKind::Added => 'A',
            ChangeKind::Deleted => 'D',
        };
        format!("{letter} {}", String::from_utf8_lossy(&change.path))
    };
    changes.iter().map(line).collect()
}

async fn commit(fixture: &Fixture, container: &str) -> Arc<Image> {
    let options = CommitOptions {
        created: Some("2024-05-06T07:08:09Z".parse().unwrap()),
        ..CommitOptions::default()
    };
    fixture.store.commit(container, &options).await.unwrap()
}

/// The names of the entries in the top-most layer, as they come.
fn entries(fixture: &Fixture, image: &Image) -> Vec<String> {
    let layer = image.record.layers.last().unwrap();
    let tar = fixture
        .root
        .path()
        .join("blobs/sha256")
        .join(layer.descriptor.digest.hex());
    let listed = Command::new("tar")
        .args(["--quoting-style=literal", "-tf"])
        .arg(tar)
        .output()
        .unwrap();
    assert!(listed.status.success());
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    text.lines().map(str::to_owned).collect()
}

/// Changes a container, and holds the layer that a commit makes of it to what
/// the kernel showed before: on our own unpack and on umoci's.
async fn round_trip(
    options: &[(&str, &str)],
    change: impl FnOnce(&Overlay),
) -> (Fixture, Arc<Image>) {
    let fixture = Fixture::new();
    let snapshot = container(&fixture).await;
    let overlay = Overlay::mount(&snapshot, options);
    change(&overlay);
    let wanted = tree(&overlay.path());
    let image = commit(&fixture, "c").await;
    assert_same(&mounted(&fixture, &image), &wanted, "mounted");
    assert_same(&unpacked_by_umoci(&fixture, &image), &wanted, "umoci");
    (fixture, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_is_listed_and_is_in_the_layer() {
    let table: &[(&str, &str, &[&str], &[&str])] = &[
        (
            "a file is modified",
            "echo more >> etc/passwd",
            &["C /etc", "C /etc/passwd"],
            &["etc/passwd"],
        ),
        (
            "a file is modified with its time and size kept",
            "printf LOCALHOST > etc/hosts; touch -d @1600000000 etc/hosts",
            &["C /etc", "C /etc/hosts"],
            &["etc/hosts"],
        ),
        (
            "files and directories are added",
            "mkdir -p var/new; echo x > var/new/f; echo y > top",
            &["A /top", "A /var", "A /var/new", "A /var/new/f"],
            &["top", "var/", "var/new/", "var/new/f"],
        ),
        (
            "a file is deleted",
            "rm etc/hosts",
            &["C /etc", "D /etc/hosts"],
            &["etc/", "etc/.wh.hosts"],
        ),
        (
            "a tree is deleted",
            "rm -r usr/share/doc",
            &["C /usr", "C /usr/share", "D /usr/share/doc"],
            &["usr/share/", "usr/share/.wh.doc"],
        ),
        (
            "a directory at the top is deleted",
            "rm -r lib",
            &["D /lib"],
            &[".wh.lib"],
        ),
        (
            "a directory is made anew",
            "rm -r usr/share/doc; mkdir usr/share/doc; echo n > usr/share/doc/n; echo X > usr/share/doc/x",
            &[
                "C /usr",
                "C /usr/share",
                "C /usr/share/doc",
                "A /usr/share/doc/n",
                "C /usr/share/doc/x",
                "D /usr/share/doc/y",
                "D /usr/share/doc/z",
            ],
            &[
                "usr/share/",
                "usr/share/doc/",
                "usr/share/doc/.wh..wh..opq",
                "usr/share/doc/n",
                "usr/share/doc/x",
            ],
        ),
        (
            "only mode and owner change",
            "chmod 600 etc/passwd; chown 3000000:7 etc/hosts; chmod 1777 lib",
            &["C /etc", "C /etc/hosts", "C /etc/passwd", "C /lib"],
            &["etc/hosts", "etc/passwd", "lib/"],
        ),
        (
            "a symlink becomes a directory",
            "rm link; mkdir link; echo x > link/f",
            &["C /link", "A /link/f"],
            &["link/", "link/f"],
        ),
        (
            "a directory becomes a symlink",
            "rm -r lib; ln -s usr lib",
            &["C /lib"],
            &["lib"],
        ),
        (
            "a file gets a second name",
            "ln etc/passwd usr/passwd",
            &["C /usr", "A /usr/passwd"],
            &["etc/passwd", "usr/", "usr/passwd"],
        ),
        (
            "nothing changes, though a file was written to",
            "chmod 644 etc/hosts; touch -d @1600000000 etc/hosts",
            &[],
            &[],
        ),
        (
            "a directory has another time alone",
            "touch -d '2001-02-03 04:05:06.123456789 UTC' usr/share",
            &[],
            &["usr/share/"],
        ),
        ("the root gets another mode", "chmod 700 .", &[], &["./"]),
        (
            "something is made and deleted again",
            "echo x > etc/new; rm etc/new; touch -d @1600000000 etc",
            &[],
            &[],
        ),
        (
            "links, nodes, a socket and holes",
            "ln -s 'a target' s; mknod null c 1 3; mkfifo p; truncate -s 3M holes; printf end >> holes; printf x | dd of=holes bs=1 seek=1000000 conv=notrunc 2>/dev/null",
            &["A /holes", "A /null", "A /p", "A /s"],
            &["holes", "null", "p", "s"],
        ),
    ];
    for (what, script, diff, layer) in table {
        let fixture = Fixture::new();
        let snapshot = container(&fixture).await;
        let overlay = Overlay::mount(&snapshot, &[]);
        overlay.sh(script);
        assert_eq!(listed(&changes(&fixture, "c")), *diff, "{what}");
        let wanted = tree(&overlay.path());
        let image = commit(&fixture, "c").await;
        if layer.is_empty() {
            assert_eq!(image.record.layers.len(), 1, "{what}");
            assert!(image.config.history.last().unwrap().empty_layer, "{what}");
        } else {
            // Directories on the way have other times than in the image, which Docker does not list.
            let found = entries(&fixture, &image);
            let implied = |entry: &String| !layer.contains(&entry.as_str()) && entry.ends_with('/');
            let found: Vec<&String> = found.iter().filter(|e| !implied(e)).collect();
            assert_eq!(found, *layer, "{what}");
        }
        assert_same(&mounted(&fixture, &image), &wanted, what);
        assert_same(&unpacked_by_umoci(&fixture, &image), &wanted, what);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn renamed_directories_come_out_whole() {
    let redirect = [("redirect_dir", "on")];
    let (fixture, image) = round_trip(&redirect, |overlay| {
        overlay.sh(
            "mv usr/share/doc usr/share/manual; mv lib/deep etc/deep; mv etc/deep/er etc/deep/est;
             echo new > etc/deep/est/g; rm usr/share/manual/x; mv usr usr2; mkdir usr; mv usr2/share usr/",
        );
    })
    .await;
    assert_eq!(
        listed(&changes(&fixture, "c")),
        [
            "C /etc",
            "A /etc/deep",
            "A /etc/deep/est",
            "A /etc/deep/est/f",
            "A /etc/deep/est/g",
            "C /lib",
            "D /lib/deep",
            "C /usr",
            "C /usr/share",
            "D /usr/share/doc",
            "A /usr/share/manual",
            "A /usr/share/manual/y",
            "A /usr/share/manual/z",
            "A /usr2",
        ]
    );
    let layer = entries(&fixture, &image);
    assert!(layer.contains(&"lib/.wh.deep".to_owned()), "{layer:?}");
    assert!(
        !layer.iter().any(|entry| entry.contains("manual/.wh.x")),
        "{layer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_which_only_the_attributes_were_copied_up_has_its_content() {
    let metacopy = [("redirect_dir", "on"), ("metacopy", "on")];
    let (fixture, _) = round_trip(&metacopy, |overlay| {
        overlay.sh("chmod 600 lib/deep/er/f; mv lib/deep/er/f etc/moved; chown 5 usr/share/doc/x; mv lib usr/lib");
    })
    .await;
    let upper = fixture.root.path().join("writable/c/upper/etc/moved");
    let meta = fs::metadata(&upper).unwrap();
    assert_eq!(
        (meta.size(), meta.blocks() < 100),
        (100_000, true),
        "the kernel did not use metacopy"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_and_names_of_all_kinds_are_kept() {
    let (fixture, image) = round_trip(&[], |overlay| {
        let long = ["d".repeat(200), "e".repeat(98)].join("/");
        overlay.sh(&format!(
            "mkdir {d}; echo long > {long}; ln -s {long} long-link; ln {long} other; printf '#!' > cap;
             echo n > \"$(printf 'odd \\377\\n\\t\\\\name')\"; touch -d '1950-01-01 00:00:00.25 UTC' etc/passwd;
             touch -d '2250-01-01 UTC' etc/hosts; chmod 6755 cap; chown 12:4000000000 usr; ln lib/one lib/three",
            d = "d".repeat(200)
        ));
        let cap = overlay.path().join("cap");
        let set = |path: &Path, key: &str, value: &[u8]| {
            rustix::fs::setxattr(path, key, value, XattrFlags::empty()).unwrap();
        };
        set(&cap, "security.capability", CAPABILITY);
        set(&cap, "user.note", b"a=b\nc\0d");
        set(&overlay.path().join("etc"), "trusted.mine", &[0xff; 700]);
    })
    .await;
    let wanted = mounted(&fixture, &image);
    assert!(
        wanted["cap"].contains("security.capability"),
        "{}",
        wanted["cap"]
    );
    assert!(wanted["etc"].contains("trusted.mine"));
    assert!(
        wanted["lib/three"].contains("= lib/one"),
        "{}",
        wanted["lib/three"]
    );
    assert!(wanted.keys().any(|path| path.starts_with("odd ")));
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_are_read_as_the_kernel_writes_them() {
    // The forms that our own mounts do not make: whiteouts that are files, in lower layers.
    let fixture = Fixture::new();
    let snapshot = container(&fixture).await;
    let layer = fixture.root.path().join("layers/.test/fs");
    fs::create_dir_all(layer.join("etc")).unwrap();
    fs::write(layer.join("etc/hosts"), b"").unwrap();
    let set = |path: &Path, key: &str, value: &[u8]| {
        rustix::fs::setxattr(path, key, value, XattrFlags::empty()).unwrap();
    };
    set(&layer.join("etc/hosts"), "trusted.overlay.whiteout", b"y");
    set(&layer.join("etc"), "trusted.overlay.opaque", b"x");
    set(&layer, "trusted.overlay.opaque", b"x");
    let mut over = snapshot.clone();
    over.lower.insert(0, layer);
    let kernel = tree(&Overlay::mount(&over, &[]).path());
    assert!(!kernel.contains_key("etc/hosts") && kernel.contains_key("etc/passwd"));
    let moved = fixture.root.path().join("writable/c/upper");
    fs::remove_dir(&moved).unwrap();
    fs::rename(&over.lower[0], &moved).unwrap();
    assert_eq!(listed(&changes(&fixture, "c")), ["C /etc", "D /etc/hosts"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_engine_made_for_its_mounts_is_no_change() {
    let made = "mkdir -p proc sys dev etc; touch etc/hostname etc/resolv.conf";
    let fixture = Fixture::new();
    let snapshot = container(&fixture).await;
    let overlay = Overlay::mount(&snapshot, &[]);
    overlay.sh(made);
    assert_eq!(changes(&fixture, "c"), []);
    assert_eq!(commit(&fixture, "c").await.record.layers.len(), 1);
    // What the container put there is.
    overlay.sh("echo x > etc/resolv.conf; mkdir proc/mine; echo x > etc/f; mkdir usr/proc");
    assert_eq!(
        listed(&changes(&fixture, "c")),
        [
            "C /etc",
            "A /etc/f",
            "A /etc/resolv.conf",
            "A /proc",
            "A /proc/mine",
            "C /usr",
            "A /usr/proc"
        ]
    );
    // Over an image that has not even the directory.
    import(&fixture, "bare", Archive::new().file("f", b"x").finish()).await;
    let (_, snapshot) = fixture.store.prepare("d", "bare", true).unwrap();
    let overlay = Overlay::mount(&snapshot, &[]);
    overlay.sh(made);
    assert_eq!(changes(&fixture, "d"), []);
    assert_eq!(commit(&fixture, "d").await.record.layers.len(), 1);
    overlay.sh("echo x > etc/f; chmod 700 etc");
    assert_eq!(listed(&changes(&fixture, "d")), ["C /etc", "A /etc/f"]);
    let image = commit(&fixture, "d").await;
    assert_eq!(entries(&fixture, &image), ["etc/", "etc/f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_content_and_time_give_the_same_image() {
    let fixture = Fixture::new();
    let first = container(&fixture).await;
    let (_, second) = fixture.store.prepare("d", "base", true).unwrap();
    for snapshot in [&first, &second] {
        let overlay = Overlay::mount(snapshot, &[]);
        overlay.sh(
            "mkdir n; for i in 3 1 2; do echo $i > n/$i; done; ln n/3 n/0; rm etc/hosts;
             touch -d @1 n/* n etc",
        );
    }
    let (one, two) = (commit(&fixture, "c").await, commit(&fixture, "d").await);
    assert_eq!(one.id(), two.id());
    assert_eq!(commit(&fixture, "c").await.id(), one.id());
    let layer = one.record.layers.last().unwrap();
    assert_eq!(layer.descriptor.digest, layer.diff_id);
    assert_eq!(fixture.store.images().len(), 2);
    assert_eq!(fixture.store.unfinished_downloads().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_says_what_the_commit_was_told() {
    let fixture = Fixture::new();
    let snapshot = container(&fixture).await;
    fs::write(snapshot.upper.join("new"), b"x").unwrap();
    let options = CommitOptions {
        reference: Some("mine:1".into()),
        author: "A. U. Thor".into(),
        message: "why".into(),
        changes: vec!["CMD [\"/new\"]".into(), "ONBUILD RUN x".into()],
        config: Some(ContainerConfig {
            cmd: Some(vec!["sh".into(), "-c".into(), "echo".into()]),
            env: vec!["A=1".into()],
            ..ContainerConfig::default()
        }),
        created: Some("2024-05-06T07:08:09.5Z".parse().unwrap()),
        ..CommitOptions::default()
    };
    let image = fixture.store.commit("c", &options).await.unwrap();
    assert_eq!(fixture.store.resolve("mine:1").unwrap().id(), image.id());
    let config = &image.config;
    assert_eq!(config.created.as_deref(), Some("2024-05-06T07:08:09.5Z"));
    assert_eq!(config.author, "A. U. Thor");
    assert_eq!(config.config.cmd.as_deref().unwrap(), ["/new"]);
    assert_eq!(config.config.env, ["A=1"]);
    assert_eq!(config.config.on_build.as_deref().unwrap(), ["RUN x"]);
    let [.., base, last] = config.history.as_slice() else {
        panic!("{:?}", config.history)
    };
    assert_eq!(base.comment.as_deref(), Some("Imported from -"));
    assert_eq!(last.created_by.as_deref(), Some("sh -c echo"));
    assert_eq!(last.author.as_deref(), Some("A. U. Thor"));
    assert_eq!(last.comment.as_deref(), Some("why"));
    let layer = image.record.layers.last().unwrap();
    assert_eq!(config.rootfs.diff_ids.last(), Some(&layer.diff_id));
    // It survives a restart, and its parent's end.
    let fixture = fixture.reopen();
    fixture.store.delete_snapshot("c").unwrap();
    fixture.store.remove("base", &gently()).unwrap();
    let image = fixture.store.resolve("mine:1").unwrap();
    assert!(mounted(&fixture, &image).contains_key("etc/passwd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_or_is_cancelled_leaves_nothing() {
    let fixture = Fixture::new();
    let snapshot = container(&fixture).await;
    fs::write(snapshot.upper.join("big"), vec![7; 30_000_000]).unwrap();
    let before = fixture.content_files();
    let plain = CommitOptions::default;
    let mut attempts = vec![
        CommitOptions {
            reference: Some("Not A Name".into()),
            ..plain()
        },
        CommitOptions {
            changes: vec!["RUN x".into()],
            ..plain()
        },
    ];
    let cancelled = plain();
    cancelled.cancel.cancel();
    attempts.push(cancelled);
    for options in attempts {
        let error = fixture.store.commit("c", &options).await.unwrap_err();
        assert!(
            matches!(
                error,
                ImageError::Reference(_) | ImageError::Change { .. } | ImageError::Cancelled { .. }
            ),
            "{error:?}"
        );
        assert_eq!(fixture.content_files(), before);
    }
    let error = fixture.store.commit("nobody", &plain()).await.unwrap_err();
    assert!(matches!(error, ImageError::SnapshotNotFound { .. }));
    // What a layer would read as a mark cannot be in one.
    fs::write(snapshot.upper.join(".wh.passwd"), b"").unwrap();
    let error = fixture.store.commit("c", &plain()).await.unwrap_err();
    assert!(matches!(error, ImageError::Pack { .. }), "{error:?}");
    assert_eq!(fixture.content_files(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_removed_meanwhile_is_not_committed_in_part() {
    let fixture = Fixture::new();
    let snapshot = container(&fixture).await;
    for n in 0..2_000 {
        fs::write(snapshot.upper.join(format!("f{n:04}")), vec![1; 20_000]).unwrap();
    }
    let store = fixture.store.clone();
    let options = CommitOptions::default();
    let committing = tokio::spawn(async move { store.commit("c", &options).await });
    // At some point of it; whichever comes first, there is the whole image or none.
    fixture.store.delete_snapshot("c").unwrap();
    match committing.await.unwrap() {
        Ok(image) => assert_eq!(mounted(&fixture, &image).len(), 2_000 + 18),
        Err(error) => {
            assert!(
                matches!(
                    error,
                    ImageError::SnapshotNotFound { .. } | ImageError::Files { .. }
                ),
                "{error:?}"
            );
            assert_eq!(fixture.store.images().len(), 1);
        }
    }
}

fn exported(fixture: &Fixture, container: &str) -> Vec<u8> {
    let mut tar = Vec::new();
    let take = |piece: bytes::Bytes| {
        tar.extend_from_slice(&piece);
        true
    };
    fixture.store.export(container, take).unwrap();
    tar
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_everything_the_container_sees_and_can_be_imported() {
    let fixture = Fixture::new();
    let snapshot = container(&fixture).await;
    let overlay = Overlay::mount(&snapshot, &[("redirect_dir", "on"), ("metacopy", "on")]);
    overlay.sh("rm etc/hosts; echo x > new; mv usr/share/doc usr/doc; chmod 600 lib/deep/er/f; chmod 750 .");
    let tar = exported(&fixture, "c");
    assert_eq!(exported(&fixture, "c"), tar);
    let wanted = tree(&overlay.path());
    let image = import(&fixture, "exported", tar.clone()).await;
    assert_same(&mounted(&fixture, &image), &wanted, "imported");
    // GNU tar reads it, too; names are as Docker writes them.
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("x.tar");
    fs::write(&file, &tar).unwrap();
    let listing = Command::new("tar").arg("-tf").arg(&file).output().unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    let names: Vec<&str> = listing.lines().collect();
    assert_eq!(
        names.first(),
        Some(&"./"),
        "the root's mode is not the usual one"
    );
    assert!(names.contains(&"usr/doc/") && names.contains(&"usr/doc/x"));
    assert!(!names.contains(&"etc/hosts"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_nobody_takes_ends() {
    let fixture = Fixture::new();
    let snapshot = container(&fixture).await;
    fs::write(snapshot.upper.join("big"), vec![7; 3_000_000]).unwrap();
    let mut pieces = 0;
    let take = |_| {
        pieces += 1;
        pieces < 2
    };
    fixture.store.export("c", take).unwrap();
    assert_eq!(pieces, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_images_are_compared_by_their_files() {
    let fixture = Fixture::new();
    let snapshot = container(&fixture).await;
    let overlay = Overlay::mount(&snapshot, &[]);
    overlay.sh("rm etc/hosts; echo x > new; chmod 600 etc/passwd");
    let image = commit(&fixture, "c").await;
    let other = Archive::new()
        .dir("etc")
        .file("etc/passwd", b"toor")
        .finish();
    import(&fixture, "other", other).await;
    let compare = |from: &str, to: &str| {
        let mut all = Vec::new();
        let mut take = |changes| {
            all.extend(changes);
            true
        };
        fixture.store.compare_images(from, to, &mut take).unwrap();
        listed(&all)
    };
    let id = image.id().to_string();
    let forward = ["C /etc", "D /etc/hosts", "C /etc/passwd", "A /new"];
    assert_eq!(compare("base", &id), forward);
    let back = ["C /etc", "A /etc/hosts", "C /etc/passwd", "D /new"];
    assert_eq!(compare(&id, "base"), back);
    assert_eq!(compare("base", "base"), [""; 0]);
    // Nothing but the content differs: same size, mode, owner and time.
    let against = compare("other", "base");
    assert!(against.contains(&"C /etc/passwd".to_owned()), "{against:?}");
    assert!(against.contains(&"A /usr".to_owned()), "{against:?}");
    let error = fixture
        .store
        .compare_images("base", "nothing", &mut |_| true);
    assert!(matches!(error, Err(ImageError::NotFound { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_many_directories_does_not_run_out_of_descriptors() {
    let fixture = Fixture::new();
    let snapshot = container(&fixture).await;
    let path: Vec<String> = (0..250).map(|n| format!("d{}", n % 10)).collect();
    fs::create_dir_all(snapshot.upper.join(path.join("/"))).unwrap();
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let mut most = 0;
    let take = |_: Vec<Change>| {
        most = most.max(open());
        true
    };
    let mut take = take;
    fixture.store.diff("c", &mut take).unwrap();
    assert!(most < before + 60, "{before} {most}");
    assert_eq!(changes(&fixture, "c").len(), 250);
    let image = commit(&fixture, "c").await;
    assert!(mounted(&fixture, &image).contains_key(&path.join("/")));
    assert_ne!(image.id(), &Digest::sha256_of(b""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_keeps_all_that_its_image_s_configuration_says() {
    let fixture = Fixture::new();
    let layer = Archive::new().file("f", b"1").finish();
    let mut text: serde_json::Value =
        serde_json::from_str(&crate::loads::config("base", &[&layer])).unwrap();
    text["vendor"] = serde_json::json!({"x": [1, 2]});
    text["os.features"] = serde_json::json!(["a"]);
    text["rootfs"]["vendor"] = serde_json::json!(1);
    text["history"] = serde_json::json!([{"created_by": "ADD", "vendor": "h"}]);
    let run = serde_json::json!({
        "Cmd": ["base"], "Env": ["A=1"], "Healthcheck": {"Test": ["CMD", "true"], "Interval": 7, "Vendor": 1},
        "OnBuild": ["RUN x"], "Shell": ["/bin/ash", "-c"], "StopSignal": "SIGQUIT", "StopTimeout": 3,
        "ArgsEscaped": true, "Vendor": {"Deep": null}, "Volumes": {"/v": {}},
    });
    text["config"] = run.clone();
    let list = serde_json::json!(["base:1"]);
    let archive = crate::stacks::docker(&text.to_string(), &[layer], list);
    let loaded = crate::archives::load(&fixture, &archive).await.unwrap();
    let parent = loaded[0].image.id().clone();
    let (_, snapshot) = fixture.store.prepare("c", "base:1", true).unwrap();
    fs::write(snapshot.upper.join("own"), "x").unwrap();
    let image = commit(&fixture, "c").await;
    assert_eq!(image.record.parent, Some(parent));
    let made: serde_json::Value = serde_json::from_slice(&image.config_raw).unwrap();
    assert_eq!(made["config"], run);
    for kept in ["vendor", "os.features", "architecture", "os"] {
        assert_eq!(made[kept], text[kept], "{kept}");
    }
    assert_eq!(made["rootfs"]["vendor"], 1);
    assert_eq!(made["history"][0], text["history"][0]);
    assert_eq!(made["history"].as_array().unwrap().len(), 2);
}
