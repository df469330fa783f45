use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gantry_kit::fault::Fault;
use gantry_proto::registry::v1 as wire;
use gantry_proto::registry::v1::registry_service_server::RegistryService;
use tonic::Request as Call;

use super::*;
use crate::grpc::Administration;

fn without_grace() -> Config {
    Config {
        garbage_grace_seconds: 0,
        delete_enabled: true,
        ..Config::default()
    }
}

fn administration(registry: &Fixture) -> Administration {
    Administration::new(registry.registry.clone(), std::sync::Arc::default())
}

async fn collect(registry: &Fixture, dry_run: bool) -> (u64, u64) {
    let done = administration(registry)
        .collect_garbage(Call::new(wire::CollectGarbageRequest { dry_run }))
        .await
        .unwrap()
        .into_inner();
    (done.blobs_deleted, done.bytes_freed)
}

#[tokio::test]
async fn what_no_manifest_names_is_collected_and_the_rest_stays() {
    let registry = Fixture::with(without_grace());
    let digest = registry.image("a", "v1", b"layer").await;
    registry.image("b", "v1", b"layer").await;
    registry.push("a", b"orphan").await;
    assert_eq!(collect(&registry, true).await, (1, 6));
    assert_eq!(collect(&registry, false).await, (1, 6));
    assert_eq!(collect(&registry, false).await, (0, 0));

    registry.delete(&format!("/v2/a/manifests/{digest}")).await;
    assert_eq!(collect(&registry, false).await, (0, 0), "b still has it");
    let layer = Digest::sha256_of(b"layer");
    registry
        .get(&format!("/v2/a/blobs/{layer}"))
        .await
        .refused(404, "BLOB_UNKNOWN");
    let reply = registry.get(&format!("/v2/b/blobs/{layer}")).await;
    assert_eq!(reply.body, "layer");
    registry.delete(&format!("/v2/b/manifests/{digest}")).await;
    assert_eq!(collect(&registry, false).await.0, 3);
    assert!(registry.registry.store.content().list().unwrap().is_empty());
}

#[tokio::test]
async fn a_blob_whose_manifest_may_be_on_its_way_is_spared() {
    let registry = Fixture::new();
    let digest = registry.push("a", b"layer").await;
    registry.push("a", b"{}").await;
    assert_eq!(collect(&registry, false).await, (0, 0));
    registry.image("a", "v1", b"layer").await;
    registry.delete("/v2/a/manifests/v1").await;
    let manifest = Digest::sha256_of(manifest(b"layer", "").as_bytes());
    // A manifest named them, so the claims of the push are settled: nothing waits for the grace period.
    registry
        .delete(&format!("/v2/a/manifests/{manifest}"))
        .await;
    // But somebody just asked for this one.
    let path = format!("/v2/a/blobs/{digest}");
    registry.send(Method::HEAD, &path, &[], Body::empty()).await;
    assert_eq!(collect(&registry, false).await.0, 2);
    assert_eq!(registry.get(&path).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_push_beside_collections_is_never_robbed() {
    let registry = Fixture::new();
    let ended = AtomicBool::new(false);
    let pushes = async {
        for n in 0..40 {
            let layer = format!("layer {n}");
            let digest = registry.image("a", "v1", layer.as_bytes()).await;
            let path = format!("/v2/a/blobs/{}", Digest::sha256_of(layer.as_bytes()));
            assert_eq!(registry.get(&path).await.status, StatusCode::OK);
            if n % 2 == 0 {
                let path = format!("/v2/a/manifests/{digest}");
                assert_eq!(registry.delete(&path).await.status, StatusCode::ACCEPTED);
            }
        }
        ended.store(true, Ordering::Relaxed);
    };
    let collections = async {
        let mut blobs = 0;
        while !ended.load(Ordering::Relaxed) {
            blobs += collect(&registry, false).await.0;
        }
        blobs + collect(&registry, false).await.0
    };
    let ((), blobs) = tokio::join!(pushes, collections);
    // Twenty manifests and their layers went; the configuration may have gone, too,
    // between a deletion and the next push, which then brought it again.
    assert!(blobs >= 40, "{blobs}");
    let left = registry.registry.store.content().list().unwrap();
    assert_eq!(left.len(), 20 + 20 + 1);
}

#[tokio::test]
async fn content_left_without_a_link_by_a_crash_is_collected() {
    let registry = Fixture::new();
    let store = &registry.registry.store;
    store
        .content()
        .put(b"no link", gantry_oci::content::Commit::Durable)
        .unwrap();
    assert_eq!(collect(&registry, false).await, (1, 7));
}

#[tokio::test]
async fn a_damaged_manifest_stops_the_collection_before_it_takes_what_it_names() {
    let registry = Fixture::with(without_grace());
    let digest = registry.image("a", "v1", b"layer").await;
    let store = registry.registry.store.clone();
    std::fs::write(store.content().blob_path(&digest), b"{}").unwrap();
    let error = administration(&registry)
        .collect_garbage(Call::new(wire::CollectGarbageRequest { dry_run: false }))
        .await
        .unwrap_err();
    assert!(error.message().contains(digest.as_str()), "{error}");
    assert!(store.content().contains(&Digest::sha256_of(b"layer")));
    // It can still be removed, and then the way is free.
    let reply = registry.delete(&format!("/v2/a/manifests/{digest}")).await;
    assert_eq!(reply.status, StatusCode::ACCEPTED);
    assert_eq!(collect(&registry, false).await.0, 3);
}

#[tokio::test]
async fn abandoned_uploads_expire_and_young_ones_do_not() {
    let registry = Fixture::new();
    let location = registry.begin("a").await;
    registry.send(Method::PATCH, &location, &[], "data").await;
    let uploads = &registry.registry.uploads;
    assert_eq!(uploads.expire(Duration::from_secs(3600)).await.unwrap(), 0);
    assert_eq!(registry.get(&location).await.status, StatusCode::NO_CONTENT);
    assert_eq!(uploads.expire(Duration::ZERO).await.unwrap(), 1);
    registry
        .get(&location)
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(uploads.count().unwrap(), 0);
    assert!(
        registry
            .registry
            .store
            .content()
            .list_ingests()
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn the_administration_lists_counts_and_deletes() {
    let registry = Fixture::new();
    registry.image("a", "v1", b"layer").await;
    registry.image("a", "v2", b"layer").await;
    registry.image("a/b", "v1", b"layer").await;
    registry.begin("a").await;
    let admin = administration(&registry);

    let status = admin
        .status(Call::new(wire::StatusRequest::default()))
        .await
        .unwrap();
    let status = status.into_inner();
    assert_eq!(
        (status.repositories, status.blobs, status.uploads),
        (2, 3, 1)
    );
    let list = wire::ListRepositoriesRequest {
        page_size: 1,
        after: String::new(),
    };
    let page = admin
        .list_repositories(Call::new(list))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((page.repositories, page.more), (vec!["a".to_owned()], true));
    let list = wire::ListTagsRequest {
        repository: "a".to_owned(),
        page_size: 0,
        after: "v1".to_owned(),
    };
    let page = admin.list_tags(Call::new(list)).await.unwrap().into_inner();
    assert_eq!((page.tags, page.more), (vec!["v2".to_owned()], false));

    let gone = wire::DeleteRepositoryRequest {
        repository: "a".to_owned(),
    };
    admin
        .delete_repository(Call::new(gone.clone()))
        .await
        .unwrap();
    registry
        .get("/v2/a/manifests/v1")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    let below = registry.get("/v2/a/b/manifests/v1").await;
    assert_eq!(below.status, StatusCode::OK);
    let error = admin.delete_repository(Call::new(gone)).await.unwrap_err();
    let fault = Fault::from_status(&error);
    assert_eq!(error.code(), tonic::Code::NotFound);
    assert!(fault.is("NAME_UNKNOWN"));
    assert_eq!(fault.metadata["repository"], "a");
    let bad = wire::DeleteManifestRequest {
        repository: "A".to_owned(),
        reference: "v1".to_owned(),
    };
    let error = admin.delete_manifest(Call::new(bad)).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
}
