use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use super::*;
use crate::pack::pack;
use crate::write::Writer;

fn place(path: &Path) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).unwrap()
}

fn packed(path: &Path, name: &str) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut writer = Writer::new(|piece: bytes::Bytes| {
        archive.extend_from_slice(&piece);
        true
    });
    pack(
        place(path).as_fd(),
        name.as_bytes(),
        &Ids::default(),
        &mut writer,
    )
    .unwrap();
    writer.finish().unwrap();
    archive
}

fn unpacked(archive: &[u8], into: &Path) -> Result<(), UnpackError> {
    let directory = place(into);
    let destination = Destination::Beneath(directory.as_fd());
    unpack(destination, archive, Owner::Maker, &Ids::default())
}

/// A directory with something of each kind.
fn tree(at: &Path) {
    fs::create_dir_all(at.join("sub/deep")).unwrap();
    fs::write(at.join("file"), "content").unwrap();
    fs::set_permissions(at.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(at.join("file"), at.join("sub/same")).unwrap();
    symlink("/etc/passwd", at.join("sub/link")).unwrap();
    fs::write(at.join("sub/deep/empty"), "").unwrap();
    let holes = File::create(at.join("holes")).unwrap();
    holes.set_len(3 << 20).unwrap();
    holes.write_all_at(b"middle", 1 << 20).unwrap();
    rustix::fs::mknodat(CWD, at.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
}

#[test]
fn a_tree_is_the_same_after_its_archive() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    tree(&from);
    fs::create_dir(&to).unwrap();
    unpacked(&packed(&from, "new"), &to).unwrap();
    let new = to.join("new");
    assert_eq!(fs::read_to_string(new.join("file")).unwrap(), "content");
    let (one, other) = (new.join("file"), new.join("sub/same"));
    assert_eq!(one.metadata().unwrap().mode() & 0o7777, 0o640);
    assert_eq!(
        one.metadata().unwrap().ino(),
        other.metadata().unwrap().ino()
    );
    assert_eq!(
        fs::read_link(new.join("sub/link")).unwrap(),
        Path::new("/etc/passwd")
    );
    assert_eq!(
        fs::read(new.join("holes")).unwrap(),
        fs::read(from.join("holes")).unwrap()
    );
    assert!(new.join("sub/deep/empty").is_file());
    for path in ["", "file", "sub", "sub/deep"] {
        let time = |root: &Path| root.join(path).metadata().unwrap().modified().unwrap();
        assert_eq!(time(&from), time(&new), "{path}");
    }
    let left: Vec<_> = fs::read_dir(&to)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["new"]);
}

#[test]
fn what_is_there_is_replaced_and_directories_are_merged() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    tree(&from);
    fs::create_dir_all(to.join("new/sub")).unwrap();
    fs::write(to.join("new/file"), "old").unwrap();
    fs::write(to.join("new/sub/own"), "own").unwrap();
    symlink("own", to.join("new/sub/link")).unwrap();
    for _ in 0..2 {
        unpacked(&packed(&from, "new"), &to).unwrap();
    }
    assert_eq!(fs::read_to_string(to.join("new/file")).unwrap(), "content");
    assert_eq!(fs::read_to_string(to.join("new/sub/own")).unwrap(), "own");
    assert_eq!(fs::read_dir(to.join("new/sub")).unwrap().count(), 4);
    assert_eq!(fs::read_dir(to.join("new")).unwrap().count(), 4);
}

#[test]
fn a_file_and_a_directory_never_take_each_others_place() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    tree(&from);
    fs::create_dir_all(to.join("file")).unwrap();
    fs::write(to.join("new"), "old").unwrap();
    let over = unpacked(&packed(&from.join("file"), "file"), &to).unwrap_err();
    assert!(matches!(over, UnpackError::OverDirectory { .. }), "{over}");
    let over = unpacked(&packed(&from, "new"), &to).unwrap_err();
    assert!(matches!(over, UnpackError::OverFile { .. }), "{over}");
    assert_eq!(fs::read_to_string(to.join("new")).unwrap(), "old");
}

#[test]
fn nothing_is_made_outside_of_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    let outside = directory.path().join("outside");
    tree(&from);
    fs::create_dir(&to).unwrap();
    fs::create_dir(&outside).unwrap();
    symlink(&outside, to.join("absolute")).unwrap();
    symlink("../outside", to.join("upward")).unwrap();
    for name in [
        "../outside/x",
        "absolute/x",
        "upward/x",
        "a/../../outside/x",
    ] {
        let refused = unpacked(&packed(&from.join("file"), name), &to).unwrap_err();
        assert!(
            matches!(refused, UnpackError::Escapes { .. }),
            "{name}: {refused}"
        );
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

/// Unpacks as into a container whose root `root` is.
fn unpacked_in_root(archive: &[u8], root: &Path, path: &str) -> Result<(), UnpackError> {
    let root = place(root);
    let destination = Destination::InRoot {
        root: root.as_fd(),
        path: path.as_bytes(),
    };
    unpack(destination, archive, Owner::Maker, &Ids::default())
}

#[test]
fn links_on_the_way_lead_where_they_lead_in_the_root_and_never_out_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let (from, root) = (directory.path().join("from"), directory.path().join("root"));
    tree(&from);
    fs::create_dir_all(root.join("run/deep")).unwrap();
    fs::create_dir_all(root.join("var/lib")).unwrap();
    symlink("/run", root.join("absolute")).unwrap();
    symlink("/run", root.join("var/absolute")).unwrap();
    symlink("../run/deep", root.join("var/upward")).unwrap();
    symlink("../../../../../run", root.join("var/beyond")).unwrap();
    symlink("upward/..", root.join("var/back")).unwrap();
    symlink("/missing", root.join("var/dangling")).unwrap();
    let named = |name: &str| packed(&from.join("file"), name);
    for (path, name, found) in [
        ("/", "absolute/a/b", "run/a/b"),
        ("/var", "absolute/c", "run/c"),
        ("var/", "upward/d", "run/deep/d"),
        ("/var", "beyond/e", "run/e"),
        ("/var", "back/f", "run/f"),
        ("/var/lib", "../lib/g", "var/lib/g"),
    ] {
        let unpacked = unpacked_in_root(&named(name), &root, path);
        if name.starts_with("..") {
            assert!(matches!(unpacked, Err(UnpackError::Escapes { .. })));
        } else {
            unpacked.unwrap();
            assert!(root.join(found).is_file(), "{path} {name}");
        }
    }
    // A directory of the archive is merged with one that is reached through a link.
    unpacked_in_root(&packed(&from, "absolute/tree"), &root, "/").unwrap();
    assert!(root.join("run/tree/sub/deep/empty").is_file());
    let time = |path: &Path| path.metadata().unwrap().modified().unwrap();
    assert_eq!(time(&from.join("sub")), time(&root.join("run/tree/sub")));
    // A link that leads nowhere is no directory, and none is made for it.
    assert!(unpacked_in_root(&named("dangling/x"), &root, "/var").is_err());
    // A link of the entry's own name is replaced.
    unpacked_in_root(&named("upward"), &root, "/var").unwrap();
    assert!(
        root.join("var/upward")
            .symlink_metadata()
            .unwrap()
            .is_file()
    );
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn a_link_that_is_in_the_way_is_replaced_and_not_written_through() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    tree(&from);
    fs::create_dir(&to).unwrap();
    fs::write(directory.path().join("victim"), "safe").unwrap();
    symlink(directory.path().join("victim"), to.join("file")).unwrap();
    unpacked(&packed(&from.join("file"), "file"), &to).unwrap();
    let victim = fs::read_to_string(directory.path().join("victim")).unwrap();
    assert_eq!(victim, "safe");
    assert!(to.join("file").symlink_metadata().unwrap().is_file());
}

#[test]
fn a_copy_that_breaks_off_leaves_the_old_file_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    tree(&from);
    fs::create_dir(&to).unwrap();
    fs::write(to.join("holes"), "old").unwrap();
    let archive = packed(&from.join("holes"), "holes");
    let broken = unpacked(&archive[..archive.len() / 2], &to).unwrap_err();
    assert!(
        matches!(broken, UnpackError::Read(ReadError::Truncated { .. })),
        "{broken}"
    );
    assert_eq!(fs::read_to_string(to.join("holes")).unwrap(), "old");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
}
