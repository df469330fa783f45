use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::*;

/// Line `number` was logged so many milliseconds after the epoch.
fn write_lines(directory: &Path, segment: u64, numbers: std::ops::Range<u64>) {
    let mut text = String::new();
    for number in numbers {
        let time = jiff::Timestamp::from_millisecond(i64::try_from(number).unwrap()).unwrap();
        text.push_str(&format!("{time:.9} stdout F {number}\n"));
    }
    fs::write(directory.join(format!("{segment}.log")), text).unwrap();
}

fn at(number: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(number)
}

fn query() -> Query {
    Query {
        since: None,
        until: None,
        tail: None,
        out: true,
        err: true,
    }
}

fn numbers(directory: &Path, query: &Query) -> Vec<u64> {
    let mut reader = Reader::open(directory, query).unwrap();
    let mut numbers = Vec::new();
    while let Some(entries) = reader.next().unwrap() {
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            let text = std::str::from_utf8(&entry.data).unwrap();
            numbers.push(text.trim_end().parse().unwrap());
        }
    }
    numbers
}

fn three_segments() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    write_lines(directory.path(), 7, 0..30_000);
    write_lines(directory.path(), 8, 30_000..60_000);
    write_lines(directory.path(), 10, 60_000..60_010);
    directory
}

#[test]
fn since_begins_exactly_there_wherever_it_is() {
    let log = three_segments();
    for first in [0, 1, 12_345, 29_999, 30_000, 30_001, 59_999, 60_000, 60_009] {
        let query = Query {
            since: Some(at(first)),
            ..query()
        };
        let numbers = numbers(log.path(), &query);
        assert_eq!(numbers.first(), Some(&first));
        assert_eq!(numbers.len() as u64, 60_010 - first);
    }
}

#[test]
fn since_a_time_after_the_last_entry_gives_none() {
    let log = three_segments();
    let query = Query {
        since: Some(at(70_000)),
        ..query()
    };
    assert!(numbers(log.path(), &query).is_empty());
}

#[test]
fn until_ends_before_that_time() {
    let log = three_segments();
    let query = Query {
        since: Some(at(29_990)),
        until: Some(at(30_010)),
        ..query()
    };
    assert_eq!(
        numbers(log.path(), &query),
        (29_990..30_010).collect::<Vec<_>>()
    );
}

#[test]
fn tail_counts_lines_back_over_segments() {
    let log = three_segments();
    for count in [0, 1, 10, 11, 20_000, 30_010, 30_011, 60_010, 99_999] {
        let query = Query {
            tail: Some(count),
            ..query()
        };
        let numbers = numbers(log.path(), &query);
        assert_eq!(numbers.len() as u64, count.min(60_010), "{count}");
        assert!(count == 0 || numbers.last() == Some(&60_009));
    }
}

#[test]
fn parts_of_a_long_line_are_one_line_to_tail() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("1.log"),
        "1970-01-01T00:00:00.000000001Z stdout F 1\n\
         1970-01-01T00:00:00.000000002Z stdout P 2\n\
         1970-01-01T00:00:00.000000003Z stdout F 3\n\
         1970-01-01T00:00:00.000000004Z stdout P 4\n",
    )
    .unwrap();
    let last = |count| {
        let query = Query {
            tail: Some(count),
            ..query()
        };
        numbers(directory.path(), &query)
    };
    assert_eq!(last(1), [4]);
    assert_eq!(last(2), [2, 3, 4]);
    assert_eq!(last(3), [1, 2, 3, 4]);
}

#[test]
fn an_entry_that_is_being_written_waits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("1.log");
    let whole = "1970-01-01T00:00:00.000000001Z stdout F 1\n";
    fs::write(&path, format!("{whole}1970-01-01T00:00")).unwrap();
    assert_eq!(numbers(directory.path(), &query()), [1]);
}
