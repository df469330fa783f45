//! Volumes: made, filled from an image, used by containers, removed, and put
//! right after whatever happened to their files.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::Duration;

use gantry_image::account::{FreedBy, OwnerKind};
use gantry_image::error::ImageError;
use gantry_image::import::ImportOptions;
use gantry_image::list::Filter;
use gantry_image::volumes::{ImageWish, NewVolume, Part, VolumeWish, Wishes};

use crate::account::settled;
use crate::archive::{Archive, Head};
use crate::checking::{assert_clean, check};
use crate::fixture::{Fixture, TestLayer, publish};
use crate::life::{by_force, gently, import_bytes, imported};
use crate::registry::Registry;

fn named(name: &str) -> NewVolume {
    NewVolume {
        name: name.to_owned(),
        ..NewVolume::default()
    }
}

fn at(name: &str, target: &str) -> VolumeWish {
    VolumeWish {
        volume: named(name),
        target: target.to_owned(),
        ..VolumeWish::default()
    }
}

pub(crate) fn wishes(volumes: &[(&str, &str)]) -> Wishes {
    Wishes {
        volumes: volumes
            .iter()
            .map(|(name, target)| at(name, target))
            .collect(),
        ..Wishes::default()
    }
}

fn filters(filters: &[(&str, &str)]) -> Vec<Filter> {
    let filters = filters.iter().map(|(key, value)| Filter {
        key: (*key).into(),
        value: (*value).into(),
    });
    filters.collect()
}

fn names(fixture: &Fixture, list: &[(&str, &str)]) -> Vec<String> {
    let volumes = fixture.store.list_volumes(&filters(list)).unwrap();
    volumes.iter().map(|v| v.record.name.clone()).collect()
}

fn content(fixture: &Fixture, name: &str) -> PathBuf {
    fixture.root.path().join("volumes").join(name).join("_data")
}

/// An image whose `/data` has all that a file can be, over two layers.
async fn furnished() -> (Registry, Fixture, String) {
    let registry = Registry::start().await;
    let below = Archive::new()
        .entry(
            Head::new(b'5', "data").mode(0o1750).owner(7, 8).mtime(1000),
            "",
        )
        .file("data/gone", "gone")
        .file("data/file", "below")
        .dir("data/sub")
        .file("data/sub/old", "old")
        .symlink("way", "/data");
    let above = Archive::new()
        .entry(
            Head::new(b'0', "data/file")
                .mode(0o4755)
                .owner(1000, 1000)
                .mtime(2000)
                .pax("SCHILY.xattr.user.mark", "yes"),
            "above",
        )
        .hard_link("data/again", "data/file")
        .symlink("data/link", "../etc/passwd")
        .entry(Head::new(b'6', "data/pipe").mode(0o620), "")
        .file("data/.wh.gone", "")
        .entry(
            Head::new(b'5', "data/sub")
                .mode(0o700)
                .owner(9, 9)
                .mtime(3000),
            "",
        )
        .file("data/sub/new", vec![b'n'; 100_000]);
    let layers = [below, above].map(|layer| TestLayer::gzip(layer.finish()));
    publish(&registry, "data", &layers);
    let fixture = Fixture::new();
    let reference = format!("{}/x:data", registry.host);
    fixture.pull(&reference).await.unwrap();
    (registry, fixture, reference)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_volume_has_what_the_image_has_there_as_it_is_there() {
    let (_registry, fixture, reference) = furnished().await;
    // One that was made before and is empty is filled too; a link leads to the place.
    fixture.store.create_volume(&named("made-before")).unwrap();
    let wanted = wishes(&[("fresh", "/data"), ("made-before", "/way")]);
    fixture
        .store
        .prepare_with("c1", &reference, false, &wanted)
        .unwrap();
    for name in ["fresh", "made-before"] {
        let data = content(&fixture, name);
        let of = |path: &str| fs::symlink_metadata(data.join(path)).unwrap();
        let root = fs::metadata(&data).unwrap();
        assert_eq!(
            (root.uid(), root.gid(), root.mode() & 0o7777),
            (7, 8, 0o1750)
        );
        assert_eq!(root.mtime(), 1000, "{name}");
        assert_eq!(fs::read(data.join("file")).unwrap(), b"above");
        let file = of("file");
        assert_eq!(
            (file.uid(), file.mode() & 0o7777, file.mtime()),
            (1000, 0o4755, 2000)
        );
        assert_eq!((file.ino(), file.nlink()), (of("again").ino(), 2));
        let mut mark = [0; 8];
        let length = rustix::fs::getxattr(data.join("file"), "user.mark", &mut mark).unwrap();
        assert_eq!(&mark[..length], b"yes");
        let link = fs::read_link(data.join("link")).unwrap();
        assert_eq!(link.to_str(), Some("../etc/passwd"));
        assert_eq!(of("pipe").mode(), 0o010_620);
        assert!(
            !data.join("gone").exists(),
            "what a layer removed is not there"
        );
        let sub = of("sub");
        assert_eq!(
            (sub.uid(), sub.mode() & 0o7777, sub.mtime()),
            (9, 0o700, 3000)
        );
        assert_eq!(fs::read(data.join("sub/old")).unwrap(), b"old");
        assert_eq!(of("sub/new").len(), 100_000);
        let parts = fs::read_dir(data.parent().unwrap()).unwrap().count();
        assert_eq!(parts, 2, "{name}: nothing is left of the copying");
    }
    assert_clean(&fixture.store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_a_volume_stays_as_it_is() {
    let (_registry, fixture, reference) = furnished().await;
    let made = fixture.store.create_volume(&named("mine")).unwrap();
    fs::write(made.mountpoint.join("mine"), "mine").unwrap();
    let mut wanted = wishes(&[("mine", "/data"), ("empty", "/way")]);
    wanted.volumes[1].no_copy = true;
    fixture
        .store
        .prepare_with("c1", &reference, false, &wanted)
        .unwrap();
    let there: Vec<_> = fs::read_dir(&made.mountpoint).unwrap().collect();
    assert_eq!(there.len(), 1);
    let empty = content(&fixture, "empty");
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    assert_eq!(fs::metadata(&empty).unwrap().uid(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_goes_when_no_container_uses_it_and_not_before() {
    let (_registry, fixture, reference) = furnished().await;
    let store = &fixture.store;
    for container in ["c1", "c2"] {
        let wanted = wishes(&[("shared", "/v")]);
        store
            .prepare_with(container, &reference, false, &wanted)
            .unwrap();
    }
    let refused = store.remove_volume("shared", true);
    match refused {
        Err(ImageError::VolumeInUse { containers, .. }) => assert_eq!(containers, ["c1", "c2"]),
        other => panic!("{other:?}"),
    }
    assert_eq!(names(&fixture, &[("dangling", "false")]), ["shared"]);
    // A volume with a name outlives its containers, whatever is asked for.
    store.delete_snapshot_with("c1", true).unwrap();
    store.delete_snapshot_with("c2", true).unwrap();
    assert_eq!(names(&fixture, &[("dangling", "true")]), ["shared"]);
    assert!(store.remove_volume("shared", false).unwrap());
    assert!(!content(&fixture, "shared").exists());
    assert!(!store.remove_volume("shared", true).unwrap());
    assert!(matches!(
        store.remove_volume("shared", false),
        Err(ImageError::VolumeNotFound { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn anonymous_volumes_go_with_their_last_container_if_that_is_asked_for() {
    let (_registry, fixture, reference) = furnished().await;
    let store = &fixture.store;
    let wanted = wishes(&[("", "/v")]);
    let prepare = |container: &str, ephemeral| {
        let prepared = store.prepare_with(container, &reference, ephemeral, &wanted);
        let (_, _, mounts) = prepared.unwrap();
        match &mounts[0].part {
            Part::Volume {
                name, anonymous, ..
            } => {
                assert!(anonymous);
                name.clone()
            }
            other => panic!("{other:?}"),
        }
    };
    let first = prepare("c1", false);
    // Taken from the first: it has a name there, and goes all the same.
    let mut taken = wishes(&[(&first, "/taken")]);
    taken.volumes[0].anonymous = true;
    store.prepare_with("c2", &reference, false, &taken).unwrap();
    store.delete_snapshot_with("c1", true).unwrap();
    assert_eq!(
        names(&fixture, &[]),
        [first.as_str()],
        "another one uses it"
    );
    store.delete_snapshot_with("c2", true).unwrap();
    assert!(names(&fixture, &[]).is_empty());

    let kept = prepare("c3", false);
    store.delete_snapshot_with("c3", false).unwrap();
    assert_eq!(names(&fixture, &[]), [kept.as_str()]);
    // A container that ends with its layer needs not be asked.
    prepare("c4", true);
    store.delete_snapshot("c4").unwrap();
    assert_eq!(names(&fixture, &[]), [kept.as_str()]);
    let label = [("label", "com.docker.volume.anonymous")];
    assert_eq!(names(&fixture, &label), [kept.as_str()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_says_itself_which_volumes_it_wants() {
    let fixture = Fixture::new();
    let tar = Archive::new().dir("a").file("a/f", "f").dir("b").finish();
    let with = |reference: &str, volumes: &str| ImportOptions {
        reference: Some(reference.to_owned()),
        changes: vec![format!("VOLUME {volumes}")],
        ..ImportOptions::default()
    };
    let options = with("wants:1", r#"["/a", "/b/", "/c"]"#);
    import_bytes(&fixture, &options, tar.clone()).await.unwrap();
    let wanted = Wishes {
        image_volumes: true,
        other_targets: vec!["/b".to_owned()],
        volumes: vec![at("mine", "//c")],
        ..Wishes::default()
    };
    let (_, _, mounts) = fixture
        .store
        .prepare_with("c1", "wants:1", false, &wanted)
        .unwrap();
    let targets: Vec<&str> = mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(
        targets,
        ["//c", "/a"],
        "what is mounted there already counts"
    );
    assert_eq!(names(&fixture, &[]).len(), 2);
    let anonymous = names(&fixture, &[("label", "com.docker.volume.anonymous")]);
    assert_eq!(
        fs::read(content(&fixture, &anonymous[0]).join("f")).unwrap(),
        b"f"
    );

    // Who does not ask for them gets none.
    let (_, _, mounts) = fixture
        .store
        .prepare_with("c2", "wants:1", false, &Wishes::default())
        .unwrap();
    assert!(mounts.is_empty());
    let many: Vec<String> = (0..600).map(|n| format!("\"/v{n}\"")).collect();
    let many = format!("[{}]", many.join(","));
    for (reference, volumes) in [("root:1", "/"), ("up:1", "/a/../../b"), ("many:1", &many)] {
        let options = with(reference, volumes);
        import_bytes(&fixture, &options, tar.clone()).await.unwrap();
        let before = names(&fixture, &[]);
        let refused = fixture.store.prepare_with("c3", reference, false, &wanted);
        assert!(refused.is_err(), "{reference}");
        assert_eq!(names(&fixture, &[]), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_preparation_leaves_no_volume_and_no_layer() {
    let (_registry, fixture, reference) = furnished().await;
    let store = &fixture.store;
    store.create_volume(&named("there")).unwrap();
    // Something that is none of the store's stands in the way of the last one.
    fs::create_dir_all(fixture.root.path().join("volumes/blocked/x")).unwrap();
    let wanted = wishes(&[
        ("", "/a"),
        ("there", "/b"),
        ("new", "/data"),
        ("blocked", "/c"),
    ]);
    let refused = store.prepare_with("c1", &reference, false, &wanted);
    assert!(matches!(refused, Err(ImageError::Io { .. })), "{refused:?}");
    assert_eq!(names(&fixture, &[]), ["there"]);
    assert!(store.get_snapshot("c1").is_err());
    let left: Vec<_> = fs::read_dir(fixture.root.path().join("volumes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "there" && name != "blocked")
        .collect();
    assert!(left.is_empty(), "{left:?}");
    fs::remove_dir_all(fixture.root.path().join("volumes/blocked")).unwrap();
    store
        .prepare_with("c1", &reference, false, &wanted)
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wishes_that_cannot_be_granted_change_nothing() {
    let (_registry, fixture, reference) = furnished().await;
    let store = &fixture.store;
    let options = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter();
        pairs
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    };
    let tmpfs = options(&[("type", "tmpfs"), ("device", "tmpfs")]);
    store
        .create_volume(&NewVolume {
            options: tmpfs,
            ..named("memory")
        })
        .unwrap();
    let refused = |change: fn(&mut VolumeWish)| {
        let mut wish = at("one", "/v");
        change(&mut wish);
        let wanted = Wishes {
            volumes: vec![at("other", "/o"), wish],
            ..Wishes::default()
        };
        let refused = store.prepare_with("c1", &reference, false, &wanted);
        assert!(refused.is_err(), "{:?}", wanted.volumes);
    };
    refused(|wish| wish.target = "v".into());
    refused(|wish| wish.target = "/".into());
    refused(|wish| wish.target = "/o/".into());
    refused(|wish| wish.target = "/data/file".into());
    refused(|wish| wish.volume.name = "../x".into());
    refused(|wish| wish.volume.driver = "nfs".into());
    refused(|wish| wish.subpath = "../x".into());
    refused(|wish| wish.subpath = "not-there".into());
    refused(|wish| wish.must_exist = true);
    refused(|wish| {
        wish.volume.name = "memory".into();
        wish.volume.options.insert("type".into(), "none".into());
    });
    refused(|wish| {
        wish.volume.options.insert("type".into(), "none".into());
        wish.volume.options.insert("o".into(), "bind".into());
        wish.volume
            .options
            .insert("device".into(), "/no/such/device".into());
    });
    assert_eq!(names(&fixture, &[]), ["memory"]);
    assert!(store.get_snapshot("c1").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subpath_leads_nowhere_else() {
    let (_registry, fixture, reference) = furnished().await;
    let made = fixture.store.create_volume(&named("v1")).unwrap();
    fs::create_dir_all(made.mountpoint.join("in/side")).unwrap();
    std::os::unix::fs::symlink("in/side", made.mountpoint.join("link")).unwrap();
    std::os::unix::fs::symlink("/etc", made.mountpoint.join("out")).unwrap();
    let prepare = |container: &str, subpath: &str| {
        let mut wanted = wishes(&[("v1", "/v")]);
        wanted.volumes[0].subpath = subpath.to_owned();
        let store = &fixture.store;
        store
            .prepare_with(container, &reference, true, &wanted)
            .map(drop)
    };
    prepare("c1", "in/side").unwrap();
    prepare("c2", "link").unwrap();
    for outside in ["out", "out/passwd", "link/../../.."] {
        assert!(prepare("c3", outside).is_err(), "{outside}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_takes_what_nobody_uses_and_leaves_names_unless_told() {
    let (_registry, fixture, reference) = furnished().await;
    let store = &fixture.store;
    let with_label = NewVolume {
        labels: [("keep".to_owned(), "me".to_owned())].into(),
        ..named("labelled")
    };
    store.create_volume(&with_label).unwrap();
    store.create_volume(&named("named")).unwrap();
    let anonymous = store.create_volume(&NewVolume::default()).unwrap();
    fs::write(anonymous.mountpoint.join("f"), vec![1; 5000]).unwrap();
    store
        .prepare_with(
            "c1",
            &reference,
            false,
            &wishes(&[("used", "/v"), ("", "/w")]),
        )
        .unwrap();
    let account = settled(&fixture);
    let volumes = account
        .owners
        .iter()
        .filter(|o| o.kind == OwnerKind::Volume);
    let freed: Vec<_> = volumes.map(|o| (o.freed_by, o.kept_by.len())).collect();
    for (kind, count) in [
        ((FreedBy::ContainerRemoval, 1), 2),
        ((FreedBy::VolumePrune, 0), 1),
        ((FreedBy::VolumePruneAll, 0), 2),
    ] {
        assert_eq!(
            freed.iter().filter(|f| **f == kind).count(),
            count,
            "{freed:?}"
        );
    }
    let pruned = store
        .prune_volumes(false, &filters(&[("until", "1h")]))
        .unwrap();
    assert!(pruned.deleted.is_empty(), "they are younger");
    let pruned = store.prune_volumes(false, &[]).unwrap();
    assert_eq!(pruned.deleted, [anonymous.record.name.as_str()]);
    assert_eq!(pruned.reclaimed, 5000);
    let pruned = store
        .prune_volumes(false, &filters(&[("all", "true"), ("label!", "keep")]))
        .unwrap();
    assert_eq!(pruned.deleted, ["named"]);
    assert_eq!(
        store.prune_volumes(true, &[]).unwrap().deleted,
        ["labelled"]
    );
    assert!(
        store
            .prune_volumes(true, &filters(&[("name", "x")]))
            .is_err()
    );
    assert_eq!(names(&fixture, &[]).len(), 2);
    settled(&fixture);
    assert_clean(store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_and_their_users_are_there_after_a_restart() {
    let (_registry, fixture, reference) = furnished().await;
    let wanted = NewVolume {
        labels: [("a".to_owned(), "b".to_owned())].into(),
        ..named("v1")
    };
    let made = fixture.store.create_volume(&wanted).unwrap();
    fixture
        .store
        .prepare_with("c1", &reference, false, &wishes(&[("v1", "/v")]))
        .unwrap();
    let fixture = fixture.reopen_after(|root| {
        // What a killed process was in the middle of.
        fs::create_dir_all(root.join("volumes/.new-half/_data/x")).unwrap();
        fs::create_dir_all(root.join("volumes/v1/.new-half")).unwrap();
        fs::create_dir_all(root.join("volumes/v1/filling/dir")).unwrap();
        fs::write(root.join("volumes/v1/filling/file"), "copied").unwrap();
        let mode = fs::Permissions::from_mode(0o711);
        fs::set_permissions(root.join("volumes/v1/filling"), mode).unwrap();
        // And what a bad disk did.
        fs::create_dir_all(root.join("volumes/lost/_data")).unwrap();
        fs::write(root.join("volumes/lost/_data/file"), "precious").unwrap();
        fs::create_dir_all(root.join("volumes/damaged/_data")).unwrap();
        fs::write(root.join("volumes/damaged/volume.json"), "{").unwrap();
    });
    assert_eq!(names(&fixture, &[]), ["damaged", "lost", "v1"]);
    let volume = fixture.store.volume("v1").unwrap();
    assert_eq!(volume.record, made.record);
    assert_eq!(volume.used_by, ["c1"]);
    assert_eq!(fs::read(volume.mountpoint.join("file")).unwrap(), b"copied");
    assert!(volume.mountpoint.join("dir").is_dir());
    assert_eq!(
        fs::metadata(&volume.mountpoint).unwrap().mode() & 0o777,
        0o711
    );
    let lost = fixture.store.volume("lost").unwrap();
    assert_eq!(fs::read(lost.mountpoint.join("file")).unwrap(), b"precious");
    assert!(!fixture.root.path().join("volumes/.new-half").exists());
    let parts = fs::read_dir(volume.mountpoint.parent().unwrap()).unwrap();
    assert_eq!(parts.count(), 2);
    let aside = fs::read_dir(fixture.root.path().join("damaged")).unwrap();
    assert_eq!(aside.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_a_volume_are_looked_at() {
    let fixture = Fixture::new();
    let made = fixture.store.create_volume(&named("v1")).unwrap();
    let record = made.mountpoint.parent().unwrap().join("volume.json");
    fs::write(&record, "{}").unwrap();
    let (_, found) = check(&fixture.store, true).await;
    assert_eq!(found[0].object, "volume v1");
    assert_eq!(found[0].repaired, "written again");
    fs::remove_dir(&made.mountpoint).unwrap();
    let (_, found) = check(&fixture.store, false).await;
    assert_eq!(found[0].problem, "the directory of its content is missing");
    check(&fixture.store, true).await;
    assert_clean(&fixture.store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_a_container_sees_stays_until_the_container_goes() {
    let (_registry, fixture, reference) = furnished().await;
    let store = &fixture.store;
    imported(&fixture, "files:1", Archive::new().file("f", "f").finish()).await;
    let with = |subpath: &str| Wishes {
        images: vec![ImageWish {
            image: "files:1".to_owned(),
            target: "/i".to_owned(),
            subpath: subpath.to_owned(),
        }],
        ..Wishes::default()
    };
    assert!(
        store
            .prepare_with("c1", &reference, false, &with("g"))
            .is_err()
    );
    let prepared = store.prepare_with("c1", &reference, false, &with("f"));
    let (_, _, mounts) = prepared.unwrap();
    let Part::Image { layers, .. } = &mounts[0].part else {
        panic!("{mounts:?}");
    };
    assert!(layers.len() >= 2, "overlayfs makes nothing of one alone");
    let refused = store.remove("files:1", &gently());
    assert!(
        matches!(refused, Err(ImageError::InUse { .. })),
        "{refused:?}"
    );
    store.remove("files:1", &by_force()).unwrap();
    assert_eq!(fs::read(layers[0].join("f")).unwrap(), b"f");
    assert_clean(store).await;
    store.delete_snapshot("c1").unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while layers[0].exists() {
        assert!(std::time::Instant::now() < deadline, "its layer stays");
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_containers_may_come_to_one_volume_at_once() {
    let (_registry, fixture, reference) = furnished().await;
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let (store, reference) = (fixture.store.clone(), reference.clone());
            tokio::task::spawn_blocking(move || {
                let wanted = wishes(&[("shared", "/data"), ("", "/w")]);
                let container = format!("c{n}");
                store.prepare_with(&container, &reference, n % 2 == 0, &wanted)?;
                // Half of them go again at once; nobody's volume goes with them.
                if n % 2 == 0 {
                    store.delete_snapshot(&container)?;
                }
                Ok::<_, ImageError>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(names(&fixture, &[]).len(), 1 + 8);
    assert_eq!(fixture.store.volume("shared").unwrap().used_by.len(), 8);
    assert_eq!(
        fs::read(content(&fixture, "shared").join("file")).unwrap(),
        b"above"
    );
    assert_clean(&fixture.store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_removed_while_it_is_made_leaves_no_volume() {
    let (_registry, fixture, reference) = furnished().await;
    for round in 0..40 {
        let (store, reference) = (fixture.store.clone(), reference.clone());
        let making = tokio::task::spawn_blocking(move || {
            let wanted = wishes(&[("", "/data"), ("", "/a"), ("", "/b"), ("", "/c")]);
            store.prepare_with("c1", &reference, false, &wanted)
        });
        let store = fixture.store.clone();
        let removing = tokio::task::spawn_blocking(move || {
            // At another moment each time, and then until it is gone.
            for _ in 0..round * 50 {
                std::hint::spin_loop();
            }
            while !store.delete_snapshot_with("c1", true).unwrap() {
                std::thread::yield_now();
            }
        });
        making.await.unwrap().unwrap();
        removing.await.unwrap();
        assert!(names(&fixture, &[]).is_empty(), "round {round}");
    }
}
