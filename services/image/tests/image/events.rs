//! What the service tells of images and volumes, and how it is followed.

use gantry_image::commit::CommitOptions;
use gantry_image::import::ImportOptions;
use gantry_image::prune::PruneOptions;
use gantry_image::volumes::NewVolume;
use gantry_kit::client::Client;
use gantry_proto::image::v1 as proto;
use gantry_proto::image::v1::store_service_client::StoreServiceClient;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::archives::{load, save};
use crate::fixture::{Fixture, TestLayer, publish};
use crate::grpc::start;
use crate::life::{by_force, gently, import_bytes, imported, tar};
use crate::registry::Registry;
use crate::volumes::wishes;

type Events = Streaming<proto::EventsResponse>;

async fn follow(client: &Client, after: Option<proto::EventPosition>) -> Events {
    let request = proto::EventsRequest { after };
    let mut store = StoreServiceClient::new(client.clone());
    store.events(request).await.unwrap().into_inner()
}

async fn last(client: &Client) -> proto::EventPosition {
    let mut store = StoreServiceClient::new(client.clone());
    let answer = store.last_event(proto::LastEventRequest {}).await;
    answer.unwrap().into_inner().position.unwrap()
}

/// What a stream tells until the service has no more.
async fn told(client: &Client, events: &mut Events) -> Vec<proto::EventsResponse> {
    let last = last(client).await;
    let mut told = Vec::new();
    loop {
        let event = events.message().await.unwrap().unwrap();
        let over = event.position.as_ref() == Some(&last);
        told.extend(Some(event).filter(|event| event.event.is_some()));
        if over {
            return told;
        }
    }
}

/// "image tag ID (name=x)", as `events` prints it.
fn line(told: &proto::EventsResponse) -> String {
    let event = told.event.as_ref().unwrap();
    let mut attributes: Vec<String> = event
        .attributes
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    attributes.sort();
    let attributes = attributes.join(", ");
    format!(
        "{} {} {} ({attributes})",
        event.r#type, event.action, event.id
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn images_tell_what_happens_to_them() {
    let registry = Registry::start().await;
    publish(&registry, "v1", &[TestLayer::gzip(tar(1))]);
    let fixture = Fixture::new();
    let client = start(&fixture);
    let mut events = follow(&client, None).await;
    let mut lines =
        async || -> Vec<String> { told(&client, &mut events).await.iter().map(line).collect() };
    let host = &registry.host;
    let (name, other) = (format!("{host}/x:v1"), format!("{host}/x:2"));
    let store = &fixture.store;
    let pulled = fixture.pull(&name).await.unwrap();
    let id = pulled.image.id().to_string();
    store.tag(&name, &other).unwrap();
    let cancel = CancellationToken::new();
    let watcher = fixture.watcher();
    store.push(&other, None, &cancel, watcher).await.unwrap();
    let archive = save(&fixture, &[&name]).unwrap();
    load(&fixture, &archive).await.unwrap();
    store.remove(&other, &gently()).unwrap();
    store.remove(&name, &gently()).unwrap();
    assert_eq!(
        lines().await,
        [
            format!("image pull {name} (name={host}/x, tag=v1)"),
            format!("image tag {id} (name={other}, tag=v1)"),
            format!("image push {other} (name={host}/x, tag=v1)"),
            format!("image save {id} (name={id}, tag=v1)"),
            format!("image load {id} (name={id}, tag=v1)"),
            format!("image untag {id} (name={id}, tag=v1)"),
            format!("image untag {id} (name={id}, tag=v1)"),
            format!("image delete {id} (name={id})"),
        ]
    );

    // What fails is not told.
    store.remove(&name, &gently()).unwrap_err();
    store.tag("nosuch", "a:1").unwrap_err();
    let options = ImportOptions::default();
    let nameless = import_bytes(&fixture, &options, tar(1)).await.unwrap();
    let named = imported(&fixture, "a:1", tar(2)).await;
    let (nameless, named) = (nameless.id().to_string(), named.id().to_string());
    let dry = PruneOptions {
        dry_run: true,
        ..PruneOptions::default()
    };
    store.prune(&dry).unwrap();
    let pruned = store.prune(&PruneOptions::default()).unwrap();
    store.prepare("c1", &named, false).unwrap();
    let options = CommitOptions {
        reference: Some("b:1".to_owned()),
        ..CommitOptions::default()
    };
    let committed = store.commit("c1", &options).await.unwrap();
    let committed = committed.id().to_string();
    store.tag("b:1", "c:1").unwrap();
    store.remove(&committed, &by_force()).unwrap();
    assert_eq!(
        lines().await,
        [
            format!("image import {nameless} (name={nameless})"),
            format!("image tag {named} (name=a:1)"),
            format!("image import {named} (name={named})"),
            format!("image delete {nameless} (name={nameless})"),
            format!("image prune  (reclaimed={})", pruned.reclaimed),
            format!("image tag {committed} (name=b:1)"),
            format!("image tag {committed} (name=c:1)"),
            format!("image untag {committed} (name={committed})"),
            format!("image untag {committed} (name={committed})"),
            format!("image delete {committed} (name={committed})"),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_tell_what_happens_to_them() {
    let fixture = Fixture::new();
    let client = start(&fixture);
    let store = &fixture.store;
    imported(&fixture, "a:1", tar(1)).await;
    let mut events = follow(&client, Some(last(&client).await)).await;
    let named = |name: &str| NewVolume {
        name: name.to_owned(),
        ..NewVolume::default()
    };
    store.create_volume(&named("one")).unwrap();
    // It is there already: nothing happens.
    store.create_volume(&named("one")).unwrap();
    store.remove_volume("none", true).unwrap();
    let wanted = wishes(&[("one", "/one"), ("two", "/two"), ("", "/three")]);
    store.prepare_with("c1", "a:1", false, &wanted).unwrap();
    let anonymous = store.list_volumes(&[]).unwrap();
    let anonymous = anonymous.iter().find(|volume| volume.record.anonymous);
    let anonymous = anonymous.unwrap().record.name.clone();
    store.delete_snapshot_with("c1", true).unwrap();
    store.remove_volume("two", false).unwrap();
    let pruned = store.prune_volumes(true, &[]).unwrap();
    // What is refused makes nothing.
    let mut unusable = wishes(&[("late", "/a"), ("wrong", "/b")]);
    unusable.volumes[1].must_exist = true;
    store
        .prepare_with("c2", "a:1", false, &unusable)
        .unwrap_err();
    let lines: Vec<String> = told(&client, &mut events).await.iter().map(line).collect();
    assert_eq!(
        lines,
        [
            "volume create one (driver=local)".to_owned(),
            "volume create two (driver=local)".to_owned(),
            format!("volume create {anonymous} (driver=local)"),
            format!("volume destroy {anonymous} (driver=local)"),
            "volume destroy two (driver=local)".to_owned(),
            "volume destroy one (driver=local)".to_owned(),
            format!("volume prune  (reclaimed={})", pruned.reclaimed),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_goes_on_where_it_was_and_begins_anew_with_the_service() {
    let fixture = Fixture::new();
    let client = start(&fixture);
    assert_eq!(last(&client).await.sequence, 0);
    imported(&fixture, "a:1", tar(1)).await;
    for name in ["b:1", "b:2", "b:3"] {
        fixture.store.tag("a:1", name).unwrap();
    }
    let mut first = follow(&client, None).await;
    let begin = first.message().await.unwrap().unwrap();
    assert_eq!((begin.event, begin.position.unwrap().sequence), (None, 0));
    let all = told(&client, &mut first).await;
    assert_eq!(all.len(), 5, "{all:?}");
    let times: Vec<_> = all.iter().map(|told| told.event.as_ref()?.time).collect();
    assert!(times.is_sorted_by_key(|time| time.map(|t| (t.seconds, t.nanos))));

    let mut again = follow(&client, all[2].position.clone()).await;
    assert_eq!(told(&client, &mut again).await, all[3..]);
    // It is there when the next comes.
    fixture.store.tag("a:1", "b:4").unwrap();
    let next = again.message().await.unwrap().unwrap();
    assert!(line(&next).contains("name=b:4"), "{next:?}");

    // A position of another life means nothing to this one; nor does one to come.
    let mut position = all[2].position.clone().unwrap();
    position.life = "another".to_owned();
    let mut anew = follow(&client, Some(position)).await;
    assert_eq!(told(&client, &mut anew).await.len(), 6);
    let mut position = last(&client).await;
    position.sequence += 100;
    let mut early = follow(&client, Some(position)).await;
    assert_eq!(told(&client, &mut early).await, []);
    fixture.store.tag("a:1", "b:5").unwrap();
    let next = early.message().await.unwrap().unwrap();
    assert!(line(&next).contains("name=b:5"), "{next:?}");
    drop((first, again, anew, early));
    let life = last(&client).await.life;
    let fixture = Fixture::new();
    assert_ne!(last(&start(&fixture)).await.life, life);
}
