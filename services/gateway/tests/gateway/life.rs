//! Lives of containers without accidents.

use gantry_proto::gateway::v1 as wire;
use gantry_proto::image::v1 as image;
use gantry_proto::network::v1 as network;
use wire::run_response::Message;

use crate::workbench::{Bench, open};

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_run_shows_output_and_exit_status_and_with_rm_leaves_nothing() {
    let bench = Bench::new().await;
    let mut run = bench.run(open(true, false)).await;
    let id = run.started().await;
    assert_eq!(bench.list().await[0].id, id);
    let Some(Message::Output(output)) = run.next().await.unwrap() else {
        panic!("no output");
    };
    assert_eq!(&output.data[..], b"hello\n");
    bench.world.exit(&id, 7, 0);
    let (rest, outcome) = run.all().await;
    outcome.unwrap();
    let Some(Message::Exited(status)) = rest.last() else {
        panic!("no exit status: {rest:?}");
    };
    assert_eq!(status.code, 7);
    // Not "soon": when the caller hears of the end, all is gone.
    assert!(bench.world.is_empty(), "{:?}", bench.world);
    assert_eq!(bench.records(), 0);
    assert!(bench.list().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_run_goes_on_and_keeps_its_exit_status() {
    let bench = Bench::new().await;
    let mut run = bench.run(open(false, true)).await;
    let id = run.started().await;
    assert!(run.next().await.unwrap().is_none());
    let summary = &bench.list().await[0];
    assert_eq!(summary.state(), wire::ContainerState::Running);
    assert_eq!(summary.ip_address, "10.66.0.5");
    assert_eq!(summary.command, ["true"]);
    let waiting = tokio::spawn({
        let mut client = bench.client();
        let container = id.clone();
        async move {
            let request = wire::WaitRequest {
                container,
                condition: 0,
            };
            client.wait(request).await.unwrap().into_inner().status
        }
    });
    bench.world.exit(&id, 3, 0);
    assert_eq!(waiting.await.unwrap().unwrap().code, 3);
    let summary = &bench.list().await[0];
    assert_eq!(summary.state(), wire::ContainerState::Exited);
    assert_eq!(summary.exit.as_ref().unwrap().code, 3);
    // What the run held is released, what the container is stays.
    assert!(bench.world.endpoints.lock().unwrap().is_empty());
    assert!(bench.world.containers.lock().unwrap().is_empty());
    assert_eq!(bench.world.snapshots.lock().unwrap().len(), 1);
    let remove = wire::RemoveRequest {
        container: id,
        ..Default::default()
    };
    bench.client().remove(remove).await.unwrap();
    bench.until_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_is_pulled_unless_that_is_not_wanted() {
    let bench = Bench::new().await;
    let with = |pull: wire::PullPolicy, image: &str| {
        let mut open = open(true, true);
        open.pull = pull.into();
        open.config.as_mut().unwrap().image = image.to_owned();
        open
    };
    let mut run = bench.run(with(wire::PullPolicy::Never, "new")).await;
    let (_, outcome) = run.all().await;
    assert!(outcome.unwrap_err().is("IMAGE_NOT_FOUND"));
    bench.until_nothing_is_left().await;
    let mut run = bench.run(with(wire::PullPolicy::Missing, "new")).await;
    let first = run.next().await.unwrap().unwrap();
    assert!(matches!(first, Message::Pull(_)), "{first:?}");
    run.started().await;
    assert_eq!(bench.world.called("pull"), 1);
    let mut run = bench.run(with(wire::PullPolicy::Always, "debian")).await;
    run.started().await;
    assert_eq!(bench.world.called("pull"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn exposed_ports_are_published_when_all_are_wanted() {
    let bench = Bench::new().await;
    let mut open = open(true, true);
    open.config.as_mut().unwrap().publish_all = true;
    let mut create = bench.client();
    let created = create
        .create(wire::CreateRequest {
            config: open.config,
            name: "web".to_owned(),
        })
        .await
        .unwrap();
    let start = wire::StartRequest {
        container: "web".to_owned(),
    };
    bench.client().start(start).await.unwrap();
    let id = created.into_inner().container_id;
    let summary = &bench.list().await[0];
    assert_eq!(summary.id, id);
    let published = network::PortMapping {
        host_port: 32768,
        container_port: 80,
        protocol: network::Protocol::Tcp.into(),
        ..Default::default()
    };
    assert_eq!(summary.ports, [published]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_use_is_refused_and_nothing_is_made() {
    let bench = Bench::new().await;
    let named = || {
        let mut open = open(false, true);
        open.name = "one".to_owned();
        open
    };
    bench.run(named()).await.started().await;
    let (_, outcome) = bench.run(named()).await.all().await;
    let fault = outcome.unwrap_err();
    assert!(fault.is("NAME_IN_USE"), "{fault:?}");
    assert_eq!(bench.list().await.len(), 1);
    assert_eq!(bench.world.called("prepare"), 1);
    let rename = wire::RenameRequest {
        container: "one".to_owned(),
        name: "uno".to_owned(),
    };
    bench.client().rename(rename).await.unwrap();
    bench.run(named()).await.started().await;
    assert_eq!(bench.list().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_asks_first_and_then_kills() {
    let bench = Bench::new().await;
    let stop = |signal: &str| wire::StopRequest {
        container: "one".to_owned(),
        // What obeys has all the time it needs; what does not has none.
        timeout_seconds: Some(if signal == "SIGHUP" { 0 } else { 20 }),
        signal: signal.to_owned(),
    };
    for (signal, ended_by, calls) in [("SIGTERM", 15, 1), ("SIGHUP", 9, 2)] {
        let mut wanted = open(false, true);
        wanted.name = "one".to_owned();
        bench.run(wanted).await.started().await;
        let before = bench.world.called("kill");
        bench.client().stop(stop(signal)).await.unwrap();
        let summary = &bench.list().await[0];
        assert_eq!(summary.state(), wire::ContainerState::Exited);
        assert_eq!(summary.exit.as_ref().unwrap().signal, ended_by);
        assert_eq!(bench.world.called("kill") - before, calls, "{signal}");
        // Stopping what does not run succeeds.
        bench.client().stop(stop("")).await.unwrap();
        let remove = wire::RemoveRequest {
            container: "one".to_owned(),
            ..Default::default()
        };
        bench.client().remove(remove).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_container_is_removed_only_by_force() {
    let bench = Bench::new().await;
    let id = bench.run(open(false, true)).await.started().await;
    let remove = |force| wire::RemoveRequest {
        container: id.clone(),
        force,
        ..Default::default()
    };
    let status = bench.client().remove(remove(false)).await.unwrap_err();
    let fault = gantry_kit::fault::Fault::from_status(&status);
    assert!(fault.is("CONTAINER_RUNNING"));
    bench.client().remove(remove(true)).await.unwrap();
    bench.until_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_policy_starts_again_until_a_person_stops_it() {
    let bench = Bench::new().await;
    let mut wanted = open(false, true);
    wanted.config.as_mut().unwrap().restart_policy = Some(wire::RestartPolicy {
        name: "always".to_owned(),
        maximum_retry_count: 0,
    });
    let id = bench.run(wanted).await.started().await;
    for runs in 2..4 {
        bench.world.exit(&id, 1, 0);
        bench
            .until("it is not started again", |bench| {
                bench.world.called("start") == runs
            })
            .await;
        let mut client = bench.client();
        let mut running = false;
        while !running {
            let inspect = wire::InspectRequest {
                container: id.clone(),
                size: false,
            };
            let detail = client.inspect(inspect).await.unwrap().into_inner();
            let summary = detail.container.unwrap().summary.unwrap();
            running = summary.state() == wire::ContainerState::Running
                && summary.started_at.is_some()
                && bench.world.containers.lock().unwrap()[&id].started_at == summary.started_at;
        }
    }
    let stop = wire::StopRequest {
        container: id.clone(),
        ..Default::default()
    };
    bench.client().stop(stop).await.unwrap();
    let summary = &bench.list().await[0];
    assert_eq!(summary.state(), wire::ContainerState::Exited);
    assert_eq!(bench.world.called("start"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_services_calls_are_forwarded() {
    let bench = Bench::new().await;
    let channel = gantry_kit::client::connect(&bench.paths.socket("gateway"));
    let mut images = image::image_service_client::ImageServiceClient::new(channel.clone());
    let listed = images.list(image::ListRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().images.len(), 1);
    let mut networks = network::network_service_client::NetworkServiceClient::new(channel.clone());
    let listed = networks
        .list_networks(network::ListNetworksRequest {})
        .await;
    assert_eq!(listed.unwrap().into_inner().networks[0].name, "bridge");
    // No registry runs here.
    use gantry_proto::registry::v1 as registry;
    let mut registries = registry::registry_service_client::RegistryServiceClient::new(channel);
    let status = registries
        .status(registry::StatusRequest::default())
        .await
        .unwrap_err();
    let fault = gantry_kit::fault::Fault::from_status(&status);
    assert!(fault.is("SERVICE_UNAVAILABLE"), "{status:?}");
    assert_eq!(fault.metadata["service"], "registry");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_freezes_a_container_and_lets_it_go_on_whatever_comes_of_it() {
    let bench = Bench::new().await;
    let mut run = bench.run(open(false, true)).await;
    let id = run.started().await;
    let commit = |no_pause: bool| {
        let mut client = bench.client();
        let request = wire::CommitRequest {
            container: id.clone(),
            reference: "mine:1".to_owned(),
            no_pause,
            ..Default::default()
        };
        async move { client.commit(request).await }
    };
    let calls = || {
        let calls = std::mem::take(&mut *bench.world.calls.lock().unwrap());
        let of_a_commit = |call: &String| matches!(&**call, "pause" | "commit" | "resume");
        calls.into_iter().filter(of_a_commit).collect::<Vec<_>>()
    };
    let state = async || bench.list().await[0].state();
    calls();
    let image = commit(false).await.unwrap().into_inner().image.unwrap();
    assert_eq!(image.tags, ["mine:1"]);
    assert_eq!(calls(), ["pause", "commit", "resume"]);
    assert_eq!(state().await, wire::ContainerState::Running);
    commit(true).await.unwrap();
    assert_eq!(calls(), ["commit"]);
    // One that a person froze stays so.
    let pause = wire::PauseRequest {
        container: id.clone(),
    };
    bench.client().pause(pause).await.unwrap();
    commit(false).await.unwrap();
    assert_eq!(calls(), ["pause", "commit"]);
    assert_eq!(state().await, wire::ContainerState::Paused);
    let unpause = wire::UnpauseRequest {
        container: id.clone(),
    };
    bench.client().unpause(unpause).await.unwrap();
    calls();
    bench.world.fail("commit", "TOLD_TO_FAIL");
    let error = commit(false).await.unwrap_err();
    assert!(gantry_kit::fault::Fault::from_status(&error).is("TOLD_TO_FAIL"));
    assert_eq!(calls(), ["pause", "commit", "resume"]);
    assert_eq!(state().await, wire::ContainerState::Running);
    // What does not run is not frozen.
    bench.world.exit(&id, 0, 0);
    let ended = || bench.world.endpoints.lock().unwrap().is_empty();
    bench.until("the end", |_| ended()).await;
    calls();
    commit(false).await.unwrap_err();
    assert_eq!(calls(), ["commit"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_removal_of_an_image_is_told_what_runs() {
    let bench = Bench::new().await;
    let mut run = bench.run(open(false, true)).await;
    let id = run.started().await;
    let channel = gantry_kit::client::connect(&bench.paths.socket("gateway"));
    let mut images = image::image_service_client::ImageServiceClient::new(channel);
    let request = || {
        let mut request = tonic::Request::new(image::RemoveRequest {
            reference: "debian:12".to_owned(),
            force: true,
            // Nobody but the gateway says what runs.
            running_containers: vec!["made-up".to_owned()],
            ..Default::default()
        });
        let metadata = request.metadata_mut();
        metadata.insert("traceparent-of-the-test", "1".parse().unwrap());
        request
    };
    let removed = images.remove(request()).await.unwrap().into_inner();
    assert_eq!(removed.untagged, ["debian:12"]);
    assert_eq!(removed.deleted, std::slice::from_ref(&id));
    bench.world.exit(&id, 0, 0);
    bench
        .until("the container has ended", |bench| {
            bench.world.containers.lock().unwrap().is_empty()
        })
        .await;
    let removed = images.remove(request()).await.unwrap().into_inner();
    assert_eq!(removed.deleted, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_runtime_is_refused_before_anything_is_made_and_the_engines_own_needs_no_question()
 {
    let bench = Bench::new().await;
    let with = |runtime: &str| {
        let mut open = open(true, true);
        open.config.as_mut().unwrap().runtime = runtime.to_owned();
        open
    };
    let (answers, outcome) = bench.run(with("nosuch")).await.all().await;
    assert!(answers.is_empty(), "{answers:?}");
    assert!(outcome.unwrap_err().message.contains("nosuch"));
    let create = |runtime: &str| wire::CreateRequest {
        config: with(runtime).config,
        name: String::new(),
    };
    let refused = bench.client().create(create("nosuch")).await;
    assert!(refused.unwrap_err().message().contains("nosuch"));
    for call in ["prepare", "create"] {
        assert_eq!(bench.world.called(call), 0, "{call}");
    }
    assert!(bench.world.is_empty());
    assert_eq!(bench.records(), 0);

    let mut init = create("other");
    init.config.as_mut().unwrap().init = true;
    let refused = bench.client().create(init).await.unwrap_err();
    assert!(refused.message().contains("leave one"), "{refused:?}");
    let mut ids = create("other");
    ids.config.as_mut().unwrap().userns_mode = "auto".to_owned();
    let refused = bench.client().create(ids).await.unwrap_err();
    assert!(refused.message().contains("leave one"), "{refused:?}");
    let asked = bench.world.called("find_runtime");
    for own in ["", "gantry"] {
        bench.client().create(create(own)).await.unwrap();
    }
    assert_eq!(bench.world.called("find_runtime"), asked);
    bench.client().create(create("other")).await.unwrap();
    assert_eq!(bench.world.called("find_runtime"), asked + 1);
}
