//! Calls of several callers on the connections that they share: one caller's
//! hostile call is its own affair. And lists that are longer than a message.

use std::time::Duration;

use gantry_kit::client::{self, MESSAGE_LIMIT};
use gantry_kit::fault::Fault;
use gantry_kit::metadata::{REQUEST_BYTES, STATUS_BYTES, header_bytes};
use gantry_kit::pages::ANY_SIZE;
use gantry_proto::gateway::v1 as wire;
use gantry_proto::image::v1 as image;
use image::image_service_client::ImageServiceClient;
use image::store_service_client::StoreServiceClient;
use tonic::{Code, Request, Status};
use wire::run_response::Message;

use crate::workbench::{Bench, LIMIT, open};

/// A status as it came, which must be short.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> Status {
    let status = answer.unwrap_err();
    let mut headers = http::HeaderMap::new();
    status.add_header(&mut headers).unwrap();
    let bytes = header_bytes(&headers);
    // With the headers of HTTP that are no part of the status.
    assert!(bytes <= STATUS_BYTES + 512, "{bytes}: {status:.200?}");
    status
}

/// Calls that no service can do, each on a connection of its own to the gateway:
/// what they share is the gateway's connection to the service.
async fn hostile_calls(bench: &Bench) {
    let socket = bench.paths.socket("gateway");
    let images = || ImageServiceClient::new(client::channel(&socket));
    let containers =
        || wire::container_service_client::ContainerServiceClient::new(client::channel(&socket));
    for text in [
        "x".repeat(9 << 10),
        "x".repeat(3 << 20),
        "\u{1f600}\n\u{1b}".repeat(1 << 20),
        "%".repeat(10 << 20),
    ] {
        let inspect = image::InspectRequest {
            reference: text.clone(),
            platform: None,
        };
        let status = refused(images().inspect(inspect).await);
        let fault = Fault::from_status(&status);
        assert!(fault.is("IMAGE_NOT_FOUND"), "{status:.200?}");
        assert!(fault.message.contains("bytes left out"), "{fault}");
        let container = text.clone();
        let inspect = wire::InspectRequest {
            container,
            size: false,
        };
        let status = refused(containers().inspect(inspect).await);
        assert!(Fault::from_status(&status).is("CONTAINER_NOT_FOUND"));
        let list = wire::ListRequest {
            filters: vec![image::Filter {
                key: text.clone(),
                value: text.clone(),
            }],
            ..Default::default()
        };
        refused(containers().list(list).await);
    }
    // Metadata: too much for a service, for HTTP/2, and no text at all.
    for (name, bytes) in [
        ("one", REQUEST_BYTES),
        ("two", 100 << 10),
        ("three", 1 << 20),
    ] {
        let mut request = Request::new(image::ListRequest::default());
        let value = "v".repeat(bytes).parse().unwrap();
        request.metadata_mut().insert("x-long", value);
        let status = images().list(request).await.unwrap_err();
        assert_ne!(status.code(), Code::Ok, "{name}");
    }
    let mut request = Request::new(image::ListRequest::default());
    let value = tonic::metadata::MetadataValue::try_from(&b"\xff\xfe caf\xe9"[..]).unwrap();
    request.metadata_mut().insert("x-bytes", value);
    images().list(request).await.unwrap();
    // A message that is longer than a service takes.
    let inspect = image::InspectRequest {
        reference: "x".repeat(MESSAGE_LIMIT + 1),
        platform: None,
    };
    refused(images().inspect(inspect).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_call_leaves_the_other_calls_on_a_connection_alone() {
    let bench = Bench::new().await;
    let mut run = bench.run(open(false, false)).await;
    let id = run.started().await;
    let channel = client::channel(&bench.paths.socket("gateway"));
    // Forwarded on the connection that the hostile calls are forwarded on.
    let mut followers = Vec::new();
    for _ in 0..20 {
        let mut store = StoreServiceClient::new(channel.clone());
        let request = image::EventsRequest { after: None };
        let mut events = store.events(request).await.unwrap().into_inner();
        events.message().await.unwrap().expect("where it begins");
        followers.push(events);
    }
    let quick = tokio::spawn({
        let mut images = ImageServiceClient::new(channel);
        async move {
            loop {
                images.list(image::ListRequest::default()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    hostile_calls(&bench).await;
    assert!(!quick.is_finished(), "a call among the hostile ones failed");
    quick.abort();
    bench.world.teller.tell("after");
    for mut events in followers {
        let event = tokio::time::timeout(LIMIT, events.message()).await;
        let event = event.expect("an event").unwrap().expect("a stream goes on");
        assert_eq!(event.event.unwrap().id, "after");
    }
    bench.world.exit(&id, 7, 0);
    let (rest, end) = run.all().await;
    end.unwrap();
    assert!(matches!(rest.last(), Some(Message::Exited(status)) if status.code == 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_longer_than_a_message_comes_in_pages() {
    let bench = Bench::new().await;
    let label = "l".repeat(3 << 20);
    let mut ids = Vec::new();
    for number in 0..5 {
        let mut open = open(false, true);
        let config = open.config.as_mut().unwrap();
        config.labels = [("label".to_owned(), label.clone())].into();
        open.name = format!("c{number}");
        ids.insert(0, bench.run(open).await.started().await);
    }
    let mut client = bench.client().max_decoding_message_size(MESSAGE_LIMIT);
    let mut request = wire::ListRequest {
        page_size: ANY_SIZE,
        ..Default::default()
    };
    let (mut listed, mut pages) = (Vec::new(), 0);
    loop {
        let page = client.list(request.clone()).await.unwrap().into_inner();
        pages += 1;
        listed.extend(page.containers.into_iter().map(|summary| summary.id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(listed, ids);
    assert!(pages > 1);
    // A client that knows of no pages has all in one.
    let all = client.list(wire::ListRequest::default()).await.unwrap();
    let all = all.into_inner();
    assert_eq!(
        (all.containers.len(), all.next_page_token),
        (5, String::new())
    );
}
