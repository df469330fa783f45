//! From create to delete.

use gantry_proto::runtime::v1 as runtime;
use gantry_proto::shim::v1::Status;

use crate::host::Host;

#[tokio::test]
async fn a_container_runs_from_create_to_delete_and_leaves_nothing() {
    let host = Host::start().await;
    let request = host.container("one", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    let pid = host.create(request).await;
    let created = host.get("one").await.unwrap();
    assert_eq!(created.status(), Status::Created);
    assert_eq!(created.pid, pid);
    let mut window = host.attach("one", "", false).await;
    host.begin("one").await;
    let shown = window.all().await;
    assert_eq!(shown.text(), "out\n");
    assert_eq!(shown.err, b"err\n");
    assert_eq!(shown.code(), 7);
    assert_eq!(host.wait("one").await.code, 7);
    let stopped = host.get("one").await.unwrap();
    assert_eq!(stopped.status(), Status::Stopped);
    assert!(stopped.started_at.is_some());
    assert_eq!(stopped.exit.unwrap().code, 7);
    host.delete("one").await;
    assert!(host.get("one").await.is_none());
    assert!(!host.bundle("one").exists());
    assert!(!host.log("one").exists());
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
    // Deleting what is not there succeeds.
    host.delete("one").await;
}

#[tokio::test]
async fn a_signal_ends_a_container_with_128_and_more() {
    let host = Host::start().await;
    host.run(host.container("two", &["sleep", "600"])).await;
    host.kill("two", 9).await;
    let status = host.wait("two").await;
    assert_eq!((status.code, status.signal), (137, 9));
    host.delete("two").await;
}

#[tokio::test]
async fn a_running_container_is_deleted_only_by_force() {
    let host = Host::start().await;
    host.run(host.container("three", &["sleep", "600"])).await;
    let request = runtime::DeleteRequest {
        container_id: "three".to_owned(),
        force: false,
        remove_log: false,
    };
    let refused = host.client.clone().delete(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    host.delete("three").await;
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_log_that_cannot_be_removed_is_reported_and_removed_by_a_later_try() {
    let host = Host::start().await;
    host.run(host.container("log", &["sleep", "600"])).await;
    let busy = host.log("log").join("busy");
    std::fs::create_dir_all(&busy).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("none"), &busy, Some("tmpfs"), flags, Some("size=4k")).unwrap();
    let request = runtime::DeleteRequest {
        container_id: "log".to_owned(),
        force: true,
        remove_log: true,
    };
    let delete = || async { host.client.clone().delete(request.clone()).await };
    let deleted = delete().await.unwrap().into_inner();
    let flags = nix::mount::MntFlags::MNT_DETACH;
    nix::mount::umount2(&busy, flags).unwrap();
    assert!(deleted.deleted);
    assert!(deleted.log_left.contains("busy"), "{deleted:?}");
    assert_eq!(deleted.exit.unwrap().code, 137);
    assert!(host.get("log").await.is_none());
    assert_eq!(logs(&host).await, ["log"]);
    let deleted = delete().await.unwrap().into_inner();
    assert_eq!(deleted, runtime::DeleteResponse::default());
    assert!(logs(&host).await.is_empty());
}

/// Ids of containers that have a log.
async fn logs(host: &Host) -> Vec<String> {
    let request = runtime::ListRequest::default();
    let list = host.client.clone().list(request).await.unwrap();
    list.into_inner().log_container_ids
}

#[tokio::test]
async fn a_program_that_is_not_there_is_127_and_one_that_is_none_is_126() {
    let host = Host::start().await;
    for (args, code, reason) in [
        (["/nowhere"], 127, "COMMAND_NOT_FOUND"),
        (["nowhere"], 127, "COMMAND_NOT_FOUND"),
        (["/bin/data"], 126, "COMMAND_NOT_EXECUTABLE"),
    ] {
        let mut client = host.client.clone();
        let created = client.create(host.container("bad", &args)).await;
        let error = match created {
            Err(error) => error,
            Ok(_) => {
                let request = runtime::StartRequest {
                    container_id: "bad".to_owned(),
                };
                client.start(request).await.unwrap_err()
            }
        };
        let fault = gantry_kit::fault::Fault::from_status(&error);
        assert_eq!(fault.reason, reason, "{fault:?}");
        assert_eq!(fault.metadata["exit_code"], code.to_string());
        host.delete("bad").await;
        assert!(!host.bundle("bad").exists());
    }
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_failed_exec_says_127_or_126_and_the_container_runs_on() {
    let host = Host::start().await;
    host.run(host.container("four", &["sleep", "600"])).await;
    for (program, code) in [("/nowhere", "127"), ("/bin/data", "126")] {
        let error = match host.exec("four", "x", &[program], false).await {
            Err(error) => error,
            Ok(_) => panic!("{program} was executed"),
        };
        let fault = gantry_kit::fault::Fault::from_status(&error);
        assert_eq!(fault.metadata["exit_code"], code, "{fault:?}");
    }
    let args = ["sh", "-c", "echo in; exit 3"];
    let mut window = host.exec("four", "x", &args, false).await.unwrap();
    let shown = window.all().await;
    assert_eq!((shown.text().as_str(), shown.code()), ("in\n", 3));
    assert_eq!(host.get("four").await.unwrap().status(), Status::Running);
    host.delete("four").await;
}

#[tokio::test]
async fn a_paused_container_stands_still_until_it_is_resumed() {
    let host = Host::start().await;
    host.run(host.container("five", &["sleep", "600"])).await;
    let mut client = host.client.clone();
    let container_id = "five".to_owned();
    client
        .pause(runtime::PauseRequest {
            container_id: container_id.clone(),
        })
        .await
        .unwrap();
    assert_eq!(host.get("five").await.unwrap().status(), Status::Paused);
    client
        .resume(runtime::ResumeRequest { container_id })
        .await
        .unwrap();
    assert_eq!(host.get("five").await.unwrap().status(), Status::Running);
    host.delete("five").await;
}

#[tokio::test]
async fn two_hundred_containers_leave_no_descriptor_and_no_file() {
    let host = Host::start().await;
    host.run(host.container("warm", &["true"])).await;
    host.wait("warm").await;
    host.delete("warm").await;
    let before = host.descriptors();
    for number in 0..200 {
        let id = format!("c{number}");
        host.run(host.container(&id, &["true"])).await;
        assert_eq!(host.wait(&id).await.code, 0);
        host.delete(&id).await;
    }
    assert!(host.descriptors() <= before + 2, "{}", host.descriptors());
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
    let bundles = host.bundle("x").parent().unwrap().read_dir().unwrap();
    assert_eq!(bundles.count(), 0);
}
