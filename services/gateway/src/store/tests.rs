use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::state::State;
use crate::wanted::Wanted;

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&Paths::under(directory.path()).unwrap()).unwrap();
    store.load().unwrap();
    (directory, store)
}

fn record(auto_remove: bool) -> Record {
    let wanted = Wanted {
        image: "debian".to_owned(),
        auto_remove,
        ..Wanted::default()
    };
    Record::new(ContainerId::random().unwrap(), "one".to_owned(), wanted)
}

/// Makes the store believe that the machine was started since.
fn reboot(store: &Store) {
    fs::write(&store.boot, "another boot").unwrap();
}

#[test]
fn a_record_is_read_as_it_was_written() {
    for auto_remove in [false, true] {
        let (_directory, store) = store();
        let record = record(auto_remove);
        store.save(&record, true).unwrap();
        let loaded = store.load().unwrap();
        assert_eq!(loaded.records.len(), 1);
        assert_eq!(loaded.records[0].id, record.id);
        assert_eq!(loaded.records[0].wanted, record.wanted);
        assert_eq!(loaded.records[0].created, record.created);
        store.remove(&record).unwrap();
        assert!(store.load().unwrap().records.is_empty());
    }
}

#[test]
fn an_older_revision_never_replaces_a_newer_one() {
    for durable in [true, false] {
        let (_directory, store) = store();
        let mut record = record(false);
        record.revision = 2;
        store.save(&record, durable).unwrap();
        let mut older = record.clone();
        older.revision = 1;
        older.name = "stale".to_owned();
        store.save(&older, durable).unwrap();
        assert_eq!(store.load().unwrap().records[0].name, "one");
        store.remove(&record).unwrap();
        store.save(&record, durable).unwrap();
        assert!(store.load().unwrap().records.is_empty());
    }
}

#[test]
fn a_volatile_record_counts_until_the_machine_stops_and_never_touches_the_durable_one() {
    let (_directory, store) = store();
    let mut record = record(false);
    store.save(&record, true).unwrap();
    let path = file_of(&store.durable, &record.id);
    let before = fs::metadata(&path).unwrap().ino();
    record.revision = 1;
    record.state = State::Starting;
    store.save(&record, false).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), before);
    assert_eq!(store.load().unwrap().records[0].state, State::Starting);
    // A power cut leaves any or nothing of what was not synced.
    let volatile = file_of(&store.volatile, &record.id);
    fs::write(&volatile, b"").unwrap();
    reboot(&store);
    let loaded = store.load().unwrap();
    assert!(loaded.rebooted && loaded.damaged.is_empty());
    assert_eq!(loaded.records[0].state, State::Creating);
    assert!(!volatile.exists());
}

#[test]
fn a_whole_volatile_record_of_another_boot_does_not_count_either() {
    let (_directory, store) = store();
    let mut record = record(false);
    store.save(&record, true).unwrap();
    record.revision = 1;
    record.state = State::Running;
    store.save(&record, false).unwrap();
    reboot(&store);
    assert_eq!(store.load().unwrap().records[0].state, State::Creating);
    // What never had a durable one does: it is undone or removed by it.
    let temporary = self::record(true);
    store.save(&temporary, true).unwrap();
    reboot(&store);
    let loaded = store.load().unwrap();
    assert!(loaded.records.iter().any(|found| found.id == temporary.id));
}

#[test]
fn a_durable_record_takes_the_place_of_older_volatile_ones_only() {
    let (_directory, store) = store();
    let mut record = record(false);
    let older = record.clone();
    record.revision = 2;
    record.name = "volatile".to_owned();
    store.save(&record, false).unwrap();
    store.save(&older, true).unwrap();
    assert_eq!(store.load().unwrap().records[0].name, "volatile");
    record.revision = 3;
    record.name = "durable".to_owned();
    store.save(&record, true).unwrap();
    assert_eq!(store.load().unwrap().records[0].name, "durable");
    assert!(!file_of(&store.volatile, &record.id).exists());
}

#[test]
fn a_first_start_with_a_boot_file_is_no_reboot() {
    let (_directory, store) = store();
    assert!(!store.load().unwrap().rebooted);
    fs::remove_file(&store.boot).unwrap();
    assert!(!store.load().unwrap().rebooted);
    reboot(&store);
    assert!(store.load().unwrap().rebooted);
    assert!(!store.load().unwrap().rebooted);
}

#[test]
fn a_damaged_record_is_set_aside_with_its_name_and_the_others_are_read() {
    for text in ["", "{\"id\":\"aaaa\",\"name\":\"web\",\"crea", "[]"] {
        let (_directory, store) = store();
        store.save(&record(false), true).unwrap();
        let id = ContainerId::try_from("a".repeat(64)).unwrap();
        let bad = file_of(&store.durable, &id);
        fs::write(&bad, text).unwrap();
        // It stays aside however often the service starts.
        for _ in 0..3 {
            let loaded = store.load().unwrap();
            assert_eq!(loaded.records.len(), 1);
            assert_eq!(loaded.damaged.len(), 1);
            assert_eq!(loaded.damaged[0].id, Some(id.clone()));
            let name = text.contains("web").then(|| "web".to_owned());
            assert_eq!(loaded.damaged[0].name, name);
            assert!(loaded.damaged[0].path.exists() && !bad.exists());
            assert_eq!(store.kept_aside().unwrap(), loaded.damaged);
        }
    }
}

#[test]
fn a_damaged_record_that_was_repaired_is_used_again() {
    let (_directory, store) = store();
    let record = record(false);
    store.save(&record, true).unwrap();
    let path = file_of(&store.durable, &record.id);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..100]).unwrap();
    let damaged = store.load().unwrap().damaged.remove(0);
    fs::write(&damaged.path, &whole).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.records[0].name, "one");
    assert!(loaded.damaged.is_empty() && store.kept_aside().unwrap().is_empty());
    assert_eq!(fs::read(&path).unwrap(), whole);
}

#[test]
fn removing_the_stand_in_of_a_damaged_record_removes_all_its_files() {
    let (_directory, store) = store();
    let id = ContainerId::try_from("a".repeat(64)).unwrap();
    for _ in 0..2 {
        fs::write(file_of(&store.durable, &id), b"{").unwrap();
        store.load().unwrap();
    }
    assert_eq!(store.kept_aside().unwrap().len(), 2);
    let damaged = store.kept_aside().unwrap().remove(0);
    let stand_in = Record::stand_in(id, damaged);
    // It is never written in the place of the record.
    store.save(&stand_in, true).unwrap();
    assert!(store.load().unwrap().records.is_empty());
    store.remove(&stand_in).unwrap();
    assert!(store.kept_aside().unwrap().is_empty());
}

#[test]
fn drafts_are_removed_and_foreign_files_are_kept() {
    let (_directory, store) = store();
    let record = record(false);
    store.save(&record, true).unwrap();
    let path = file_of(&store.durable, &record.id);
    let drafts = [
        durable::draft_of(&path),
        store.durable.join(format!("{}.json.7", record.id)),
    ];
    for draft in &drafts {
        fs::write(draft, b"{").unwrap();
    }
    let foreign = store.durable.join("notes.txt");
    fs::write(&foreign, b"somebody's").unwrap();
    let directory = store.durable.join("lost+found");
    fs::create_dir(&directory).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.records.len(), 1);
    assert_eq!(loaded.damaged.len(), 1);
    assert_eq!(loaded.damaged[0].id, None);
    assert!(drafts.iter().all(|draft| !draft.exists()));
    assert!(directory.exists());
    let kept = fs::read(&loaded.damaged[0].path).unwrap();
    assert_eq!(kept, b"somebody's");
}
