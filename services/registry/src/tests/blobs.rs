use gantry_oci::Algorithm;

use super::*;

#[tokio::test]
async fn a_blob_pushed_at_once_can_be_pulled_whole_and_in_parts() {
    let registry = Fixture::new();
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let digest = registry.push("a/b", &content).await;
    let path = format!("/v2/a/b/blobs/{digest}");

    let whole = registry.get(&path).await;
    assert_eq!(whole.status, StatusCode::OK);
    assert_eq!(whole.body, content);
    assert_eq!(whole.header("docker-content-digest"), digest.as_str());
    assert_eq!(whole.header("content-length"), "3000000");

    let head = registry.send(Method::HEAD, &path, &[], Body::empty()).await;
    assert_eq!(head.header("content-length"), "3000000");

    let headers = [("range", "bytes=1000000-1999999")];
    let part = registry
        .send(Method::GET, &path, &headers, Body::empty())
        .await;
    assert_eq!(part.status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(
        part.header("content-range"),
        "bytes 1000000-1999999/3000000"
    );
    assert_eq!(part.body, content[1_000_000..2_000_000]);

    let headers = [("range", "bytes=3000000-")];
    let beyond = registry
        .send(Method::GET, &path, &headers, Body::empty())
        .await;
    beyond.refused(416, "RANGE_INVALID");
    assert_eq!(beyond.header("content-range"), "bytes */3000000");

    let etag = whole.header("etag").to_owned();
    let headers = [("if-none-match", etag.as_str())];
    let cached = registry
        .send(Method::GET, &path, &headers, Body::empty())
        .await;
    assert_eq!(cached.status, StatusCode::NOT_MODIFIED);
    assert!(cached.body.is_empty());
}

#[tokio::test]
async fn an_empty_blob_is_a_blob() {
    let registry = Fixture::new();
    let digest = registry.push("a", b"").await;
    let reply = registry.get(&format!("/v2/a/blobs/{digest}")).await;
    assert_eq!((reply.status, reply.body.len()), (StatusCode::OK, 0));
}

#[tokio::test]
async fn chunks_make_a_blob_and_survive_a_restart_in_between() {
    let registry = Fixture::new();
    let digest = Digest::sha256_of(b"hello world");
    let location = registry.begin("a").await;
    let headers = [("content-range", "0-5"), ("content-length", "6")];
    let reply = registry
        .send(Method::PATCH, &location, &headers, "hello ")
        .await;
    assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");
    assert_eq!(reply.header("range"), "0-5");

    let registry = registry.restarted();
    let reply = registry.get(&location).await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    assert_eq!(reply.header("range"), "0-5");
    let headers = [("content-range", "6-10")];
    let path = format!("{location}?digest={digest}");
    let reply = registry.send(Method::PUT, &path, &headers, "world").await;
    assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
    let location = reply.header("location").to_owned();
    assert_eq!(registry.get(&location).await.body, "hello world");
    assert_eq!(registry.registry.uploads.count().unwrap(), 0);
}

#[tokio::test]
async fn what_came_before_a_chunk_broke_off_is_counted_to_the_last_byte() {
    let registry = Fixture::new();
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let location = registry.begin("a").await;
    let pieces = [
        Ok(Bytes::copy_from_slice(&content[..1_500_001])),
        Err(std::io::Error::other("the client is gone")),
    ];
    let body = Body::from_stream(futures::stream::iter(pieces));
    let reply = registry.send(Method::PATCH, &location, &[], body).await;
    assert!(!reply.status.is_success(), "{reply:?}");
    let reply = registry.get(&location).await;
    assert_eq!(reply.header("range"), "0-1500000");
    let headers = [("content-range", "1500001-2999999")];
    let rest = content[1_500_001..].to_vec();
    let reply = registry
        .send(Method::PATCH, &location, &headers, rest)
        .await;
    assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");
    let digest = Digest::sha256_of(&content);
    let path = format!("{location}?digest={digest}");
    let reply = registry.send(Method::PUT, &path, &[], Body::empty()).await;
    assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
}

#[tokio::test]
async fn a_chunk_out_of_order_is_refused_and_changes_nothing() {
    let registry = Fixture::new();
    let location = registry.begin("a").await;
    registry.send(Method::PATCH, &location, &[], "hello").await;
    for range in ["0-4", "6-10", "4-8"] {
        let headers = [("content-range", range)];
        let reply = registry
            .send(Method::PATCH, &location, &headers, "world")
            .await;
        reply.refused(416, "BLOB_UPLOAD_INVALID");
        assert_eq!(reply.header("range"), "0-4");
    }
    assert_eq!(registry.get(&location).await.header("range"), "0-4");
}

#[tokio::test]
async fn a_chunk_of_another_length_than_announced_is_refused() {
    let registry = Fixture::new();
    let location = registry.begin("a").await;
    let headers = [("content-range", "0-9")];
    let reply = registry
        .send(Method::PATCH, &location, &headers, "short")
        .await;
    reply.refused(400, "SIZE_INVALID");
    let headers = [("content-range", "5-14"), ("content-length", "5")];
    let reply = registry
        .send(Method::PATCH, &location, &headers, "short")
        .await;
    reply.refused(400, "SIZE_INVALID");
    assert_eq!(registry.get(&location).await.header("range"), "0-4");
    let headers = [("content-range", "nonsense")];
    let reply = registry
        .send(Method::PATCH, &location, &headers, "short")
        .await;
    reply.refused(400, "BLOB_UPLOAD_INVALID");
}

#[tokio::test]
async fn content_that_is_not_what_its_digest_says_is_refused_and_gone() {
    let registry = Fixture::new();
    let digest = Digest::sha256_of(b"other");
    let location = registry.begin("a").await;
    let path = format!("{location}?digest={digest}");
    let reply = registry.send(Method::PUT, &path, &[], "content").await;
    reply.refused(400, "DIGEST_INVALID");
    registry
        .get(&location)
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    let path = format!("/v2/a/blobs/uploads/?digest={digest}");
    let reply = registry.send(Method::POST, &path, &[], "content").await;
    reply.refused(400, "DIGEST_INVALID");
    assert!(registry.registry.store.content().list().unwrap().is_empty());
    assert!(
        registry
            .registry
            .store
            .content()
            .list_ingests()
            .unwrap()
            .is_empty()
    );
    assert_eq!(registry.registry.uploads.count().unwrap(), 0);
}

#[tokio::test]
async fn an_upload_without_a_valid_digest_goes_on() {
    let registry = Fixture::new();
    let location = registry.begin("a").await;
    let put = async |query: &str| {
        registry
            .send(Method::PUT, &format!("{location}{query}"), &[], "x")
            .await
    };
    put("").await.refused(400, "DIGEST_INVALID");
    put("?digest=sha256:12")
        .await
        .refused(400, "DIGEST_INVALID");
    put("?digest=md5:d41d8cd98f00b204e9800998ecf8427e")
        .await
        .refused(400, "DIGEST_INVALID");
    let digest = Digest::sha256_of(b"x");
    let reply = put(&format!("?digest={digest}")).await;
    assert_eq!(reply.status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_cancelled_upload_is_gone() {
    let registry = Fixture::new();
    let location = registry.begin("a").await;
    registry.send(Method::PATCH, &location, &[], "data").await;
    let reply = registry.delete(&location).await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    registry
        .get(&location)
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    registry
        .delete(&location)
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
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
async fn an_upload_belongs_to_its_repository() {
    let registry = Fixture::new();
    let location = registry.begin("mine").await;
    let other = location.replace("/mine/", "/yours/");
    registry
        .get(&other)
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    let reply = registry.send(Method::PATCH, &other, &[], "x").await;
    reply.refused(404, "BLOB_UPLOAD_UNKNOWN");
    let reply = registry
        .get("/v2/mine/blobs/uploads/%2e%2e%2fcontent")
        .await;
    assert!(reply.status.is_client_error(), "{reply:?}");
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_what_came_to_be_resumed() {
    let registry = Fixture::new();
    let location = registry.begin("a").await;
    let pieces = [
        Ok(Bytes::from_static(b"hello ")),
        Err(std::io::Error::other("the cable was pulled")),
    ];
    let broken = Body::from_stream(futures::stream::iter(pieces));
    let reply = registry.send(Method::PATCH, &location, &[], broken).await;
    reply.refused(400, "BLOB_UPLOAD_INVALID");
    assert_eq!(registry.get(&location).await.header("range"), "0-5");
    let path = format!("{location}?digest={}", Digest::sha256_of(b"hello world"));
    let reply = registry.send(Method::PUT, &path, &[], "world").await;
    assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
}

#[tokio::test]
async fn requests_for_one_upload_take_turns_even_when_a_client_goes_away() {
    let registry = Fixture::new();
    let location = registry.begin("a").await;
    let (feed, body) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(body);
    let mut first =
        Box::pin(registry.send(Method::PATCH, &location, &[], Body::from_stream(stream)));
    // The channel has room for one piece: when the second is in, the first is being received.
    let feeding = async {
        for piece in ["one ", "two "] {
            feed.send(Ok(Bytes::from(piece))).await.unwrap();
        }
    };
    tokio::select! {
        reply = first.as_mut() => panic!("answered before the end: {reply:?}"),
        () = feeding => {}
    }
    drop(first);
    let second = registry.send(Method::PATCH, &location, &[], "three");
    let (second, ()) = tokio::join!(second, async { drop(feed) });
    assert_eq!(second.header("range"), "0-12", "{second:?}");
}

#[tokio::test]
async fn the_same_blob_may_be_pushed_by_many_at_once() {
    let registry = Fixture::new();
    let content = vec![7_u8; 2_500_000];
    let pushes = (0..8).map(|n| {
        let (registry, content) = (&registry, &content);
        async move { registry.push(&format!("repository{n}"), content).await }
    });
    futures::future::join_all(pushes).await;
    let digest = Digest::sha256_of(&content);
    for n in 0..8 {
        let reply = registry
            .get(&format!("/v2/repository{n}/blobs/{digest}"))
            .await;
        assert_eq!(reply.body, content);
    }
    assert_eq!(registry.registry.store.content().list().unwrap().len(), 1);
}

#[tokio::test]
async fn a_blob_is_mounted_where_it_is_and_uploaded_where_it_is_not() {
    let registry = Fixture::new();
    let digest = registry.push("from", b"shared").await;
    let mount = async |query: String| {
        let path = format!("/v2/to/blobs/uploads/?{query}");
        registry.send(Method::POST, &path, &[], Body::empty()).await
    };
    registry
        .get(&format!("/v2/to/blobs/{digest}"))
        .await
        .refused(404, "BLOB_UNKNOWN");
    let reply = mount(format!("mount={digest}&from=nowhere")).await;
    assert_eq!(reply.status, StatusCode::ACCEPTED);
    assert!(reply.header("location").contains("/uploads/"));
    let reply = mount(format!("mount={digest}&from=from")).await;
    assert_eq!(reply.status, StatusCode::CREATED);
    assert_eq!(reply.header("docker-content-digest"), digest.as_str());
    let reply = registry.get(&format!("/v2/to/blobs/{digest}")).await;
    assert_eq!(reply.body, "shared");
    let other = Digest::sha256_of(b"nobody has this");
    let reply = mount(format!("mount={other}")).await;
    assert_eq!(reply.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn blobs_may_be_named_by_sha512() {
    let registry = Fixture::new();
    let digest = Digest::of(Algorithm::Sha512, b"long");
    for announce in ["", "?digest-algorithm=sha512"] {
        let path = format!("/v2/a/blobs/uploads/{announce}");
        let reply = registry.send(Method::POST, &path, &[], Body::empty()).await;
        let path = format!("{}?digest={digest}", reply.header("location"));
        let reply = registry.send(Method::PUT, &path, &[], "long").await;
        assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
    }
    let reply = registry.get(&format!("/v2/a/blobs/{digest}")).await;
    assert_eq!(reply.body, "long");
    let path = "/v2/a/blobs/uploads/?digest-algorithm=md5";
    let reply = registry.send(Method::POST, path, &[], Body::empty()).await;
    reply.refused(400, "DIGEST_INVALID");
}

#[tokio::test]
async fn a_blob_is_deleted_from_one_repository_only() {
    let registry = Fixture::new();
    let digest = registry.push("a", b"x").await;
    registry.push("b", b"x").await;
    let path = format!("/v2/a/blobs/{digest}");
    assert_eq!(registry.delete(&path).await.status, StatusCode::ACCEPTED);
    registry.get(&path).await.refused(404, "BLOB_UNKNOWN");
    registry.delete(&path).await.refused(404, "BLOB_UNKNOWN");
    let reply = registry.get(&format!("/v2/b/blobs/{digest}")).await;
    assert_eq!(reply.body, "x");
}
