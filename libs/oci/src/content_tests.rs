use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path().join("content")).unwrap();
    (root, store)
}

fn ingest(store: &Store, bytes: &[u8]) -> Writer {
    let mut writer = store.writer(&IngestKey::random()).unwrap();
    writer.write(bytes).unwrap();
    writer
}

fn files(store: &Store, directory: &str) -> usize {
    fs::read_dir(store.root().join(directory)).unwrap().count()
}

#[test]
fn what_is_committed_can_be_read_by_its_digest() {
    let (_root, store) = store();
    for durability in [Commit::Durable, Commit::Deferred] {
        let text = format!("hello {durability:?}");
        let done = ingest(&store, text.as_bytes())
            .commit(&Expected::anything(), durability)
            .unwrap();
        assert_eq!(done.digest, Digest::sha256_of(text.as_bytes()));
        assert!(!done.existed);
        assert_eq!(store.read(&done.digest, 100).unwrap(), text.as_bytes());
        assert_eq!(store.stat(&done.digest).unwrap().size, text.len() as u64);
    }
    assert_eq!(store.list().unwrap().len(), 2);
    assert_eq!(files(&store, "ingest"), 0);
}

#[test]
fn content_that_lies_is_removed_and_never_gets_a_name() {
    let (_root, store) = store();
    let wrong = Digest::sha256_of(b"other");
    let error = ingest(&store, b"hello").commit(&Expected::digest(&wrong), Commit::Durable);
    assert!(matches!(error, Err(ContentError::DigestMismatch { .. })));
    let right = Digest::sha256_of(b"hello");
    let error = ingest(&store, b"hello").commit(&Expected::exactly(&right, 4), Commit::Durable);
    assert!(matches!(error, Err(ContentError::TooLong { .. })));
    assert!(store.list().unwrap().is_empty());
    assert_eq!(files(&store, "ingest"), 0);
}

#[test]
fn a_short_ingest_is_kept_and_resumed_to_the_same_digest() {
    let (_root, store) = store();
    let whole = Digest::sha256_of(b"hello world");
    let key = IngestKey::for_digest(&whole);
    let mut writer = store.writer(&key).unwrap();
    writer.reserve(1 << 20).unwrap();
    writer.write(b"hello ").unwrap();
    let error = writer.commit(&Expected::exactly(&whole, 11), Commit::Durable);
    assert!(matches!(
        error,
        Err(ContentError::Truncated {
            expected: 11,
            found: 6
        })
    ));

    let store = Store::open(store.root()).unwrap();
    assert_eq!(store.list_ingests().unwrap()[0].offset, 6);
    let mut writer = store.writer(&key).unwrap();
    assert_eq!(writer.offset(), 6);
    writer.write(b"world").unwrap();
    writer
        .commit(&Expected::exactly(&whole, 11), Commit::Durable)
        .unwrap();
    store.verify(&whole).unwrap();
    let blocks =
        std::os::unix::fs::MetadataExt::blocks(&fs::metadata(store.blob_path(&whole)).unwrap());
    assert!(
        blocks < 1024,
        "the reserve was given back, {blocks} blocks are left"
    );
}

#[test]
fn an_ingest_has_one_writer_and_can_be_removed_by_nobody_else() {
    let (_root, store) = store();
    let key = IngestKey::parse("upload-1").unwrap();
    let writer = store.writer(&key).unwrap();
    assert!(matches!(store.writer(&key), Err(ContentError::Busy { .. })));
    assert!(matches!(
        store.remove_ingest(&key),
        Err(ContentError::Busy { .. })
    ));
    drop(writer);
    store.remove_ingest(&key).unwrap();
    assert!(matches!(
        store.remove_ingest(&key),
        Err(ContentError::IngestNotFound { .. })
    ));
}

#[test]
fn writers_of_the_same_content_do_not_disturb_each_other() {
    let (_root, store) = store();
    let bytes = vec![7_u8; 300_000];
    let commits: Vec<Committed> = std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..8)
            .map(|at| {
                let (store, bytes) = (store.clone(), &bytes);
                scope.spawn(move || {
                    let durability = [Commit::Durable, Commit::Deferred][at % 2];
                    ingest(&store, bytes)
                        .commit(&Expected::anything(), durability)
                        .unwrap()
                })
            })
            .collect();
        tasks.into_iter().map(|task| task.join().unwrap()).collect()
    });
    assert!(commits.iter().all(|done| done.digest == commits[0].digest));
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(files(&store, "ingest"), 0);
    store.verify(&commits[0].digest).unwrap();
}

#[test]
fn a_sync_settles_what_was_deferred() {
    let (_root, store) = store();
    store.put(b"one", Commit::Deferred).unwrap();
    store.put(b"two", Commit::Durable).unwrap();
    assert_eq!(files(&store, "pending"), 1);
    store.sync_all_pending().unwrap();
    assert_eq!(files(&store, "pending"), 0);
    let gone = store.put(b"three", Commit::Deferred).unwrap();
    store.delete(&gone).unwrap();
    assert_eq!(files(&store, "pending"), 0);
    store.sync_all_pending().unwrap();
}

#[test]
fn opening_removes_deferred_content_that_did_not_reach_the_disk() {
    let (_root, store) = store();
    let lost = store
        .put(b"lost in the page cache", Commit::Deferred)
        .unwrap();
    let kept = store.put(b"kept", Commit::Deferred).unwrap();
    fs::write(store.blob_path(&lost), b"\0\0\0\0").unwrap();
    let store = Store::open(store.root()).unwrap();
    assert!(!store.contains(&lost));
    assert!(store.contains(&kept));
    assert_eq!(files(&store, "pending"), 0);
}

#[test]
fn damage_on_the_disk_is_seen_when_reading_and_mended_by_writing_again() {
    let (_root, store) = store();
    let digest = store.put(b"content", Commit::Durable).unwrap();
    fs::write(store.blob_path(&digest), b"c0ntent").unwrap();
    assert!(matches!(
        store.read(&digest, 100),
        Err(ContentError::Damaged { .. })
    ));
    fs::write(store.blob_path(&digest), b"").unwrap();
    store.put(b"content", Commit::Durable).unwrap();
    assert_eq!(store.read(&digest, 100).unwrap(), b"content");
    assert!(matches!(
        store.read(&digest, 3),
        Err(ContentError::TooLarge { .. })
    ));
}

#[test]
fn the_digest_may_be_of_another_algorithm_than_the_writer_hashed_with() {
    let (_root, store) = store();
    let digest = Digest::of(Algorithm::Sha512, b"long");
    ingest(&store, b"long")
        .commit(&Expected::digest(&digest), Commit::Durable)
        .unwrap();
    assert_eq!(store.read(&digest, 10).unwrap(), b"long");
    assert_eq!(store.list().unwrap()[0].digest, digest);
}

#[test]
fn an_open_blob_stays_readable_after_it_is_deleted() {
    let (_root, store) = store();
    let digest = store.put(b"bytes", Commit::Durable).unwrap();
    let (mut file, size) = store.open_blob(&digest).unwrap();
    assert_eq!(store.delete(&digest).unwrap(), size);
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "bytes");
    assert!(matches!(
        store.open_blob(&digest),
        Err(ContentError::NotFound { .. })
    ));
}

#[test]
fn a_writer_can_begin_again() {
    let (_root, store) = store();
    let mut writer = ingest(&store, b"false start");
    writer.restart().unwrap();
    writer.write(b"good").unwrap();
    let done = writer
        .commit(&Expected::anything(), Commit::Durable)
        .unwrap();
    assert_eq!(done.digest, Digest::sha256_of(b"good"));
    assert_eq!(done.size, 4);
}

#[test]
fn names_that_could_leave_the_directory_are_refused() {
    for bad in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        ".hidden",
        "a\0b",
        &"x".repeat(201),
    ] {
        assert!(IngestKey::parse(bad).is_err(), "{bad:?} was accepted");
    }
}

/// Bytes that differ in every block.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at ^ (at >> 11)) as u8).collect()
}

/// A writer that waits for the disk itself, or leaves that to another thread.
fn writer(store: &Store, key: &IngestKey, behind: bool) -> Writer {
    let mut writer = store.writer(key).unwrap();
    if behind {
        writer.write_behind();
    }
    writer
}

#[test]
fn large_content_is_whole_whatever_the_pieces_it_came_in() {
    let (_root, store) = store();
    let bytes = pattern((9 << 20) + 1234);
    let pieces = [4096, 100_003, 1 << 20, (5 << 20) + 7, bytes.len()];
    for (piece, behind) in pieces.into_iter().flat_map(|n| [(n, false), (n, true)]) {
        let mut writer = writer(&store, &IngestKey::random(), behind);
        writer.reserve(bytes.len() as u64).unwrap();
        for part in bytes.chunks(piece) {
            writer.write(part).unwrap();
        }
        let size = bytes.len() as u64;
        let done = writer
            .commit(
                &Expected::exactly(&Digest::sha256_of(&bytes), size),
                Commit::Durable,
            )
            .unwrap();
        store.verify(&done.digest).unwrap();
        assert_eq!(store.delete(&done.digest).unwrap(), size);
    }
}

#[test]
fn large_content_is_whole_after_flushes_and_resumptions_at_odd_places() {
    let (_root, store) = store();
    let bytes = pattern(12 << 20);
    for behind in [false, true] {
        resume_at_odd_places(&store, &bytes, behind);
    }
}

fn resume_at_odd_places(store: &Store, bytes: &[u8], behind: bool) {
    let key = IngestKey::parse("odd").unwrap();
    let mut at = 0;
    for end in [4_194_305, 5_000_000, 5_000_001, 9_999_999, bytes.len()] {
        let mut writer = writer(store, &key, behind);
        assert_eq!(writer.offset(), at as u64);
        let middle = (at + end) / 2;
        writer.write(&bytes[at..middle]).unwrap();
        writer.flush().unwrap();
        assert_eq!(store.stat_ingest(&key).unwrap().offset, middle as u64);
        writer.write(&bytes[middle..end]).unwrap();
        at = end;
    }
    let done = store
        .writer(&key)
        .unwrap()
        .commit(&Expected::anything(), Commit::Deferred)
        .unwrap();
    assert_eq!(done.digest, Digest::sha256_of(bytes));
    store.verify(&done.digest).unwrap();
    store.delete(&done.digest).unwrap();
}

#[test]
fn large_content_can_begin_again_and_be_named_by_another_algorithm() {
    let (_root, store) = store();
    let bytes = pattern(6 << 20);
    for behind in [false, true] {
        let mut writer = writer(&store, &IngestKey::random(), behind);
        writer.write(&bytes[1..]).unwrap();
        writer.restart().unwrap();
        writer.write(&bytes).unwrap();
        let digest = Digest::of(Algorithm::Sha512, &bytes);
        writer
            .commit(&Expected::digest(&digest), Commit::Durable)
            .unwrap();
        store.verify(&digest).unwrap();
        store.delete(&digest).unwrap();
    }
}

#[test]
fn a_reader_beside_the_writer_finds_all_that_is_written() {
    let (_root, store) = store();
    let bytes = pattern((9 << 20) + 1234);
    for behind in [false, true] {
        let key = IngestKey::random();
        let mut writer = writer(&store, &key, behind);
        let mut held_back = 0;
        for part in bytes.chunks(100_003) {
            writer.write(part).unwrap();
            let found = store.stat_ingest(&key).unwrap().offset;
            assert!(writer.written() <= found);
            assert!(behind || writer.written() == found);
            held_back = held_back.max(writer.offset() - writer.written());
        }
        assert!(held_back > 0, "nothing was in memory, so nothing was shown");
        assert!(held_back < 5 << 20, "{held_back} bytes were in memory");
        writer.flush().unwrap();
        assert_eq!(writer.written(), bytes.len() as u64);
        assert_eq!(store.stat_ingest(&key).unwrap().offset, bytes.len() as u64);
        writer.abort().unwrap();
    }
}

#[test]
fn sealed_content_has_no_name_until_it_is_given_one() {
    let (_root, store) = store();
    let wrong = Digest::sha256_of(b"other");
    let error = ingest(&store, b"hello").seal(&Expected::digest(&wrong));
    assert!(matches!(error, Err(ContentError::DigestMismatch { .. })));
    assert_eq!(files(&store, "ingest"), 0);

    let [first, second, third] = [0, 1, 2].map(|_| {
        ingest(&store, b"hello")
            .seal(&Expected::anything())
            .unwrap()
    });
    assert_eq!(first.digest, Digest::sha256_of(b"hello"));
    assert!(store.list().unwrap().is_empty());
    let done = store.commit_sealed(&first, Commit::Deferred).unwrap();
    assert_eq!((done.size, done.existed), (5, false));
    assert_eq!(store.read(&first.digest, 100).unwrap(), b"hello");
    let again = store.commit_sealed(&second, Commit::Durable).unwrap();
    assert!(again.existed);
    store.remove_ingest(&third.key).unwrap();
    assert_eq!(files(&store, "ingest"), 0);
    let error = store.open_ingest(&third.key).unwrap_err();
    assert!(matches!(error, ContentError::IngestNotFound { .. }));
}

#[test]
fn what_is_put_again_replaces_what_was_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let digest = store.put(b"content", Commit::Durable).unwrap();
    std::fs::write(store.blob_path(&digest), b"c0ntent").unwrap();
    assert!(matches!(
        store.verify(&digest),
        Err(ContentError::Damaged { .. })
    ));
    store.put(b"content", Commit::Durable).unwrap();
    store.verify(&digest).unwrap();
}

#[test]
fn an_ingest_is_being_written_while_its_writer_lives() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let key = IngestKey::parse("k").unwrap();
    let writer = store.writer(&key).unwrap();
    assert!(store.is_being_written(&key));
    drop(writer);
    assert!(!store.is_being_written(&key));
    let writer = store.writer(&key).unwrap();
    writer
        .commit(&Expected::anything(), Commit::Deferred)
        .unwrap();
    assert!(!store.is_being_written(&key));
}
