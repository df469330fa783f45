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
    compare(
        directory.as_fd(),
        &mut io::Cursor::new(record),
        ContentFormat::Blocks,
    )
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
    let mut hasher = ContentHasher::new(ContentFormat::Blocks);
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

#[test]
fn a_file_has_one_hash_however_its_zeros_come() {
    let mut content = vec![0; 5 * BLOCK + 100];
    content[BLOCK + 7] = 1;
    content[5 * BLOCK + 3] = 2;
    let all = |content: &[u8], piece: usize| {
        let mut hasher = ContentHasher::new(ContentFormat::Blocks);
        content.chunks(piece).for_each(|piece| hasher.update(piece));
        hasher.finish()
    };
    let expected = all(&content, content.len());
    for piece in [1, 100, BLOCK - 1, BLOCK, BLOCK + 1] {
        assert_eq!(all(&content, piece), expected, "{piece}");
    }
    let mut hasher = ContentHasher::new(ContentFormat::Blocks);
    hasher.skip(BLOCK as u64 + 7);
    hasher.update(&[1]);
    hasher.skip(4 * BLOCK as u64 - 5);
    hasher.update(&[2]);
    hasher.skip(96);
    assert_eq!(hasher.finish(), expected);
    // What differs has another: content, its place, the length.
    for other in [
        [&content[..], &[0]].concat(),
        [&[0; BLOCK], &content[..5 * BLOCK], &[0; 100]].concat(),
        vec![0; content.len()],
    ] {
        assert_ne!(all(&other, other.len()), expected);
    }
}

#[test]
fn a_hole_is_not_read_and_is_the_same_as_zeros() {
    let root = tempfile::TempDir::new().unwrap();
    let path = root.path().join("f");
    let file = fs::File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 1 << 30).unwrap();
    let (record, _) = record(root.path());
    assert_eq!(differences(root.path(), &record), Vec::<String>::new());
    let modified = file.metadata().unwrap().modified().unwrap();
    // Zeros in the place of a hole change nothing; anything else does.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 10_000], 1 << 20).unwrap();
    file.set_modified(modified).unwrap();
    assert_eq!(differences(root.path(), &record), Vec::<String>::new());
    std::os::unix::fs::FileExt::write_all_at(&file, b"y", 1 << 20).unwrap();
    file.set_modified(modified).unwrap();
    assert_eq!(differences(root.path(), &record), ["f has another content"]);
}

#[test]
fn a_record_of_an_older_version_is_compared_as_it_was_made() {
    let root = tree();
    let directory = fs::File::open(root.path()).unwrap();
    let mut old = Vec::new();
    walk(
        directory.as_fd(),
        &KnownContent::default(),
        ContentFormat::Whole,
        &mut |line| {
            old.extend_from_slice(line.as_bytes());
            old.push(b'\n');
            Ok(())
        },
    )
    .unwrap();
    let mut lines = io::Cursor::new(&old);
    let compared = compare(directory.as_fd(), &mut lines, ContentFormat::Whole).unwrap();
    assert_eq!(compared.differences, Vec::<String>::new());
    assert_ne!(old, record(root.path()).0);
}
