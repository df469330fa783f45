//! What the log tells.

use std::time::SystemTime;

use gantry_proto::runtime::v1 as runtime;
use gantry_proto::types::v1 as types;
use prost_types::Timestamp;

use crate::host::Host;

fn all(id: &str) -> runtime::LogsRequest {
    runtime::LogsRequest {
        container_id: id.to_owned(),
        stdout: true,
        stderr: true,
        ..Default::default()
    }
}

async fn read(host: &Host, request: runtime::LogsRequest) -> Vec<u8> {
    let mut answers = host
        .client
        .clone()
        .logs(request)
        .await
        .unwrap()
        .into_inner();
    let mut text = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        for entry in answer.entries {
            text.extend_from_slice(&entry.data);
        }
    }
    text
}

fn small_log() -> Option<types::LogOptions> {
    Some(types::LogOptions {
        enabled: true,
        max_segment_bytes: 100_000,
        max_segments: 1000,
    })
}

#[tokio::test]
async fn a_log_is_what_the_program_wrote() {
    let host = Host::start().await;
    let script = "echo one; echo two >&2; echo -n three";
    host.run(host.container("l", &["sh", "-c", script])).await;
    host.wait("l").await;
    let whole = read(&host, all("l")).await;
    assert_eq!(whole.len(), "one\ntwo\nthree".len());
    let out = runtime::LogsRequest {
        stderr: false,
        ..all("l")
    };
    assert_eq!(read(&host, out).await, b"one\nthree");
    let last = runtime::LogsRequest {
        stderr: false,
        tail: Some(1),
        ..all("l")
    };
    assert_eq!(read(&host, last).await, b"three");
    let later = runtime::LogsRequest {
        since: Some(Timestamp::from(SystemTime::now())),
        ..all("l")
    };
    assert_eq!(read(&host, later).await, b"");
    host.delete("l").await;
}

#[tokio::test]
async fn following_a_log_misses_nothing_across_rotations() {
    const LINES: usize = 200_000;
    let host = Host::start().await;
    let script = format!("yes 0123456789abcde | head -n {LINES}");
    let mut request = host.container("f", &["sh", "-c", &script]);
    request.log = small_log();
    host.create(request).await;
    let follow = runtime::LogsRequest {
        follow: true,
        ..all("f")
    };
    let mut answers = host.client.clone().logs(follow).await.unwrap().into_inner();
    host.begin("f").await;
    let mut lines = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        for entry in answer.entries {
            assert_eq!(&entry.data[..], b"0123456789abcde\n");
            lines += 1;
        }
    }
    assert_eq!(lines, LINES);
    assert!(host.log("f").read_dir().unwrap().count() > 10);
    let tail = runtime::LogsRequest {
        tail: Some(5000),
        ..all("f")
    };
    assert_eq!(read(&host, tail).await.len(), 5000 * 16);
    host.delete("f").await;
}
