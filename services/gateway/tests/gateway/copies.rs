//! Copies into containers that do not run: what shows their files is there for
//! as long as the copy, and never longer.

use gantry_kit::fault::Fault;
use gantry_proto::gateway::v1 as wire;
use gantry_proto::runtime::v1 as runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use wire::copy_in_request::Message;

use crate::workbench::{Bench, open};

type Outcome = JoinHandle<Result<(), Fault>>;

async fn created(bench: &Bench) -> String {
    let request = wire::CreateRequest {
        config: open(false, false).config,
        name: "rests".to_owned(),
    };
    let answer = bench.client().create(request).await.unwrap();
    answer.into_inner().container_id
}

/// Begins a copy; what is sent after it is the caller's to send.
async fn copy(bench: &Bench) -> (mpsc::Sender<wire::CopyInRequest>, Outcome) {
    let (sender, receiver) = mpsc::channel(4);
    let message = Some(Message::Open(wire::CopyInOpen {
        container: "rests".to_owned(),
        path: "/".to_owned(),
        keep_owner: false,
    }));
    sender.send(wire::CopyInRequest { message }).await.unwrap();
    let mut client = bench.client();
    let outcome = tokio::spawn(async move {
        let answer = client.copy_in(ReceiverStream::new(receiver)).await;
        answer
            .map(drop)
            .map_err(|status| Fault::from_status(&status))
    });
    (sender, outcome)
}

fn shown(bench: &Bench) -> usize {
    bench.world.containers.lock().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_shows_the_files_goes_with_the_copy_however_it_ends() {
    let bench = Bench::new().await;
    let id = created(&bench).await;
    for ending in ["whole", "refused", "broken off"] {
        if ending == "refused" {
            bench.world.fail("copy_in", "TOLD_TO_FAIL");
        }
        let (sender, outcome) = copy(&bench).await;
        if ending != "refused" {
            bench.until("it shows", |bench| shown(bench) == 1).await;
            let other = bench
                .world
                .containers
                .lock()
                .unwrap()
                .keys()
                .next()
                .cloned();
            assert_ne!(other.as_ref(), Some(&id), "its own id is not taken");
        }
        if ending == "whole" {
            let message = Some(Message::End(runtime::CopyInEnd {}));
            sender.send(wire::CopyInRequest { message }).await.unwrap();
        }
        if ending == "broken off" {
            drop(sender);
        }
        let outcome = outcome.await.unwrap();
        assert_eq!(outcome.is_ok(), ending == "whole", "{ending}: {outcome:?}");
        // Not "soon": when the caller hears of the end, all is gone.
        assert_eq!(shown(&bench), 0, "{ending}");
        bench.world.heal();
    }
    assert_eq!(bench.world.called("start"), 0, "nothing was ever started");
    assert_eq!(bench.list().await[0].state(), wire::ContainerState::Created);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_and_a_removal_break_copies_off() {
    let bench = Bench::new().await;
    created(&bench).await;
    let (_sender, outcome) = copy(&bench).await;
    bench.until("it shows", |bench| shown(bench) == 1).await;
    let start = wire::StartRequest {
        container: "rests".to_owned(),
    };
    bench.client().start(start).await.unwrap();
    let fault = outcome.await.unwrap().unwrap_err();
    assert!(fault.is("WRONG_STATE"), "{fault:?}");
    assert_eq!(shown(&bench), 1, "the container itself");
    let summary = &bench.list().await[0];
    assert_eq!(summary.state(), wire::ContainerState::Running);
    bench.world.exit(&summary.id.clone(), 0, 0);
    bench.until("it ends", |bench| shown(bench) == 0).await;

    let (_sender, outcome) = copy(&bench).await;
    bench.until("it shows", |bench| shown(bench) == 1).await;
    let remove = wire::RemoveRequest {
        container: "rests".to_owned(),
        force: true,
        volumes: false,
    };
    bench.client().remove(remove).await.unwrap();
    assert!(outcome.await.unwrap().is_err());
    bench.until_nothing_is_left().await;
}
