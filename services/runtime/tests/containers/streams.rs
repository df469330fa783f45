//! Terminals, pipes and windows.

use std::time::Duration;

use gantry_proto::types::v1 as types;

use crate::host::{Host, LIMIT};

#[tokio::test]
async fn a_terminal_has_its_size_before_the_first_byte() {
    let host = Host::start().await;
    for number in 0..20 {
        let id = format!("t{number}");
        let (columns, rows) = (80 + number, 24 + number);
        let request = host.terminal(&id, &["stty", "size"], columns, rows);
        host.create(request).await;
        let mut window = host.attach(&id, "", true).await;
        host.begin(&id).await;
        let shown = window.all().await;
        assert_eq!(shown.text(), format!("{rows} {columns}\r\n"));
        host.delete(&id).await;
    }
}

#[tokio::test]
async fn a_resized_window_resizes_the_terminal() {
    let host = Host::start().await;
    let script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.1; done";
    host.create(host.terminal("t", &["sh", "-c", script], 80, 24))
        .await;
    let mut window = host.attach("t", "", true).await;
    host.begin("t").await;
    window.until("ready").await;
    window.resize(132, 50).await;
    window.until("50 132").await;
    host.delete("t").await;
}

#[tokio::test]
async fn the_end_of_input_reaches_the_program_and_output_goes_on() {
    let host = Host::start().await;
    let mut request = host.container("p", &["sh", "-c", "wc -c; echo done"]);
    request.stdin = true;
    host.create(request).await;
    let mut window = host.attach("p", "", true).await;
    host.begin("p").await;
    for _ in 0..100 {
        window.enter(&[b'x'; 10_000]).await;
    }
    window.end_input().await;
    let shown = window.all().await;
    assert_eq!(shown.text(), "1000000\ndone\n");
    assert_eq!(shown.code(), 0);
    host.delete("p").await;
}

#[tokio::test]
async fn a_slow_window_does_not_stall_another_or_the_container() {
    const BYTES: usize = 100 << 20;
    let host = Host::start().await;
    let script = format!("yes 0123456789abcde | head -c {BYTES}");
    let mut request = host.container("w", &["sh", "-c", &script]);
    request.log = Some(types::LogOptions {
        enabled: true,
        max_segment_bytes: 1 << 30,
        max_segments: 2,
    });
    host.create(request).await;
    let mut stopped = host.attach("w", "", false).await;
    let mut reading = host.attach("w", "", false).await;
    host.begin("w").await;
    let shown = reading.all().await;
    assert_eq!(shown.missed, 0);
    assert_eq!(shown.out.len(), BYTES);
    let line = b"0123456789abcde\n";
    assert!(shown.out.chunks(16).all(|chunk| chunk == line));
    assert_eq!(shown.code(), 0);
    let late = stopped.all().await;
    assert!(late.missed > 0);
    assert_eq!(late.missed + late.out.len() as u64, BYTES as u64);
    assert!(late.out.len() >= 1 << 20);
    assert_eq!(late.code(), 0);
    host.delete("w").await;
}

#[tokio::test]
async fn output_just_before_the_end_is_never_lost() {
    let host = Host::start().await;
    host.run(host.container("e", &["sleep", "600"])).await;
    for number in 0..50 {
        let exec_id = format!("x{number}");
        let args = ["sh", "-c", "echo -n last"];
        let mut window = host.exec("e", &exec_id, &args, false).await.unwrap();
        let shown = window.all().await;
        assert_eq!(shown.text(), "last");
        assert_eq!(shown.code(), 0);
    }
    host.delete("e").await;
}

#[tokio::test]
async fn a_descendant_that_keeps_the_pipe_does_not_hold_up_the_end() {
    let host = Host::start().await;
    host.run(host.container("d", &["sleep", "600"])).await;
    let args = ["sh", "-c", "sleep 300 & echo left; exit 4"];
    let mut window = host.exec("d", "x", &args, false).await.unwrap();
    let shown = tokio::time::timeout(Duration::from_secs(10), window.all());
    let shown = shown.await.expect("the end came");
    assert_eq!((shown.text().as_str(), shown.code()), ("left\n", 4));
    host.delete("d").await;
}

#[tokio::test]
async fn two_windows_type_and_one_that_leaves_ends_nothing() {
    let host = Host::start().await;
    let mut request = host.container("c", &["cat"]);
    request.stdin = true;
    host.create(request).await;
    let mut first = host.attach("c", "", true).await;
    let mut second = host.attach("c", "", true).await;
    host.begin("c").await;
    first.enter(b"one\n").await;
    first.until("one\n").await;
    second.until("one\n").await;
    drop(first);
    second.enter(b"two\n").await;
    second.until("two\n").await;
    second.end_input().await;
    assert_eq!(second.all().await.code(), 0);
    host.delete("c").await;
}

/// The line before the first, of 15 digits.
const FIRST: u64 = 100_000_000_000_000;

/// Writes `bytes` bytes in lines of 16 that differ, about as fast as a pipe takes them.
fn numbers(bytes: u64) -> String {
    format!("seq {} {}", FIRST + 1, FIRST + bytes / 16)
}

/// What [`numbers`] writes.
fn expected(bytes: u64) -> Vec<u8> {
    let lines = (1..=bytes / 16).map(|number| format!("{}\n", FIRST + number));
    lines.collect::<String>().into_bytes()
}

fn whole_log() -> Option<types::LogOptions> {
    Some(types::LogOptions {
        enabled: true,
        max_segment_bytes: 1 << 30,
        max_segments: 2,
    })
}

/// Waits until the log of `id` has at least so many bytes; how many it has.
async fn logged(host: &Host, id: &str, bytes: u64) -> u64 {
    let path = host.log(id).join("1.log");
    let begin = std::time::Instant::now();
    loop {
        let length = std::fs::metadata(&path).map_or(0, |file| file.len());
        if length >= bytes {
            return length;
        }
        assert!(begin.elapsed() < LIMIT, "only {length} bytes were logged");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_program_waits_for_its_primary_window_and_not_one_byte_is_missed() {
    const BYTES: u64 = 32 << 20;
    let host = Host::start().await;
    let mut request = host.container("p", &["sh", "-c", &numbers(BYTES)]);
    request.log = whole_log();
    host.create(request).await;
    let (mut window, attached) = host.primary("p", "first", None).await;
    assert!(attached.primary && !attached.resumed);
    // A second one looks on.
    let (_looks_on, second) = host.primary("p", "second", None).await;
    assert!(!second.primary);
    host.begin("p").await;
    // It is held back as soon as the window is full, and with it the log: an entry is
    // 54 bytes for each line of 16.
    let length = logged(&host, "p", 3 << 20).await;
    assert!(length < 8 << 20, "{length} bytes were logged");
    let shown = window.all().await;
    assert_eq!(shown.missed, 0);
    assert!(shown.out == expected(BYTES));
    assert_eq!(shown.code(), 0);
    host.delete("p").await;
}

#[tokio::test]
async fn a_program_goes_on_when_its_primary_window_goes_away() {
    const BYTES: u64 = 16 << 20;
    let host = Host::start().await;
    let script = format!("{}; echo end >&2; exit 3", numbers(BYTES));
    let mut request = host.container("p", &["sh", "-c", &script]);
    request.log = whole_log();
    host.create(request).await;
    let (mut window, _) = host.primary("p", "first", None).await;
    host.begin("p").await;
    window.up_to(1 << 20).await;
    drop(window);
    let ended = tokio::time::timeout(Duration::from_secs(25), host.wait("p"));
    assert_eq!(ended.await.expect("it is still held back").code, 3);
    let log = std::fs::read_to_string(host.log("p").join("1.log")).unwrap();
    // The two streams are read apart: the end of the other one may come later.
    assert!(log.contains(" stderr F end\n"));
    host.delete("p").await;
}

#[tokio::test]
async fn the_end_of_a_program_waits_for_no_window() {
    let host = Host::start().await;
    let mut request = host.container("p", &["sh", "-c", &numbers(64 << 20)]);
    request.log = whole_log();
    host.create(request).await;
    let (mut window, _) = host.primary("p", "first", None).await;
    host.begin("p").await;
    // Full, and not read.
    logged(&host, "p", 3 << 20).await;
    host.kill("p", 9).await;
    let ended = tokio::time::timeout(Duration::from_secs(25), host.wait("p"));
    assert_eq!(ended.await.expect("the end is held up").code, 137);
    // What it wrote is still there to be read.
    let shown = window.all().await;
    assert_eq!(shown.missed, 0);
    assert!(shown.out.len() >= 800_000);
    assert_eq!(shown.code(), 137);
    host.delete("p").await;
}
