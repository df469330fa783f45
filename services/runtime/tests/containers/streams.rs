//! Terminals, pipes and windows.

use std::time::Duration;

use gantry_proto::types::v1 as types;

use crate::host::Host;

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
