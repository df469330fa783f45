use super::*;

/// Follows the links of a list and gathers what is under `key`.
async fn follow(registry: &Fixture, path: &str, key: &str) -> (Vec<String>, usize) {
    let mut found = Vec::new();
    let mut next = Some(path.to_owned());
    let mut pages = 0;
    while let Some(path) = next {
        let reply = registry.get(&path).await;
        assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
        for entry in reply.json()[key].as_array().unwrap() {
            found.push(entry.as_str().unwrap_or_default().to_owned());
        }
        next = reply.headers.get("link").map(|link| {
            let link = link.to_str().unwrap();
            assert!(link.ends_with("rel=\"next\""), "{link}");
            link[1..link.find('>').unwrap()].to_owned()
        });
        pages += 1;
        assert!(pages < 100, "the links do not end");
    }
    (found, pages)
}

#[tokio::test]
async fn tags_are_sorted_and_paged() {
    let registry = Fixture::new();
    for tag in ["b", "A", "c", "1.0", "a"] {
        registry.image("a", tag, b"layer").await;
    }
    let sorted = ["1.0", "A", "a", "b", "c"];
    let (tags, pages) = follow(&registry, "/v2/a/tags/list", "tags").await;
    assert_eq!((tags.as_slice(), pages), (&sorted.map(String::from)[..], 1));
    let (tags, pages) = follow(&registry, "/v2/a/tags/list?n=2", "tags").await;
    assert_eq!((tags.as_slice(), pages), (&sorted.map(String::from)[..], 3));
    let reply = registry.get("/v2/a/tags/list?n=0").await;
    assert_eq!(reply.json()["tags"], serde_json::json!([]));
    assert!(!reply.headers.contains_key("link"));
    let reply = registry.get("/v2/a/tags/list?last=a").await;
    assert_eq!(reply.json()["tags"], serde_json::json!(["b", "c"]));
    // Any text may be the last one seen; it need not exist any more.
    let reply = registry.get("/v2/a/tags/list?last=aa&n=1").await;
    assert_eq!(reply.json()["tags"], serde_json::json!(["b"]));
    registry
        .get("/v2/a/tags/list?n=x")
        .await
        .refused(400, "PAGINATION_NUMBER_INVALID");
    registry
        .get("/v2/none/tags/list")
        .await
        .refused(404, "NAME_UNKNOWN");
}

#[tokio::test]
async fn the_catalogue_has_every_repository_with_a_manifest() {
    let registry = Fixture::new();
    for name in ["b", "a/b/c", "a", "a-b"] {
        registry.image(name, "v1", b"layer").await;
    }
    registry.push("only/a/blob", b"x").await;
    let sorted = ["a", "a-b", "a/b/c", "b"].map(String::from);
    let (names, pages) = follow(&registry, "/v2/_catalog?n=3", "repositories").await;
    assert_eq!((names.as_slice(), pages), (&sorted[..], 2));
}

#[tokio::test]
async fn a_search_finds_names_with_all_words_and_the_nearest_first() {
    let registry = Fixture::new();
    for name in ["team/web-server", "web", "team/web", "database"] {
        registry.image(name, "v1", b"layer").await;
    }
    let names = async |query: &str| {
        let reply = registry.get(&format!("/v1/search?{query}")).await;
        let body = reply.json();
        let names: Vec<String> = body["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|result| result["name"].as_str().unwrap().to_owned())
            .collect();
        (
            names,
            body["num_results"].as_u64().unwrap(),
            body["num_pages"].as_u64().unwrap(),
        )
    };
    let owned = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names("q=web").await,
        (owned(&["web", "team/web", "team/web-server"]), 3, 1)
    );
    assert_eq!(names("q=WEB+server").await.0, owned(&["team/web-server"]));
    assert_eq!(
        names("q=web&n=1&page=2").await,
        (owned(&["team/web"]), 3, 3)
    );
    assert_eq!(names("q=nothing").await, (vec![], 0, 0));
}

fn about(subject: &Digest, size: usize, kind: &str, note: &str) -> String {
    manifest(
        b"layer",
        &format!(
            r#","artifactType":"{kind}","subject":{{"mediaType":"{}","digest":"{subject}","size":{size}}},"annotations":{{"note":"{note}"}}"#,
            MediaType::OciManifest
        ),
    )
}

#[tokio::test]
async fn referrers_are_listed_filtered_and_go_with_their_manifests() {
    let registry = Fixture::new();
    let subject = Digest::sha256_of(manifest(b"layer", "").as_bytes());
    let size = manifest(b"layer", "").len();
    registry.image("a", "other", b"{}").await;
    registry.push("a", b"layer").await;
    let list = format!("/v2/a/referrers/{subject}");
    // Before the subject, and even before the repository is known, the list is empty.
    for path in [&list, &list.replace("/a/", "/unknown/")] {
        let reply = registry.get(path).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(reply.header("content-type"), MediaType::OciIndex.as_str());
        assert_eq!(reply.json()["manifests"], serde_json::json!([]));
    }
    let mut digests = Vec::new();
    for kind in ["application/x.sbom+json", "application/x.signature"] {
        let text = about(&subject, size, kind, "why");
        let digest = Digest::sha256_of(text.as_bytes());
        let reply = registry
            .put("a", digest.as_str(), &MediaType::OciManifest, &text)
            .await;
        assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
        assert_eq!(reply.header("oci-subject"), subject.as_str());
        digests.push(digest);
    }
    registry.image("a", "v1", b"layer").await;
    let registry = registry.restarted();

    let reply = registry.get(&list).await;
    assert_eq!(reply.json()["manifests"].as_array().unwrap().len(), 2);
    assert!(!reply.headers.contains_key("oci-filters-applied"));
    for query in ["application/x.sbom+json", "application%2Fx.sbom%2Bjson"] {
        let reply = registry.get(&format!("{list}?artifactType={query}")).await;
        assert_eq!(reply.header("oci-filters-applied"), "artifactType");
        let found = reply.json();
        assert_eq!(found["manifests"].as_array().unwrap().len(), 1, "{found}");
        assert_eq!(found["manifests"][0]["digest"], digests[0].as_str());
        assert_eq!(found["manifests"][0]["annotations"]["note"], "why");
    }
    for digest in &digests {
        let reply = registry.delete(&format!("/v2/a/manifests/{digest}")).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED);
    }
    let reply = registry.get(&list).await;
    assert_eq!(reply.json()["manifests"], serde_json::json!([]));
}

#[tokio::test]
async fn a_list_of_referrers_that_is_too_long_comes_in_parts() {
    let registry = Fixture::new();
    let subject = registry.image("a", "v1", b"layer").await;
    let note = "x".repeat(1 << 20);
    for n in 0..5 {
        let text = about(&subject, 1, "application/x.note", &format!("{n}{note}"));
        let reply = registry
            .put("a", &format!("n{n}"), &MediaType::OciManifest, &text)
            .await;
        assert_eq!(reply.status, StatusCode::CREATED);
    }
    let path = format!("/v2/a/referrers/{subject}?artifactType=application/x.note");
    let (found, pages) = follow(&registry, &path, "manifests").await;
    assert_eq!((found.len(), pages), (5, 3));
}

#[test]
fn codes_are_written_as_the_specification_wants_them() {
    for code in crate::error::Code::ALL {
        let text = code.as_str();
        assert!(
            text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'),
            "{text}"
        );
        assert!(code.status().is_client_error() || code.status().is_server_error());
    }
}
