//! Archives become directories, and nothing else becomes anything.

use std::fs;
use std::io::{Cursor, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use gantry_image::unpack::{self, Limits, Nothing, UnpackError, Unpacked};
use gantry_oci::{Algorithm, Digest};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::archive::{Archive, Head, gzip, header_block, seal, zstd};

fn unpack_over(
    archive: Vec<u8>,
    limits: &Limits,
    lower: &mut dyn unpack::Lower,
) -> (TempDir, Result<Unpacked, UnpackError>) {
    let directory = TempDir::new().unwrap();
    let fd = fs::File::open(directory.path()).unwrap().into();
    let result = unpack::unpack(Cursor::new(archive), fd, Algorithm::Sha256, limits, lower);
    (directory, result)
}

fn unpacked(archive: Archive) -> (TempDir, Unpacked) {
    let bytes = archive.finish();
    let diff_id = Digest::sha256_of(&bytes);
    let (directory, result) = unpack_over(bytes, &Limits::default(), &mut Nothing);
    let unpacked = result.unwrap();
    assert_eq!(unpacked.diff_id, diff_id);
    (directory, unpacked)
}

fn refused(archive: Archive) -> UnpackError {
    let (_directory, result) = unpack_over(archive.finish(), &Limits::default(), &mut Nothing);
    result.unwrap_err()
}

fn over(lower: &[&Path], archive: Archive) -> (TempDir, Unpacked) {
    let mut lower: Vec<PathBuf> = lower.iter().map(|p| p.to_path_buf()).collect();
    let (directory, result) = unpack_over(archive.finish(), &Limits::default(), &mut lower);
    (directory, result.unwrap())
}

fn xattr(path: &Path, key: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let size = rustix::fs::lgetxattr(path, key, value.as_mut_slice()).ok()?;
    value.truncate(size);
    Some(value)
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    xattr(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
}

#[test]
fn files_have_their_content_owner_mode_and_time() {
    let (root, unpacked) = unpacked(
        Archive::new()
            .entry(Head::new(b'5', "./"), b"")
            .entry(
                Head::new(b'0', "./bin/su")
                    .mode(0o4755)
                    .owner(3, 4)
                    .mtime(1_234_567_890),
                b"content",
            )
            .entry(Head::new(b'0', "empty").mode(0o000), b""),
    );
    let su = root.path().join("bin/su");
    assert_eq!(fs::read(&su).unwrap(), b"content");
    let meta = fs::metadata(&su).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (3, 4, 0o4755)
    );
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_234_567_890, 0));
    assert_eq!(
        fs::metadata(root.path().join("empty")).unwrap().mode() & 0o7777,
        0
    );
    assert_eq!((unpacked.entries, unpacked.content_bytes), (3, 7));
    assert!(!unpacked.depends_on_lower);
}

#[test]
fn every_packing_gives_the_same_tree_and_the_same_diff_id() {
    let big: Vec<u8> = (0..3_000_000u32)
        .flat_map(|n| (n / 7).to_le_bytes())
        .collect();
    let tar = Archive::new()
        .file("a", b"1")
        .file("big", &big)
        .file("z", b"2")
        .finish();
    let diff_id = Digest::sha256_of(&tar);
    let (head, tail) = tar.split_at(5_000);
    let two_members = [gzip(head), gzip(tail)].concat();
    let two_frames = [zstd(head), zstd(tail)].concat();
    for packed in [tar.clone(), gzip(&tar), zstd(&tar), two_members, two_frames] {
        let (root, result) = unpack_over(packed, &Limits::default(), &mut Nothing);
        assert_eq!(result.unwrap().diff_id, diff_id);
        assert!(fs::read(root.path().join("big")).unwrap() == big);
        assert_eq!(fs::read(root.path().join("z")).unwrap(), b"2");
    }
}

#[test]
fn a_source_that_trickles_gives_the_same_result() {
    struct Trickle(Cursor<Vec<u8>>);
    impl Read for Trickle {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let n = buffer.len().min(3);
            self.0.read(&mut buffer[..n])
        }
    }
    let tar = Archive::new().file("a", b"1").file("b", [7; 4000]).finish();
    let directory = TempDir::new().unwrap();
    let fd = fs::File::open(directory.path()).unwrap().into();
    let source = Trickle(Cursor::new(gzip(&tar)));
    let unpacked = unpack::unpack(
        source,
        fd,
        Algorithm::Sha256,
        &Limits::default(),
        &mut Nothing,
    )
    .unwrap();
    assert_eq!(unpacked.diff_id, Digest::sha256_of(&tar));
    assert_eq!(fs::read(directory.path().join("b")).unwrap(), [7; 4000]);
}

#[test]
fn directories_keep_their_times_though_files_come_after_them() {
    let (root, _) = unpacked(
        Archive::new()
            .entry(Head::new(b'5', "d/").mode(0o1777).mtime(1_000_000_000), b"")
            .entry(Head::new(b'5', "d/e").mode(0o500).mtime(1_100_000_000), b"")
            .file("d/e/f", b"x")
            .file("g/h", b"x"),
    );
    let d = fs::metadata(root.path().join("d")).unwrap();
    assert_eq!((d.mtime(), d.mode() & 0o7777), (1_000_000_000, 0o1777));
    let e = fs::metadata(root.path().join("d/e")).unwrap();
    assert_eq!((e.mtime(), e.mode() & 0o7777), (1_100_000_000, 0o500));
    let g = fs::metadata(root.path().join("g")).unwrap();
    assert_eq!((g.mtime(), g.mode() & 0o7777, g.uid()), (0, 0o755, 0));
}

#[test]
fn links_devices_and_fifos_are_made() {
    let mut null = Head::new(b'3', "dev/null").mode(0o666);
    null.device = (1, 3);
    let mut disk = Head::new(b'4', "dev/disk").mode(0o660).owner(0, 6);
    disk.device = (8, 1);
    let (root, _) = unpacked(
        Archive::new()
            .file("usr/bin/a", b"same")
            .hard_link("usr/bin/b", "usr/bin/a")
            .hard_link("usr/bin/c", "/usr/bin/b")
            .symlink("bin", "usr/bin")
            .symlink("abs", "/etc/shadow")
            .symlink("up", "../../../../etc/shadow")
            .hard_link("abs2", "abs")
            .entry(null, b"")
            .entry(disk, b"")
            .entry(Head::new(b'6', "run/fifo").mode(0o600), b""),
    );
    let at = |path: &str| fs::symlink_metadata(root.path().join(path)).unwrap();
    assert_eq!(at("usr/bin/a").ino(), at("usr/bin/c").ino());
    assert_eq!(at("usr/bin/a").nlink(), 3);
    assert_eq!(
        fs::read_link(root.path().join("bin")).unwrap(),
        Path::new("usr/bin")
    );
    assert_eq!(
        fs::read_link(root.path().join("abs")).unwrap(),
        Path::new("/etc/shadow")
    );
    assert_eq!(at("abs").ino(), at("abs2").ino());
    assert_eq!(at("abs").mtime(), 1_600_000_000);
    assert!(at("dev/null").file_type().is_char_device());
    assert_eq!(at("dev/null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(at("dev/null").mode() & 0o7777, 0o666);
    assert!(at("dev/disk").file_type().is_block_device());
    assert_eq!(at("dev/disk").gid(), 6);
    assert!(at("run/fifo").file_type().is_fifo());
}

#[test]
fn extended_attributes_and_capabilities_are_kept_and_overlay_s_own_are_not() {
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let (root, unpacked) = unpacked(
        Archive::new()
            .entry(
                Head::new(b'0', "ping")
                    .owner(5, 5)
                    .pax("SCHILY.xattr.security.capability", capability)
                    .pax("SCHILY.xattr.user.note", b"a=b\nc")
                    .pax("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                b"elf",
            )
            .entry(Head::new(b'5', "dir").pax("SCHILY.xattr.user.d", b"1"), b"")
            .entry(
                Head::new(b'5', "fake").pax("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                b"",
            ),
    );
    let ping = root.path().join("ping");
    assert_eq!(
        xattr(&ping, "security.capability").as_deref(),
        Some(&capability[..])
    );
    assert_eq!(xattr(&ping, "user.note").as_deref(), Some(&b"a=b\nc"[..]));
    assert_eq!(xattr(&ping, "trusted.overlay.redirect"), None);
    assert_eq!(
        xattr(&root.path().join("dir"), "user.d").as_deref(),
        Some(&b"1"[..])
    );
    assert!(!is_opaque(&root.path().join("fake")));
    assert_eq!(unpacked.dropped_xattrs, 0);
}

#[test]
fn pax_values_win_over_the_header() {
    let long = format!("{}/file", "directory-with-a-long-name".repeat(6));
    let (root, _) = unpacked(
        Archive::new()
            .entry(
                Head::new(b'0', &long)
                    .pax("uid", b"3000000")
                    .pax("gid", b"4000000")
                    .pax("mtime", b"1700000000.25"),
                b"x",
            )
            .entry(Head::new(b'0', "old").pax("mtime", b"-2.5"), b"x"),
    );
    let meta = fs::metadata(root.path().join(&long)).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (3_000_000, 4_000_000));
    assert_eq!(
        (meta.mtime(), meta.mtime_nsec()),
        (1_700_000_000, 250_000_000)
    );
    let old = fs::metadata(root.path().join("old")).unwrap();
    assert_eq!((old.mtime(), old.mtime_nsec()), (-3, 500_000_000));
}

#[test]
fn whiteouts_and_opaque_directories_become_what_overlayfs_knows() {
    let (root, _) = unpacked(
        Archive::new()
            .dir("etc")
            .file("etc/.wh.gone", b"")
            .file("etc/.wh.kept", b"")
            .file("etc/kept", b"new")
            .file("etc/early", b"new")
            .file("etc/.wh.early", b"")
            .file("etc/.wh.again", b"")
            .dir("etc/again")
            .dir("etc/before")
            .file("etc/.wh.before", b"")
            .file("var/.wh..wh..opq", b"")
            .file("var/file", b"x")
            .file(".wh..wh.plnk", b"")
            .file(".wh.top", b""),
    );
    let at = |path: &str| root.path().join(path);
    assert!(is_whiteout(&at("etc/gone")));
    assert!(is_whiteout(&at("top")));
    assert_eq!(fs::read(at("etc/kept")).unwrap(), b"new");
    assert_eq!(fs::read(at("etc/early")).unwrap(), b"new");
    // Removed below and made anew here: what was inside must not shine through.
    assert!(is_opaque(&at("etc/again")));
    assert!(is_opaque(&at("etc/before")));
    assert!(is_opaque(&at("var")) && !is_opaque(&at("etc")));
    let names: Vec<_> = fs::read_dir(root.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        names.iter().all(|n| !n.as_bytes().starts_with(b".wh.")),
        "{names:?}"
    );
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let (root, _) = unpacked(
        Archive::new()
            .file("a", b"1")
            .file("a", b"2")
            .dir("b")
            .file("b/x/y", b"1")
            .file("b", b"now a file")
            .file("c", b"1")
            .dir("c")
            .file("c/d", b"2")
            .symlink("e", "c")
            .file("e/through", b"3")
            .file("e", b"4"),
    );
    let read = |path: &str| fs::read(root.path().join(path)).unwrap();
    assert_eq!(read("a"), b"2");
    assert_eq!(read("b"), b"now a file");
    assert_eq!(read("c/d"), b"2");
    assert!(is_opaque(&root.path().join("c")));
    assert_eq!(read("c/through"), b"3");
    assert_eq!(read("e"), b"4");
}

#[test]
fn a_symlink_that_points_out_of_the_layer_leads_nowhere() {
    let outside = TempDir::new().unwrap();
    let target = outside.path().to_str().unwrap().to_owned();
    let relative = format!("../../../../../../../..{target}");
    for link in [&target, &relative] {
        let error = refused(Archive::new().symlink("link", link).file("link/evil", b"x"));
        assert!(
            matches!(error, UnpackError::ParentNotDirectory { .. }),
            "{error}"
        );
        let error = refused(Archive::new().symlink("link", link).dir("link/evil/deep"));
        assert!(
            matches!(error, UnpackError::ParentNotDirectory { .. }),
            "{error}"
        );
        // The entry itself is replaced and never written through.
        let (root, _) = unpacked(
            Archive::new()
                .symlink("link", format!("{link}/f"))
                .file("link", b"x"),
        );
        assert_eq!(fs::read(root.path().join("link")).unwrap(), b"x");
        // With the same path inside of the layer it leads there.
        let inside = format!("{}/evil", &target[1..]);
        let (root, _) = unpacked(
            Archive::new()
                .dir(&target)
                .symlink("link", link)
                .file("link/evil", b"x"),
        );
        assert_eq!(fs::read(root.path().join(inside)).unwrap(), b"x");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn names_and_hard_links_that_lead_out_are_refused() {
    let parent = TempDir::new().unwrap();
    fs::write(parent.path().join("secret"), "s").unwrap();
    for name in ["../x", "a/../../x", "/../x", ".."] {
        let error = refused(Archive::new().file(name, b"x"));
        assert!(
            matches!(error, UnpackError::PathEscapes { .. }),
            "{name}: {error}"
        );
        let error = refused(Archive::new().file("f", b"").hard_link("l", name));
        assert!(
            matches!(error, UnpackError::LinkEscapes { .. }),
            "{name}: {error}"
        );
    }
    let secret = parent.path().join("secret");
    let error = refused(Archive::new().hard_link("l", secret.as_os_str().as_bytes()));
    assert!(
        matches!(error, UnpackError::LinkTargetMissing { .. }),
        "{error}"
    );
    let error = refused(
        Archive::new()
            .symlink("out", parent.path().as_os_str().as_bytes())
            .hard_link("l", "out/secret"),
    );
    assert!(
        matches!(error, UnpackError::LinkTargetMissing { .. }),
        "{error}"
    );
    for whiteout in [".wh...", ".wh..", ".wh.", "d/.wh..."] {
        let error = refused(Archive::new().file(whiteout, b""));
        assert!(
            matches!(error, UnpackError::BadPath { .. }),
            "{whiteout}: {error}"
        );
    }
    assert_eq!(fs::read(secret).unwrap(), b"s");
}

#[test]
fn a_whiteout_through_a_symlink_stays_inside() {
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("victim"), "v").unwrap();
    let error = refused(
        Archive::new()
            .symlink("out", outside.path().as_os_str().as_bytes())
            .file("out/.wh.victim", b""),
    );
    assert!(
        matches!(error, UnpackError::ParentNotDirectory { .. }),
        "{error}"
    );
    let error = refused(
        Archive::new()
            .symlink("out", outside.path().as_os_str().as_bytes())
            .file("out/.wh..wh..opq", b""),
    );
    assert!(
        matches!(error, UnpackError::ParentNotDirectory { .. }),
        "{error}"
    );
    assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"v");
}

#[test]
fn links_to_links_and_loops_end_in_an_error() {
    let error = refused(
        Archive::new()
            .symlink("a", "b")
            .symlink("b", "a")
            .file("a/x", b""),
    );
    assert!(
        matches!(error, UnpackError::ParentNotDirectory { .. }),
        "{error}"
    );
    let error = refused(Archive::new().hard_link("a", "a"));
    assert!(
        matches!(error, UnpackError::LinkTargetMissing { .. }),
        "{error}"
    );
    let error = refused(Archive::new().dir("d").hard_link("a", "d"));
    assert!(
        matches!(error, UnpackError::LinkToDirectory { .. }),
        "{error}"
    );
    let error = refused(Archive::new().file(".wh.w", b"").hard_link("a", "w"));
    assert!(
        matches!(error, UnpackError::LinkTargetMissing { .. }),
        "{error}"
    );
    let error = refused(Archive::new().file("f", b"").file("f/x", b""));
    assert!(
        matches!(error, UnpackError::ParentNotDirectory { .. }),
        "{error}"
    );
}

#[test]
fn the_root_can_only_be_a_directory() {
    let (root, unpacked) =
        unpacked(Archive::new().entry(Head::new(b'5', "/").mode(0o700).owner(1, 2), b""));
    assert_eq!(
        fs::metadata(root.path()).unwrap().permissions().mode() & 0o7777,
        0o700
    );
    let attributes = unpacked.root.unwrap();
    assert_eq!(
        (attributes.uid, attributes.gid, attributes.mode),
        (1, 2, 0o700)
    );
    for kind in [b'0', b'2', b'3', b'6'] {
        let error = refused(Archive::new().entry(Head::new(kind, "./").link("x"), b""));
        assert!(matches!(error, UnpackError::BadPath { .. }), "{error}");
    }
}

#[test]
fn sparse_files_of_all_formats_have_their_holes() {
    let check = |archive: Archive, name: &str| {
        let (root, _) = unpacked(archive.file("after", b"ok"));
        let path = root.path().join(name);
        let mut expected = vec![0u8; 5_000_000];
        expected[4096..4099].copy_from_slice(b"abc");
        expected[4_000_000..4_000_002].copy_from_slice(b"de");
        assert!(fs::read(&path).unwrap() == expected);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 100_000);
        assert_eq!(fs::read(root.path().join("after")).unwrap(), b"ok");
    };
    let zero = Head::new(b'0', "GNUSparseFile.1/s")
        .pax("GNU.sparse.size", b"5000000")
        .pax("GNU.sparse.numblocks", b"2")
        .pax("GNU.sparse.offset", b"4096")
        .pax("GNU.sparse.numbytes", b"3")
        .pax("GNU.sparse.offset", b"4000000")
        .pax("GNU.sparse.numbytes", b"2");
    check(Archive::new().entry(zero, b"abcde"), "GNUSparseFile.1/s");
    let one = Head::new(b'0', "GNUSparseFile.1/s")
        .pax("GNU.sparse.size", b"5000000")
        .pax("GNU.sparse.name", b"real")
        .pax("GNU.sparse.map", b"4096,3,4000000,2");
    check(Archive::new().entry(one, b"abcde"), "real");
    let mut content = b"2\n4096\n3\n4000000\n2\n".to_vec();
    content.resize(512, 0);
    content.extend(b"abcde");
    let two = Head::new(b'0', "GNUSparseFile.1/s")
        .pax("GNU.sparse.major", b"1")
        .pax("GNU.sparse.minor", b"0")
        .pax("GNU.sparse.realsize", b"5000000")
        .pax("GNU.sparse.name", b"real");
    check(Archive::new().entry(two, &content), "real");
    // The old format keeps its map in the header, whose magic differs.
    let mut block = header_block(&Head::new(b'S', "old"), 5);
    block[257..265].copy_from_slice(b"ustar  \0");
    block[329..345].fill(0);
    for (n, (offset, length)) in [(4096, 3), (4_000_000, 2)].into_iter().enumerate() {
        let at = 386 + 24 * n;
        block[at..at + 24].copy_from_slice(format!("{offset:011o}\0{length:011o}\0").as_bytes());
    }
    block[483..495].copy_from_slice(format!("{:011o}\0", 5_000_000).as_bytes());
    seal(&mut block);
    let mut content = b"abcde".to_vec();
    content.resize(512, 0);
    check(Archive::new().raw(&block).raw(&content), "old");
}

/// Found by the fuzzer: the parser asks for more until it has seen a line end.
#[test]
fn a_map_of_holes_that_does_not_end_is_refused() {
    let with_map = |map: &[u8]| {
        let head = Head::new(b'0', "s")
            .pax("GNU.sparse.major", b"1")
            .pax("GNU.sparse.minor", b"0")
            .pax("GNU.sparse.realsize", b"4096");
        refused(Archive::new().entry(head, map))
    };
    let error = with_map(b"abc");
    assert!(matches!(error, UnpackError::Truncated { .. }), "{error}");
    let error = with_map(&vec![b'1'; 6 << 20]);
    assert!(
        matches!(
            error,
            UnpackError::Limit {
                limit: 4_194_304,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_hard_link_to_a_file_of_a_lower_layer_copies_it_up() {
    let (bottom, _) = unpacked(
        Archive::new()
            .entry(
                Head::new(b'0', "usr/tool")
                    .mode(0o4711)
                    .owner(7, 8)
                    .pax("SCHILY.xattr.user.k", b"v"),
                b"tool",
            )
            .file("hidden", b"x")
            .dir("opaque")
            .file("opaque/f", b"x"),
    );
    let (middle, _) = over(
        &[bottom.path()],
        Archive::new()
            .file(".wh.hidden", b"")
            .file("opaque/.wh..wh..opq", b""),
    );
    let lower = [middle.path(), bottom.path()];
    let (root, result) = over(&lower, Archive::new().hard_link("tool2", "usr/tool"));
    assert!(result.depends_on_lower);
    let copy = fs::metadata(root.path().join("usr/tool")).unwrap();
    let link = fs::metadata(root.path().join("tool2")).unwrap();
    assert_eq!(copy.ino(), link.ino());
    assert_eq!(
        (link.uid(), link.gid(), link.mode() & 0o7777),
        (7, 8, 0o4711)
    );
    assert_eq!(
        xattr(&root.path().join("tool2"), "user.k").as_deref(),
        Some(&b"v"[..])
    );
    assert_eq!(fs::read(root.path().join("tool2")).unwrap(), b"tool");
    for gone in ["hidden", "opaque/f", "nowhere"] {
        let mut lower: Vec<PathBuf> = lower.iter().map(|p| p.to_path_buf()).collect();
        let archive = Archive::new().hard_link("l", gone).finish();
        let (_root, result) = unpack_over(archive, &Limits::default(), &mut lower);
        assert!(
            matches!(result, Err(UnpackError::LinkTargetMissing { .. })),
            "{gone}"
        );
    }
}

#[test]
fn a_directory_without_an_entry_keeps_what_it_is_below() {
    let (bottom, _) = unpacked(
        Archive::new()
            .entry(Head::new(b'5', "tmp").mode(0o1777).mtime(1_000), b"")
            .entry(Head::new(b'5', "home").mode(0o700).owner(9, 9), b""),
    );
    let (root, result) = over(
        &[bottom.path()],
        Archive::new().file("tmp/x", b"").file("new/y", b""),
    );
    let tmp = fs::metadata(root.path().join("tmp")).unwrap();
    assert_eq!((tmp.mode() & 0o7777, tmp.mtime()), (0o1777, 1_000));
    assert!(result.depends_on_lower);
    let (_root, result) = over(
        &[bottom.path()],
        Archive::new().dir("tmp").file("tmp/x", b""),
    );
    assert!(!result.depends_on_lower);
    let (_root, result) = over(&[bottom.path()], Archive::new().file("new/y", b""));
    assert!(!result.depends_on_lower);
}

#[test]
fn damaged_archives_are_refused_with_the_reason() {
    let tar = Archive::new()
        .file("a", [1; 3000])
        .file("b", [2; 3000])
        .finish();
    let cut = |bytes: &[u8], at: usize| {
        unpack_over(bytes[..at].to_vec(), &Limits::default(), &mut Nothing).1
    };
    assert!(matches!(cut(&tar, 700), Err(UnpackError::Truncated { .. })));
    assert!(matches!(
        cut(&tar, 4_000),
        Err(UnpackError::Truncated { .. })
    ));
    let packed = gzip(&tar);
    assert!(matches!(
        cut(&packed, packed.len() / 2),
        Err(UnpackError::Inflate { .. })
    ));
    assert!(matches!(
        cut(&packed, packed.len() - 4),
        Err(UnpackError::Inflate { .. })
    ));
    let packed = zstd(&tar);
    assert!(matches!(
        cut(&packed, packed.len() - 4),
        Err(UnpackError::Inflate { .. })
    ));
    let mut altered = gzip(&tar);
    let end = altered.len();
    altered[end - 6] ^= 1;
    assert!(matches!(
        cut(&altered, end),
        Err(UnpackError::Inflate { .. })
    ));
    let mut altered = tar.clone();
    altered[0] ^= 1;
    assert!(matches!(
        cut(&altered, tar.len()),
        Err(UnpackError::Archive { .. })
    ));
    assert!(matches!(
        cut(b"<html>not a layer</html>", 24),
        Err(UnpackError::Truncated { .. })
    ));
    let error = refused(Archive::new().entry(Head::new(b'0', "n").pax("size", b"many"), b""));
    assert!(matches!(error, UnpackError::BadValue { .. }), "{error}");
    let error = refused(Archive::new().entry(Head::new(b'0', "n").pax("uid", b"4294967295"), b""));
    assert!(matches!(error, UnpackError::BadValue { .. }), "{error}");
    let error = refused(Archive::new().entry(Head::new(b'M', "multi"), b""));
    assert!(
        matches!(error, UnpackError::UnsupportedType { .. }),
        "{error}"
    );
}

#[test]
fn an_archive_may_end_without_its_mark_and_an_empty_one_is_one() {
    for archive in [
        Archive::new().file("a", b"1").unfinished(),
        Vec::new(),
        vec![0; 512],
        vec![0; 10_240],
    ] {
        let diff_id = Digest::sha256_of(&archive);
        let (_root, result) = unpack_over(archive, &Limits::default(), &mut Nothing);
        assert_eq!(result.unwrap().diff_id, diff_id);
    }
}

#[test]
fn limits_hold() {
    let limited = |limits: Limits, archive: Vec<u8>| {
        let (_root, result) = unpack_over(archive, &limits, &mut Nothing);
        matches!(result, Err(UnpackError::Limit { .. }))
    };
    let many = (0..40)
        .fold(Archive::new(), |a, n| a.file(format!("f{n}"), b""))
        .finish();
    let limits = Limits {
        entries: 39,
        ..Limits::default()
    };
    assert!(limited(limits, many));
    let limits = Limits {
        unpacked_bytes: 1 << 20,
        ..Limits::default()
    };
    assert!(limited(
        limits.clone(),
        gzip(&Archive::new().file("f", vec![0; 2 << 20]).finish())
    ));
    let mut lying = Head::new(b'0', "f").pax("size", b"18446744073709551615");
    lying.size = Some(0);
    assert!(limited(limits, Archive::new().entry(lying, b"").finish()));
    let dirs = (0..40)
        .fold(Archive::new(), |a, n| a.dir(format!("d{n}")))
        .finish();
    let limits = Limits {
        directory_table_bytes: 1_000,
        ..Limits::default()
    };
    assert!(limited(limits, dirs));
    let deep = Archive::new().file("d/".repeat(300), b"").finish();
    let (_root, result) = unpack_over(deep, &Limits::default(), &mut Nothing);
    assert!(matches!(result, Err(UnpackError::BadPath { .. })));
}

#[test]
fn a_bomb_is_stopped_by_its_ratio() {
    // 2 GiB of zeros in a few kilobytes of zstd.
    struct Zeros(u64);
    impl Read for Zeros {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let n = buffer.len().min(usize::try_from(self.0).unwrap());
            buffer[..n].fill(0);
            self.0 -= n as u64;
            Ok(n)
        }
    }
    let mut head = Head::new(b'0', "zeros");
    head.size = Some(2 << 30);
    let head = Archive::new().entry(head, b"").unfinished();
    let bomb = zstd::encode_all(Cursor::new(head).chain(Zeros(2 << 30)), 1).unwrap();
    let (_root, result) = unpack_over(bomb, &Limits::default(), &mut Nothing);
    let error = result.unwrap_err();
    assert!(
        matches!(error, UnpackError::Limit { limit: 200, .. }),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_archive_writes_outside_or_panics(
        entries in prop::collection::vec(
            (prop::sample::select(&b"012356"[..]), "[ab.wh/]{1,9}", "[ab./]{0,9}"), 1..12)
    ) {
        let cage = TempDir::new().unwrap();
        let layer = cage.path().join("a");
        fs::create_dir(&layer).unwrap();
        fs::write(cage.path().join("b"), "outside").unwrap();
        let archive = entries.iter().fold(Archive::new(), |archive, (kind, name, link)| {
            archive.entry(Head::new(*kind, name).link(link), b"")
        });
        let fd = fs::File::open(&layer).unwrap().into();
        let _ = unpack::unpack(
            Cursor::new(archive.finish()), fd, Algorithm::Sha256, &Limits::default(), &mut Nothing);
        prop_assert_eq!(fs::read_dir(cage.path()).unwrap().count(), 2);
        prop_assert_eq!(fs::read(cage.path().join("b")).unwrap(), b"outside");
        prop_assert_eq!(fs::metadata(cage.path().join("b")).unwrap().nlink(), 1);
    }
}
