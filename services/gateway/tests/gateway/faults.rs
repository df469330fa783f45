//! Lives of containers in which something fails: every step in turn, before and
//! after it has had its effect, and the gateway itself in the middle of each.

use gantry_kit::fault::Fault;
use gantry_proto::gateway::v1 as wire;
use gantry_proto::gateway::v1::run_response::Message;
use gantry_proto::shim::v1 as shim;

use crate::workbench::{Bench, LIMIT, open};

#[tokio::test(flavor = "multi_thread")]
async fn whichever_call_fails_a_run_leaves_nothing() {
    for auto_remove in [true, false] {
        for call in ["prepare", "create_endpoint", "create", "attach", "start"] {
            let bench = Bench::new().await;
            bench.world.fail(call, "TOLD_TO_FAIL");
            let (_, outcome) = bench.run(open(auto_remove, false)).await.all().await;
            assert!(outcome.unwrap_err().is("TOLD_TO_FAIL"), "{call}");
            assert!(bench.world.is_empty(), "{call}: {:?}", bench.world);
            assert_eq!(bench.records(), 0, "{call}");
            assert!(bench.list().await.is_empty(), "{call}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_start_stays_created_with_its_error() {
    for call in ["create_endpoint", "create", "start"] {
        let bench = Bench::new().await;
        let create = wire::CreateRequest {
            config: open(false, true).config,
            name: String::new(),
        };
        let created = bench.client().create(create).await.unwrap();
        let container = created.into_inner().container_id;
        bench.world.fail(call, "TOLD_TO_FAIL");
        let start = wire::StartRequest { container };
        let refused = bench.client().start(start).await.unwrap_err();
        assert!(Fault::from_status(&refused).is("TOLD_TO_FAIL"), "{call}");
        let summary = &bench.list().await[0];
        assert_eq!(summary.state(), wire::ContainerState::Created, "{call}");
        let inspect = wire::InspectRequest {
            container: summary.id.clone(),
            size: false,
        };
        let detail = bench.client().inspect(inspect).await.unwrap().into_inner();
        assert_eq!(detail.container.unwrap().error, "told to", "{call}");
        assert!(bench.world.endpoints.lock().unwrap().is_empty(), "{call}");
        assert!(bench.world.containers.lock().unwrap().is_empty(), "{call}");
        // And it can be started once the cause is gone.
        bench.world.heal();
        let start = wire::StartRequest {
            container: summary.id.clone(),
        };
        bench.client().start(start).await.unwrap();
        assert_eq!(
            bench.list().await[0].state(),
            wire::ContainerState::Running,
            "{call}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_undone_now_is_undone_later() {
    let bench = Bench::new().await;
    bench.world.fail("create", "TOLD_TO_FAIL");
    bench.world.fail("delete_endpoint", "TOLD_TO_FAIL");
    bench.world.fail("delete_snapshot", "TOLD_TO_FAIL");
    let (_, outcome) = bench.run(open(true, true)).await.all().await;
    outcome.unwrap_err();
    assert!(!bench.world.is_empty());
    bench.world.heal();
    bench.until_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_fails_leaves_a_dead_container_that_can_be_removed() {
    let bench = Bench::new().await;
    let id = bench.run(open(false, true)).await.started().await;
    bench.world.fail("delete_snapshot", "TOLD_TO_FAIL");
    let remove = wire::RemoveRequest {
        container: id,
        force: true,
        ..Default::default()
    };
    bench.client().remove(remove.clone()).await.unwrap_err();
    let summary = &bench.list().await[0];
    assert_eq!(summary.state(), wire::ContainerState::Dead);
    bench.world.heal();
    bench.client().remove(remove).await.unwrap();
    bench.until_nothing_is_left().await;
}

/// Kills the gateway while `call` is under way, and starts it again.
async fn kill_in(bench: &mut Bench, call: &'static str) {
    let reached = tokio::time::timeout(LIMIT, bench.world.reached.notified());
    reached
        .await
        .unwrap_or_else(|_| panic!("{call} is never called"));
    bench.kill();
    *bench.world.stuck.lock().unwrap() = None;
    bench.start().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_in_a_run_with_rm_ends_in_done_or_never_happened() {
    for call in ["prepare", "create_endpoint", "create", "start"] {
        for after in [false, true] {
            let mut bench = Bench::new().await;
            *bench.world.stuck.lock().unwrap() = Some((call, after));
            let run = bench.run(open(true, true)).await;
            kill_in(&mut bench, call).await;
            drop(run);
            if call == "start" && after {
                // It runs: either outcome is one, and it must be a whole one.
                bench
                    .until("neither done nor undone", |bench| {
                        bench.world.is_empty() == (bench.records() == 0)
                    })
                    .await;
                for summary in bench.list().await {
                    let remove = wire::RemoveRequest {
                        container: summary.id,
                        force: true,
                        ..Default::default()
                    };
                    bench.client().remove(remove).await.unwrap();
                }
            }
            bench.until_nothing_is_left().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_in_a_detached_run_leaves_it_whole_or_its_name_free() {
    for call in ["prepare", "create_endpoint", "create", "start"] {
        for after in [false, true] {
            // The second time the services do not answer at once either.
            for failing in [false, true] {
                let mut bench = Bench::new().await;
                *bench.world.stuck.lock().unwrap() = Some((call, after));
                let wanted = || {
                    let mut wanted = open(false, true);
                    wanted.name = "web".to_owned();
                    wanted
                };
                let run = bench.run(wanted()).await;
                if failing {
                    bench.world.fail("delete_snapshot", "TOLD_TO_FAIL");
                }
                kill_in(&mut bench, call).await;
                drop(run);
                if failing {
                    bench.kill();
                    bench.world.heal();
                    bench.start().await;
                }
                if call == "start" && after {
                    bench
                        .until("it is not adopted", |bench| bench.records() == 1)
                        .await;
                    let begun = std::time::Instant::now();
                    while bench.list().await[0].state() != wire::ContainerState::Running {
                        assert!(begun.elapsed() < LIMIT, "{:?}", bench.list().await);
                        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                    }
                    bench.remove("web", true).await.unwrap();
                }
                bench.until_nothing_is_left().await;
                // The name is free a moment after the record is gone.
                let begun = std::time::Instant::now();
                let config = wanted().config.unwrap();
                while let Err(status) = bench
                    .client()
                    .create(wire::CreateRequest {
                        config: Some(config.clone()),
                        name: "web".to_owned(),
                    })
                    .await
                {
                    assert!(Fault::from_status(&status).is("NAME_IN_USE"), "{status}");
                    assert!(begun.elapsed() < LIMIT, "{call} {after}: {status}");
                    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_created_and_not_started_at_a_power_cut_did_not_happen() {
    for auto_remove in [false, true] {
        let mut bench = Bench::new().await;
        *bench.world.stuck.lock().unwrap() = Some(("create", false));
        let run = bench.run(open(auto_remove, true)).await;
        bench
            .until("it is not created", |bench| bench.records() > 0)
            .await;
        let reached = tokio::time::timeout(LIMIT, bench.world.reached.notified());
        reached.await.expect("it is not begun");
        bench.kill();
        drop(run);
        bench.world.heal();
        // The machine starts anew: no process, and none of the volatile records.
        bench.world.containers.lock().unwrap().clear();
        let volatile = bench.paths.run.join("gateway");
        std::fs::remove_dir_all(volatile).unwrap();
        let boot = bench.paths.state_of("gateway").join("boot");
        std::fs::write(boot, "another boot").unwrap();
        bench.start().await;
        bench.until_nothing_is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_in_a_start_ends_in_running_or_not_started() {
    for call in ["create_endpoint", "create", "start"] {
        for after in [false, true] {
            let mut bench = Bench::new().await;
            let created = bench
                .client()
                .create(wire::CreateRequest {
                    config: open(false, true).config,
                    name: String::new(),
                })
                .await
                .unwrap();
            let id = created.into_inner().container_id;
            *bench.world.stuck.lock().unwrap() = Some((call, after));
            let start = tokio::spawn({
                let mut client = bench.client();
                let container = id.clone();
                async move { client.start(wire::StartRequest { container }).await }
            });
            kill_in(&mut bench, call).await;
            start.await.unwrap().unwrap_err();
            let begun = std::time::Instant::now();
            let held = |bench: &Bench| {
                let endpoints = bench.world.endpoints.lock().unwrap().len();
                (endpoints, bench.world.containers.lock().unwrap().len())
            };
            // Settled: either running with all it needs, or not with nothing.
            let state = loop {
                let summary = &bench.list().await[0];
                let running = bench.world.containers.lock().unwrap().contains_key(&id);
                let settled = if summary.state() == wire::ContainerState::Running {
                    summary.started_at.is_some() && running
                } else {
                    held(&bench) == (0, 0)
                };
                if settled {
                    break summary.state();
                }
                assert!(begun.elapsed() < LIMIT, "{call} {after}: {:?}", bench.world);
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            };
            let ran = call == "start" && after;
            let expected = if ran {
                wire::ContainerState::Running
            } else {
                wire::ContainerState::Created
            };
            assert_eq!(state, expected, "{call} {after}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_in_a_removal_finishes_it() {
    for call in ["delete", "delete_endpoint", "delete_snapshot"] {
        for after in [false, true] {
            let mut bench = Bench::new().await;
            let id = bench.run(open(false, true)).await.started().await;
            *bench.world.stuck.lock().unwrap() = Some((call, after));
            let remove = tokio::spawn({
                let mut client = bench.client();
                let request = wire::RemoveRequest {
                    container: id,
                    force: true,
                    ..Default::default()
                };
                async move { client.remove(request).await }
            });
            kill_in(&mut bench, call).await;
            remove.await.unwrap().unwrap_err();
            bench.until_nothing_is_left().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_in_a_commit_lets_the_container_go_on() {
    for call in ["pause", "commit", "resume"] {
        let mut bench = Bench::new().await;
        let id = bench.run(open(false, true)).await.started().await;
        *bench.world.stuck.lock().unwrap() = Some((call, false));
        let commit = tokio::spawn({
            let mut client = bench.client();
            let request = wire::CommitRequest {
                container: id.clone(),
                ..Default::default()
            };
            async move { client.commit(request).await }
        });
        kill_in(&mut bench, call).await;
        commit.await.unwrap().unwrap_err();
        let begun = std::time::Instant::now();
        loop {
            let thawed = {
                let containers = bench.world.containers.lock().unwrap();
                containers[&id].status() == shim::Status::Running
            };
            let seen = bench.list().await[0].state();
            if thawed && seen == wire::ContainerState::Running {
                break;
            }
            assert!(begun.elapsed() < LIMIT, "{call}: {seen:?}");
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        // What a person freezes afterwards stays so.
        let pause = wire::PauseRequest {
            container: id.clone(),
        };
        bench.client().pause(pause).await.unwrap();
        bench.kill();
        bench.start().await;
        // It is shown as its record has it until the runtime has told of it.
        let begun = std::time::Instant::now();
        while bench.list().await[0].state() != wire::ContainerState::Paused {
            assert!(begun.elapsed() < LIMIT, "{call}: {:?}", bench.list().await);
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        let containers = bench.world.containers.lock().unwrap();
        assert_eq!(containers[&id].status(), shim::Status::Paused, "{call}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_the_gateway_was_away_is_found() {
    let mut bench = Bench::new().await;
    let lasting = bench.run(open(false, true)).await.started().await;
    let goes_on = bench.run(open(false, true)).await.started().await;
    bench.run(open(true, true)).await.started().await;
    let temporary: String = {
        let containers = bench.world.containers.lock().unwrap();
        let mut others = containers
            .keys()
            .filter(|id| **id != lasting && **id != goes_on);
        others.next().unwrap().clone()
    };
    bench.kill();
    bench.world.exit(&lasting, 5, 0);
    bench.world.exit(&temporary, 0, 0);
    bench.start().await;
    bench
        .until("the ends are not dealt with", |bench| {
            let containers = bench.world.containers.lock().unwrap();
            containers.len() == 1 && bench.records() == 2
        })
        .await;
    let by_id = |all: &[wire::ContainerSummary], id: &str| {
        all.iter().find(|summary| summary.id == id).cloned()
    };
    let begun = std::time::Instant::now();
    loop {
        let all = bench.list().await;
        let ended = by_id(&all, &lasting).unwrap();
        if ended.state() == wire::ContainerState::Exited && all.len() == 2 {
            assert_eq!(ended.exit.unwrap().code, 5);
            let running = by_id(&all, &goes_on).unwrap();
            assert_eq!(running.state(), wire::ContainerState::Running);
            assert_eq!(running.ip_address, "10.66.0.5");
            break;
        }
        assert!(begun.elapsed() < LIMIT, "{all:?}");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_with_an_engines_id_are_removed_and_others_are_not() {
    let mut bench = Bench::new().await;
    bench.kill();
    let orphan = "e".repeat(64);
    for id in [orphan.as_str(), "somebody-elses"] {
        bench.world.snapshots.lock().unwrap().insert(id.to_owned());
        let mut endpoints = bench.world.endpoints.lock().unwrap();
        endpoints.insert(id.to_owned(), Vec::new());
        let container = gantry_proto::runtime::v1::Container {
            container_id: id.to_owned(),
            status: gantry_proto::shim::v1::Status::Running.into(),
            ..Default::default()
        };
        let mut containers = bench.world.containers.lock().unwrap();
        containers.insert(id.to_owned(), container);
    }
    bench.start().await;
    bench
        .until("the orphan stays", |bench| {
            let world = &bench.world;
            !world.snapshots.lock().unwrap().contains(&orphan)
                && !world.endpoints.lock().unwrap().contains_key(&orphan)
                && !world.containers.lock().unwrap().contains_key(&orphan)
        })
        .await;
    assert_eq!(bench.world.snapshots.lock().unwrap().len(), 1);
    assert_eq!(bench.world.endpoints.lock().unwrap().len(), 1);
    assert_eq!(bench.world.containers.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_stopped_ends_its_windows_and_no_container() {
    let mut bench = Bench::new().await;
    let mut run = bench.run(open(true, false)).await;
    let id = run.started().await;
    bench.terminate();
    let (_, outcome) = run.all().await;
    assert!(outcome.unwrap_err().is("STOPPING"));
    bench.kill();
    assert!(bench.world.containers.lock().unwrap().contains_key(&id));
    bench.start().await;
    assert_eq!(bench.list().await[0].state(), wire::ContainerState::Running);
    bench.world.exit(&id, 0, 0);
    bench.until_nothing_is_left().await;
}

/// What a run shows, and whether it was told that it missed something.
async fn shown(bench: &Bench, open: wire::RunOpen) -> (String, bool, Option<i32>) {
    let mut run = bench.run(open).await;
    let id = run.started().await;
    let broken = |bench: &Bench| *bench.world.breaking.lock().unwrap() == 0;
    bench.until("its windows break off", broken).await;
    bench.world.exit(&id, 7, 0);
    let (messages, outcome) = run.all().await;
    outcome.unwrap();
    let (mut text, mut missed, mut code) = (String::new(), false, None);
    for message in messages {
        match message {
            Message::Output(output) => text += std::str::from_utf8(&output.data).unwrap(),
            Message::Missed(_) => missed = true,
            Message::Exited(exit) => code = Some(exit.code),
            _ => {}
        }
    }
    (text, missed, code)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_window_goes_on_where_it_was_when_the_runtime_is_back() {
    let bench = Bench::new().await;
    *bench.world.breaking.lock().unwrap() = 2;
    let open = wire::RunOpen {
        primary: true,
        ..open(false, false)
    };
    let shown = shown(&bench, open).await;
    assert_eq!(shown, ("hello\nagain\nagain\n".to_owned(), false, Some(7)));
    let windows = bench.world.windows.lock().unwrap().clone();
    let resumed: Vec<_> = windows.iter().map(|window| window.resume_at).collect();
    assert_eq!(resumed, [None, Some(6), Some(12)]);
    // Under one name.
    assert!(!windows[0].primary.is_empty());
    assert!(
        windows
            .iter()
            .all(|window| window.primary == windows[0].primary)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_cannot_go_on_where_it_was_is_told() {
    let bench = Bench::new().await;
    *bench.world.breaking.lock().unwrap() = 1;
    *bench.world.forgets.lock().unwrap() = true;
    let primary = wire::RunOpen {
        primary: true,
        ..open(false, false)
    };
    let (_, missed, code) = shown(&bench, primary).await;
    assert!(missed);
    assert_eq!(code, Some(7));
    // One that only looks on has nothing kept for it.
    *bench.world.breaking.lock().unwrap() = 1;
    *bench.world.forgets.lock().unwrap() = false;
    let (_, missed, _) = shown(&bench, open(false, false)).await;
    assert!(missed);
}

#[tokio::test(flavor = "multi_thread")]
async fn input_has_a_window_of_its_own_beside_the_output() {
    let bench = Bench::new().await;
    let open = wire::RunOpen {
        primary: true,
        attach_stdin: true,
        ..open(false, false)
    };
    let mut run = bench.run(open).await;
    let id = run.started().await;
    let both = |bench: &Bench| bench.world.windows.lock().unwrap().len() == 2;
    bench.until("the input is open", both).await;
    let windows = bench.world.windows.lock().unwrap().clone();
    assert!(windows[0].stdout && !windows[0].stdin && windows[0].typist.is_empty());
    assert!(windows[1].stdin && !windows[1].stdout && !windows[1].typist.is_empty());
    bench.world.exit(&id, 0, 0);
    run.all().await.1.unwrap();
}
