use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::*;

/// Line `number` was logged so many milliseconds after the epoch.
fn write_lines(directory: &Path, segment: u64, numbers: std::ops::Range<u64>) {
    write_wide_lines(directory, segment, numbers, 0);
}

/// The same, each at least so wide.
fn write_wide_lines(directory: &Path, segment: u64, numbers: std::ops::Range<u64>, width: usize) {
    let mut text = String::new();
    for number in numbers {
        let time = jiff::Timestamp::from_millisecond(i64::try_from(number).unwrap()).unwrap();
        text.push_str(&format!("{time:.9} stdout F {number:0width$}\n"));
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
    write_lines(directory.path(), 9, 60_000..60_010);
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

/// Numbers of lines, and where some are missing how many: `Err`.
fn with_gaps(reader: &mut Reader) -> Vec<Result<u64, u64>> {
    let mut found = Vec::new();
    while let Some(entries) = reader.next().unwrap() {
        if entries.is_empty() {
            break;
        }
        found.extend(entries.into_iter().map(|entry| {
            match entry.gap {
                Some(gap) => Err(gap.lines),
                None => Ok(std::str::from_utf8(&entry.data)
                    .unwrap()
                    .trim_end()
                    .parse()
                    .unwrap()),
            }
        }));
    }
    found
}

#[test]
fn a_segment_that_was_never_seen_is_a_gap() {
    let directory = tempfile::tempdir().unwrap();
    write_lines(directory.path(), 3, 0..2);
    write_lines(directory.path(), 5, 4..5);
    let mut reader = Reader::open(directory.path(), &query()).unwrap();
    assert_eq!(with_gaps(&mut reader), [Ok(0), Ok(1), Err(0), Ok(4)]);
}

#[test]
fn what_is_skipped_for_a_follower_too_far_behind_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    write_lines(directory.path(), 1, 0..1000);
    let mut reader = Reader::open(directory.path(), &query()).unwrap();
    reader.held_bytes = 100_000;
    for number in 2..=6 {
        write_lines(directory.path(), number, (number - 1) * 1000..number * 1000);
        // Rotation removes it; the reader has it open.
        let segment = Segment::open(directory.path(), number).unwrap().unwrap();
        fs::remove_file(directory.path().join(format!("{number}.log"))).unwrap();
        reader.push(segment).unwrap();
    }
    let found = with_gaps(&mut reader);
    let skipped = found[0].unwrap_err();
    assert!(skipped > 0 && skipped.is_multiple_of(1000), "{skipped}");
    let rest: Vec<_> = (skipped..6000).map(Ok).collect();
    assert!(found[1..] == rest);
}

#[test]
fn lines_that_could_not_be_logged_are_a_gap_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("1.log"),
        "1970-01-01T00:00:00.000000001Z stdout F 1\n\
         1970-01-01T00:00:00.000000002Z stderr F:lost 12 lines of output were not logged: No space left on device (os error 28)\n\
         1970-01-01T00:00:00.000000003Z stdout F 3\n",
    )
    .unwrap();
    // Also to who reads one stream only: it may have been of that one.
    let query = Query {
        err: false,
        ..query()
    };
    let mut reader = Reader::open(directory.path(), &query).unwrap();
    let entries = reader.next().unwrap().unwrap();
    let gap = entries[1].gap.as_ref().unwrap();
    assert_eq!(gap.lines, 12);
    assert_eq!(
        gap.reason,
        "not logged: No space left on device (os error 28)"
    );
    assert_eq!(entries.len(), 3);
}

#[tokio::test]
async fn a_follower_that_reads_nothing_for_a_while_misses_no_rotation() {
    let directory = tempfile::tempdir().unwrap();
    write_wide_lines(directory.path(), 1, 0..10_000, 100);
    let (batches, mut received) = queue();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let path = directory.path().to_owned();
    let follower = tokio::spawn(follow(path, query(), batches, async {
        drop(ended.await);
    }));
    // The queue is full: the follower waits with most of it unread.
    let begin = std::time::Instant::now();
    while received.len() < received.max_capacity() {
        assert!(begin.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for number in 2..=5 {
        write_wide_lines(
            directory.path(),
            number,
            (number - 1) * 10_000..number * 10_000,
            100,
        );
        // Rotation keeps one segment before it. Who follows has seen it by then.
        let begin = std::time::Instant::now();
        while open_files(directory.path()) < number.try_into().unwrap() {
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "segment {number}"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fs::remove_file(directory.path().join(format!("{}.log", number - 1))).unwrap();
    }
    end.send(()).unwrap();
    let mut expected = 0_u64;
    while let Some(entries) = received.recv().await {
        for entry in entries.unwrap() {
            assert_eq!(entry.gap, None);
            let text = std::str::from_utf8(&entry.data).unwrap();
            assert_eq!(text.trim_end().parse(), Ok(expected));
            expected += 1;
        }
    }
    assert_eq!(expected, 50_000);
    follower.await.unwrap();
}

/// Files below `directory` that this process has open, also those that are gone.
fn open_files(directory: &Path) -> usize {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|path| path.starts_with(directory) && path.extension().is_some())
        .count()
}
