//! Tests of [`super`].

use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

fn record(root: &Path) -> (Vec<u8>, Digest) {
    let directory = fs::File::open(root).unwrap();
    let mut record = Vec::new();
    let digest = write(directory.as_fd(), &KnownContent::default(), &mut record).unwrap();
    (record, digest)
}

fn differences(root: &Path, record: &[u8]) -> Vec<String> {
    let directory = fs::File::open(root).unwrap();
    compare(directory.as_fd(), &mut io::Cursor::new(record))
        .unwrap()
        .differences
}

fn tree() -> tempfile::TempDir {
    let root = tempfile::TempDir::new().unwrap();
    let at = |name: &str| root.path().join(name);
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/one"), "1").unwrap();
    fs::write(at("d/two words%"), vec![7; 300_000]).unwrap();
    fs::hard_link(at("d/one"), at("linked")).unwrap();
    symlink("d/one", at("link")).unwrap();
    root
}

#[test]
fn a_tree_is_what_its_record_says_and_the_digest_is_of_the_record() {
    let root = tree();
    let (record, digest) = record(root.path());
    assert_eq!(digest, Digest::sha256_of(&record));
    assert_eq!(digest_of(&mut record.as_slice()).unwrap(), digest);
    let text = String::from_utf8(record.clone()).unwrap();
    let paths: Vec<_> = text
        .lines()
        .map(|line| line.split(' ').nth(9).unwrap())
        .collect();
    assert_eq!(
        paths,
        [".", "d", "d/one", "d/two%20words%25", "link", "linked"]
    );
    assert_eq!(differences(root.path(), &record), Vec::<String>::new());
}

#[test]
fn every_kind_of_damage_is_found_and_named() {
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 7] = [
        (
            "d/one has another size, modification time, content",
            |root| {
                fs::write(root.join("d/one"), "12").unwrap();
            },
        ),
        ("d/two%20words%25 has another content", |root| {
            let path = root.join("d/two words%");
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            let before = file.metadata().unwrap().modified().unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"x", 299_000).unwrap();
            file.set_modified(before).unwrap();
        }),
        ("linked is missing", |root| {
            fs::remove_file(root.join("linked")).unwrap()
        }),
        ("d/new does not belong there", |root| {
            fs::write(root.join("d/new"), "").unwrap()
        }),
        ("d has another mode", |root| {
            fs::set_permissions(root.join("d"), fs::Permissions::from_mode(0o700)).unwrap();
        }),
        ("link has another modification time, link target", |root| {
            fs::remove_file(root.join("link")).unwrap();
            symlink("elsewhere", root.join("link")).unwrap();
        }),
        ("d/one has another extended attributes", |root| {
            rustix::fs::setxattr(
                root.join("d/one"),
                "trusted.x",
                b"1",
                rustix::fs::XattrFlags::empty(),
            )
            .unwrap();
        }),
    ];
    for (found, damage) in damage {
        let root = tree();
        let (record, _) = record(root.path());
        damage(root.path());
        let differences = differences(root.path(), &record);
        assert!(
            differences.iter().any(|difference| difference == found),
            "{found}: {differences:?}"
        );
    }
}

#[test]
fn content_that_is_known_is_not_read() {
    let root = tempfile::TempDir::new().unwrap();
    fs::write(root.path().join("f"), "content").unwrap();
    let mut hasher = ContentHasher::new();
    hasher.update(b"con");
    hasher.update(b"tent");
    let mut known = KnownContent::default();
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(root.path().join("f")).unwrap());
    known.add(inode, ContentHash([0; 16]));
    known.add(inode, hasher.finish());
    known.settle(true);
    let directory = fs::File::open(root.path()).unwrap();
    let mut with = Vec::new();
    write(directory.as_fd(), &known, &mut with).unwrap();
    assert_eq!(with, record(root.path()).0);
}
