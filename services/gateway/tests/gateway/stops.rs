//! Stops, kills and removals that meet a restart policy, and who waits for an
//! end meanwhile.

use std::sync::atomic::Ordering;

use gantry_proto::gateway::v1 as wire;

use crate::workbench::{Bench, LIMIT, open};

/// A run of a program that ends at once, again and again.
async fn crash_loop(bench: &Bench) -> String {
    let mut run = open(false, true);
    run.config.as_mut().unwrap().restart_policy = Some(wire::RestartPolicy {
        name: "always".to_owned(),
        ..Default::default()
    });
    bench.world.crashing.store(true, Ordering::Relaxed);
    bench.run(run).await.started().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_or_kill_of_a_crash_loop_holds_at_whatever_moment_it_comes() {
    let bench = Bench::new().await;
    for round in 0_u32..150 {
        let id = crash_loop(&bench).await;
        let starts = bench.world.called("start");
        // At another moment of the loop each time.
        bench
            .until("it is not started again", |bench| {
                bench.world.called("start") >= starts + (round % 4) as usize
            })
            .await;
        for _ in 0..round % 7 {
            tokio::task::yield_now().await;
        }
        if round % 3 == 0 {
            let kill = wire::KillRequest {
                container: id.clone(),
                ..Default::default()
            };
            // Between two runs there may be nothing to kill: it is stopped then.
            if bench.client().kill(kill).await.is_err() {
                bench.stop(&id).await.unwrap();
            }
            let wait = wire::WaitRequest {
                container: id.clone(),
                condition: 0,
            };
            bench.client().wait(wait).await.unwrap();
        } else {
            bench.stop(&id).await.unwrap();
        }
        let summary = bench.list().await.remove(0);
        assert_eq!(summary.state(), wire::ContainerState::Exited, "{round}");
        let starts = bench.world.called("start");
        bench.remove(&id, false).await.unwrap();
        assert_eq!(bench.world.called("start"), starts, "{round}");
    }
    bench.until_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_by_force_of_a_crash_loop_holds_at_whatever_moment_it_comes() {
    let bench = Bench::new().await;
    for round in 0_u32..100 {
        let id = crash_loop(&bench).await;
        for _ in 0..round % 9 {
            tokio::task::yield_now().await;
        }
        bench.remove(&id, true).await.unwrap();
        assert!(bench.list().await.is_empty(), "{round}");
    }
    bench.until_nothing_is_left().await;
}

/// Waits for a container's end; answers its exit code.
fn wait(
    bench: &Bench,
    container: &str,
    condition: wire::WaitCondition,
) -> tokio::task::JoinHandle<Option<i32>> {
    let mut client = bench.client();
    let wait = wire::WaitRequest {
        container: container.to_owned(),
        condition: condition.into(),
    };
    tokio::spawn(async move {
        let answer = client.wait(wait).await.ok()?.into_inner();
        answer.status.map(|status| status.code)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_while_a_container_is_removed_by_force_learns_how_it_ended() {
    use wire::WaitCondition::{NextExit, NotRunning, Removed};
    for by_itself in [false, true] {
        let bench = Bench::new().await;
        let id = bench.run(open(false, true)).await.started().await;
        let mut waits: Vec<_> = [NotRunning, NextExit, Removed]
            .into_iter()
            .map(|condition| wait(&bench, &id, condition))
            .collect();
        // They wait by the time that something else is answered.
        bench.list().await;
        *bench.world.stuck.lock().unwrap() = Some(("delete", false));
        let removal = tokio::spawn({
            let mut client = bench.client();
            let request = wire::RemoveRequest {
                container: id.clone(),
                force: true,
                ..Default::default()
            };
            async move { client.remove(request).await }
        });
        let reached = tokio::time::timeout(LIMIT, bench.world.reached.notified());
        reached.await.expect("it is not removed");
        waits.extend([NotRunning, Removed].map(|condition| wait(&bench, &id, condition)));
        bench.list().await;
        if by_itself {
            // It is on its way out when it is killed.
            bench.world.exit(&id, 3, 0);
        }
        bench.world.go_on();
        removal.await.unwrap().unwrap();
        let expected = if by_itself { 3 } else { 137 };
        for (number, wait) in waits.into_iter().enumerate() {
            assert_eq!(wait.await.unwrap(), Some(expected), "{number} {by_itself}");
        }
        // Afterwards there is nothing to wait for.
        assert_eq!(wait(&bench, &id, NotRunning).await.unwrap(), None);
        bench.until_nothing_is_left().await;
    }
}
