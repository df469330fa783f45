//! Registries that want to know who connects, and are looked at themselves.

use gantry_image::config::Config;
use gantry_image::error::ImageError;
use gantry_image::registry_client::{HostConfig, OneOrMany, RegistryError};

use crate::archive::Archive;
use crate::fixture::{Fixture, TestLayer, config, publish};
use crate::proxy::{mutual_tls, pem};
use crate::registry::Registry;

fn with_table(host: &str, table: HostConfig) -> Fixture {
    Fixture::with(Config {
        registry: [(host.to_owned(), table)].into(),
        ..config()
    })
}

fn layer() -> TestLayer {
    TestLayer::gzip(Archive::new().file("f", b"x").finish())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_a_certificate_is_shown_ours() {
    let registry = Registry::start().await;
    publish(&registry, "v1", &[layer()]);
    let host = mutual_tls(&registry.host).await;
    let reference = format!("{host}/x:v1");
    let trusting = HostConfig {
        ca: OneOrMany(vec![pem("stranger.pem"), pem("ca.pem")]),
        ..HostConfig::default()
    };
    // Without, and with one that nobody there knows.
    let error = with_table(&host, trusting.clone())
        .pull(&reference)
        .await
        .unwrap_err();
    assert!(
        matches!(error, ImageError::Registry(ref e) if e.to_string().contains(&host)),
        "{error:?}"
    );
    let stranger = HostConfig {
        client_cert: Some(pem("stranger.pem")),
        client_key: Some(pem("stranger.key")),
        ..trusting.clone()
    };
    with_table(&host, stranger)
        .pull(&reference)
        .await
        .unwrap_err();
    let known = HostConfig {
        client_cert: Some(pem("client.pem")),
        client_key: Some(pem("client.key")),
        ..trusting
    };
    with_table(&host, known.clone())
        .pull(&reference)
        .await
        .unwrap();
    // Who the registry is counts as well.
    let unknowing = HostConfig {
        ca: OneOrMany(vec![pem("stranger.pem")]),
        ..known
    };
    let error = with_table(&host, unknowing)
        .pull(&reference)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Registry(RegistryError::Unreachable { .. })
        ),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn other_engines_directories_say_whom_to_trust_and_who_we_are() {
    let registry = Registry::start().await;
    publish(&registry, "v1", &[layer()]);
    let host = mutual_tls(&registry.host).await;
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join(&host);
    std::fs::create_dir(&own).unwrap();
    // Of two certificates the one is shown that the registry's authority signed.
    for (from, to) in [
        ("ca.pem", "ca.crt"),
        ("stranger.pem", "a.cert"),
        ("stranger.key", "a.key"),
        ("client.pem", "client.cert"),
        ("client.key", "client.key"),
    ] {
        std::fs::copy(pem(from), own.join(to)).unwrap();
    }
    let fixture = Fixture::with(Config {
        certs_dirs: vec![directory.path().to_owned()],
        ..config()
    });
    fixture.pull(&format!("{host}/x:v1")).await.unwrap();

    // The same as a mirror of another registry, in containerd's words, read anew.
    let elsewhere = directory.path().join("registry.invalid");
    std::fs::create_dir(&elsewhere).unwrap();
    let files = pem("");
    let text = format!(
        r#"
[host."https://{host}"]
capabilities = ["pull", "resolve"]
ca = "{0}ca.pem"
client = [["{0}client.pem", "{0}client.key"]]
[host."https://{host}".header]
x-mirror = "yes"
"#,
        files.display()
    );
    std::fs::write(elsewhere.join("hosts.toml"), text).unwrap();
    registry.take_queries();
    fixture.pull("registry.invalid/x:v1").await.unwrap();
    let queries = registry.take_queries();
    assert!(
        queries.iter().all(|query| query == "ns=registry.invalid"),
        "{queries:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_cannot_be_used_are_named() {
    for (table, named) in [
        (
            HostConfig {
                ca: OneOrMany(vec!["/nowhere/ca.pem".into()]),
                ..HostConfig::default()
            },
            "/nowhere/ca.pem",
        ),
        (
            HostConfig {
                ca: OneOrMany(vec![pem("client.key")]),
                ..HostConfig::default()
            },
            "client.key",
        ),
        (
            HostConfig {
                client_cert: Some(pem("client.pem")),
                client_key: Some(pem("server.pem")),
                ..HostConfig::default()
            },
            "server.pem",
        ),
    ] {
        let error = with_table("r.invalid", table)
            .pull("r.invalid/x:v1")
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                ImageError::Registry(RegistryError::Certificate { .. })
            ) && error.to_string().contains(named),
            "{error:?}"
        );
    }
}
