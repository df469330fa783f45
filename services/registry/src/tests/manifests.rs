use gantry_oci::Algorithm;

use super::*;

#[tokio::test]
async fn a_manifest_comes_back_byte_for_byte_by_tag_and_digest() {
    let registry = Fixture::new();
    let digest = registry.image("a/b", "v1", b"layer").await;
    let registry = registry.restarted();
    for reference in ["v1", digest.as_str()] {
        let path = format!("/v2/a/b/manifests/{reference}");
        let reply = registry.get(&path).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(reply.body, manifest(b"layer", ""));
        assert_eq!(reply.header("docker-content-digest"), digest.as_str());
        assert_eq!(
            reply.header("content-type"),
            MediaType::OciManifest.as_str()
        );
        let head = registry.send(Method::HEAD, &path, &[], Body::empty()).await;
        assert_eq!(head.status, StatusCode::OK);
        assert_eq!(head.header("content-length"), reply.body.len().to_string());
    }
}

#[tokio::test]
async fn a_tag_moves_to_the_manifest_pushed_last() {
    let registry = Fixture::new();
    let first = registry.image("a", "latest", b"one").await;
    let second = registry.image("a", "latest", b"two").await;
    let reply = registry.get("/v2/a/manifests/latest").await;
    assert_eq!(reply.header("docker-content-digest"), second.as_str());
    let reply = registry.get(&format!("/v2/a/manifests/{first}")).await;
    assert_eq!(reply.status, StatusCode::OK);
}

#[tokio::test]
async fn a_manifest_whose_parts_are_missing_is_refused_with_their_digests() {
    let registry = Fixture::new();
    registry.push("a", b"{}").await;
    // It is in the registry, but not in this repository.
    registry.push("b", b"layer").await;
    let text = manifest(b"layer", "");
    let reply = registry
        .put("a", "v1", &MediaType::OciManifest, &text)
        .await;
    reply.refused(404, "MANIFEST_BLOB_UNKNOWN");
    let missing = Digest::sha256_of(b"layer");
    assert_eq!(
        reply.json()["errors"][0]["detail"]["digests"][0],
        missing.as_str()
    );
    registry
        .get("/v2/a/manifests/v1")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn manifests_that_lie_are_refused() {
    let registry = Fixture::new();
    registry.image("a", "good", b"layer").await;
    let good = manifest(b"layer", "");
    let kind = MediaType::OciManifest;
    let wrong_size = good.replace("\"size\":5", "\"size\":6");
    let reply = registry.put("a", "v1", &kind, &wrong_size).await;
    reply.refused(400, "MANIFEST_INVALID");
    let reply = registry
        .put("a", "v1", &MediaType::DockerManifest, &good)
        .await;
    reply.refused(400, "MANIFEST_INVALID");
    let other = Digest::sha256_of(b"other");
    let reply = registry.put("a", other.as_str(), &kind, &good).await;
    reply.refused(400, "DIGEST_INVALID");
    for text in ["", "[]", "{}", "null", "\0"] {
        let reply = registry.put("a", "v1", &kind, text).await;
        reply.refused(400, "MANIFEST_INVALID");
    }
    let schema1 = MediaType::DockerSchema1Signed;
    let reply = registry
        .put("a", "v1", &schema1, "{\"schemaVersion\":1}")
        .await;
    reply.refused(400, "MANIFEST_INVALID");
    let huge = " ".repeat((4 << 20) + 1);
    let reply = registry.put("a", "v1", &kind, &huge).await;
    reply.refused(413, "MANIFEST_INVALID");
    registry
        .get("/v2/a/manifests/v1")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn names_and_tags_that_are_not_valid_are_refused() {
    let registry = Fixture::new();
    let kind = MediaType::OciManifest;
    let put = async |name, tag: &str| registry.put(name, tag, &kind, "{}").await;
    put("UPPER", "v1").await.refused(400, "NAME_INVALID");
    put("a", ".hidden").await.refused(400, "MANIFEST_INVALID");
    put("a", &"t".repeat(129))
        .await
        .refused(400, "MANIFEST_INVALID");
    registry
        .get("/v2/a/manifests/.x")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    let reply = registry.get("/v2/a/manifests/sha256:12").await;
    reply.refused(400, "DIGEST_INVALID");
    registry
        .get("/v2/nothing/at/all")
        .await
        .refused(404, "UNSUPPORTED");
    let reply = registry
        .send(Method::POST, "/v2/", &[], Body::empty())
        .await;
    reply.refused(405, "UNSUPPORTED");
    assert_eq!(reply.header("allow"), "GET, HEAD");
}

#[tokio::test]
async fn docker_manifests_and_lists_are_kept_as_they_are() {
    let registry = Fixture::new();
    let config = registry.push("a", b"{}").await;
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","size":2,"digest":"{config}"}},"layers":[]}}"#,
        MediaType::DockerManifest,
        MediaType::DockerConfig
    );
    let reply = registry
        .put("a", "v1", &MediaType::DockerManifest, &text)
        .await;
    assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
    let digest = Digest::sha256_of(text.as_bytes());
    let list = |digest: &Digest| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{{"mediaType":"{}","size":{},"digest":"{digest}","platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
            MediaType::DockerManifestList,
            MediaType::DockerManifest,
            text.len()
        )
    };
    let kind = MediaType::DockerManifestList;
    let reply = registry.put("a", "list", &kind, &list(&digest)).await;
    assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
    let reply = registry.get("/v2/a/manifests/list").await;
    assert_eq!(reply.header("content-type"), kind.as_str());
    let reply = registry.put("a", "list", &kind, &list(&config)).await;
    reply.refused(400, "MANIFEST_INVALID");
    let missing = Digest::sha256_of(b"missing");
    let reply = registry.put("a", "list", &kind, &list(&missing)).await;
    reply.refused(404, "MANIFEST_BLOB_UNKNOWN");
}

#[tokio::test]
async fn a_push_by_digest_may_set_many_tags_and_use_sha512() {
    let registry = Fixture::new();
    registry.image("a", "v0", b"layer").await;
    let text = manifest(b"layer", "");
    let digest = Digest::of(Algorithm::Sha512, text.as_bytes());
    let reference = format!("{digest}?tag=v1&tag=v2");
    let reply = registry
        .put("a", &reference, &MediaType::OciManifest, &text)
        .await;
    assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
    assert_eq!(reply.header("oci-tag"), "v1, v2");
    let reply = registry.get("/v2/a/manifests/v2").await;
    assert_eq!(reply.header("docker-content-digest"), digest.as_str());
    assert_eq!(reply.body, text);
}

#[tokio::test]
async fn deleting_a_manifest_takes_its_tags_and_deleting_a_tag_leaves_the_manifest() {
    let registry = Fixture::new();
    let digest = registry.image("a", "v1", b"layer").await;
    registry.image("a", "v2", b"layer").await;
    registry.image("a", "other", b"else").await;
    let reply = registry.delete("/v2/a/manifests/v1").await;
    assert_eq!(reply.status, StatusCode::ACCEPTED);
    registry
        .get("/v2/a/manifests/v1")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    let path = format!("/v2/a/manifests/{digest}");
    assert_eq!(registry.get(&path).await.status, StatusCode::OK);
    assert_eq!(registry.delete(&path).await.status, StatusCode::ACCEPTED);
    registry.get(&path).await.refused(404, "MANIFEST_UNKNOWN");
    registry
        .get("/v2/a/manifests/v2")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    registry
        .delete(&path)
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    let reply = registry.get("/v2/a/tags/list").await;
    assert_eq!(reply.json()["tags"], serde_json::json!(["other"]));
}

#[tokio::test]
async fn nothing_is_deleted_where_deletion_is_disabled() {
    let registry = Fixture::with(Config {
        delete_enabled: false,
        ..Config::default()
    });
    let digest = registry.image("a", "v1", b"layer").await;
    let layer = Digest::sha256_of(b"layer");
    for path in [
        "/v2/a/manifests/v1".to_owned(),
        format!("/v2/a/manifests/{digest}"),
        format!("/v2/a/blobs/{layer}"),
    ] {
        registry.delete(&path).await.refused(405, "UNSUPPORTED");
        assert_eq!(registry.get(&path).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn foreign_layers_need_not_be_here() {
    let registry = Fixture::new();
    registry.push("a", b"{}").await;
    let text = manifest(b"far away", "").replace(
        &format!("\"mediaType\":\"{}\"", MediaType::OciLayer),
        &format!(
            "\"urls\":[\"https://example.com/x\"],\"mediaType\":\"{}\"",
            MediaType::OciForeignLayer
        ),
    );
    let reply = registry
        .put("a", "v1", &MediaType::OciManifest, &text)
        .await;
    assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
}

#[tokio::test]
async fn what_the_engine_pushed_is_kept_from_the_network() {
    let registry = Fixture::with(Config::default());
    let (first, second) = (manifest(b"one", ""), manifest(b"two", ""));
    for blob in [&b"{}"[..], b"one", b"two"] {
        registry.push("a", blob).await;
    }
    let kind = MediaType::OciManifest;
    let put = async |side, tag: &str, text: &str| {
        let path = format!("/v2/a/manifests/{tag}");
        let headers = [("content-type", kind.as_str())];
        registry
            .send_from(side, Method::PUT, &path, &headers, text.to_owned())
            .await
    };
    let delete = async |side, path: &str| {
        registry
            .send_from(side, Method::DELETE, path, &[], Body::empty())
            .await
    };
    let created = StatusCode::CREATED;
    assert_eq!(put(Side::Socket, "v1", &first).await.status, created);
    assert_eq!(put(Side::Network, "v2", &first).await.status, created);
    // The same again is nothing new; something else is.
    assert_eq!(put(Side::Network, "v1", &first).await.status, created);
    put(Side::Network, "v1", &second)
        .await
        .refused(403, "DENIED");
    let several = "/v2/a/manifests/v3?tag=v1".replace("/v2/a/manifests/", "");
    put(Side::Network, &several, &second)
        .await
        .refused(403, "DENIED");
    registry
        .get("/v2/a/manifests/v3")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    assert_eq!(put(Side::Network, "v2", &second).await.status, created);
    let digest = Digest::sha256_of(first.as_bytes());
    for path in ["v1", "v2", digest.as_str()] {
        let path = format!("/v2/a/manifests/{path}");
        delete(Side::Network, &path)
            .await
            .refused(405, "UNSUPPORTED");
    }
    let reply = registry.get("/v2/a/manifests/v1").await;
    assert_eq!(reply.header("docker-content-digest"), digest.as_str());
    // The engine itself may, and what it took away is anybody's again.
    assert_eq!(put(Side::Socket, "v1", &second).await.status, created);
    let deleted = delete(Side::Socket, "/v2/a/manifests/v1").await;
    assert_eq!(deleted.status, StatusCode::ACCEPTED);
    assert_eq!(put(Side::Network, "v1", &first).await.status, created);
    assert_eq!(put(Side::Network, "v1", &second).await.status, created);
}
