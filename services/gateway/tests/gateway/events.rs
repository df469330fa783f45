//! The image service's events on their way into the gateway's: whatever becomes
//! of the stream, each is there once.

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use futures::{StreamExt as _, stream};
use gantry_kit::journal::{Event, Follower, Journal, Kind};
use gantry_proto::gateway::v1 as wire;
use gantry_proto::image::v1 as image;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::fakes::{Answer, BoxStream, Fake, unused};
use crate::workbench::Bench;

/// What the fake image service tells.
#[derive(Debug)]
pub(crate) struct Teller {
    journal: Mutex<Arc<Journal>>,
    /// The number of its life.
    life: watch::Sender<u32>,
    /// How often streams were broken off.
    breaks: watch::Sender<u32>,
    /// Where streams were to begin.
    asked: Mutex<Vec<Option<image::EventPosition>>>,
}

impl Default for Teller {
    fn default() -> Self {
        Self {
            journal: Mutex::new(Arc::new(Journal::new(100))),
            life: watch::Sender::default(),
            breaks: watch::Sender::default(),
            asked: Mutex::default(),
        }
    }
}

impl Teller {
    pub(crate) fn tell(&self, id: &str) {
        self.journal.lock().unwrap().note(Event {
            kind: Kind::Image,
            action: "tag".into(),
            id: id.to_owned(),
            attributes: [("name".to_owned(), id.to_owned())].into(),
        });
    }

    fn break_off(&self) {
        self.breaks.send_modify(|breaks| *breaks += 1);
    }

    /// As a service that was killed and started again.
    fn begin_anew(&self) {
        *self.journal.lock().unwrap() = Arc::new(Journal::new(100));
        self.life.send_modify(|life| *life += 1);
        self.break_off();
    }

    fn position(&self, sequence: u64) -> image::EventPosition {
        image::EventPosition {
            life: self.life.borrow().to_string(),
            sequence,
        }
    }
}

#[tonic::async_trait]
impl image::store_service_server::StoreService for Fake {
    type StreamDiskUsageStream = BoxStream<image::DiskUsageResponse>;
    type CheckStream = BoxStream<image::CheckResponse>;
    type EventsStream = BoxStream<image::EventsResponse>;

    async fn disk_usage(
        &self,
        _: Request<image::DiskUsageRequest>,
    ) -> Answer<image::DiskUsageResponse> {
        unused()
    }

    async fn stream_disk_usage(
        &self,
        _: Request<image::DiskUsageRequest>,
    ) -> Answer<Self::StreamDiskUsageStream> {
        Err(Status::unimplemented("stream_disk_usage"))
    }

    async fn prune(&self, _: Request<image::PruneRequest>) -> Answer<image::PruneResponse> {
        unused()
    }

    async fn check(&self, _: Request<image::CheckRequest>) -> Answer<Self::CheckStream> {
        Err(Status::unimplemented("check"))
    }

    async fn events(&self, request: Request<image::EventsRequest>) -> Answer<Self::EventsStream> {
        let world = Arc::clone(&self.0);
        let teller = &world.teller;
        let after = request.into_inner().after;
        teller.asked.lock().unwrap().push(after.clone());
        let own = after.filter(|after| after.life == teller.position(0).life);
        let after = own.map_or(0, |after| after.sequence);
        let first = image::EventsResponse {
            position: Some(teller.position(after)),
            event: None,
        };
        let mut breaks = teller.breaks.subscribe();
        let broken = async move { breaks.changed().await };
        let follower = teller.journal.lock().unwrap().follow(after);
        let told = stream::unfold((world, follower), next).flatten();
        let broken_off = stream::iter([Err(Status::unavailable("broken off"))]);
        let all = stream::iter([Ok(first)]).chain(told).take_until(broken);
        Ok(Response::new(all.chain(broken_off).boxed()))
    }

    async fn last_event(
        &self,
        _: Request<image::LastEventRequest>,
    ) -> Answer<image::LastEventResponse> {
        let teller = &self.0.teller;
        let last = teller.journal.lock().unwrap().last();
        Ok(Response::new(image::LastEventResponse {
            position: Some(teller.position(last)),
        }))
    }
}

type World = Arc<crate::fakes::World>;

async fn next(
    (world, mut follower): (World, Follower),
) -> Option<(BoxStream<image::EventsResponse>, (World, Follower))> {
    let events = follower.next().await.events;
    let teller = &world.teller;
    let told: Vec<_> = events
        .into_iter()
        .map(|told| {
            Ok(image::EventsResponse {
                position: Some(teller.position(told.sequence)),
                event: Some(image::StoreEvent {
                    time: Some(prost_types::Timestamp {
                        seconds: told.at.as_second(),
                        nanos: told.at.subsec_nanosecond(),
                    }),
                    r#type: told.event.kind.name().to_owned(),
                    action: told.event.action.clone().into_owned(),
                    id: told.event.id.clone(),
                    attributes: told.event.attributes.clone().into_iter().collect(),
                }),
            })
        })
        .collect();
    Some((stream::iter(told).boxed(), (world, follower)))
}

/// Ids of the objects of all that happened until now.
async fn told(bench: &Bench) -> Vec<String> {
    let request = wire::EventsRequest {
        since: Some(SystemTime::UNIX_EPOCH.into()),
        until: Some(SystemTime::now().into()),
        filters: Vec::new(),
    };
    let mut events = bench.client().events(request).await.unwrap().into_inner();
    let mut told = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        told.push(event.id);
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_of_the_image_service_is_there_once_whatever_becomes_of_the_stream() {
    let bench = Bench::new().await;
    let teller = &bench.world.teller;
    let mut expected = Vec::new();
    let mut tell = |id: &str| {
        expected.push(id.to_owned());
        teller.tell(id);
        expected.clone()
    };
    // Told, and asked for at once.
    let one = tell("one");
    assert_eq!(told(&bench).await, one);
    let two = tell("two");
    assert_eq!(told(&bench).await, two);
    teller.break_off();
    let three = tell("three");
    assert_eq!(told(&bench).await, three);
    let asked = teller.asked.lock().unwrap().last().cloned().unwrap();
    assert_eq!(asked, Some(teller.position(2)));
    // While nothing happens.
    teller.break_off();
    assert_eq!(told(&bench).await, three);
    teller.begin_anew();
    assert_eq!(told(&bench).await, three);
    let four = tell("four");
    assert_eq!(told(&bench).await, four);
    teller.begin_anew();
    let five = tell("five");
    assert_eq!(told(&bench).await, five);
}
