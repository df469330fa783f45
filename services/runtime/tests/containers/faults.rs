//! Services and shims that die, or stand still.

use std::time::{Duration, Instant};

use gantry_proto::runtime::v1 as runtime;
use gantry_proto::shim::v1::Status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{Host, LIMIT};

/// Whether there is such a process that is more than an entry to be reaped.
fn lives(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn containers_outlive_a_killed_service_with_output_and_status() {
    let mut host = Host::start().await;
    let script = "echo before; while ! test -e /tmp/go; do sleep 0.05; done; echo after; exit 5";
    host.run(host.container("a", &["sh", "-c", script])).await;
    host.run(host.container("b", &["sleep", "600"])).await;
    let pid = host.get("a").await.unwrap().pid;
    host.crash();
    // It ends while nobody looks.
    let root = format!("/proc/{pid}/root/tmp/go");
    std::fs::write(root, b"").unwrap();
    let begin = Instant::now();
    while !host.bundle("a").join("exit.json").exists() {
        assert!(begin.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    host.restart().await;
    assert_eq!(host.wait("a").await.code, 5);
    let adopted = host.get("b").await.unwrap();
    assert_eq!(adopted.status(), Status::Running);
    assert_eq!(adopted.sick, "");
    assert!(adopted.started_at.is_some());
    let log = std::fs::read_to_string(host.log("a").join("1.log")).unwrap();
    assert!(log.contains("F before") && log.contains("F after"), "{log}");
    let mut window = host
        .exec("b", "x", &["echo", "still"], false)
        .await
        .unwrap();
    assert_eq!(window.all().await.text(), "still\n");
    host.delete("a").await;
    host.delete("b").await;
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_bundle_that_cannot_be_removed_does_not_keep_the_service_from_starting() {
    let mut host = Host::start().await;
    host.crash();
    // A creation that was cut off, with something mounted in it, and a plain file.
    let busy = host.bundle("left").join("busy");
    std::fs::create_dir_all(&busy).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &busy, Some("tmpfs"), flags, None::<&str>).unwrap();
    std::fs::write(host.bundle("file"), b"").unwrap();
    host.restart().await;
    host.run(host.container("a", &["true"])).await;
    assert_eq!(host.wait("a").await.code, 0);
    host.delete("a").await;
    nix::mount::umount(&busy).unwrap();
}

#[tokio::test]
async fn a_dead_shim_is_reported_and_takes_its_container_with_it() {
    let host = Host::start().await;
    host.run(host.container("s", &["sleep", "600"])).await;
    let mut window = host.attach("s", "", false).await;
    let container = host.get("s").await.unwrap();
    kill(Pid::from_raw(container.shim_pid), Signal::SIGKILL).unwrap();
    let status = host.wait("s").await;
    assert_eq!(status.code, 137);
    assert!(status.error.contains("shim died"), "{status:?}");
    let shown = window.all().await;
    assert!(shown.exit.unwrap().error.contains("shim died"));
    let begin = Instant::now();
    while lives(container.pid) {
        assert!(begin.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    host.delete("s").await;
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_stopped_shim_is_marked_sick_and_slows_nobody() {
    let mut host = Host::start().await;
    host.run(host.container("well", &["sleep", "600"])).await;
    host.run(host.container("sick", &["sleep", "600"])).await;
    let shim = Pid::from_raw(host.get("sick").await.unwrap().shim_pid);
    kill(shim, Signal::SIGSTOP).unwrap();
    let mut client = host.client.clone();
    let stats = client.stats(runtime::StatsRequest {
        container_id: "sick".to_owned(),
    });
    // The shim still stands: that they are answered at all shows that they do not wait for it.
    assert!(stats.await.is_err());
    let listed = client.list(runtime::ListRequest::default()).await.unwrap();
    let containers = listed.into_inner().containers;
    let sick = |id: &str| {
        let found = containers.iter().find(|c| c.container_id == id);
        found.unwrap().sick.clone()
    };
    assert!(sick("sick").contains("is stopped"), "{}", sick("sick"));
    assert_eq!(sick("well"), "");
    // Also for a service that begins while it stands still.
    host.crash();
    host.restart().await;
    let adopted = host.get("sick").await.unwrap();
    assert!(adopted.sick.contains("is stopped"));
    assert_eq!(adopted.status(), Status::Running);
    // It recovers by itself, once it goes on.
    kill(shim, Signal::SIGCONT).unwrap();
    let begin = Instant::now();
    while !host.get("sick").await.unwrap().sick.is_empty() {
        assert!(begin.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // And what stands still can be deleted.
    kill(shim, Signal::SIGSTOP).unwrap();
    host.delete("sick").await;
    host.delete("well").await;
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_creation_that_was_cut_off_is_undone() {
    let mut host = Host::start().await;
    host.crash();
    let bundle = host.bundle("half");
    std::fs::create_dir_all(&bundle).unwrap();
    std::fs::write(bundle.join("config.json"), b"{}").unwrap();
    host.restart().await;
    assert!(!bundle.exists());
    assert!(host.get("half").await.is_none());
}

#[tokio::test]
async fn a_service_that_stops_does_not_wait_for_windows() {
    let mut host = Host::start().await;
    host.run(host.container("w", &["sleep", "600"])).await;
    let mut window = host.attach("w", "", false).await;
    let begin = Instant::now();
    host.stop().await;
    // The drain's limit, which a stop that waited would take.
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(window.answers.message().await.is_err());
    host.restart().await;
    assert_eq!(host.get("w").await.unwrap().status(), Status::Running);
    host.delete("w").await;
}

/// The line before the first, of 15 digits.
const FIRST: usize = 100_000_000_000_000;

/// Lines of 16 bytes that differ.
fn lines(bytes: usize) -> Vec<u8> {
    let lines = (1..=bytes / 16).map(|number| format!("{}\n", FIRST + number));
    lines.collect::<String>().into_bytes()
}

#[tokio::test]
async fn a_primary_window_goes_on_without_a_gap_however_the_service_ends() {
    const BYTES: usize = 12 << 20;
    let mut host = Host::start().await;
    let script = format!("seq {} {}; exit 6", FIRST + 1, FIRST + BYTES / 16);
    host.create(host.container("p", &["sh", "-c", &script]))
        .await;
    let (mut window, _) = host.primary("p", "first", None).await;
    host.begin("p").await;
    let mut shown = window.up_to(3 << 20).await.out;
    for crash in [true, false, true] {
        let position = window.position;
        if crash {
            host.crash();
        } else {
            host.stop().await;
        }
        drop(window);
        host.restart().await;
        let attached;
        (window, attached) = host.primary("p", "first", Some(position)).await;
        assert!(attached.primary && attached.resumed);
        shown.extend(window.up_to(position + (2 << 20)).await.out);
    }
    let rest = window.all().await;
    shown.extend_from_slice(&rest.out);
    assert_eq!(rest.missed, 0);
    assert!(shown == lines(BYTES));
    assert_eq!(rest.code(), 6);
    // Also when the program has ended meanwhile, and its end was told.
    let position = window.position;
    host.crash();
    host.restart().await;
    let (mut again, attached) = host.primary("p", "first", Some(position)).await;
    assert!(attached.resumed);
    assert_eq!(again.all().await.code(), 6);
    host.delete("p").await;
}

#[tokio::test]
async fn input_goes_on_behind_what_was_taken_when_the_service_was_killed() {
    let mut host = Host::start().await;
    let mut request = host.container("i", &["sh", "-c", "cat; echo end"]);
    request.stdin = true;
    request.stdin_once = true;
    host.create(request).await;
    let (mut window, _) = host.primary("i", "shown", None).await;
    let (typist, attached) = host.typist("i", "typed").await;
    assert_eq!(attached.typed, 0);
    host.begin("i").await;
    let input = lines(1 << 20);
    let (first, _) = input.split_at(200_000);
    typist.enter(first).await;
    // Some of it has come through.
    let mut shown = window.up_to(1000).await.out;
    let position = window.position;
    host.crash();
    drop((typist, window));
    host.restart().await;
    let (typist, attached) = host.typist("i", "typed").await;
    let taken = usize::try_from(attached.typed).unwrap();
    assert!((1000..=first.len()).contains(&taken), "{taken}");
    let (mut window, attached) = host.primary("i", "shown", Some(position)).await;
    assert!(attached.resumed);
    typist.enter(&input[taken..]).await;
    typist.end_input().await;
    let rest = window.all().await;
    shown.extend_from_slice(&rest.out);
    assert!(shown == [&input[..], b"end\n"].concat());
    host.delete("i").await;
}
